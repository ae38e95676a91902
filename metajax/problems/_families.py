"""Problems that are a family: each task draws its own scaling, or its own network."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metajax import _checks
from metajax.problems._basic import classifier, perceptron
from metajax.types import Array, Problem, PyTree, Tasks


class Scaled(NamedTuple):
    """A task and a factor for each parameter."""

    task: PyTree
    scale: PyTree


def random_scaling(problem: Problem, tasks: Tasks, spread: float = 3.0) -> tuple[Problem, Tasks]:
    """The same problem in other units: ``f(c * x)`` from ``x0 / c`` (Lv et al. 2017, arXiv
    1703.03633).

    Each task draws a factor for every single parameter, ``c = exp(u)`` with ``u`` uniform in
    [-spread, spread], and keeps it. An optimizer that is meta-trained so cannot come to rely on the
    scale of one problem.

    Args: problem: what is minimised. tasks: its tasks; those returned give batches ``(batch, c)``,
      which only the problem returned understands. spread: largest logarithm of a factor; 3 in the
      paper's code.

    >>> import jax, metajax as mx, optax
    >>> problem, tasks = mx.problems.random_scaling(mx.problems.quadratic(), mx.tasks.quadratics(3))
    >>> loop = mx.inner(mx.l2l(optax.adam, problem), tasks, horizon=10)
    >>> mx.evaluate(loop, jax.random.key(0), 0.1, num_tasks=4).loss.shape
    (4, 10)
    """
    problem = _checks.problem("problem", problem)
    _checks.instance(Tasks, tasks=tasks)
    _checks.positive_float(spread=spread)

    def sample(key, data):
        k_task, k_init, k_scale = jax.random.split(key, 3)
        task = tasks.sample(k_task, data)
        leaves, treedef = jax.tree.flatten(jax.eval_shape(problem.init, k_init, task))
        keys = jax.random.split(k_scale, len(leaves))
        drawn = [
            jax.random.uniform(k, x.shape, x.dtype, -spread, spread)
            for k, x in zip(keys, leaves, strict=True)
        ]
        return Scaled(task, jax.tree.unflatten(treedef, [jnp.exp(u) for u in drawn]))

    scaled_tasks = Tasks(
        sample,
        lambda key, data, task, t: (tasks.train(key, data, task.task, t), task.scale),
        lambda key, data, task: (tasks.test(key, data, task.task), task.scale),
    )

    def init(key, task):
        return jax.tree.map(jnp.divide, problem.init(key, task.task), task.scale)

    def loss(key, params, batch):
        batch, scale = batch
        return problem.loss(key, jax.tree.map(jnp.multiply, params, scale), batch)

    return Problem(init, loss), scaled_tasks


class Network(NamedTuple):
    """A task and the network that learns it: ``width`` and ``depth`` of the hidden layers, place of
    the activation.
    """

    task: PyTree
    width: Array
    depth: Array
    activation: Array


def random_mlp(
    tasks: Tasks,
    inputs: int,
    classes: int,
    *,
    widths: tuple[int, int] = (8, 32),
    depths: tuple[int, int] = (1, 2),
    activations: Sequence[Callable] = (jax.nn.sigmoid, jnp.tanh, jax.nn.relu),
) -> tuple[Problem, Tasks]:
    """A family of perceptrons as one problem: each task draws the width, depth and activation of
    its network.

    Meta-training over it makes an optimizer that does not rely on one architecture. Initialised as
    `mlp`. All networks have the parameters of the largest, so that `jax.vmap` can batch them; those
    beyond a network's own width and depth change nothing and get a gradient of 0.

    Args: tasks: of ``{"image": [B, ...], "label": [B]}``, e.g. `metajax.tasks.minibatches`; those
      returned give batches ``(batch, network)``, which only the problem returned understands.
      inputs: values of an image. classes: number of classes. widths: fewest and most units of a
      hidden layer, drawn log-uniformly. depths: fewest and most hidden layers, at least 1, drawn
      uniformly. activations: of which each network has one.

    >>> import jax, metajax as mx, optax
    >>> problem, tasks = mx.problems.random_mlp(mx.tasks.minibatches(16), 64, 10)
    >>> loop = mx.inner(mx.l2l(optax.adam, problem), tasks, horizon=5)
    >>> mx.evaluate(loop, jax.random.key(0), 0.01, mx.data.load("digits"), num_tasks=4).loss.shape
    (4, 5)
    """
    _checks.instance(Tasks, tasks=tasks)
    inputs, classes = (
        _checks.positive_int("inputs", inputs),
        _checks.positive_int("classes", classes),
    )
    (narrow, wide), (shallow, deep) = _range("widths", widths), _range("depths", depths)
    if not activations:
        raise ValueError("activations is empty: give at least one, e.g. (jax.nn.relu,)")
    for activation in activations:
        _checks.function("each of activations", activation)

    def sample(key, data):
        k_task, k_width, k_depth, k_activation = jax.random.split(key, 4)
        u = jax.random.uniform(k_width)
        width = jnp.floor(narrow * ((wide + 1) / narrow) ** u).astype(jnp.int32)
        return Network(
            tasks.sample(k_task, data),
            jnp.minimum(width, wide),
            jax.random.randint(k_depth, (), shallow, deep + 1),
            jax.random.randint(k_activation, (), 0, len(activations)),
        )

    family = Tasks(
        sample,
        lambda key, data, network, t: (tasks.train(key, data, network.task, t), network),
        lambda key, data, network: (tasks.test(key, data, network.task), network),
    )
    largest, _ = perceptron((inputs, *[wide] * deep, classes), jax.nn.relu)

    def init(key, network):
        first, *rest = largest(key)
        factor = jnp.sqrt(
            wide / network.width
        )  # weights N(0, 1 / fan_in), of the network's own fan-in
        return [first, *({**layer, "w": layer["w"] * factor} for layer in rest)]

    def loss(key, params, batch):
        batch, network = batch
        units = jnp.arange(wide) < network.width

        def apply(params, images):
            x = images.reshape(len(images), -1)
            if x.shape[1] != inputs:
                raise ValueError(
                    f"inputs is {inputs}, but an image {list(images.shape[1:])} has {x.shape[1]} values"
                )
            for depth, layer in enumerate(params[:-1]):
                hidden = (
                    lax.switch(network.activation, activations, x @ layer["w"] + layer["b"]) * units
                )
                x = jnp.where(depth < network.depth, hidden, x) if depth else hidden
            return x @ params[-1]["w"] + params[-1]["b"]

        return classifier(largest, apply).loss(key, params, batch)

    return Problem(init, loss), family


def _range(name: str, pair: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise TypeError(f"{name} must be a pair (fewest, most), got {pair!r}")
    low, high = (_checks.positive_int(name, n) for n in pair)
    if low > high:
        raise ValueError(f"{name} must be a pair (fewest, most), got {pair}; swap them")
    return low, high
