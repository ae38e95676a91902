"""The minimal cell of VSML."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax._arguments import PositiveInt, checked
from metajax._arrays import matmul
from metajax._random import draw_flat
from metajax.cells._cell import Cell


@checked
def rnn(hidden: PositiveInt, activation: Callable = jnp.tanh) -> Cell:
    """The minimal cell of Kirsch & Schmidhuber 2021, eq. 4.

    ``s <- activation(s W + forward C + backward D)``. Cells tell each other their whole state,
    summed: there are no messengers, and ``slots = hidden``. Eq. 4 itself has no messages downwards;
    it is this with ``D = 0``.

    >>> import jax, metajax as mx
    >>> learner = mx.vsml((4, 3), mx.cells.rnn(8))
    >>> sum(x.size for x in jax.tree.leaves(learner.meta(jax.random.key(0))))
    192
    """

    def matrix(key):
        return draw_flat(key, (hidden, hidden)) / hidden**0.5

    def init(key):
        k_state, k_forward, k_backward = jax.random.split(key, 3)
        return {"W": matrix(k_state), "C": matrix(k_forward), "D": matrix(k_backward)}

    def state(key, shape):
        return draw_flat(key, (*shape, hidden)) / shape[-2] ** 0.5

    def step(params, state, forward, backward):
        up = matmul(forward, params["C"][: forward.shape[-1]])
        down = matmul(backward, params["D"][: backward.shape[-1]])
        drive = up[..., :, None, :] + down[..., None, :, :]
        return activation(matmul(state, params["W"]) + drive)

    def forward(params, state, slots):
        return state[..., :slots].sum(-3)

    def backward(params, state, slots):
        return state[..., :slots].sum(-2)

    return Cell(init, state, step, forward, backward, slots=hidden)
