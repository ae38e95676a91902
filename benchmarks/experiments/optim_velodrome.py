"""Learned optimizers on fixed tasks of others, against their curves and against tuned baselines.

A baseline has its rate searched twice over, on runs that are not reported: for each task by itself,
and one for all tasks, that of the highest interquartile mean of the speed-up over these very tasks,
which is more than an untuned optimizer can know. A learned optimizer has nothing to choose.

The published curves are smoothed, and so about 190 steps late: of 2,000 steps a tenth, which is
given to everyone here. The perceptron on Fashion-MNIST of 8x8 is in data and network a task of
Celo's meta-training, that on CIFAR-10 of 8x8 but for its colours; for `celo2-images` they are the
same but for the batches, of 64 there. `l2l-mnist` has seen MNIST at 28x28 in perceptrons with 20
units. At the small scale the task with layer normalisation is left out, which takes as long as
three others.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx
from benchmarks import velodrome
from benchmarks.reproduce import (
    Claim,
    Experiment,
    Result,
    Results,
    Settings,
    above,
    at_least,
    at_most,
    claim,
)
from benchmarks.velodrome import scores
from benchmarks.velodrome.baselines import BASELINES
from benchmarks.velodrome.tasks import TASKS, images, normalised, problem
from benchmarks.velodrome.training import Contender, Length, runner

VELO = "Metz et al. 2022, fixed tasks of VeLOdrome"
CELO = "Moudgil et al. 2025, abstract and code"
BEYOND = f"beyond {VELO}"

PUBLISHED = {"Celo": (CELO, "1.86 over Adam, 17 tasks", "1.20, 17 tasks")}

SPEED_UP = "speed-up over the published curves, IQM over tasks"
RELATIVE = "final loss of tuned Adam as a multiple of its own, IQM over tasks"
SHARED = "ImageMLP_FashionMnist8_Relu32"  # all but a task of Celo's meta-training


def _celo(rate: Any, num_steps: int) -> optax.GradientTransformation:
    del rate
    file = Path(velodrome.__file__).with_name("celo_theta.state")
    return mx.optim.celo(num_steps).tx(mx.pretrained.read(file, format="celo"))


def _l2l_mnist(rate: Any, num_steps: int) -> optax.GradientTransformation:
    del rate, num_steps
    return mx.pretrained.load("l2l-mnist")


def _celo2_images(rate: Any, num_steps: int) -> optax.GradientTransformation:
    del rate
    return mx.pretrained.load("celo2-images")(num_steps)


OURS = "celo2-images"
ADAMW = "AdamW"
LEARNED = {
    OURS: Contender(_celo2_images),
    "Celo": Contender(_celo),
    "l2l-mnist": Contender(_l2l_mnist),
}


def one_rate(name: str) -> str:
    """A baseline's name with one rate for all tasks."""
    return f"{name}, one rate"


def names(settings: Settings) -> list[str]:
    """All that are compared."""
    baselines = list(settings["rates"])
    return [*LEARNED, *baselines, *map(one_rate, baselines)]


def run(seed: int, settings: Settings, folder: Path) -> Result:
    search_key, key = jax.random.key(2 * seed), jax.random.key(2 * seed + 1)
    posed = {task: _Posed(task, settings, folder) for task in settings["tasks"]}
    results: Result = {}
    searched = {}
    for task, runs in posed.items():
        for name in LEARNED:
            results[f"{task}, {name}"] = runs.ends(name, 0.0, key, "learned")
        for name, rates in settings["rates"].items():
            losses = runs.losses(name, rates, search_key, "search")
            searched[task, name] = losses
            rate = rates[_lowest(losses[:, -1])]
            results[f"{task}, {name}: rate"] = np.asarray(rate)
            results[f"{task}, {name}"] = runs.ends(name, rate, key, "tuned")
        adam = _smoothed(searched[task, "Adam"], settings["every"])
        results[f"{task}: smoothed Adam"] = adam
        print(_text(task, results, settings), flush=True)
        runs.forget()

    for name in settings["rates"]:
        rate = _rate_for_all(searched, name, settings)
        results[f"{name}: rate"] = np.asarray(rate)
        print(f"{name}: {rate} for all tasks", flush=True)
    for task, runs in posed.items():
        for name in settings["rates"]:
            rate = float(results[f"{name}: rate"])
            ends = results[f"{task}, {name}"]
            if rate != results[f"{task}, {name}: rate"]:
                ends = runs.ends(name, rate, key, "one rate")
            results[f"{task}, {one_rate(name)}"] = ends
        runs.forget()
    return results


