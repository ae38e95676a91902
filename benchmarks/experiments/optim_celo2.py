"""Celo2 meta-trained on perceptrons of 2,410 parameters that classify images of 8x8.

The recipe is the authors', at a small part of its length, and departs from it in what two cores
make it: three data sets in place of four, a narrower range of units, a meta-rate that is higher and
falls to 0. It does not begin anywhere, but near what is known to work: `near_muon`. In use, steps
are measured by the inputs of a layer, so that one rate serves narrow and wide networks.

Which snapshot is taken, and the one rate for all tasks, are chosen on tasks of other networks and
sizes, and so are the rates of the baselines, among as many and by the same runs: what is claimed of
these tasks is of what was chosen there. `optim-velodrome` is of other tasks.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx
from benchmarks.experiments import _training
from benchmarks.reproduce import (
    Claim,
    Experiment,
    Result,
    Results,
    Settings,
    above,
    at_most,
    below,
    claim,
)
from benchmarks.velodrome.baselines import BASELINES, cosine
from benchmarks.velodrome.tasks import TASKS, FixedTask, images, problem
from benchmarks.velodrome.training import Contender, Length, runner

SOURCE = "Moudgil et al. 2026, code and its README"
BEYOND = "beyond Moudgil et al. 2026"

RATE = 1e-3  # of an inner step in the units that the optimizer sees
CAP = 1.5 * math.log(10)  # of a loss that is meta-trained on
SHARED = FixedTask("mnist", 8, (32,), grey=True)  # the network of all training tasks

# Of the network's inputs: the gradient, its average by 0.9, and that whitened by rows and columns.
INPUTS = {"gradient": 0, "momentum": 3, "whitened momentum": 27}
# Of nine such directions the one with the lowest meta-loss on training tasks.
DIRECTION = {"gradient": 0.1, "momentum": 1.0, "whitened momentum": 0.5}

OURS = "Celo2"
UNTRAINED = "Celo2, before meta-training"
START = "before training"


def optimizer() -> mx.LearnedOptimizer:
    """As it is meta-trained: a constant rate, and an Adam that is not corrected for its start."""
    return mx.optim.celo2(RATE, debias=False)


def near_muon(key: Any) -> Any:
    """A network whose direction is momentum, in part whitened, and a little of the gradient.

    Made orthogonal that is Muon's, nearly. Two units of each layer carry it and its negative; what
    the others say is random, and counts for less.
    """
    first, second, last = jax.tree.map(np.array, optimizer().init(key))
    momentum = np.zeros(first["w"].shape[1], np.float32)
    for name, weight in DIRECTION.items():
        momentum[INPUTS[name]] = weight
    first["w"][:2] = momentum, -momentum
    second["w"][:2] = np.eye(8)[:2]
    last["w"] *= 0.3
    last["w"][:, :2] = 1, -1
    return jax.tree.map(jnp.asarray, [first, second, last])


def deployed(rate: Any, num_steps: int) -> mx.LearnedOptimizer:
    """As it is used: the rate rises for 5 % of the steps, and falls to 0 by a cosine."""
    schedule = cosine(rate, num_steps)
    return mx.optim.celo2(schedule, scale=mx.optim.by_fan_in, multiplier=1.0)


def training_data(settings: Settings) -> dict[str, jax.Array]:
    """Images ``[sets, M, 64]`` from 0 to 1 and labels ``[sets, M]``, as many of each set."""
    found = [images(SHARED._replace(data=name)) for name in settings["data"]]
    fewest = min(len(x["label"]) for x in found)
    flat = [x["image"][:fewest].reshape(fewest, -1) for x in found]
    labels = [x["label"][:fewest] for x in found]
    return {"image": jnp.stack(flat), "label": jnp.stack(labels)}


def training_tasks(batch: int) -> mx.Tasks:
    """A task is one of the data sets."""

    def sample(key, data):
        return jax.random.randint(key, (), 0, len(data["label"]))

    def draw(key, data, task):
        index = jax.random.randint(key, (batch,), 0, data["label"].shape[1])
        return jax.tree.map(lambda x: x[task, index], data)

    return mx.Tasks(sample, draw, draw)


def loop_of(optimizer: Any, settings: Settings) -> mx.Inner:
    """Episodes of training in units of their own, with the loss that is meta-trained on."""
    posed = mx.problems.random_scaling(
        problem(SHARED),
        training_tasks(settings["batch"]),
        spread=math.log(settings["scale"]),
        level="global",
    )
    learner = capped(mx.l2l(optimizer, posed[0]))
    return mx.inner(learner, posed[1], tuple(settings["horizon"]))


def capped(learner: mx.Learner) -> mx.Learner:
    """Its losses are at most `CAP`, which is also what stands for those that are not finite."""

    def step(key, meta_params, state, batch):
        state, loss, metrics = learner.step(key, meta_params, state, batch)
        loss = jnp.nan_to_num(loss, nan=CAP, posinf=CAP)
        return state, jnp.minimum(loss, CAP), metrics

    return replace(learner, step=step)


def run(seed: int, settings: Settings, folder: Path) -> Result:
    k_init, k_train, k_tasks, k_valid = jax.random.split(jax.random.key(seed), 4)
    data = training_data(settings)
    start = near_muon(k_init)
    snapshots = _meta_trained(k_train, start, data, settings, folder)

    result: Result = {"meta-steps": np.asarray(list(snapshots))}
    result |= _on_training_tasks(k_tasks, start, snapshots, data, settings)
    result |= _on_validation_tasks(k_valid, {0: start, **snapshots}, settings)
    return result


def _meta_trained(
    key: Any,
    meta_params: Any,
    data: Any,
    settings: Settings,
    folder: Path,
) -> dict[int, Any]:
    """The snapshots, by their meta-steps; each is kept as a file of its own."""
    steps, kept = settings["steps"], settings["snapshots"]
    rate = optax.cosine_decay_schedule(settings["rate"], steps)
    estimator = mx.pes(
        loop_of(optimizer(), settings),
        settings["pairs"],
        settings["std"],
        settings["window"],
        stagger=True,
    )
    run = _training.Run(folder / "meta-training", steps, settings["chunk"])
    snapshots = {}
    for k in range(1, kept + 1):
        until = run._replace(steps=steps * k // kept)
        file = folder / f"celo2-{until.steps}.npz"
        if not file.exists():
            fit = _training.fitted(
                estimator,
                optax.adamw(rate, weight_decay=1e-4),
                jax.random.clone(key),
                meta_params,
                data,
                until,
            )
            mx.save(file, fit.state.meta_params)
        snapshots[until.steps] = mx.load(file, meta_params)
    return snapshots


def _on_training_tasks(
    key: Any,
    start: Any,
    snapshots: dict[int, Any],
    data: Any,
    settings: Settings,
) -> Result:
    """Meta-losses on the same episodes: before, at each snapshot, and Adam's at that rate."""
    loop = loop_of(optimizer(), settings)
    adam = loop_of(lambda meta_params: optax.adam(RATE), settings)

    def meta_loss(loop, meta_params):
        fresh = jax.random.clone(key)
        number = settings["judged"]
        curves = mx.evaluate(loop, fresh, meta_params, data, num_tasks=number)
        return curves.loss.mean()

    losses = [meta_loss(loop, params) for params in (start, *snapshots.values())]
    return {
        "meta-loss": np.asarray(losses),
        "meta-loss of Adam": np.asarray(meta_loss(adam, ())),
    }


