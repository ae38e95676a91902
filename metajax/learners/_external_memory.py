"""A network that learns by writing into an external memory."""

import jax
import jax.numpy as jnp

from metajax._arguments import PositiveInt, checked
from metajax._random import draw_flat
from metajax.learners._layers import (
    affine,
    init_affine,
    init_lstm,
    lstm_start,
    lstm_step,
)
from metajax.learners._recurrent import recurrent
from metajax.types import Array, Learner


def address(memory: Array, key: Array, strength: Array | float) -> Array:
    """Where ``memory [N, W]`` resembles ``key [W]``: ``softmax(strength * cosine)`` over the slots.

    Graves, Wayne & Danihelka 2014 (arXiv 1410.5401), equations 5 and 6.
    """
    squares = jnp.sum(memory**2, -1) * jnp.sum(key**2)
    norms = jnp.sqrt(squares + 1e-6)  # has a derivative at 0 too
    return jax.nn.softmax(strength * (memory @ key) / norms)


@checked
def external_memory(
    num_inputs: PositiveInt,
    num_classes: PositiveInt,
    hidden: PositiveInt = 32,
    slots: PositiveInt = 256,
    width: PositiveInt = 16,
) -> Learner:
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

    >>> import jax, metajax as mx
    >>> learner = mx.external_memory(num_inputs=16, num_classes=5, slots=32)
    >>> loop = mx.inner(learner, mx.tasks.prototypes(5, (16,)), horizon=20)
    >>> meta_params = learner.meta(jax.random.key(1))
    >>> mx.evaluate(loop, jax.random.key(0), meta_params, num_tasks=4).loss.shape
    (4, 20)
    """

    def meta(key):
        k_lstm, k_heads, k_memory, k_out = jax.random.split(key, 4)
        return {
            "lstm": init_lstm(k_lstm, num_inputs + 2 * num_classes + width, hidden),
            "heads": init_affine(k_heads, hidden, 4 * width + 2),
            # Slots must differ to be told apart.
            "memory": 0.1 * draw_flat(k_memory, (slots, width)),
            "out": init_affine(k_out, hidden + width, num_classes),
        }

    def start(params):
        memory = params["memory"]
        return lstm_start(params["lstm"]), memory, jnp.zeros_like(memory[0])

    def network(params, state, inputs):
        lstm_state, memory, found = state
        inputs = jnp.concatenate([inputs, found])
        lstm_state, h = lstm_step(params["lstm"], lstm_state, inputs)

        heads = affine(params["heads"], h)
        key, query, erase, add = heads[:-2].reshape(4, width)
        write_strength, read_strength = 1 + jax.nn.softplus(heads[-2:])

        where = address(memory, jnp.tanh(key), write_strength)[:, None]
        kept = 1 - where * jax.nn.sigmoid(erase)[None]
        memory = memory * kept + where * jnp.tanh(add)[None]
        found = address(memory, jnp.tanh(query), read_strength) @ memory

        logits = affine(params["out"], jnp.concatenate([h, found]))
        return (lstm_state, memory, found), logits

    return recurrent(meta, start, network, num_inputs, num_classes)