class _Posed:
    """A task, and the runs on it that are done."""

    def __init__(self, name: str, settings: Settings, folder: Path):
        self.name = name
        self.folder = folder
        self.length = Length(
            settings["steps"],
            settings["every"],
            settings["batches"],
            settings["last"],
        )
        task = TASKS[name]
        if settings["data"] is not None:
            task = task._replace(data=settings["data"])
        self.task = task
        self.forget()

    def forget(self) -> None:
        """The data and what is compiled: memory is for the next task."""
        self._data: Any = None
        self._runners: dict[str, Any] = {}

    def ends(
        self,
        name: str,
        rate: float,
        key: Any,
        purpose: str,
    ) -> np.ndarray:
        """The losses before and after a run, ``[2]``."""
        [losses] = self.losses(name, [rate], key, purpose)
        return losses[[0, -1]]

    def losses(
        self,
        name: str,
        rates: Sequence[float],
        key: Any,
        purpose: str,
    ) -> np.ndarray:
        """Those of the runs at each of the rates, ``[rates, steps / every + 1]``."""
        file = self.folder / f"{self.name}, {name}, {purpose}.npy"
        if file.exists():
            return np.load(file)

        at_rate = self._runner(name)
        losses = []
        for rate in rates:
            found = at_rate(jax.random.clone(key), jnp.float32(rate), self._data)
            losses.append(np.asarray(found))
        stacked = np.stack(losses)

        part = file.with_suffix(".part.npy")
        np.save(part, stacked)
        part.rename(file)
        return stacked

    def _runner(self, name: str) -> Any:
        if self._data is None:
            self._data = jax.tree.map(jnp.asarray, images(self.task))
        if name not in self._runners:
            self._runners[name] = runner(
                problem(self.task),
                self.task.batch,
                (LEARNED | BASELINES)[name],
                self.length,
            )
        return self._runners[name]


def _lowest(losses: np.ndarray) -> int:
    return int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))


def _rate_for_all(searched: Any, name: str, settings: Settings) -> float:
    """The rate with which the speed-up is best over all tasks."""
    curves = scores.published()
    rates = settings["rates"][name]
    found = np.zeros((len(rates), len(settings["tasks"])))
    for j, task in enumerate(settings["tasks"]):
        for i, losses in enumerate(searched[task, name]):
            found[i, j] = scores.speed_up(curves[task], losses[-1], settings["steps"])
    best = np.argmax([scores.iqm(of_rate) for of_rate in found])
    return rates[int(best)]


def _smoothed(losses: np.ndarray, every: int) -> np.ndarray:
    """Smoothed as the published curves are, and at their steps: ``[rates, steps]``."""
    there = every * np.arange(losses.shape[1])
    at = scores.steps()
    at = at[at <= there[-1]]
    return np.stack([np.interp(at, there, one) for one in scores.smoothed(losses)])


def _text(task: str, results: Result, settings: Settings) -> str:
    """What has come out on a task."""
    curve = scores.published()[task]
    lines = [task]
    for name in [*LEARNED, *settings["rates"]]:
        loss = results[f"{task}, {name}"][-1]
        gain = scores.speed_up(curve, loss, settings["steps"])
        capped = float(normalised(TASKS[task], loss))
        text = f"loss {loss:.4g}, normalised {capped:.4g}, speed-up {gain:.3g}"
        if name in settings["rates"]:
            rates = settings["rates"][name]
            rate = float(results[f"{task}, {name}: rate"])
            edge = ", an edge" if rate in (rates[0], rates[-1]) else ""
            text += f", rate {rate}{edge}"
        lines.append(f"  {name:<20} {text}")
    return "\n".join(lines)


def speed_ups(results: Results, name: str, settings: Settings) -> np.ndarray:
    """Over the published curves, ``[tasks, seeds]``."""
    curves = scores.published()

    def one(task, result):
        loss = float(result[f"{task}, {name}"][-1])
        return scores.speed_up(curves[task], loss, settings["steps"])

    return _each(one, results, settings)


