"""Runs of an optimizer on a task, measured on training batches as the published ones are."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

import metajax as mx


def _as_they_are(state: Any, params: Any) -> Any:
    del state
    return params


class Contender(NamedTuple):
    """An optimizer with a rate, and where its loss is measured.

    Attributes:
      make: ``(rate, num_steps) -> optax.GradientTransformation``; one without a rate leaves it.
      judged: ``(state, params) -> params``, those that the loss is measured at.
    """

    make: Callable[[Any, int], optax.GradientTransformation]
    judged: Callable[[Any, Any], Any] = _as_they_are


class Length(NamedTuple):
    """How long a run is, and how it is measured.

    Attributes:
      steps: in all.
      every: steps between two measurements.
      batches: training batches in a measurement.
      last: those in the last one.
    """

    steps: int
    every: int
    batches: int
    last: int


def runner(
    problem: mx.Problem,
    tasks: mx.Tasks,
    contender: Contender,
    length: Length,
) -> Callable:
    """``(key, rate, data) -> losses [steps / every + 1]``, compiled once for all rates.

    The first is before training, the last after it; all are of fresh training batches.
    """

    def measured(key, params, data, num_batches):
        def loss(key):
            k_batch, k_loss = jax.random.split(key)
            batch = tasks.test(k_batch, data, ())
            value, _ = problem.test(k_loss, params, (), batch)
            return value

        return lax.map(loss, jax.random.split(key, num_batches)).mean()

    @jax.jit
    def run(key, rate, data):
        tx = contender.make(rate, length.steps)
        tx = optax.with_extra_args_support(tx)
        k_init, k_train, k_last = jax.random.split(key, 3)

        def step(carry, key):
            params, state = carry
            k_batch, k_loss = jax.random.split(key)
            batch = tasks.train(k_batch, data, ())

            def objective(params):
                return problem.loss(k_loss, params, (), batch)

            value_and_grad = jax.value_and_grad(objective, has_aux=True)
            (loss, _), grads = value_and_grad(params)
            updates, state = tx.update(grads, state, params, value=loss)
            return (optax.apply_updates(params, updates), state), None

        def stretch(carry, key):
            k_measure, k_steps = jax.random.split(key)
            params, state = carry
            judged = contender.judged(state, params)
            loss = measured(k_measure, judged, data, length.batches)
            keys = jax.random.split(k_steps, length.every)
            carry, _ = lax.scan(step, carry, keys)
            return carry, loss

        params, _ = problem.init(k_init, ())
        keys = jax.random.split(k_train, length.steps // length.every)
        (params, state), losses = lax.scan(stretch, (params, tx.init(params)), keys)
        judged = contender.judged(state, params)
        last = measured(k_last, judged, data, length.last)
        return jnp.append(losses, last)

    return run
