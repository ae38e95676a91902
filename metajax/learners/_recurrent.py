"""Recurrent networks that learn because their inputs hold the feedback on their last output."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax._arguments import PositiveInt, checked
from metajax.learners._in_context import in_context
from metajax.learners._layers import (
    affine,
    init_affine,
    init_lstm,
    lstm_start,
    lstm_step,
)
from metajax.types import Array, Key, Learner, MetaParams, State

Network = Callable[[MetaParams, State, Array], tuple[State, Array]]


class RecurrentState(NamedTuple):
    """The state of the network, and the last example's error and one-hot label, each ``[C]``."""

    network: State
    error: Array
    label: Array


def recurrent(
    meta: Callable[[Key], MetaParams],
    start: Callable[[MetaParams], State],
    network: Network,
    num_inputs: int,
    num_classes: int,
) -> Learner:
    """A learner whose inputs are ``[x, previous error, previous label]``, zero before the first.

    Args:
      meta: ``(key) -> meta_params``.
      start: ``(meta_params) -> state``, the first state of the network.
      network: ``(meta_params, state, inputs [F + 2 C]) -> (state, logits [C])``.
      num_inputs: F, values of an image.
      num_classes: C.
    """

    def first(key, meta_params):
        del key
        none = jnp.zeros(num_classes, jax.tree.leaves(meta_params)[0].dtype)
        return RecurrentState(start(meta_params), none, none)

    def predict(meta_params, state, x):
        inputs = jnp.concatenate([x, state.error, state.label])
        # Small, and what it rounds it carries from one example to the next.
        with jax.default_matmul_precision("highest"):
            network_state, logits = network(meta_params, state.network, inputs)
        return logits, state._replace(network=network_state)

    def learn(meta_params, state, x, error, label):
        del meta_params, x
        return RecurrentState(state.network, error, label)

    return in_context(meta, first, predict, learn, (num_inputs, num_classes))


@checked
def meta_rnn(
    num_inputs: PositiveInt,
    num_classes: PositiveInt,
    hidden: PositiveInt = 128,
    ticks: PositiveInt = 2,
) -> Learner:
    """An LSTM that learns to learn (Hochreiter, Younger & Conwell 2001; Wang et al. 2016).

    It sees the image together with the error of its last prediction and the last label, and is the
    baseline *Meta RNN* of Kirsch & Schmidhuber 2021, section 4.2. To learn how to learn, rather
    than what the labels mean, it needs tasks in which they differ, as in
    `metajax.tasks.classification`.

    Args:
      num_inputs: values of an image.
      num_classes: classes.
      hidden: units of the LSTM.
      ticks: steps of the LSTM for each example, as in the authors' published configuration.

    >>> import jax, metajax as mx
    >>> learner = mx.meta_rnn(num_inputs=16, num_classes=5, hidden=32)
    >>> loop = mx.inner(learner, mx.tasks.prototypes(5, (16,)), horizon=20)
    >>> meta_params = learner.meta(jax.random.key(1))
    >>> mx.evaluate(loop, jax.random.key(0), meta_params, num_tasks=4).loss.shape
    (4, 20)
    """

    def meta(key):
        k_lstm, k_out = jax.random.split(key)
        return {
            "lstm": init_lstm(k_lstm, num_inputs + 2 * num_classes, hidden),
            "out": init_affine(k_out, hidden, num_classes),
        }

    def start(params):
        return lstm_start(params["lstm"])

    def network(params, state, inputs):
        for _ in range(ticks):
            state, h = lstm_step(params["lstm"], state, inputs)
        return state, affine(params["out"], h)

    return recurrent(meta, start, network, num_inputs, num_classes)
