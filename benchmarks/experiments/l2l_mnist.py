"""An LSTM learns to train a small network on MNIST; then it meets longer runs and other networks.

It is not retrained for those. One learned optimizer, the LSTM of the paper, knows only its network;
the others a family of networks with several activations: RNNProp, whose inputs are gradients as
Adam normalises them, and Nadam with learned hyperparameters.

The first two are meta-trained on small images, which cost little, since a coordinatewise optimizer
fits any number of weights; each of their weights stands for several, as many as larger images and
networks have, since how far a step of all weights moves an output depends on their number. The
dozen numbers of the third cost so little to find that it sees networks of full size.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import metajax as mx
from benchmarks.experiments import _l2l
from benchmarks.reproduce import Claim, Experiment, Result, Results, Settings

SOURCE = "Andrychowicz et al. 2016, section 3.2"
PLAIN = "LSTM"
FAMILY = ("RNNProp, family", "Nadam, family")


class Case(NamedTuple):
    """A network that is trained.

    Attributes:
      hidden: units of each layer.
      activation: of these.
      figure: of the paper.
      factor: on the number of steps.
      wins: whether the paper's optimizer does.
    """

    hidden: tuple[int, ...]
    activation: Callable
    figure: int
    factor: int = 1
    wins: bool = True


CASES = {
    "20 units": Case((20,), jax.nn.sigmoid, figure=4),
    "twice the steps": Case(
        (20,),
        jax.nn.sigmoid,
        figure=4,
        factor=2,
    ),
    "40 units": Case((40,), jax.nn.sigmoid, figure=5),
    "2 layers": Case((20, 20), jax.nn.sigmoid, figure=5),
    "ReLU": Case(
        (20,),
        jax.nn.relu,
        figure=5,
        wins=False,
    ),
}


def cases(settings: Settings) -> dict[str, Case]:
    """Those of the scale."""
    return {name: CASES[name] for name in settings.get("cases", CASES)}


def images(settings: Settings, split: str, size: int) -> dict[str, np.ndarray]:
    """A split of the data, ``size`` by ``size``."""
    return mx.data.resize(mx.data.load(settings["data"], split), size)


def many(
    problem: mx.Problem, tasks: mx.Tasks, most: tuple[float, float]
) -> tuple[mx.Problem, mx.Tasks]:
    """Networks each of whose weights stands for many.

    How many, each task draws for each layer: up to ``most`` in the first and in later layers.

    ``n`` weights of inputs that are equal get equal updates: their sum begins at a size that does
    not depend on ``n`` and moves ``n`` times as far, like a single weight in units ``n`` times as
    large.
    """
    return _standing_for_many(problem), _with_factors(problem, tasks, most)


def _standing_for_many(problem: mx.Problem) -> mx.Problem:
    """The problem for tasks, batches and inputs that are pairs: the original, and the factors."""

    def init(key, task_and_factors):
        task, factors = task_and_factors
        params, model_state = problem.init(key, task)
        return _scaled(jnp.divide, params, factors), model_state

    def loss(key, params, model_state, batch_and_factors):
        batch, factors = batch_and_factors
        return problem.loss(
            key,
            _scaled(jnp.multiply, params, factors),
            model_state,
            batch,
        )

    def test(key, params, model_state, batch_and_factors):
        batch, factors = batch_and_factors
        return problem.test(
            key,
            _scaled(jnp.multiply, params, factors),
            model_state,
            batch,
        )

    def predict(key, params, model_state, inputs_and_factors):
        inputs, factors = inputs_and_factors
        return problem.predict(
            key,
            _scaled(jnp.multiply, params, factors),
            model_state,
            inputs,
        )

    return mx.Problem(init, loss, test, predict)


def _scaled(operation, params, factors):
    layers = zip(params, factors, strict=True)
    return [layer | {"w": operation(layer["w"], factor)} for layer, factor in layers]


def _with_factors(
    problem: mx.Problem, tasks: mx.Tasks, most: tuple[float, float]
) -> mx.Tasks:
    def sample(key, data):
        k_task, k_factor = jax.random.split(key)
        task = tasks.sample(k_task, data)
        params, _ = jax.eval_shape(problem.init, key, task)
        num_layers = len(params)
        place = jnp.minimum(jnp.arange(num_layers), 1)  # the first, or a later one
        share = jax.random.uniform(k_factor, (num_layers,))
        return task, jnp.array(most)[place] ** share

    def train(key, data, task_and_factors):
        task, factors = task_and_factors
        return tasks.train(key, data, task), factors

    def test(key, data, task_and_factors):
        task, factors = task_and_factors
        return tasks.test(key, data, task), factors

    return mx.Tasks(sample, train, test)


def run(seed: int, settings: Settings, folder: Path) -> Result:
    tasks = mx.tasks.minibatches(settings["batch"])
    optimizers = {
        PLAIN: mx.optim.lstm(**settings["preset"]),
        FAMILY[0]: mx.optim.rnnprop(),
        FAMILY[1]: mx.optim.nadam(
            rate=0.03,
            knots=(1, 10, 30, 60, 100, 150, 200),
            b2=0.97,
        ),
    }
    learned = {}
    for name, optimizer in optimizers.items():
        meta_params = _l2l.learn(
            seed,
            optimizer,
            settings["meta_training"][name],
            lambda phase: _pose(settings, tasks, phase),
            folder / name,
            steps=settings["steps"],
            num_validation_tasks=settings["validated"],
        )
        mx.save(folder / f"{name}.npz", meta_params)
        learned[name] = optimizer.tx(meta_params)

    unseen = images(settings, "test", settings["size"])
    inputs = settings["size"] ** 2
    results = {}
    for i, (name, case) in enumerate(cases(settings).items()):
        problem = mx.problems.mlp((inputs, *case.hidden, 10), case.activation)
        results |= _l2l.compare(
            name,
            learned,
            (problem, tasks, unseen),
            jax.random.key(3000 + 10 * seed + i),
            folder,
            steps=case.factor * settings["steps"],
            num_tasks=settings["test_tasks"],
            search=mx.RateSearch(settings["rates"]),
        )
    return results


def _pose(settings: Settings, tasks: mx.Tasks, phase: _l2l.Phase) -> _l2l.Posed:
    """What a phase of meta-training minimises."""
    data = images(settings, "train", phase["size"])
    inputs = phase["size"] ** 2
    hidden = phase["hidden"]
    if phase["network"] == "family":
        widths = phase.get("widths", (hidden // 2, hidden))
        depths = phase.get("depths", (1, 2))
        problem, tasks = mx.problems.random_mlp(
            tasks,
            inputs,
            10,
            widths=widths,
            depths=depths,
        )
    else:
        problem = mx.problems.mlp((inputs, hidden, 10))
    problem, tasks = many(problem, tasks, phase["stands_for"])
    return problem, tasks, data


def claims(results: Results, settings: Settings) -> list[Claim]:
    found = []
    for name, case in cases(settings).items():
        source = f"{SOURCE}, figure {case.figure}"
        published = "below all baselines" if case.wins else "fails"
        found.append(
            _l2l.against_baselines(
                results,
                name,
                PLAIN,
                source,
                published,
                case.wins,
            )
        )
    for optimizer in FAMILY:
        for name in cases(settings):
            source = f"beyond {SOURCE}"
            found.append(_l2l.against_baselines(results, name, optimizer, source, None))
    return found


def picture(results: Results, settings: Settings, figure: Any) -> None:
    figure.set_size_inches(9, 5.4)
    axes = figure.subplots(2, 3).ravel()
    for i, (ax, case) in enumerate(zip(axes, cases(settings), strict=False)):
        ylabel = "loss (nats)" if i % 3 == 0 else ""
        _l2l.draw(results, case, [PLAIN, *FAMILY], ax, ylabel)
    axes[-1].axis("off")
    handles = axes[0].get_legend_handles_labels()
    axes[-1].legend(
        *handles,
        frameon=False,
        loc="center",
        fontsize=9,
    )


def _all(*phases: _l2l.Phase) -> dict[str, list[_l2l.Phase]]:
    """The same phases for all optimizers, each on the networks that it is to know."""
    networks = {PLAIN: "sigmoid", **dict.fromkeys(FAMILY, "family")}
    return {
        name: [{"network": network, **phase} for phase in phases]
        for name, network in networks.items()
    }


_RATES = [10 ** (k / 4) for k in range(-12, 5)]

# Windows of 25 steps look no further ahead, and what wins within them is behind after 100; windows
# of 100 mind the mean of the losses more than the last; on that, backpropagation through 100 steps
# made things worse, a strategy better.
_SHORT = {"estimator": "bptt", "horizon": 100, "window": 25, "tasks": 4, "rate": 3e-3}
_LONG = {"estimator": "bptt", "horizon": 200, "window": 100, "tasks": 4, "rate": 2e-3}
_LAST = {"estimator": "es", "horizon": 100, "std": 0.03, "rate": 5e-3}
_PHASES = (
    {**_SHORT, "steps": 400, "chunk": 50},
    {**_LONG, "steps": 200, "chunk": 50},
    {**_LAST, "tasks": 16, "steps": 150, "chunk": 25},
)
_MORE = {
    **_LAST,
    "tasks": 16,
    "horizon": 150,
    "std": 0.02,
    "rate": 1e-2,
    "steps": 150,
    "chunk": 25,
}

_TINY = {"size": 4, "hidden": 8, "stands_for": [2, 2]}
_FEW = {"tasks": 2, "horizon": 6, "rate": 1e-3, "steps": 4, "chunk": 2}
_SMALL = {
    "size": 10,
    "hidden": 16,
    "stands_for": [8, 3],
}  # 8: about 28 x 28 / (10 x 10)
_LARGE = {"size": 28, "hidden": 20, "stands_for": [2, 3]}
_FULL_SIZE = {"size": 28, "hidden": 20, "stands_for": [1, 1], "widths": (20, 20)}

_PARTS = [
    {"depths": (1, 1), "ends": [100, 200], "tasks": 8},
    {"depths": (2, 2), "ends": [100], "tasks": 6},
]
_SEARCH = {
    "network": "family",
    "estimator": "es",
    "std": 0.1,
    "rate": 0.05,
    "chunk": 10,
    **_FULL_SIZE,
}
_TINY_SEARCH = {"network": "family", "estimator": "es", "std": 0.03, **_TINY, **_FEW}

_MNIST = {
    "data": "mnist",
    "size": 28,
    "batch": 128,
    "steps": 100,
    "preset": {},
    "rates": _RATES,
}
_SMOKE = {
    "cases": ["20 units"],
    "data": "digits",
    "size": 4,
    "batch": 8,
    "steps": 10,
    "preset": {},
    "validated": 2,
    "test_tasks": 2,
    "rates": [1e-7, 0.01, 0.1, 1.0, 1e4],
    "meta_training": {
        **_all(
            {"estimator": "bptt", **_TINY, **_FEW, "window": 3},
            {"estimator": "es", **_TINY, **_FEW, "std": 0.03},
        ),
        FAMILY[1]: [{**_TINY_SEARCH, "parts": [{"ends": [10]}, {"ends": [10, 20]}]}],
    },
}
_TWO_CORES = {
    **_MNIST,
    "validated": 16,
    "test_tasks": 32,
    "meta_training": {
        PLAIN: [
            {"network": "sigmoid", **_SMALL, **phase} for phase in (*_PHASES, _MORE)
        ],
        FAMILY[0]: [{"network": "family", **_SMALL, **phase} for phase in _PHASES],
        FAMILY[1]: [{**_SEARCH, "parts": _PARTS, "tasks": 8, "steps": 80}],
    },
}
_FULL = {
    **_MNIST,
    "validated": 32,
    "test_tasks": 128,
    "meta_training": {
        **_all(
            {**_SHORT, **_SMALL, "tasks": 16, "steps": 5000, "chunk": 250},
            {**_LONG, **_LARGE, "tasks": 16, "steps": 5000, "chunk": 100},
            {**_LAST, **_LARGE, "tasks": 128, "steps": 1000, "chunk": 50},
        ),
        FAMILY[1]: [
            {
                **_SEARCH,
                "parts": [{**part, "tasks": 64} for part in _PARTS],
                "tasks": 64,
                "steps": 300,
            }
        ],
    },
}

EXPERIMENT = Experiment(
    title="Learning to train a network on MNIST, and others than the one it was meta-trained on",
    source=f"{SOURCE}, figures 4 and 5",
    settings={"smoke": _SMOKE, "small": _TWO_CORES, "full": _FULL},
    run=run,
    claims=claims,
    picture=picture,
)