def _celo2(chosen: Any, num_steps: int) -> optax.GradientTransformation:
    rate, meta_params = chosen
    return deployed(rate, num_steps).tx(meta_params)


def _on_validation_tasks(
    key: Any,
    candidates: dict[int, Any],
    settings: Settings,
) -> Result:
    """Final losses ``[rates, tasks]`` of each contender, and those before training."""
    runs = {}
    for steps, meta_params in candidates.items():
        at_rates = [(jnp.float32(rate), meta_params) for rate in settings["rates"]]
        runs[_after(steps)] = (Contender(_celo2), at_rates)
    for name, rates in settings["rates of baselines"].items():
        runs[name] = (BASELINES[name], list(map(jnp.float32, rates)))

    losses: dict[str, list] = {}
    for name in settings["valid_tasks"]:
        task = TASKS[name]
        if settings["valid_data"] is not None:
            task = task._replace(data=settings["valid_data"])
        found = _final_losses(task, runs, key, settings["valid_steps"])
        for contender, of_task in found.items():
            losses.setdefault(f"{contender}: losses", []).append(of_task)

    result = {name: np.stack(x, -1) for name, x in losses.items()}
    chosen = min(candidates, key=lambda n: _mean_log(_best(result, _after(n))))
    result["chosen"] = np.asarray(chosen)
    result[f"{UNTRAINED}: losses"] = result[f"{_after(0)}: losses"]
    result[f"{OURS}: losses"] = result[f"{_after(chosen)}: losses"]
    return result


def _after(steps: int) -> str:
    return f"{OURS}, {steps} meta-steps"


def _final_losses(
    task: FixedTask,
    runs: dict[str, tuple[Contender, Any]],
    key: Any,
    num_steps: int,
) -> Result:
    """For each contender, after a run with each of its rates; and before it."""
    data = jax.tree.map(jnp.asarray, images(task))
    length = Length(num_steps, every=num_steps, batches=1, last=20)
    found: Result = {}
    for name, (contender, rates) in runs.items():
        run = runner(problem(task), task.batch, contender, length)
        ends = [run(jax.random.clone(key), rate, data) for rate in rates]
        before, after = np.stack(ends).T
        found[START] = before[0]
        found[name] = after
        print(f"{task}, {name}: {after.min():.4g}", flush=True)
    return found


def _best(result: Result, name: str) -> np.ndarray:
    """Final losses ``[tasks]`` at the rate at which their geometric mean is lowest."""
    losses = result[f"{name}: losses"]
    return min(losses, key=_mean_log)