def relative_losses(results: Results, name: str, settings: Settings) -> np.ndarray:
    """How many times as large the final loss of tuned Adam is, ``[tasks, seeds]``."""

    def one(task, result):
        loss = float(result[f"{task}, {name}"][-1])
        return scores.relative(loss, float(result[f"{task}, Adam"][-1]))

    return _each(one, results, settings)


def _diverged(results: Results, name: str, settings: Settings) -> np.ndarray:
    """Whether a run ended above its start, ``[tasks, seeds]``."""

    def one(task, result):
        before, after = result[f"{task}, {name}"]
        return not after <= before

    return _each(one, results, settings)


def _each(one: Any, results: Results, settings: Settings) -> np.ndarray:
    return np.array(
        [[one(task, result) for result in results] for task in settings["tasks"]]
    )


def _of_seeds(values: np.ndarray) -> list[float]:
    """The interquartile mean over tasks, of each seed."""
    return [scores.iqm(of_seed) for of_seed in values.T]


def claims(results: Results, settings: Settings) -> list[Claim]:
    tuned = list(settings["rates"])
    means = {
        name: _of_seeds(speed_ups(results, name, settings)) for name in names(settings)
    }
    found = []
    for name in LEARNED:
        source, speed, loss = PUBLISHED.get(name, (BEYOND, None, None))
        relative = _of_seeds(relative_losses(results, name, settings))
        share_diverged = _diverged(results, name, settings).mean(0)
        found += [
            claim(f"{name}: {SPEED_UP} > 1", source, speed, means[name], above(1)),
            claim(f"{name}: {RELATIVE} > 1", source, loss, relative, above(1)),
            claim(
                f"{name}: share of runs that end above their start is 0",
                source,
                None,
                share_diverged.tolist(),
                at_most(0),
            ),
        ]
        for others, how in (
            (tuned, "tuned for each task"),
            (map(one_rate, tuned), "at one rate for all tasks"),
        ):
            best = np.max([means[other] for other in others], 0)
            ahead = np.subtract(means[name], best)
            text = (
                f"{name}: IQM of its speed-up less that of the best baseline {how} > 0"
            )
            found.append(claim(text, BEYOND, None, ahead.tolist(), above(0)))

    found += _claims_of_ours(results, means, settings)
    for name in names(settings)[len(LEARNED) :]:
        text = f"{name}: {SPEED_UP} >= 1"
        found.append(claim(text, VELO, "1, the best of four", means[name], at_least(1)))
    found.append(_lowest_adam(results, settings))
    if SHARED in settings["tasks"]:
        found += [_adam_on_shared(results), _celo_on_shared(results)]
    return found


def _claims_of_ours(
    results: Results,
    means: dict[str, list[float]],
    settings: Settings,
) -> list[Claim]:
    """Against AdamW, and against the authors' weights of the rule before."""
    found = []
    if ADAMW in settings["rates"]:
        adamw = speed_ups(results, one_rate(ADAMW), settings)
        quotients = speed_ups(results, OURS, settings) / np.maximum(adamw, 1e-3)
        text = (
            f"{OURS}: speed-up over {one_rate(ADAMW)} for all tasks (the quotient of the two over "
            f"the published curves), IQM over tasks > 1.3"
        )
        found.append(claim(text, BEYOND, None, _of_seeds(quotients), above(1.3)))

    ahead = np.subtract(means[OURS], means["Celo"]).tolist()
    text = (
        f"{OURS}: IQM of its speed-up over the published curves less that of Celo > 0"
    )
    return [*found, claim(text, BEYOND, None, ahead, above(0))]


def _lowest_adam(results: Results, settings: Settings) -> Claim:
    """What is lower than a lower envelope is a mistake; losses below 0.1 are mostly noise."""
    ratios = []
    for task in settings["tasks"]:
        ours, published = _envelopes(results, task)
        ratios += (ours / published)[published > 0.1].tolist()
    return claim(
        "Adam over its rates as a multiple of the published curve, the lowest of all tasks and "
        "steps > 0.97",
        VELO,
        ">= 1",
        [min(ratios)],
        above(0.97),
    )


