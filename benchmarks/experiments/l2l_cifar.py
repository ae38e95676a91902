"""Two LSTMs, for convolutions and for dense layers, learn to train a network on CIFAR-10.

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
from benchmarks.reproduce import Claim, Experiment, Result, Results, Settings

SOURCE = "Andrychowicz et al. 2016, section 3.3, figure 7"
CASES = {"CIFAR-10": tuple(range(10)), "CIFAR-5": (0, 1, 2, 3, 4), "CIFAR-2": (0, 1)}
HELD_OUT = (5, 6, 7, 8, 9)
NAMES = ("LSTM", "LSTM-sub", "Nadam, learned")


def cases(settings: Settings) -> dict[str, tuple[int, ...]]:
    """Name -> classes."""
    return {name: CASES[name] for name in settings.get("cases", CASES)}


def grouped(optimizer: mx.LearnedOptimizer) -> mx.LearnedOptimizer:
    """An optimizer for each of the two groups of parameters of the network."""

    def init(key):
        k_conv, k_dense = jax.random.split(key)
        return {"conv": optimizer.init(k_conv), "dense": optimizer.init(k_dense)}

    def tx(meta_params):
        parts = {name: optimizer.tx(own) for name, own in meta_params.items()}
        return optax.multi_transform(parts, {"conv": "conv", "dense": "dense"})

    return mx.LearnedOptimizer(init, tx)


def images(
    settings: Settings, split: str, classes: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Those of some classes, renumbered, with three channels."""
    data = mx.data.resize(mx.data.load(settings["data"], split), settings["size"])
    chosen = np.isin(data["label"], classes)
    image = data["image"][chosen]
    label = np.searchsorted(classes, data["label"][chosen])
    return {
        "image": np.repeat(image, 3 // image.shape[-1], -1),
        "label": label.astype(np.int32),
    }


def network(settings: Settings, classes: tuple[int, ...]) -> mx.Problem:
    """The network that is trained."""
    size = settings["size"]
    return mx.problems.convnet(
        len(classes),
        (size, size, 3),
        settings["filters"],
        settings["hidden"],
        settings["kernel"],
    )


def run(seed: int, settings: Settings, folder: Path) -> Result:
    tasks = mx.tasks.minibatches(settings["batch"])
    lstm = mx.optim.lstm(**settings["preset"])
    nadam = mx.optim.nadam(rate=0.005, knots=(1, 10, 100, 300, 600, 850, 1000))
    phases = settings["meta_training"]
    methods = {  # what is meta-trained, how, on which classes
        "LSTM": (lstm, phases["LSTM"], CASES["CIFAR-10"]),
        "LSTM-sub": (lstm, phases["LSTM"], HELD_OUT),
        "Nadam, learned": (nadam, phases["Nadam, learned"], CASES["CIFAR-10"]),
    }

    learned = {}
    for name, (method, trained_by, classes) in methods.items():
        posed = (network(settings, classes), tasks, images(settings, "train", classes))
        optimizer = grouped(method)
        meta_params = _l2l.learn(
            seed,
            optimizer,
            trained_by,
            lambda phase, posed=posed: posed,
            folder / name.split(",")[0],
            steps=settings["judged"],
            num_validation_tasks=settings["validated"],
        )
        learned[name] = optimizer.tx(meta_params)

    results = {}
    for i, (case, classes) in enumerate(cases(settings).items()):
        results |= _l2l.compare(
            case,
            learned,
            (network(settings, classes), tasks, images(settings, "test", classes)),
            jax.random.key(3000 + 10 * seed + i),
            folder,
            steps=settings["steps"],
            num_tasks=settings["test_tasks"],
            search=mx.RateSearch(settings["rates"]),
        )
    return results


def claims(results: Results, settings: Settings) -> list[Claim]:
    found = []
    for case in cases(settings):
        for name in NAMES[:2]:
            found.append(
                _l2l.against_baselines(
                    results, case, name, SOURCE, "below all baselines"
                )
            )
        found.append(
            _l2l.against_baselines(
                results,
                case,
                NAMES[2],
                f"beyond {SOURCE}",
                None,
            )
        )
    return found


def picture(results: Results, settings: Settings, figure: Any) -> None:
    figure.set_size_inches(9, 3.2)
    axes = figure.subplots(1, len(cases(settings)), squeeze=False)[0]
    smooth = min(20, settings["steps"] // 10)
    for i, (ax, case) in enumerate(zip(axes, cases(settings), strict=True)):
        ylabel = "" if i else "loss (nats)"
        _l2l.draw(results, case, list(NAMES), ax, ylabel, smooth)
    axes[-1].legend(frameon=False, fontsize=7)


_WINDOWS = {"estimator": "bptt", "tasks": 2}
_SEARCH = {"estimator": "es", "std": 0.1, "rate": 0.05}
_RATES = [10 ** (k / 2) for k in range(-8, 2)]
_SMOKE = {
    "cases": ["CIFAR-2"],
    "data": "digits",
    "size": 8,
    "filters": [4],
    "hidden": 4,
    "kernel": 3,
    "batch": 8,
    "preset": {},
    "steps": 20,
    "judged": 10,
    "validated": 2,
    "test_tasks": 2,
    "rates": [1e-7, 0.01, 0.1, 1.0, 1e4],
    "meta_training": {
        "LSTM": [
            {
                **_WINDOWS,
                "horizon": 10,
                "window": 5,
                "rate": 1e-3,
                "steps": 4,
                "chunk": 2,
            }
        ],
        "Nadam, learned": [
            {**_SEARCH, "ends": [10], "tasks": 2, "steps": 4, "chunk": 2}
        ],
    },
}
_SMALL = {
    "data": "cifar10",
    "size": 16,
    "filters": [8, 8, 8],
    "hidden": 16,
    "kernel": 3,
    "batch": 64,
    "preset": {},
    "steps": 1000,
    "judged": 200,
    "validated": 4,
    "test_tasks": 4,
    "rates": _RATES,
    "meta_training": {
        "LSTM": [
            {
                **_WINDOWS,
                "horizon": 200,
                "window": 25,
                "rate": 3e-3,
                "steps": 400,
                "chunk": 50,
            },
            {
                **_WINDOWS,
                "horizon": 500,
                "window": 100,
                "rate": 1e-3,
                "steps": 150,
                "chunk": 25,
            },
        ],
        "Nadam, learned": [
            {**_SEARCH, "ends": [1000], "tasks": 4, "steps": 30, "chunk": 5}
        ],
    },
}
_FULL = {
    "data": "cifar10",
    "size": 32,
    "filters": [16, 16, 16],
    "hidden": 32,
    "kernel": 5,
    "batch": 128,
    "preset": {},
    "steps": 1000,
    "judged": 1000,
    "validated": 8,
    "test_tasks": 16,
    "rates": _RATES,
    "meta_training": {
        "LSTM": [
            {
                "estimator": "bptt",
                "horizon": 1000,
                "window": 20,
                "tasks": 8,
                "rate": 1e-3,
                "steps": 20_000,
                "chunk": 200,
            },
            {
                "estimator": "es",
                "horizon": 1000,
                "tasks": 64,
                "std": 0.03,
                "rate": 3e-3,
                "steps": 500,
                "chunk": 20,
            },
        ],
        "Nadam, learned": [
            {**_SEARCH, "ends": [1000], "tasks": 64, "steps": 300, "chunk": 10}
        ],
    },
}
EXPERIMENT = Experiment(
    title="Learning to train a convolutional network on CIFAR-10",
    source=SOURCE,
    settings={"smoke": _SMOKE, "small": _SMALL, "full": _FULL},
    run=run,
    claims=claims,
    picture=picture,
)
