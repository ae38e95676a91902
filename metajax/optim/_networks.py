"""The networks that learned optimizers share: linear layers, perceptrons and LSTMs.

One network serves all coordinates. What goes through it is feature-major: ``[F, P]``, a column for
each of the ``P`` coordinates.
"""

import functools
import operator
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax._arrays import matmul
from metajax._random import draw_flat
from metajax._trees import copy_per_episode
from metajax.optim import _flat
from metajax.types import Array, PyTree

Layer = dict[str, Array]

# With more weights, products of matrices: sums of products would take long to compile.
_MOST_PRODUCTS = 500

# With as many coordinates, weights of their own for each episode are faster. Measured: with 160
# they help, with 40 they cost.
_COPY_WEIGHTS_FROM = 128


@partial(jax.jit, static_argnames=("shape", "fan_in"))
def normal(
    key: Array,
    shape: tuple[int, ...],
    fan_in: int,
) -> Array:
    """A normal of standard deviation ``fan_in ** -0.5``, truncated at two of them."""
    truncated_normal = jax.random.truncated_normal
    x = draw_flat(key, shape, truncated_normal, lower=-2.0, upper=2.0)
    return x / jnp.sqrt(fan_in)


def init_linear(key: Array, shape: tuple[int, ...]) -> Layer:
    """A layer ``{"w": [H, F], "b": [H]}``, or ``{"w": [F], "b": []}`` with a single output."""
    *outputs, inputs = shape
    return {
        "w": normal(key, shape, fan_in=inputs),
        "b": jnp.zeros(outputs),
    }


def linear(layer: Layer, x: Array) -> Array:
    """``W x + b``: from ``[F, P]`` to ``[H, P]``, or to ``[P]`` with a single output."""
    return matmul(layer["w"], x) + layer["b"][..., None]


def init_mlp(key: Array, sizes: Sequence[int]) -> list[Layer]:
    """Layers between ``sizes`` of features, from the inputs to the outputs; biases are 0."""
    keys = jax.random.split(key, len(sizes) - 1)
    layers = []
    for k, (inputs, outputs) in zip(keys, pairwise(sizes), strict=True):
        layers.append(init_linear(k, (outputs, inputs)))
    return layers


def mlp(layers: list[Layer], x: Array) -> Array:
    """A perceptron with ReLU on the columns of ``x [F, P]``."""
    *hidden, output = layers
    for layer in hidden:
        x = jax.nn.relu(linear(layer, x))
    return linear(output, x)


@jax.custom_jvp
def mlp_of_arrays(layers: list[Layer], features: Sequence[Array]) -> list[Array]:
    """A perceptron with ReLU, from features to outputs that are arrays of their own.

    The same as `mlp` on as many inputs as there are features. With few weights it is written as
    sums of products of whole arrays, which a compiler fuses into one pass over the coordinates:
    features are never joined in memory. Those with an axis of length 1 are summed before they are
    repeated. Derivatives are taken of `mlp`: of so many sums they would take long to compile.
    """
    num_weights = sum(layer["w"].size for layer in layers)
    if num_weights > _MOST_PRODUCTS:
        return _mlp_of_columns(layers, features)

    first, *others = layers
    units = _first_layer(first, features)
    for layer in others:
        units = [jax.nn.relu(x) for x in units]
        rows = zip(layer["w"], layer["b"], strict=True)
        units = [_weighted_sum(w, units, b) for w, b in rows]
    return units


@mlp_of_arrays.defjvp
def _derivative(primals: tuple, tangents: tuple) -> tuple[list[Array], list[Array]]:
    return jax.jvp(_mlp_of_columns, primals, tangents)


def _mlp_of_columns(layers: list[Layer], features: Sequence[Array]) -> list[Array]:
    shape = jnp.broadcast_shapes(*[x.shape for x in features])
    wide = [jnp.broadcast_to(x, shape).reshape(-1) for x in features]
    first, *others = layers
    first = first | {"w": first["w"][:, : len(features)]}
    outputs = mlp([first, *others], jnp.stack(wide))
    return [x.reshape(shape) for x in outputs]


