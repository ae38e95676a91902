"""Layers of the networks that learn in their activations, on one example."""

import jax
import jax.numpy as jnp

from metajax._random import draw_flat
from metajax.optim._networks import lstm_step as step_of_coordinates
from metajax.types import Array, Key

LSTMState = tuple[Array, Array]


def init_affine(key: Key, inputs: int, outputs: int) -> dict[str, Array]:
    """Parameters of an affine map, weights truncated normal with variance near ``1 / inputs``."""
    shape = (outputs, inputs)
    w = draw_flat(key, shape, jax.random.truncated_normal, lower=-2.0, upper=2.0)
    return {"w": w / inputs**0.5, "b": jnp.zeros(outputs)}


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
