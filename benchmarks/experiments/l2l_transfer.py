"""A learned optimizer from the package, as it is, on six problems that it never saw."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

import metajax as mx
from benchmarks.experiments import _l2l
from benchmarks.reproduce import Claim, Experiment, Results

SOURCE = "this package: mx.pretrained"


def problems(batch: int) -> dict[str, tuple[mx.Problem, mx.Tasks, Any]]:
    """Name -> (problem, tasks, data), all with what comes with the package."""
    digits, text, images = (
        mx.data.load("digits", "test"),
        mx.data.sums("test"),
        mx.tasks.minibatches(batch),
    )
    symbols = len(text["alphabet"])
    return {
        "quadratics": (mx.problems.quadratic(), mx.tasks.quadratics(10), ()),
        "logistic regression": (mx.problems.logistic(64, 10), images, digits),
        "ReLU network": (mx.problems.mlp((64, 32, 32, 10), jax.nn.relu), images, digits),
        "autoencoder": (mx.problems.autoencoder((64, 32, 8)), images, digits),
        "convolutions": (mx.problems.convnet(10, (8, 8, 1), (8, 8), 16, 3), images, digits),
        "language model": (mx.problems.character_gru(symbols, 24), mx.tasks.text(batch, 20), text),
    }


def chosen(settings: dict[str, Any]) -> list[str]:
    return settings["problems"] or list(problems(1))


def run(seed: int, settings: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    s, every, results = settings, problems(settings["batch"]), {}
    for i, name in enumerate(chosen(s)):
        results |= _l2l.compare(
            name, {s["optimizer"]: mx.pretrained.load(s["optimizer"])}, every[name][0], every[name][1],
            jax.random.key(3000 + 10 * seed + i), every[name][2], steps=s["steps"], num_tasks=s["test_tasks"],
            rates=s["rates"], folder=folder,
        )  # fmt: skip
    return results


def claims(results: Results, settings: dict[str, Any]) -> list[Claim]:
    return [
        _l2l.against_baselines(results, name, settings["optimizer"], SOURCE, None)
        for name in chosen(settings)
    ]


def picture(results: Results, settings: dict[str, Any], figure: Any) -> None:
    names = chosen(settings)
    rows = -(-len(names) // 3)
    figure.set_size_inches(9, 2.8 * rows)
    axes = figure.subplots(rows, min(3, len(names)), squeeze=False).ravel()
    for i, (ax, name) in enumerate(zip(axes, names, strict=False)):
        _l2l.draw(results, name, [settings["optimizer"]], ax, "" if i % 3 else "loss")
    axes[0].legend(frameon=False, fontsize=7)


_RATES = [10 ** (k / 2) for k in range(-8, 6)]
EXPERIMENT = Experiment(
    title="A pretrained optimizer on problems it never saw",
    source=SOURCE,
    settings={
        "smoke": {
            "optimizer": "l2l-digits", "problems": ["quadratics"], "batch": 8, "steps": 10, "test_tasks": 2,
            "rates": [1e-7, 0.01, 0.1, 1e4],
        },
        "small": {
            "optimizer": "l2l-mnist", "problems": None, "batch": 64, "steps": 100, "test_tasks": 16, "rates": _RATES
        },
        "full": {
            "optimizer": "l2l-mnist", "problems": None, "batch": 128, "steps": 100, "test_tasks": 64, "rates": _RATES
        },
    },
    run=run,
    claims=claims,
    picture=picture,
)  # fmt: skip
