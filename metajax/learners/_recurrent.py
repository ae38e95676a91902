"""Recurrent networks that learn because their inputs hold the feedback on their last output."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax._random import draw_flat
from metajax.learners._in_context import in_context
from metajax.optim._networks import lstm_step as lstm_cell
from metajax.types import Array, InContext, PyTree


class Recurrent(NamedTuple):
    """The state of the network, and the error and the one-hot label (each ``[C]``) of the last
    example.
    """

    core: PyTree
    error: Array
    label: Array


def recurrent(
    init: Callable, start: Callable, cell: Callable, num_inputs: int, num_classes: int
) -> InContext:
    """A learner whose inputs are ``[x, previous error, previous label]``, all zero before the first
    example.

    Args:
      init: ``(key) -> meta_params``.
      start: ``(meta_params) -> core``, the first state of the network.
      cell: ``(meta_params, core, inputs [F + 2 C]) -> (core, logits [C])``.
      num_inputs: F, values of an image.
      num_classes: C.
    """

    def first(key, meta_params):
        none = jnp.zeros(num_classes, jax.tree.leaves(meta_params)[0].dtype)
        return Recurrent(start(meta_params), none, none)

    def predict(meta_params, state, x):
        core, logits = cell(meta_params, state.core, jnp.concatenate([x, state.error, state.label]))
        return logits, state._replace(core=core)

    def learn(meta_params, state, x, error, label):
        return Recurrent(state.core, error, label)

    return in_context(init, first, predict, learn, (num_inputs, num_classes))


def meta_rnn(num_inputs: int, num_classes: int, hidden: int = 128, ticks: int = 2) -> InContext:
    """An LSTM that learns to learn (Hochreiter, Younger & Conwell 2001; Wang et al. 2016; Duan et
    al. 2016).

    It sees the image together with the error of its last prediction and the last label, and is the
    baseline *Meta RNN* of Kirsch & Schmidhuber 2021, section 4.2. To learn how to learn, rather
    than what the labels mean, it needs tasks in which they differ, as in
    `metajax.tasks.classification`.

    Args:
      num_inputs: values of an image.
      num_classes: classes.
      hidden: units of the LSTM.
      ticks: steps of the LSTM for each example, as in the authors' published configuration.

    Raises:
      TypeError, ValueError: sizes out of range; and see `in_context`.

    >>> import jax, metajax as mx
    >>> rnn = mx.meta_rnn(num_inputs=16, num_classes=5, hidden=32)
    >>> loop = mx.inner(rnn.learner, mx.tasks.prototypes(5, (16,)), horizon=20)
    >>> mx.evaluate(loop, jax.random.key(0), rnn.init(jax.random.key(1)), num_tasks=4).loss.shape
    (4, 20)
    """
    num_inputs, num_classes, hidden, ticks = counts(
        num_inputs=num_inputs, num_classes=num_classes, hidden=hidden, ticks=ticks
    )

    def init(key):
        k_lstm, k_out = jax.random.split(key)
        return {
            "lstm": lstm_init(k_lstm, num_inputs + 2 * num_classes, hidden),
            "out": dense(k_out, hidden, num_classes),
        }

    def cell(params, core, inputs):
        for _ in range(ticks):
            core, h = lstm(params["lstm"], core, inputs)
        return core, affine(params["out"], h)

    return recurrent(init, lambda params: lstm_start(params["lstm"]), cell, num_inputs, num_classes)


def counts(**values: Any) -> tuple[int, ...]:
    """The values as ints, or which is not a count."""
    return tuple(_checks.positive_int(name, value) for name, value in values.items())


def dense(key: Array, inputs: int, outputs: int) -> dict[str, Array]:
    """Parameters of an affine map, weights truncated normal with variance near ``1 / inputs``."""
    return {
        "w": draw_flat(key, (outputs, inputs), jax.random.truncated_normal, lower=-2.0, upper=2.0)
        / inputs**0.5,
        "b": jnp.zeros(outputs),
    }


def affine(params: dict[str, Array], x: Array) -> Array:
    """``W x + b``."""
    return params["w"] @ x + params["b"]


def lstm_init(key: Array, inputs: int, hidden: int) -> dict[str, Array]:
    """Parameters of `lstm`."""
    return dense(key, inputs + hidden, 4 * hidden)


def lstm_start(params: dict[str, Array]) -> tuple[Array, Array]:
    """The state of zeros."""
    zeros = jnp.zeros((len(params["b"]) // 4, 1), params["b"].dtype)
    return zeros, zeros


def lstm(
    params: dict[str, Array], state: tuple[Array, Array], x: Array
) -> tuple[tuple[Array, Array], Array]:
    """One step of the cell of `metajax.optim.lstm`, of which this is a single coordinate: ``x [F]``
    -> ``h [H]``.
    """
    h, c = lstm_cell(params, x[:, None], *state)
    return (h, c), h[:, 0]
