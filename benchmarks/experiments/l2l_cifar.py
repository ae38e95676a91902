"""Two LSTMs, one for convolutions and one for dense layers, learn to train a convolutional network
on CIFAR-10.

They then train it on five and on two of the classes. LSTM-sub was meta-trained on the other five
classes only. Beside them, which the paper has not, Nadam with learned hyperparameters for each of
the two groups.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import metajax as mx
from benchmarks.experiments import _l2l
from benchmarks.reproduce import Claim, Experiment, Results

SOURCE = "Andrychowicz et al. 2016, section 3.3, figure 7"
CASES = {"CIFAR-10": tuple(range(10)), "CIFAR-5": (0, 1, 2, 3, 4), "CIFAR-2": (0, 1)}
HELD_OUT = (5, 6, 7, 8, 9)
NAMES = ("LSTM", "LSTM-sub", "Nadam, learned")


def cases(settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: CASES[name] for name in settings.get("cases", CASES)}


def grouped(optimizer: mx.LearnedOptimizer) -> mx.LearnedOptimizer:
    """An optimizer for each of the two groups of parameters of the network."""

    def init(key):
        return dict(zip(("conv", "dense"), map(optimizer.init, jax.random.split(key)), strict=True))

    def tx(meta_params):
        parts = {name: optimizer.tx(m) for name, m in meta_params.items()}
        return optax.multi_transform(parts, {"conv": "conv", "dense": "dense"})

    return mx.LearnedOptimizer(init, tx)


def images(s: dict[str, Any], split: str, classes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Those of some classes, renumbered, the size of ``s``, three channels."""
    data = mx.data.resize(mx.data.load(s["data"], split), s["size"])
    chosen = np.isin(data["label"], classes)
    image = np.repeat(data["image"][chosen], 3 // data["image"].shape[-1], -1)
    return {
        "image": image,
        "label": np.searchsorted(classes, data["label"][chosen]).astype(np.int32),
    }


def run(seed: int, settings: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    s, tasks = settings, mx.tasks.minibatches(settings["batch"])
    lstm, nadam = (
        mx.optim.lstm(**s["preset"]),
        mx.optim.nadam(rate=0.005, knots=(1, 10, 100, 300, 600, 850, 1000)),
    )
    phases = s["meta_training"]
    methods = {  # what is meta-trained, how, on which classes
        "LSTM": (lstm, phases["LSTM"], CASES["CIFAR-10"]),
        "LSTM-sub": (lstm, phases["LSTM"], HELD_OUT),
        "Nadam, learned": (nadam, phases["Nadam, learned"], CASES["CIFAR-10"]),
    }

    def network(classes):
        return mx.problems.convnet(
            len(classes), (s["size"], s["size"], 3), s["filters"], s["hidden"], s["kernel"]
        )

    learned = {}
    for name, (method, trained_by, classes) in methods.items():
        posed, optimizer = (network(classes), tasks, images(s, "train", classes)), grouped(method)
        meta_params = _l2l.learn(
            seed, optimizer, trained_by, lambda p, posed=posed: posed, folder / name.split(",")[0],
            steps=s["judged"], validated=s["validated"],
        )  # fmt: skip
        learned[name] = optimizer.tx(meta_params)
    results = {}
    for i, (case, classes) in enumerate(cases(s).items()):
        results |= _l2l.compare(
            case, learned, network(classes), tasks, jax.random.key(3000 + 10 * seed + i), images(s, "test", classes),
            steps=s["steps"], num_tasks=s["test_tasks"], rates=s["rates"], folder=folder,
        )  # fmt: skip
    return results


def claims(results: Results, settings: dict[str, Any]) -> list[Claim]:
    found = []
    for case in cases(settings):
        for name in NAMES[:2]:
            found.append(_l2l.against_baselines(results, case, name, SOURCE, "below all baselines"))
        found.append(_l2l.against_baselines(results, case, NAMES[2], f"beyond {SOURCE}", None))
    return found


def picture(results: Results, settings: dict[str, Any], figure: Any) -> None:
    figure.set_size_inches(9, 3.2)
    axes = figure.subplots(1, len(cases(settings)), squeeze=False)[0]
    for i, (ax, case) in enumerate(zip(axes, cases(settings), strict=True)):
        _l2l.draw(
            results,
            case,
            list(NAMES),
            ax,
            "" if i else "loss (nats)",
            smooth=min(20, settings["steps"] // 10),
        )
    axes[-1].legend(frameon=False, fontsize=7)


_SEARCH = {"estimator": "es", "std": 0.1, "rate": 0.05}
_RATES = [10 ** (k / 2) for k in range(-8, 2)]
EXPERIMENT = Experiment(
    title="Learning to train a convolutional network on CIFAR-10",
    source=SOURCE,
    settings={
        "smoke": {
            "cases": ["CIFAR-2"],
            "data": "digits", "size": 8, "filters": [4], "hidden": 4, "kernel": 3, "batch": 8, "preset": {},
            "steps": 20, "judged": 10, "validated": 2, "test_tasks": 2, "rates": [1e-7, 0.01, 0.1, 1.0, 1e4],
            "meta_training": {
                "LSTM": [
                    {"estimator": "bptt", "horizon": 10, "window": 5, "tasks": 2, "rate": 1e-3, "steps": 4, "chunk": 2}
                ],
                "Nadam, learned": [{**_SEARCH, "ends": [10], "tasks": 2, "steps": 4, "chunk": 2}],
            },
        },
        "small": {
            "data": "cifar10", "size": 16, "filters": [8, 8, 8], "hidden": 16, "kernel": 3, "batch": 64, "preset": {},
            "steps": 1000, "judged": 200, "validated": 4, "test_tasks": 4, "rates": _RATES,
            "meta_training": {
                "LSTM": [
                    {"estimator": "bptt", "horizon": 200, "window": 25, "tasks": 2, "rate": 3e-3, "steps": 400,
                     "chunk": 50},
                    {"estimator": "bptt", "horizon": 500, "window": 100, "tasks": 2, "rate": 1e-3, "steps": 150,
                     "chunk": 25},
                ],
                "Nadam, learned": [{**_SEARCH, "ends": [1000], "tasks": 4, "steps": 30, "chunk": 5}],
            },
        },
        "full": {
            "data": "cifar10", "size": 32, "filters": [16, 16, 16], "hidden": 32, "kernel": 5, "batch": 128,
            "preset": {}, "steps": 1000, "judged": 1000, "validated": 8, "test_tasks": 16, "rates": _RATES,
            "meta_training": {
                "LSTM": [
                    {"estimator": "bptt", "horizon": 1000, "window": 20, "tasks": 8, "rate": 1e-3, "steps": 20_000,
                     "chunk": 200},
                    {"estimator": "es", "horizon": 1000, "tasks": 64, "std": 0.03, "rate": 3e-3, "steps": 500,
                     "chunk": 20},
                ],
                "Nadam, learned": [{**_SEARCH, "ends": [1000], "tasks": 64, "steps": 300, "chunk": 10}],
            },
        },
    },
    run=run,
    claims=claims,
    picture=picture,
)  # fmt: skip
