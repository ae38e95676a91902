"""The learning algorithm, unchanged, on images of other sizes, other numbers of classes, shuffled
and projected.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

import metajax as mx
from benchmarks import _data
from benchmarks.experiments import _vsml
from benchmarks.experiments.vsml_from_scratch import EXPERIMENT as FROM_SCRATCH
from benchmarks.reproduce import Claim, Experiment, Results, claim

SOURCE = "Kirsch & Schmidhuber 2021, section 4.3"
PLAIN = "plain"  # images of the usual size as they are, which meta-training has not seen: it changed every one


def conditions(settings: dict[str, Any]) -> dict[str, tuple[int, int, Any]]:
    """Name -> (size of the image, classes, augmentation)."""
    usual = settings["size"]
    found: dict[str, tuple[int, int, Any]] = {
        PLAIN: (usual, 10, None),
        "5 classes": (usual, 5, None),
    }
    found |= {f"{n}x{n}": (n, 10, None) for n in settings["sizes"]}
    found["projected"] = (usual, 10, lambda stream: mx.tasks.project(stream, usual**2))
    found["pixels shuffled"] = (usual, 10, mx.tasks.permute_pixels)
    return found


def trained_on(settings: dict[str, Any]) -> set[str]:
    """Which of the conditions are among the views of meta-training; low resolutions are, of the
    size of a phase.
    """
    mixed = [math.isqrt(p["dims"]) for p in settings["bptt"] if p["view"] == "mixed"]
    return {"projected"} | {f"{n}x{n}" for n in mixed}


def run(seed: int, settings: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    size, steps, runs = settings["size"], settings["steps"], settings["runs"]
    train = mx.data.by_class(_data.standardised(settings["train"], size)[0])
    meta_params = _vsml.meta_train(seed, train, settings["bptt"], folder)
    # One that was meta-trained on the images of the one size and its ten classes alone.
    narrow = _vsml.meta_train(seed, train, settings["narrow"], folder)
    rnn_units = size**2
    results = {}
    for name, (pixels, classes, augmentation) in conditions(settings).items():
        test = mx.data.by_class(_data.standardised(settings["train"], pixels)[1])
        stream = _vsml.tasks(classes)
        stream = stream if augmentation is None else augmentation(stream)
        units = rnn_units if name == "projected" else pixels**2
        learner = _vsml.network(units, classes).learner
        for who, params in (("varied", meta_params), ("narrow", narrow)):
            accuracy = _vsml.stream(
                seed, learner, params, test, tasks=stream, steps=steps, runs=runs
            )
            results[f"{name}, {who}"] = _vsml.cumulative(accuracy)[:, -1].mean()
            print(
                f"{name}, {who}: {results[f'{name}, {who}']:.1f} % over {steps} examples",
                flush=True,
            )
    return results


def claims(results: Results, settings: dict[str, Any]) -> list[Claim]:
    found = []
    for name in conditions(settings):
        if name in (PLAIN, "5 classes"):
            continue
        lost = [r[f"{PLAIN}, varied"] - r[f"{name}, varied"] for r in results]
        view = " (a view that meta-training has, too)" if name in trained_on(settings) else ""
        text = f"{name}{view}: points of cumulative accuracy lost against plain images of the usual size < 5"
        found.append(claim(text, f"{SOURCE}, figure 7", "robust", lost, lambda x: x < 5))
    gain = [r["5 classes, varied"] - r[f"{PLAIN}, varied"] for r in results]
    text = "5 classes: points of cumulative accuracy above 10 classes > 0"
    found.append(claim(text, f"{SOURCE}, figure 7", "robust", gain, lambda x: x > 0))
    return found


def picture(results: Results, settings: dict[str, Any], figure: Any) -> None:
    ax = figure.subplots()
    names = list(conditions(settings))
    for i, who in enumerate(("varied", "narrow")):
        x = np.stack([[r[f"{n}, {who}"] for n in names] for r in results]).astype(float)
        error = x.std(0, ddof=1) if len(x) > 1 else None
        views = (
            "projections, low resolutions and subsets of pixels"
            if who == "varied"
            else "plain images"
        )
        steps = sum(p["steps"] for p in settings["bptt" if who == "varied" else "narrow"])
        label = f"meta-trained on {views}, {steps:,} meta-steps"
        ax.bar(
            np.arange(len(names)) + 0.4 * i - 0.2, x.mean(0), 0.4, yerr=error, color=mx.plot.COLOURS[[2, 1][i]],
            label=label, capsize=2,
        )  # fmt: skip
    ax.set(
        xticks=range(len(names)),
        ylabel=f"accuracy over {settings['steps']} examples (%)",
        ylim=(0, 100),
    )
    ax.set_xticklabels(names, fontsize=8)
    ax.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
    ax.spines[["top", "right"]].set_visible(False)


def _settings(scale: str, **own: Any) -> dict[str, Any]:
    shared = FROM_SCRATCH.settings[scale]
    return {"train": shared["train"], "size": shared["size"], "bptt": shared["bptt"], **own}


_PLAIN = {"view": None, "dims": 196, "classes": 10, "window": 50, "tasks": 8, "rate": 3e-3}
EXPERIMENT = Experiment(
    title="Robustness to sizes, classes, projections and shuffles",
    source=SOURCE,
    settings={
        "smoke": _settings("smoke", steps=20, runs=2, sizes=[6], narrow=FROM_SCRATCH.settings["smoke"]["bptt"]),
        "small": _settings(
            "small", steps=500, runs=16, sizes=[7, 21, 28],
            narrow=[{**_PLAIN, "horizon": 50, "steps": 200}, {**_PLAIN, "horizon": [100, 500], "steps": 200}],
        ),
        "full": _settings(
            "full", steps=2000, runs=32, sizes=[14, 21, 32, 48],
            narrow=[{**_PLAIN, "dims": 784, "horizon": 500, "window": 500, "tasks": 128, "steps": 10_000}],
        ),
    },
    run=run,
    claims=claims,
    picture=picture,
)  # fmt: skip
