"""The minimal cell of VSML."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax._random import draw_flat
from metajax.cells._cell import Cell


def rnn(hidden: int, activation: Callable = jnp.tanh) -> Cell:
    """The minimal cell of Kirsch & Schmidhuber 2021, eq. 4: ``s <- activation(s W + forward C +
    backward D)``.

    Cells tell each other their whole state, summed: there are no messengers, and ``slots =
    hidden``. Eq. 4 itself has no messages downwards; it is this with ``D = 0``.

    >>> import jax, metajax as mx
    >>> net = mx.vsml((4, 3), mx.cells.rnn(8))
    >>> sum(x.size for x in jax.tree.leaves(net.init(jax.random.key(0))))
    192
    """
    _checks.positive_int(hidden=hidden)
    _checks.function(activation=activation)

    def init(key):
        keys = jax.random.split(key, 3)
        return {
            name: draw_flat(k, (hidden, hidden)) / hidden**0.5
            for name, k in zip("WCD", keys, strict=True)
        }

    def state(key, shape):
        return draw_flat(key, (*shape, hidden)) / shape[-2] ** 0.5

    def step(params, state, forward, backward):
        up, down = (
            forward @ params["C"][: forward.shape[-1]],
            backward @ params["D"][: backward.shape[-1]],
        )
        return activation(state @ params["W"] + up[..., :, None, :] + down[..., None, :, :])

    return Cell(
        init,
        state,
        step,
        lambda params, state, slots: state[..., :slots].sum(-3),
        lambda params, state, slots: state[..., :slots].sum(-2),
        hidden,
    )
