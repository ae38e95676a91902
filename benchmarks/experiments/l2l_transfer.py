"""A learned optimizer from the package, as it is, on six problems that it never saw."""

from pathlib import Path
from typing import Any

import jax

import metajax as mx
from benchmarks.experiments import _l2l
from benchmarks.reproduce import Claim, Experiment, Result, Results, Settings

SOURCE = "this package: mx.pretrained"


def problems(batch_size: int) -> dict[str, _l2l.Posed]:
    """All of them, with data that come with the package."""
    digits = mx.data.load("digits", "test")
    images = mx.tasks.minibatches(batch_size)
    text = mx.data.sums("test")
    passages = mx.tasks.text(batch_size, 20)
    network = mx.problems.mlp((64, 32, 32, 10), jax.nn.relu)
    convolutions = mx.problems.convnet(
        10,
        (8, 8, 1),
        (8, 8),
        16,
        3,
    )
    language_model = mx.problems.character_gru(len(text["alphabet"]), 24)
    return {
        "quadratics": (mx.problems.quadratic(), mx.tasks.quadratics(10), ()),
        "logistic regression": (mx.problems.logistic(64, 10), images, digits),
        "ReLU network": (network, images, digits),
        "autoencoder": (mx.problems.autoencoder((64, 32, 8)), images, digits),
        "convolutions": (convolutions, images, digits),
        "language model": (language_model, passages, text),
    }


def chosen(settings: Settings) -> list[str]:
    """The names of the problems of the scale."""
    return settings["problems"] or list(problems(1))


def run(seed: int, settings: Settings, folder: Path) -> Result:
    name = settings["optimizer"]
    posed = problems(settings["batch"])
    results = {}
    for i, case in enumerate(chosen(settings)):
        results |= _l2l.compare(
            case,
            {name: mx.pretrained.load(name)},
            posed[case],
            jax.random.key(3000 + 10 * seed + i),
            folder,
            steps=settings["steps"],
            num_tasks=settings["test_tasks"],
            search=mx.RateSearch(settings["rates"]),
        )
    return results


def claims(results: Results, settings: Settings) -> list[Claim]:
    name = settings["optimizer"]
    return [
        _l2l.against_baselines(
            results,
            case,
            name,
            SOURCE,
            None,
        )
        for case in chosen(settings)
    ]


def picture(results: Results, settings: Settings, figure: Any) -> None:
    cases = chosen(settings)
    rows = -(-len(cases) // 3)
    figure.set_size_inches(9, 2.8 * rows)
    axes = figure.subplots(rows, min(3, len(cases)), squeeze=False).ravel()
    for i, (ax, case) in enumerate(zip(axes, cases, strict=False)):
        ylabel = "" if i % 3 else "loss"
        _l2l.draw(results, case, [settings["optimizer"]], ax, ylabel)
    axes[0].legend(frameon=False, fontsize=7)


_SMOKE = {
    "optimizer": "l2l-digits",
    "problems": ["quadratics"],
    "batch": 8,
    "steps": 10,
    "test_tasks": 2,
    "rates": [1e-7, 0.01, 0.1, 1e4],
}
_SMALL = {
    "optimizer": "l2l-mnist",
    "problems": None,
    "batch": 64,
    "steps": 100,
    "test_tasks": 16,
    "rates": [10 ** (k / 2) for k in range(-8, 6)],
}
EXPERIMENT = Experiment(
    title="A pretrained optimizer on problems it never saw",
    source=SOURCE,
    settings={
        "smoke": _SMOKE,
        "small": _SMALL,
        "full": {**_SMALL, "batch": 128, "test_tasks": 64},
    },
    run=run,
    claims=claims,
    picture=picture,
)
