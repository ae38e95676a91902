"""A network that learns by writing into an external memory."""

import jax
import jax.numpy as jnp

from metajax._random import draw_flat
from metajax.learners._recurrent import (
    affine,
    counts,
    dense,
    lstm,
    lstm_init,
    lstm_start,
    recurrent,
)
from metajax.types import Array, InContext


def address(memory: Array, key: Array, strength: Array | float) -> Array:
    """Where ``memory [N, W]`` resembles ``key [W]``: ``softmax(strength * cosine)`` over the N
    slots.

    Graves, Wayne & Danihelka 2014 (arXiv 1410.5401), equations 5 and 6.
    """
    norms = jnp.sqrt(jnp.sum(memory**2, -1) * jnp.sum(key**2) + 1e-6)  # has a derivative at 0 too
    return jax.nn.softmax(strength * (memory @ key) / norms)


def external_memory(
    num_inputs: int, num_classes: int, hidden: int = 32, slots: int = 256, width: int = 16
) -> InContext:
    """An LSTM with a memory ``[slots, width]`` (Graves, Wayne & Danihelka 2014, arXiv 1410.5401).

    In each step the LSTM, which sees what it read in the last one, writes and then reads with one
    head each. Both address the memory by content alone: ``M_i <- M_i (1 - w_i e) + w_i a`` with
    weights ``w = softmax(strength * cosine(M_i, key))`` (equations 3 to 6). What the memory holds
    before the first example is meta-learned. (Santoro et al. 2016, who meta-learned with such a
    memory, write where it was read last or is used least.)

    Args:
      num_inputs: values of an image.
      num_classes: classes.
      hidden: units of the LSTM.
      slots: vectors in the memory.
      width: of each.

    Raises:
      TypeError, ValueError: sizes out of range; and see `in_context`.

    >>> import jax, metajax as mx
    >>> net = mx.external_memory(num_inputs=16, num_classes=5, slots=32)
    >>> loop = mx.inner(net.learner, mx.tasks.prototypes(5, (16,)), horizon=20)
    >>> mx.evaluate(loop, jax.random.key(0), net.init(jax.random.key(1)), num_tasks=4).loss.shape
    (4, 20)
    """
    num_inputs, num_classes, hidden, slots, width = counts(
        num_inputs=num_inputs, num_classes=num_classes, hidden=hidden, slots=slots, width=width
    )

    def init(key):
        keys = jax.random.split(key, 4)
        return {
            "lstm": lstm_init(keys[0], num_inputs + 2 * num_classes + width, hidden),
            "heads": dense(keys[1], hidden, 4 * width + 2),
            "memory": 0.1
            * draw_flat(keys[2], (slots, width)),  # slots must differ to be told apart
            "out": dense(keys[3], hidden + width, num_classes),
        }

    def start(params):
        return lstm_start(params["lstm"]), params["memory"], jnp.zeros_like(params["memory"][0])

    def cell(params, core, inputs):
        state, memory, found = core
        state, h = lstm(params["lstm"], state, jnp.concatenate([inputs, found]))
        heads = affine(params["heads"], h)
        key, query, erase, add = heads[:-2].reshape(4, width)
        strength = 1 + jax.nn.softplus(heads[-2:])
        write = address(memory, jnp.tanh(key), strength[0])[:, None]
        memory = memory * (1 - write * jax.nn.sigmoid(erase)) + write * jnp.tanh(add)
        found = address(memory, jnp.tanh(query), strength[1]) @ memory
        return (state, memory, found), affine(params["out"], jnp.concatenate([h, found]))

    return recurrent(init, start, cell, num_inputs, num_classes)