def _mean_log(losses: np.ndarray) -> float:
    """Over tasks; infinite if one is not finite."""
    return float(np.where(np.isfinite(losses), np.log(losses), np.inf).mean())


def _ratio(result: Result, name: str, other: str) -> float:
    """The geometric mean over tasks of the other's final loss over that of ``name``."""
    ours, theirs = _best(result, name), _best(result, other)
    return float(np.exp(_mean_log(theirs) - _mean_log(ours)))


def claims(results: Results, settings: Settings) -> list[Claim]:
    gain = [result["meta-loss"][-1] / result["meta-loss"][0] for result in results]
    adam = [r["meta-loss"][-1] / r["meta-loss of Adam"] for r in results]
    found = [
        claim(
            "meta-loss as a multiple of that before meta-training < 1",
            SOURCE,
            None,
            gain,
            below(1),
        ),
        claim(
            "meta-loss as a multiple of Adam's at the same rate, on the same episodes < 1 "
            "(vectors have 20 times that rate under Celo2)",
            SOURCE,
            None,
            adam,
            below(1),
        ),
    ]
    for other in (UNTRAINED, *settings["rates of baselines"]):
        ratios = [_ratio(result, OURS, other) for result in results]
        text = (
            f"validation tasks, one rate for all: final loss of {other} as a multiple of ours, "
            f"geometric mean > 1"
        )
        found.append(claim(text, BEYOND, None, ratios, above(1)))
    found.append(
        claim(
            "validation tasks, share of runs at the chosen rate that end above their start is 0",
            BEYOND,
            None,
            [_share_diverged(result) for result in results],
            at_most(0),
        )
    )
    return found


def _share_diverged(result: Result) -> float:
    ends = _best(result, OURS)
    return float(np.mean(~(ends <= result[f"{START}: losses"])))


def picture(results: Results, settings: Settings, figure: Any) -> None:
    figure.set_size_inches(9, 3.2)
    left, right = figure.subplots(1, 2)
    for result in results:
        steps = [0, *result["meta-steps"]]
        left.plot(steps, result["meta-loss"], color=mx.plot.COLOURS[1], alpha=0.8)
        left.axhline(result["meta-loss of Adam"], color="grey", linestyle=":")
    left.set(xlabel="meta-steps", ylabel="meta-loss (dotted: Adam)")

    shown = [OURS, UNTRAINED, *settings["rates of baselines"]]
    for i, name in enumerate(shown):
        ratios = [_ratio(result, name, "AdamW") for result in results]
        colour = mx.plot.COLOURS[1 if i < 2 else 2]
        right.barh(i, np.mean(ratios), color=colour, alpha=0.8)
    right.axvline(1, color="grey", linewidth=0.8, linestyle=":")
    right.set(
        xlabel="validation tasks: loss of AdamW / loss",
        yticks=range(len(shown)),
        yticklabels=shown,
    )
    right.invert_yaxis()
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)


_RATES = [3e-3, 1e-2, 3e-2, 1e-1, 0.3]
_SMOKE = {
    "data": ["digits"],
    "batch": 8,
    "scale": 100.0,
    "horizon": [10, 20],
    "window": 10,
    "pairs": 2,
    "std": 0.01,
    "rate": 3e-4,
    "steps": 4,
    "chunk": 2,
    "snapshots": 1,
    "judged": 2,
    "valid_tasks": ["ImageMLP_Cifar10BW8_Relu32"],
    "valid_data": "digits",
    "valid_steps": 20,
    "rates": [1e-3],
    "rates of baselines": {"AdamW": [1e-3]},
}
_SMALL = {
    "data": ["mnist", "fashion_mnist", "cifar10"],
    "batch": 64,
    "scale": 100.0,
    "horizon": [100, 2000],
    "window": 50,
    "pairs": 24,
    "std": 0.01,
    "rate": 3e-4,
    "steps": 6_000,
    "chunk": 50,
    "snapshots": 4,
    "judged": 48,
    "valid_tasks": [
        "ImageMLP_FashionMnist16_Relu32",
        "ImageMLP_FashionMnist32_Relu32",
        "Conv_Cifar10_8_16x32",
        "ImageMLP_FashionMnist8_256x256_Relu",
        "ImageMLPAE_FashionMnist16_64x16x64_bs128",
    ],
    "valid_data": None,
    "valid_steps": 2000,
    "rates": _RATES,
    "rates of baselines": {
        "AdamW": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
        "AdamW, cosine": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
        "Muon, cosine": [1e-3, 3e-3, 1e-2, 3e-2, 0.1],
    },
}
_FULL = {
    **_SMALL,
    "scale": 1000.0,
    "rate": 5e-5,
    "steps": 100_000,
}

EXPERIMENT = Experiment(
    title="Celo2 meta-trained on small images, judged on networks it never saw",
    source=SOURCE,
    settings={"smoke": _SMOKE, "small": _SMALL, "full": _FULL},
    run=run,
    claims=claims,
    picture=picture,
)
