"""Problems that are a family: each task draws its own scaling, or its own network."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metajax import _checks
from metajax._arguments import PositiveFloat, PositiveInt, check, checked
from metajax._arrays import affine
from metajax._losses import at_least_float32, blank_masked
from metajax.problems._basic import perceptron
from metajax.problems._supervised import cross_entropy, stateless
from metajax.tasks._paired import paired
from metajax.types import Array, Problem, PyTree, Tasks

Level = Literal["parameter", "tensor", "global"]


@checked
def random_scaling(
    problem: Problem,
    tasks: Tasks,
    spread: PositiveFloat = 3.0,
    level: Level = "parameter",
) -> tuple[Problem, Tasks]:
    """The same problem in other units: ``f(c * x)`` from ``x0 / c`` (Lv et al. 2017, 1703.03633).

    Each task draws factors ``c = exp(u)`` with ``u`` uniform in [-spread, spread], and keeps them:
    one for every single parameter, one for each tensor, or one for all. An optimizer that is
    meta-trained so cannot come to rely on the scale of one problem. Factors from 1e-3 to 1e3, one
    for all, are those of VeLO and Celo (Metz et al. 2022, Moudgil et al. 2025): ``spread=6.91,
    level="global"``.

    Args:
      problem: what is minimised.
      tasks: its tasks; those returned give batches ``(batch, c)``, which only the problem returned
        understands. It predicts from ``(inputs, c)``.
      spread: largest logarithm of a factor; 3 in the paper's code.
      level: what has a factor of its own, each ``"parameter"``, each ``"tensor"``, or, as
        ``"global"``, only the whole.

    >>> import jax, metajax as mx, optax
    >>> problem, tasks = mx.problems.random_scaling(mx.problems.quadratic(), mx.tasks.quadratics(3))
    >>> loop = mx.inner(mx.l2l(optax.adam, problem), tasks, horizon=10)
    >>> mx.evaluate(loop, jax.random.key(0), 0.1, num_tasks=4).loss.shape
    (4, 10)
    """

    def draw(keys, data, task):
        k_init, k_scale = keys
        params, _ = jax.eval_shape(problem.init, k_init, task)
        if level == "global":
            u = jax.random.uniform(k_scale, (), minval=-spread, maxval=spread)
            return jax.tree.map(lambda x: jnp.exp(u).astype(x.dtype), params)

        leaves, structure = jax.tree.flatten(params)
        factors = []
        for k, x in zip(jax.random.split(k_scale, len(leaves)), leaves, strict=True):
            shape = x.shape if level == "parameter" else ()
            u = jax.random.uniform(k, shape, x.dtype, -spread, spread)
            factors.append(jnp.exp(u))
        return jax.tree.unflatten(structure, factors)

    def init(key, task):
        params, model_state = problem.init(key, task.task)
        return jax.tree.map(jnp.divide, params, task.own), model_state

    def loss(key, params, model_state, batch):
        batch, scale = batch
        return problem.loss(key, _product(params, scale), model_state, batch)

    def test(key, params, model_state, batch):
        batch, scale = batch
        return problem.test(key, _product(params, scale), model_state, batch)

    def predict(key, params, model_state, inputs):
        inputs, scale = inputs
        return problem.predict(key, _product(params, scale), model_state, inputs)

    scaled_tasks = paired(tasks, draw, _with_own, num_keys=2)
    return Problem(init, loss, test, predict), scaled_tasks


def _with_own(own: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
    return batch, own


def _product(params: PyTree, scale: PyTree) -> PyTree:
    return jax.tree.map(jnp.multiply, params, scale)


class Network(NamedTuple):
    """The ``width`` and ``depth`` of a network's hidden layers, and the place of its activation."""

    width: Array
    depth: Array
    activation: Array


def _check_activations(activations: Sequence[Callable]) -> None:
    if not activations:
        raise ValueError("activations is empty: give at least one, e.g. (jax.nn.relu,)")
    for i, activation in enumerate(activations):
        check(Callable, **{f"activations[{i}]": activation})


@checked
def random_mlp(
    tasks: Tasks,
    inputs: PositiveInt,
    classes: PositiveInt,
    *,
    widths: tuple[int, int] = (8, 32),
    depths: tuple[int, int] = (1, 2),
    activations: Sequence[Callable] = (jax.nn.sigmoid, jnp.tanh, jax.nn.relu),
) -> tuple[Problem, Tasks]:
    """A family of perceptrons as one problem: each task draws a width, depth and activation.

    Meta-training over it makes an optimizer that does not rely on one architecture. Initialised as
    `mlp`. All networks have the parameters of the largest, so that `jax.vmap` can batch them; those
    beyond a network's own width and depth change nothing and get a gradient of 0.

    Args:
      tasks: of ``{"image": [B, ...], "label": [B]}``, e.g. `metajax.tasks.minibatches`; those
        returned give batches ``(batch, network)``, which only the problem returned understands. It
        predicts from ``(images, network)``.
      inputs: values of an image.
      classes: number of classes.
      widths: fewest and most units of a hidden layer, drawn log-uniformly.
      depths: fewest and most hidden layers, at least 1, drawn uniformly.
      activations: of which each network has one.

    >>> import jax, metajax as mx, optax
    >>> problem, tasks = mx.problems.random_mlp(mx.tasks.minibatches(16), 64, 10)
    >>> loop = mx.inner(mx.l2l(optax.adam, problem), tasks, horizon=5)
    >>> mx.evaluate(loop, jax.random.key(0), 0.01, mx.data.load("digits"), num_tasks=4).loss.shape
    (4, 5)
    """
    narrowest, widest = _checks.increasing_pair("widths", widths, like=(8, 32))
    shallowest, deepest = _checks.increasing_pair("depths", depths, like=(1, 2))
    _check_activations(activations)

    def draw(keys, data, task):
        k_width, k_depth, k_activation = keys
        growth = (widest + 1) / narrowest
        width = jnp.floor(narrowest * growth ** jax.random.uniform(k_width)).astype(
            jnp.int32
        )
        depth = jax.random.randint(k_depth, (), shallowest, deepest + 1)
        activation = jax.random.randint(k_activation, (), 0, len(activations))
        return Network(jnp.minimum(width, widest), depth, activation)

    largest, _ = perceptron((inputs, *[widest] * deepest, classes), jax.nn.relu)

    def init(key, task):
        first, *rest = largest(key)
        # Weights N(0, 1 / fan_in), of the network's own fan-in.
        factor = jnp.sqrt(widest / task.own.width)
        return [first, *(layer | {"w": factor * layer["w"]} for layer in rest)]

    def predict(params, inputs_and_network):
        images, network = inputs_and_network
        x = images.reshape(len(images), -1)
        if x.shape[1] != inputs:
            raise ValueError(
                f"inputs is {inputs}, but an image {list(images.shape[1:])} has {x.shape[1]} values"
            )
        is_unit = jnp.arange(widest)[None] < network.width
        *hidden, last = params
        for depth, layer in enumerate(hidden):
            z = affine(x, layer["w"], layer["b"])
            activated = lax.switch(network.activation, activations, z) * is_unit
            x = jnp.where(depth < network.depth, activated, x) if depth else activated
        return at_least_float32(affine(x, last["w"], last["b"]))

    def loss(key, params, batch_and_network):
        del key
        batch, network = batch_and_network
        batch = blank_masked(batch, "image", "label")
        return cross_entropy(predict(params, (batch["image"], network)), batch)

    family = paired(tasks, draw, _with_own, num_keys=3)
    return stateless(init, loss, predict), family
