"""An LSTM learns to train a small network on MNIST; then, without retraining, it meets longer runs and other networks.

One learned optimizer, the LSTM of the paper, knows only its network; the other, RNNProp, whose inputs are gradients as
Adam normalises them, a family of networks with several activations. Both are meta-trained on small images, since a
coordinatewise optimizer does not know their size.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

import metajax as mx
from benchmarks.experiments import _l2l
from benchmarks.reproduce import Claim, Experiment, Results

SOURCE = "Andrychowicz et al. 2016, section 3.2"
PLAIN, FAMILY = "LSTM", "RNNProp, family"
# case -> hidden units, activation, factor on the number of steps, figure, does the paper's optimizer win?
CASES = {
    "20 units": ((20,), jax.nn.sigmoid, 1, 4, True),
    "twice the steps": ((20,), jax.nn.sigmoid, 2, 4, True),
    "40 units": ((40,), jax.nn.sigmoid, 1, 5, True),
    "2 layers": ((20, 20), jax.nn.sigmoid, 1, 5, True),
    "ReLU": ((20,), jax.nn.relu, 1, 5, False),
}


def images(name: str, split: str, size: int) -> dict[str, np.ndarray]:
    return mx.data.resize(mx.data.load(name, split), size)


def cases(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: CASES[name] for name in settings.get("cases", CASES)}


def run(seed: int, settings: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    s, tasks = settings, mx.tasks.minibatches(settings["batch"])
    optimizers = {PLAIN: mx.optim.lstm(**s["preset"]), FAMILY: mx.optim.rnnprop()}

    def pose(p):
        data, inputs = images(s["data"], "train", p["size"]), p["size"] ** 2
        if p["network"] == "sigmoid":
            return mx.problems.mlp((inputs, p["hidden"], 10)), tasks, data
        family = mx.problems.random_mlp(tasks, inputs, 10, widths=(8, p["hidden"]), depths=(1, 2))
        return *family, data

    learned = {
        name: optimizer.tx(
            _l2l.learn(
                seed,
                optimizer,
                s["meta_training"][name],
                pose,
                folder / name,
                steps=s["steps"],
                validated=s["validated"],
            )
        )
        for name, optimizer in optimizers.items()
    }
    unseen, results = images(s["data"], "test", s["size"]), {}
    for i, (case, (hidden, activation, factor, *_)) in enumerate(cases(s).items()):
        problem = mx.problems.mlp((s["size"] ** 2, *hidden, 10), activation)
        results |= _l2l.compare(
            case, learned, problem, tasks, jax.random.key(3000 + 10 * seed + i), unseen,
            steps=factor * s["steps"], num_tasks=s["test_tasks"], rates=s["rates"],
        )  # fmt: skip
    return results


def claims(results: Results, settings: dict[str, Any]) -> list[Claim]:
    found = []
    for case, (*_, figure, wins) in cases(settings).items():
        published = "below all baselines" if wins else "diverges"
        found.append(_l2l.against_baselines(results, case, PLAIN, f"{SOURCE}, figure {figure}", published, wins))
    for case in cases(settings):
        found.append(_l2l.against_baselines(results, case, FAMILY, f"beyond {SOURCE}", None))
    return found


def picture(results: Results, settings: dict[str, Any], figure: Any) -> None:
    figure.set_size_inches(9, 5.4)
    axes = figure.subplots(2, 3).ravel()
    for i, (ax, case) in enumerate(zip(axes, cases(settings), strict=False)):
        _l2l.draw(results, case, [PLAIN, FAMILY], ax, "loss (nats)" if i % 3 == 0 else "")
    axes[-1].axis("off")
    axes[-1].legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="center", fontsize=9)


def _phases(network: str, bptt: dict[str, Any], es: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"network": network, "estimator": "bptt", **bptt}, {"network": network, "estimator": "es", **es}]


_RATES = [10 ** (k / 4) for k in range(-12, 5)]
_SMOKE = {"size": 4, "hidden": 8, "horizon": 6, "tasks": 2, "rate": 1e-3, "steps": 4, "chunk": 2}
_SMALL = {"size": 14, "hidden": 16, "horizon": 100}
_FULL = {"size": 28, "hidden": 20, "horizon": 100}


def _both(bptt: dict[str, Any], es: dict[str, Any], wide: int) -> dict[str, list[dict[str, Any]]]:
    return {
        PLAIN: _phases("sigmoid", bptt, es),
        FAMILY: _phases("family", {**bptt, "hidden": wide}, {**es, "hidden": wide}),
    }


EXPERIMENT = Experiment(
    title="Learning to train a network on MNIST, and others than the one it was meta-trained on",
    source=f"{SOURCE}, figures 4 and 5",
    settings={
        "smoke": {
            "cases": ["20 units"],
            "data": "digits", "size": 4, "batch": 8, "steps": 10, "preset": {}, "validated": 2, "test_tasks": 2,
            "rates": [1e-7, 0.01, 0.1, 1.0, 1e4],
            "meta_training": _both({**_SMOKE, "window": 3}, {**_SMOKE, "std": 0.03}, 8),
        },
        "small": {
            "data": "mnist", "size": 28, "batch": 128, "steps": 100, "preset": {}, "validated": 8, "test_tasks": 32,
            "rates": _RATES,
            "meta_training": _both(
                {**_SMALL, "window": 25, "tasks": 4, "rate": 3e-3, "steps": 1000, "chunk": 50},
                {**_SMALL, "tasks": 16, "std": 0.03, "rate": 1e-2, "steps": 100, "chunk": 10},
                16,
            ),
        },
        "full": {
            "data": "mnist", "size": 28, "batch": 128, "steps": 100, "preset": {}, "validated": 32, "test_tasks": 128,
            "rates": _RATES,
            "meta_training": _both(
                {**_FULL, "window": 20, "tasks": 16, "rate": 1e-3, "steps": 50_000, "chunk": 250},
                {**_FULL, "tasks": 128, "std": 0.03, "rate": 3e-3, "steps": 2000, "chunk": 50},
                40,
            ),
        },
    },
    run=run,
    claims=claims,
    picture=picture,
)  # fmt: skip
