"""A learning algorithm meta-learned on MNIST, then, unchanged, on images it has never seen."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

import metajax as mx
from benchmarks import _data
from benchmarks.experiments import _vsml
from benchmarks.experiments._training import Run, clipped_adam, meta_train
from benchmarks.reproduce import (
    Claim,
    Experiment,
    Result,
    Results,
    Settings,
    above,
    claim,
)

SOURCE = "Kirsch & Schmidhuber 2021, section 4.2"
AT = (50, 100, 300, 500, 1000, 2000)
VSML = ("VSML, BPTT", "VSML, ES")
ONLINE = ("SGD, 0 hidden", "SGD, 1 hidden", "Adam, 0 hidden", "Adam, 1 hidden")


def train_rnn(
    seed: int,
    data: Any,
    options: dict[str, Any],
    folder: Path,
) -> tuple[mx.Learner, Any]:
    """The baseline that is a plain LSTM, and its meta-parameters.

    It is meta-trained on the images as they are, labels in place.
    """
    rnn = mx.meta_rnn(data["image"].shape[1], 10, options["hidden"])
    loop = mx.inner(rnn, mx.tasks.minibatches(1), options["horizon"])
    meta_params = meta_train(
        mx.bptt(loop, options["tasks"]),
        clipped_adam(options["rate"]),
        jax.random.key(seed + 20),
        rnn.meta(jax.random.key(seed + 30)),
        data,
        Run(folder / "meta-rnn", options["steps"], chunks_per_checkpoint=2),
    )
    return rnn, meta_params


def run(seed: int, settings: Settings, folder: Path) -> Result:
    size = settings["size"]
    train = mx.data.by_class(_data.standardised(settings["train"], size)[0])
    vsml = _vsml.network(train["image"].shape[1], 10)
    by_bptt = _vsml.train_phases(seed, train, settings["bptt"], folder)
    by_es = _vsml.train_phases(seed, train, settings["es"], folder, "es")
    learners = {
        "VSML, BPTT": (vsml, by_bptt),
        "VSML, ES": (vsml, by_es),
        "Meta RNN": train_rnn(seed, train, settings["meta_rnn"], folder),
    }

    results = {}
    steps = settings["steps"]
    runs = settings["runs"]
    for name in settings["test"]:
        # Every set by its own constants, which a user would also know of his data.
        test = mx.data.by_class(_data.standardised(name, size)[1])
        for method, (learner, meta_params) in learners.items():
            tasks = mx.tasks.minibatches(1) if method == "Meta RNN" else _vsml.tasks(10)
            accuracy = _vsml.stream_accuracy(
                seed,
                learner,
                meta_params,
                test,
                tasks=tasks,
                steps=steps,
                runs=runs,
            )
            results |= learned_results(f"{name}, {method}", accuracy)
        for method, accuracy in _vsml.baselines(
            seed,
            test,
            stream=_vsml.tasks(10),
            units=test["image"][0].size,
            steps=steps,
            runs=runs,
        ).items():
            rates = _vsml.RATES[method.split(",")[0]]
            results |= searched_results(f"{name}, {method}", accuracy, rates)
    return results


def learned_results(name: str, accuracy: np.ndarray) -> dict[str, Any]:
    """Of a learner that has nothing to search, from accuracies ``[runs, steps]``."""
    curves = _vsml.cumulative(accuracy)
    runs, steps = curves.shape
    error = curves.std(0, ddof=1) / runs**0.5
    results = _mean_results(name, curves.mean(0))
    results[f"{name}: error"] = error[_vsml.points(steps) - 1]
    return results


def searched_results(
    name: str, accuracy: np.ndarray, rates: list[float]
) -> dict[str, Any]:
    """Of a learner at each of the rates, from accuracies ``[rates, runs, steps]``.

    The best rate at each point is chosen on the very streams that are reported: more than a user
    could do.
    """
    means = _vsml.cumulative(accuracy).mean(1)
    results = _mean_results(name, means.max(0))
    best = means.argmax(0)[_reported(means.shape[1])]
    results[f"{name}: rate"] = np.asarray(rates)[best]
    return results


def _mean_results(name: str, mean: np.ndarray) -> dict[str, Any]:
    steps = len(mean)
    reported = mean[_reported(steps)]
    print(f"{name}: " + " / ".join(f"{x:.1f}" for x in reported), flush=True)
    return {name: mean[_vsml.points(steps) - 1], f"{name}: at": reported}


def _reported(steps: int) -> np.ndarray:
    """The places of the numbers of examples that claims are about."""
    return np.minimum(AT, steps) - 1


def claims(results: Results, settings: Settings) -> list[Claim]:
    figure = f"{SOURCE}, figure 6"
    found = []
    for name in settings["test"]:
        for i, steps in enumerate(AT[: settings["judged"]]):
            lead = []
            for result in results:
                best = max(result[f"{name}, {method}: at"][i] for method in ONLINE)
                lead.append(result[f"{name}, VSML, BPTT: at"][i] - best)
            text = f"{name}: points of cumulative accuracy ahead of the best online SGD or Adam"
            text += f" after {steps} examples"
            found.append(
                claim(text, figure, "ahead in the first hundreds", lead, above(0))
            )

    source, *targets = settings["test"]
    for name in targets:
        lost = []
        for result in results:
            there = result[f"{source}, Meta RNN: at"][-1]
            lost.append(there - result[f"{name}, Meta RNN: at"][-1])
        text = (
            f"Meta RNN overfits: points of accuracy lost from {source} to {name} > 30"
        )
        found.append(claim(text, figure, "does not transfer", lost, above(30)))
    return found


def picture(results: Results, settings: Settings, figure: Any) -> None:
    points = _vsml.points(settings["steps"])
    axes = figure.subplots(
        1,
        len(settings["test"]),
        sharey=True,
        squeeze=False,
    )[0]
    for ax, name in zip(axes, settings["test"], strict=True):
        for i, method in enumerate((*VSML, *ONLINE, "Meta RNN")):
            curves = [result[f"{name}, {method}"] for result in results]
            ax.plot(
                points,
                np.stack(curves).mean(0),
                color=mx.plot.COLOURS[i],
                linestyle=mx.plot.STYLES[i],
                label=method,
                linewidth=2.2 if i == 0 else 1.2,
            )
        ax.set(
            title=name,
            xlabel="examples seen",
            xscale="log",
            xlim=(5, None),
        )
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="cumulative accuracy (%)")
    axes[0].legend(frameon=False, fontsize=7)


_PROJECTED = {"view": "project", "dims": 32, "classes": 5, "horizon": 60}
_MIXED = {"view": "mixed", "dims": 49, "classes": 10}
_FULL_SIZE = {
    "view": "project",
    "dims": 784,
    "classes": 10,
    "horizon": 500,
    "steps": 10_000,
}
_SHORT = {
    "view": "mixed",
    "dims": 4,
    "classes": 3,
    "horizon": 8,
    "tasks": 2,
    "rate": 1e-2,
}
_SMOKE = {
    "train": "digits",
    "test": ["digits"],
    "size": 4,
    "steps": 20,
    "runs": 2,
    "judged": 1,
    "bptt": [{**_SHORT, "window": 8, "steps": 3}],
    "es": [{**_SHORT, "window": 8, "steps": 3, "std": 0.05}],
    "meta_rnn": {"hidden": 8, "horizon": 8, "tasks": 2, "rate": 1e-3, "steps": 3},
}
_SMALL = {
    "train": "mnist",
    "test": ["mnist", "digits", "fashion_mnist"],
    "size": 14,
    "steps": 2000,
    "runs": 32,
    "judged": 6,
    "bptt": [  # short and small to leave the plateau, then longer
        {**_PROJECTED, "window": 60, "tasks": 16, "rate": 1e-2, "steps": 400},
        {
            **_MIXED,
            "horizon": [100, 1000],
            "window": 50,
            "tasks": 16,
            "rate": 3e-3,
            "steps": 400,
        },
        {
            **_MIXED,
            "horizon": [200, 2000],
            "window": 200,
            "tasks": 8,
            "rate": 3e-3,
            "steps": 400,
        },
        {
            **_MIXED,
            "horizon": [500, 2000],
            "window": 500,
            "tasks": 4,
            "rate": 3e-3,
            "steps": 300,
        },
    ],
    "es": [  # as many steps as take about the time of the above
        {**_PROJECTED, "tasks": 64, "std": 0.05, "rate": 2.5e-2, "steps": 1500},
        {
            **_MIXED,
            "horizon": 100,
            "tasks": 32,
            "std": 0.05,
            "rate": 1e-2,
            "steps": 500,
        },
    ],
    "meta_rnn": {
        "hidden": 128,
        "horizon": 100,
        "tasks": 16,
        "rate": 1e-3,
        "steps": 1000,
    },
}
_FULL = {
    **_SMALL,
    "size": 28,
    "bptt": [{**_FULL_SIZE, "window": 500, "tasks": 128, "rate": 1e-3}],
    "es": [{**_FULL_SIZE, "tasks": 1024, "std": 0.05, "rate": 2.5e-2}],
    "meta_rnn": {
        "hidden": 128,
        "horizon": 500,
        "tasks": 128,
        "rate": 1e-3,
        "steps": 10_000,
    },
}
EXPERIMENT = Experiment(
    title="Meta-learning a learning algorithm from scratch",
    source=SOURCE,
    settings={"smoke": _SMOKE, "small": _SMALL, "full": _FULL},
    run=run,
    claims=claims,
    picture=picture,
)