def _adam_on_shared(results: Results) -> Claim:
    ours, published = _envelopes(results, SHARED)
    return claim(
        f"{SHARED}: Adam over its rates as a multiple of the published curve, at the end, is "
        f"within 3 % of 1",
        VELO,
        1,
        [ours[-1] / published[-1]],
        lambda ratio: abs(ratio - 1) < 0.03,
    )


def _envelopes(results: Results, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Adam's and the published one, after the start. Seeds are averaged first, as there."""
    smoothed = np.mean([result[f"{task}: smoothed Adam"] for result in results], 0)
    ours = scores.envelope(smoothed)
    published = scores.published()[task][: len(ours)]
    return ours[1:], published[1:]


def _celo_on_shared(results: Results) -> Claim:
    """The same weights in a program of others, in NumPy, end at 0.448."""
    losses = [float(result[f"{SHARED}, Celo"][-1]) for result in results]
    return claim(
        f"{SHARED}: the final loss of Celo is within 0.02 of 0.45",
        CELO,
        0.45,
        losses,
        lambda loss: abs(loss - 0.45) <= 0.02,
    )


def picture(results: Results, settings: Settings, figure: Any) -> None:
    shown = names(settings)
    figure.set_size_inches(9, 0.8 + 0.28 * len(shown))
    left, right = figure.subplots(1, 2, sharey=True)
    panels = (
        (left, speed_ups, "speed-up over the published curves"),
        (right, relative_losses, "loss of tuned Adam / loss"),
    )
    for ax, score, label in panels:
        for i, name in enumerate(shown):
            values = score(results, name, settings)
            low, high = scores.interval(values)
            colour = mx.plot.COLOURS[1 if name in LEARNED else 2]
            mean = scores.iqm(values)
            ax.barh(
                i,
                mean,
                color=colour,
                alpha=0.4 if name.endswith("one rate") else 0.8,
            )
            ax.plot([low, high], [i, i], color="black", linewidth=1)
        ax.axvline(1, color="grey", linewidth=0.8, linestyle=":")
        ax.set(xlabel=f"{label}, IQM", yticks=range(len(shown)), yticklabels=shown)
        ax.spines[["top", "right"]].set_visible(False)
    left.invert_yaxis()


# Those of the published curves; each has seven at the small scale, around what is usual.
_RATES = [1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1]
_RATES += [0.3, 1.0]
_SEVEN = {
    "Adam": _RATES[6:13],
    "AdamW": _RATES[6:13],
    "NAdam": _RATES[6:13],
    "Lion": _RATES[4:11],
    "Muon": _RATES[7:14],
    "schedule-free AdamW": _RATES[7:14],
    "AdamW, cosine": _RATES[6:13],
    "Muon, cosine": _RATES[7:14],
}
_SMOKE = {
    "tasks": [SHARED],
    "data": "digits",  # of the same size
    "steps": 200,
    "every": 20,
    "batches": 1,
    "last": 2,
    "rates": {"Adam": [1e-3, 1e-2], "schedule-free AdamW": [1e-3, 1e-2]},
}
_SMALL = {
    "tasks": [
        SHARED,
        "ImageMLP_Cifar10_8_Relu32",
        "ImageMLP_Mnist_128x128x128_Relu",
        "ImageMLP_FashionMnist_Relu128x128",
        "ImageMLPAE_Mnist_128x32x128_bs128",
        "ImageMLPAE_FashionMnist_128x32x128_bs128",
        "ImageMLPAE_Cifar10_32x32x32_bs128",
    ],
    "data": None,
    "steps": 2000,
    "every": 10,
    "batches": 5,
    "last": 50,
    "rates": _SEVEN,
}
_FULL = {
    **_SMALL,
    "tasks": list(scores.published()),
    "steps": 10_000,
    "last": 200,
    "rates": dict.fromkeys(_SEVEN, _RATES),
}

EXPERIMENT = Experiment(
    title="Learned optimizers on fixed tasks of others, against tuned baselines",
    source=f"{VELO}; {CELO}",
    settings={"smoke": _SMOKE, "small": _SMALL, "full": _FULL},
    run=run,
    claims=claims,
    picture=picture,
)
