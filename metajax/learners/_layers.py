"""Layers of the networks that learn in their activations, on one example."""

import jax
import jax.numpy as jnp

from metajax._arrays import standardise
from metajax._random import draw_flat
from metajax.optim._networks import lstm_step as step_of_coordinates
from metajax.types import Array, Key, PyTree

LSTMState = tuple[Array, Array]


def init_affine(
    key: Key, inputs: int, outputs: int, variance: float = 1.0
) -> dict[str, Array]:
    """Parameters of an affine map, weights truncated normal of about ``variance / inputs``."""
    w = init_weights(key, (outputs, inputs))
    return {"w": w * (variance / inputs) ** 0.5, "b": jnp.zeros(outputs)}


def init_weights(key: Key, shape: tuple[int, ...]) -> Array:
    """Truncated normal at two standard deviations."""
    return draw_flat(key, shape, jax.random.truncated_normal, lower=-2.0, upper=2.0)


def with_outputs(params: dict[str, Array], *shape: int) -> dict[str, Array]:
    """The same affine map, its outputs in that shape."""
    return {name: x.reshape(*shape, *x.shape[1:]) for name, x in params.items()}


def affine(params: dict[str, Array], x: Array) -> Array:
    """``W x + b``."""
    return params["w"] @ x + params["b"]


def init_lstm(key: Key, inputs: int, hidden: int) -> dict[str, Array]:
    """Parameters of an LSTM."""
    return init_affine(key, inputs + hidden, 4 * hidden)


def lstm_start(params: dict[str, Array]) -> LSTMState:
    """The state of zeros."""
    zeros = jnp.zeros((len(params["b"]) // 4, 1), params["b"].dtype)
    return zeros, zeros


def lstm_step(
    params: dict[str, Array], state: LSTMState, x: Array
) -> tuple[LSTMState, Array]:
    """One step of the cell of `metajax.optim.lstm` on one coordinate: ``x [F] -> h [H]``."""
    h, c = step_of_coordinates(params, x[:, None], *state)
    return (h, c), h[:, 0]


def init_feed_forward(key: Key, width: int, variance: float) -> dict[str, PyTree]:
    """Parameters of the feed-forward half of a layer of a transformer."""
    k_up, k_down = jax.random.split(key)
    return {
        "up": init_affine(k_up, width, 4 * width, variance),
        "down": init_affine(k_down, 4 * width, width, variance),
    }


def feed_forward(params: dict[str, PyTree], x: Array) -> Array:
    """``x`` and what a hidden layer makes of it, normalised before (Xiong et al. 2020).

    A scale and an offset of the normalised would be further parameters of the map that follows.
    """
    hidden = jax.nn.gelu(affine(params["up"], standardise(x)))
    return x + affine(params["down"], hidden)
