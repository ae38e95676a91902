"""The learning algorithm, unchanged, on images that differ from those it was meta-trained on.

They are of other sizes, of other numbers of classes, shuffled and projected.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import metajax as mx
from benchmarks import _data
from benchmarks.experiments import _vsml
from benchmarks.experiments.vsml_from_scratch import EXPERIMENT as FROM_SCRATCH
from benchmarks.reproduce import (
    Claim,
    Experiment,
    Result,
    Results,
    Settings,
    above,
    below,
    claim,
)

SOURCE = "Kirsch & Schmidhuber 2021, section 4.3"
PLAIN = "plain"  # the usual size, not transformed; meta-training transformed all that it saw


class Condition(NamedTuple):
    """What images a learner meets.

    Attributes:
      size: height and width.
      classes: how many.
      augment: ``tasks -> tasks``.
    """

    size: int
    classes: int = 10
    augment: Callable[[mx.Tasks], mx.Tasks] = lambda tasks: tasks


def conditions(settings: Settings) -> dict[str, Condition]:
    """All of them by name."""
    usual = settings["size"]

    def project(tasks):
        return mx.tasks.project(tasks, usual**2)

    found = {PLAIN: Condition(usual), "5 classes": Condition(usual, classes=5)}
    for size in settings["sizes"]:
        found[f"{size}x{size}"] = Condition(size)
    found["projected"] = Condition(usual, augment=project)
    found["pixels shuffled"] = Condition(usual, augment=mx.tasks.permute_pixels)
    return found


def trained_on(settings: Settings) -> set[str]:
    """Which of the conditions are among the views of meta-training.

    Low resolutions are, of the size of a phase.
    """
    mixed = [
        math.isqrt(phase["dims"])
        for phase in settings["bptt"]
        if phase["view"] == "mixed"
    ]
    return {"projected"} | {f"{size}x{size}" for size in mixed}


def run(seed: int, settings: Settings, folder: Path) -> Result:
    train = mx.data.by_class(_data.standardised(settings["train"], settings["size"])[0])
    varied = _vsml.train_phases(seed, train, settings["bptt"], folder)
    # This one was meta-trained on the images of the one size and its ten classes alone.
    narrow = _vsml.train_phases(seed, train, settings["narrow"], folder)

    results = {}
    for name, condition in conditions(settings).items():
        test = mx.data.by_class(
            _data.standardised(settings["train"], condition.size)[1]
        )
        learner = _vsml.network(condition.size**2, condition.classes)
        tasks = condition.augment(_vsml.tasks(condition.classes))
        for diet, meta_params in (("varied", varied), ("narrow", narrow)):
            accuracy = _vsml.stream_accuracy(
                seed,
                learner,
                meta_params,
                test,
                tasks=tasks,
                steps=settings["steps"],
                runs=settings["runs"],
            )
            final = _vsml.cumulative(accuracy)[:, -1].mean()
            results[f"{name}, {diet}"] = final
            print(
                f"{name}, {diet}: {final:.1f} % over {settings['steps']} examples",
                flush=True,
            )
    return results


def claims(results: Results, settings: Settings) -> list[Claim]:
    figure = f"{SOURCE}, figure 7"
    found = []
    for name in conditions(settings):
        if name in (PLAIN, "5 classes"):
            continue
        lost = [
            result[f"{PLAIN}, varied"] - result[f"{name}, varied"] for result in results
        ]
        view = (
            " (a view that meta-training has, too)"
            if name in trained_on(settings)
            else ""
        )
        text = f"{name}{view}: points of cumulative accuracy lost against plain images of the usual"
        text += " size < 5"
        found.append(claim(text, figure, "robust", lost, below(5)))

    gain = [
        result["5 classes, varied"] - result[f"{PLAIN}, varied"] for result in results
    ]
    text = "5 classes: points of cumulative accuracy above 10 classes > 0"
    found.append(claim(text, figure, "robust", gain, above(0)))
    return found


def picture(results: Results, settings: Settings, figure: Any) -> None:
    ax = figure.subplots()
    names = list(conditions(settings))
    places = np.arange(len(names))
    _draw_bars(
        results,
        "varied",
        names,
        ax,
        places - 0.2,
        _label(settings, "varied"),
    )
    _draw_bars(
        results,
        "narrow",
        names,
        ax,
        places + 0.2,
        _label(settings, "narrow"),
    )
    ax.set(
        xticks=places,
        ylabel=f"accuracy over {settings['steps']} examples (%)",
        ylim=(0, 100),
    )
    ax.set_xticklabels(names, fontsize=8)
    ax.legend(
        frameon=False,
        fontsize=8,
        loc="lower left",
        bbox_to_anchor=(0, 1),
    )
    ax.spines[["top", "right"]].set_visible(False)


def _label(settings: Settings, diet: str) -> str:
    if diet == "varied":
        views = "projections, low resolutions and subsets of pixels"
        phases = settings["bptt"]
    else:
        views = "plain images"
        phases = settings["narrow"]
    steps = sum(phase["steps"] for phase in phases)
    return f"meta-trained on {views}, {steps:,} meta-steps"


def _draw_bars(
    results: Results,
    diet: str,
    names: list[str],
    ax: Any,
    places: np.ndarray,
    label: str,
) -> None:
    rows = [[result[f"{name}, {diet}"] for name in names] for result in results]
    x = np.stack(rows).astype(float)
    error = x.std(0, ddof=1) if len(x) > 1 else None
    colour = mx.plot.COLOURS[{"varied": 2, "narrow": 1}[diet]]
    ax.bar(
        places,
        x.mean(0),
        0.4,
        yerr=error,
        color=colour,
        label=label,
        capsize=2,
    )


def _settings(scale: str, **own: Any) -> Settings:
    shared = FROM_SCRATCH.settings[scale]
    return {
        "train": shared["train"],
        "size": shared["size"],
        "bptt": shared["bptt"],
        **own,
    }


_TINY = FROM_SCRATCH.settings["smoke"]["bptt"]
_PLAIN = {
    "view": None,
    "dims": 196,
    "classes": 10,
    "window": 50,
    "tasks": 8,
    "rate": 3e-3,
}
_NARROW = [
    {**_PLAIN, "horizon": 50, "steps": 200},
    {**_PLAIN, "horizon": [100, 500], "steps": 200},
]
_LONG = {
    **_PLAIN,
    "dims": 784,
    "horizon": 500,
    "window": 500,
    "tasks": 128,
    "steps": 10_000,
}
EXPERIMENT = Experiment(
    title="Robustness to sizes, classes, projections and shuffles",
    source=SOURCE,
    settings={
        "smoke": _settings(
            "smoke",
            steps=20,
            runs=2,
            sizes=[6],
            narrow=_TINY,
        ),
        "small": _settings(
            "small",
            steps=500,
            runs=16,
            sizes=[7, 21, 28],
            narrow=_NARROW,
        ),
        "full": _settings(
            "full",
            steps=2000,
            runs=32,
            sizes=[14, 21, 32, 48],
            narrow=[_LONG],
        ),
    },
    run=run,
    claims=claims,
    picture=picture,
)