def _first_layer(layer: Layer, features: Sequence[Array]) -> list[Array]:
    """The layer's sums; of its inputs, as many as there are features."""
    places: dict[tuple[int, ...], list[int]] = {}
    for i, x in enumerate(features):
        places.setdefault(x.shape, []).append(i)
    whole = places.pop(jnp.broadcast_shapes(*places))

    repeated = []
    for same in places.values():
        x = jnp.stack([features[i] for i in same])
        w = layer["w"][:, np.array(same)]
        repeated.append(jnp.tensordot(w, x, 1, precision="highest"))
    rows = zip(layer["w"][:, np.array(whole)], layer["b"], *repeated, strict=True)
    x = [features[i] for i in whole]
    return [_weighted_sum(w, x, *others) for w, *others in rows]


def _weighted_sum(weights: Array, features: list[Array], *others: Array) -> Array:
    products = map(operator.mul, weights, features)
    return functools.reduce(operator.add, [*others, *products])


class LSTMState(NamedTuple):
    """Hidden and cell states of all coordinates, one ``[H, P]`` a layer."""

    h: tuple[Array, ...]
    c: tuple[Array, ...]


@partial(jax.jit, static_argnames=("num_inputs", "hidden"))
def init_lstm(
    keys: Sequence[Array],
    num_inputs: int,
    hidden: tuple[int, ...],
) -> list[Layer]:
    """A stack of LSTM layers, from two keys a layer: biases are as random as weights."""
    layers = []
    for k, units in enumerate(hidden):
        k_weights, k_biases = keys[2 * k : 2 * k + 2]
        fan_in = num_inputs + units
        gates = 4 * units
        layer = {
            "w": normal(k_weights, (gates, fan_in), fan_in),
            "b": normal(k_biases, (gates,), fan_in),
        }
        layers.append(layer)
        num_inputs = units
    return layers


def init_lstm_state(
    hidden: tuple[int, ...],
    params: PyTree,
    state_dtype: jax.typing.DTypeLike | None,
) -> LSTMState:
    """Zeros, a column for each coordinate of ``params``."""
    zeros = partial(_flat.zeros, params, state_dtype=state_dtype)
    layers = tuple(map(zeros, hidden))
    return LSTMState(h=layers, c=layers)


def lstm_step(
    layer: Layer,
    x: Array,
    h: Array,
    c: Array,
) -> tuple[Array, Array]:
    """One step of an LSTM layer: from ``x [F, P]``, ``h`` and ``c [H, P]`` to new ``h`` and ``c``.

    Gates ``i``, ``j``, ``f``, ``o`` are ``W [x, h] + b``; ``c' = sigmoid(f + 1) c + sigmoid(i)
    tanh(j)`` and ``h' = sigmoid(o) tanh(c')``.
    """
    gates = linear(layer, jnp.concatenate([x, h]))
    i, j, f, o = jnp.split(gates, 4)
    kept = jax.nn.sigmoid(f + 1.0) * c
    written = jax.nn.sigmoid(i) * jnp.tanh(j)
    c = kept + written
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return h, c


def lstm(
    layers: list[Layer],
    x: Array,
    state: LSTMState,
    averaged: int = 0,
) -> tuple[Array, LSTMState]:
    """One step of a stack of layers on ``x [F, P]``.

    Args:
      layers: as made by `init_lstm`.
      x: the inputs.
      state: of any floating-point dtype, which it keeps.
      averaged: how many units of each layer have their mean over coordinates for an output.

    Returns:
      The last layer's hidden state ``[H, P]`` in the dtype of ``x``, and the new state.
    """
    if x.shape[-1] >= _COPY_WEIGHTS_FROM:
        layers = copy_per_episode(layers, x)
    new_h = []
    new_c = []
    for layer, h, c in zip(layers, state.h, state.c, strict=True):
        h = h.astype(x.dtype)
        c = c.astype(x.dtype)
        h, c = lstm_step(layer, x, h, c)
        if averaged:
            h = _average_first_units(h, averaged)
        new_h.append(h)
        new_c.append(c)
        x = h
    new_state = LSTMState(tuple(new_h), tuple(new_c))
    return x, optax.tree.cast_like(new_state, state)


def _average_first_units(h: Array, count: int) -> Array:
    own, others = jnp.split(h, [count])
    mean = own.mean(-1, keepdims=True)
    shared = jnp.broadcast_to(mean, own.shape)
    return jnp.concatenate([shared, others])


def check_averaged(averaged: int, hidden: tuple[int, ...]) -> None:
    """``averaged`` must be 0, or at most the units of the smallest layer."""
    if averaged > min(hidden):
        raise ValueError(
            f"averaged must be at most the units of the smallest layer, got {averaged} for {hidden}"
        )
