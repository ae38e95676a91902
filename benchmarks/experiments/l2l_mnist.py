"""An LSTM learns to train a small network on MNIST; then, without retraining, it meets longer runs
and other networks.

One learned optimizer, the LSTM of the paper, knows only its network; the others a family of
networks with several activations: RNNProp, whose inputs are gradients as Adam normalises them, and
Nadam with learned hyperparameters.

The first two are meta-trained on small images, which cost little, since a coordinatewise optimizer
fits any number of weights; each of their weights stands for several, as many as larger images and
networks have, since how far a step of all weights moves an output depends on their number. The
dozen numbers of the third cost so little to find that it sees networks of full size.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import metajax as mx
from benchmarks.experiments import _l2l
from benchmarks.reproduce import Claim, Experiment, Results

SOURCE = "Andrychowicz et al. 2016, section 3.2"
PLAIN, FAMILY = "LSTM", ("RNNProp, family", "Nadam, family")
# case -> hidden units, activation, factor on the number of steps, figure, does the paper's
# optimizer win?
CASES = {
    "20 units": ((20,), jax.nn.sigmoid, 1, 4, True),
    "twice the steps": ((20,), jax.nn.sigmoid, 2, 4, True),
    "40 units": ((40,), jax.nn.sigmoid, 1, 5, True),
    "2 layers": ((20, 20), jax.nn.sigmoid, 1, 5, True),
    "ReLU": ((20,), jax.nn.relu, 1, 5, False),
}


def images(name: str, split: str, size: int) -> dict[str, np.ndarray]:
    return mx.data.resize(mx.data.load(name, split), size)


def many(
    problem: mx.Problem, tasks: mx.Tasks, most: tuple[float, float]
) -> tuple[mx.Problem, mx.Tasks]:
    """Networks whose weights stand for as many as each task draws, up to ``most`` in the first and
    in later layers.

    ``n`` weights of inputs that are equal get equal updates: their sum begins at a size that does
    not depend on ``n`` and moves ``n`` times as far, like a single weight in units ``n`` times as
    large.
    """

    def scaled(f, layers, factors):
        return [{**layer, "w": f(layer["w"], n)} for layer, n in zip(layers, factors, strict=True)]

    def sample(key, data):
        k_task, k_factor = jax.random.split(key)
        task = tasks.sample(k_task, data)
        layers = len(jax.eval_shape(problem.init, key, task))
        return task, jnp.array(most)[jnp.minimum(jnp.arange(layers), 1)] ** jax.random.uniform(
            k_factor, (layers,)
        )

    return mx.Problem(
        lambda key, task: scaled(jnp.divide, problem.init(key, task[0]), task[1]),
        lambda key, params, batch: problem.loss(
            key, scaled(jnp.multiply, params, batch[1]), batch[0]
        ),
    ), mx.Tasks(
        sample,
        lambda key, data, task: (tasks.train(key, data, task[0], t), task[1]),
        lambda key, data, task: (tasks.test(key, data, task[0]), task[1]),
    )


def cases(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: CASES[name] for name in settings.get("cases", CASES)}


def run(seed: int, settings: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    s, tasks = settings, mx.tasks.minibatches(settings["batch"])
    nadam = mx.optim.nadam(rate=0.03, knots=(1, 10, 30, 60, 100, 150, 200), b2=0.97)
    optimizers = dict(
        zip(
            (PLAIN, *FAMILY), (mx.optim.lstm(**s["preset"]), mx.optim.rnnprop(), nadam), strict=True
        )
    )

    def pose(p):
        data, inputs = images(s["data"], "train", p["size"]), p["size"] ** 2
        posed = mx.problems.mlp((inputs, p["hidden"], 10)), tasks
        if p["network"] == "family":
            widths = p.get("widths", (p["hidden"] // 2, p["hidden"]))
            posed = mx.problems.random_mlp(
                tasks, inputs, 10, widths=widths, depths=p.get("depths", (1, 2))
            )
        return *many(*posed, p["stands_for"]), data

    learned = {}
    for name, optimizer in optimizers.items():
        meta_params = _l2l.learn(
            seed,
            optimizer,
            s["meta_training"][name],
            pose,
            folder / name,
            steps=s["steps"],
            validated=s["validated"],
        )
        mx.save(folder / f"{name}.npz", meta_params)
        learned[name] = optimizer.tx(meta_params)
    unseen, results = images(s["data"], "test", s["size"]), {}
    for i, (case, (hidden, activation, factor, *_)) in enumerate(cases(s).items()):
        problem = mx.problems.mlp((s["size"] ** 2, *hidden, 10), activation)
        results |= _l2l.compare(
            case, learned, problem, tasks, jax.random.key(3000 + 10 * seed + i), unseen,
            steps=factor * s["steps"], num_tasks=s["test_tasks"], rates=s["rates"], folder=folder,
        )  # fmt: skip
    return results


def claims(results: Results, settings: dict[str, Any]) -> list[Claim]:
    found = []
    for case, (*_, figure, wins) in cases(settings).items():
        published = "below all baselines" if wins else "fails"
        found.append(
            _l2l.against_baselines(
                results, case, PLAIN, f"{SOURCE}, figure {figure}", published, wins
            )
        )
    for name in FAMILY:
        for case in cases(settings):
            found.append(_l2l.against_baselines(results, case, name, f"beyond {SOURCE}", None))
    return found


def picture(results: Results, settings: dict[str, Any], figure: Any) -> None:
    figure.set_size_inches(9, 5.4)
    axes = figure.subplots(2, 3).ravel()
    for i, (ax, case) in enumerate(zip(axes, cases(settings), strict=False)):
        _l2l.draw(results, case, [PLAIN, *FAMILY], ax, "loss (nats)" if i % 3 == 0 else "")
    axes[-1].axis("off")
    axes[-1].legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="center", fontsize=9)


def _all(*phases: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    known = {PLAIN: "sigmoid", **dict.fromkeys(FAMILY, "family")}
    return {name: [{"network": network, **p} for p in phases] for name, network in known.items()}


_RATES = [10 ** (k / 4) for k in range(-12, 5)]
_SMOKE = {
    "size": 4,
    "hidden": 8,
    "stands_for": [2, 2],
    "tasks": 2,
    "horizon": 6,
    "rate": 1e-3,
    "steps": 4,
    "chunk": 2,
}
# Windows of 25 steps look no further ahead, and what wins within them is behind after 100; windows
# of 100 mind the mean of the losses more than the last; on that, backpropagation through 100 steps
# made things worse, a strategy better.
_SHORT = {"estimator": "bptt", "horizon": 100, "window": 25, "tasks": 4, "rate": 3e-3}
_LONG = {"estimator": "bptt", "horizon": 200, "window": 100, "tasks": 4, "rate": 2e-3}
_LAST = {"estimator": "es", "horizon": 100, "std": 0.03, "rate": 5e-3}
_SMALL = {"size": 10, "hidden": 16, "stands_for": [8, 3]}  # 8: about 28 x 28 / (10 x 10)
_PHASES = (
    {**_SHORT, "steps": 400, "chunk": 50},
    {**_LONG, "steps": 200, "chunk": 50},
    {**_LAST, "tasks": 16, "steps": 150, "chunk": 25},
)
_MORE = (
    {**_LAST, "tasks": 16, "horizon": 150, "std": 0.02, "rate": 1e-2, "steps": 150, "chunk": 25},
)
_PARTS = [
    {"depths": (1, 1), "ends": [100, 200], "tasks": 8},
    {"depths": (2, 2), "ends": [100], "tasks": 6},
]
_WHOLE = {
    "network": "family", "estimator": "es", "std": 0.1, "rate": 0.05, "size": 28, "hidden": 20, "widths": (20, 20),
    "stands_for": [1, 1], "parts": _PARTS, "tasks": 8, "steps": 80, "chunk": 10,
}  # fmt: skip
EXPERIMENT = Experiment(
    title="Learning to train a network on MNIST, and others than the one it was meta-trained on",
    source=f"{SOURCE}, figures 4 and 5",
    settings={
        "smoke": {
            "cases": ["20 units"],
            "data": "digits", "size": 4, "batch": 8, "steps": 10, "preset": {}, "validated": 2, "test_tasks": 2,
            "rates": [1e-7, 0.01, 0.1, 1.0, 1e4],
            "meta_training": _all(
                {"estimator": "bptt", **_SMOKE, "window": 3}, {"estimator": "es", **_SMOKE, "std": 0.03}
            )
            | {
                FAMILY[1]: [
                    {"network": "family", "estimator": "es", **_SMOKE, "std": 0.03,
                     "parts": [{"ends": [10]}, {"ends": [10, 20]}]}
                ]
            },
        },
        "small": {
            "data": "mnist", "size": 28, "batch": 128, "steps": 100, "preset": {}, "validated": 16, "test_tasks": 32,
            "rates": _RATES,
            "meta_training": {
                PLAIN: [{"network": "sigmoid", **_SMALL, **phase} for phase in (*_PHASES, *_MORE)],
                FAMILY[0]: [{"network": "family", **_SMALL, **phase} for phase in _PHASES],
                FAMILY[1]: [_WHOLE],
            },
        },
        "full": {
            "data": "mnist", "size": 28, "batch": 128, "steps": 100, "preset": {}, "validated": 32, "test_tasks": 128,
            "rates": _RATES,
            "meta_training": _all(
                {**_SHORT, **_SMALL, "tasks": 16, "steps": 5000, "chunk": 250},
                {**_LONG, **_SMALL, "size": 28, "hidden": 20, "stands_for": [2, 3], "tasks": 16, "steps": 5000,
                 "chunk": 100},
                {**_LAST, **_SMALL, "size": 28, "hidden": 20, "stands_for": [2, 3], "tasks": 128, "steps": 1000,
                 "chunk": 50},
            )
            | {FAMILY[1]: [{**_WHOLE, "parts": [{**part, "tasks": 64} for part in _PARTS], "tasks": 64, "steps": 300}]},
        },
    },
    run=run,
    claims=claims,
    picture=picture,
)  # fmt: skip
