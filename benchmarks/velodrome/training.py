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


def order(
    key: Any,
    num_images: int,
    batch: int,
    count: int,
) -> Any:
    """Which images are in each batch, ``[count, batch]``.

    Each epoch is a permutation, without its last incomplete batch.
    """
    per_epoch = num_images // batch
    keys = jax.random.split(key, -(-count // per_epoch))

    def epoch(key):
        index = jax.random.permutation(key, num_images)
        return index[: per_epoch * batch].reshape(per_epoch, batch)

    return jax.vmap(epoch)(keys).reshape(-1, batch)[:count]


def runner(
    problem: mx.Problem,
    batch: int,
    contender: Contender,
    length: Length,
) -> Callable:
    """``(key, rate, data) -> losses [steps / every + 1]``, compiled once for all rates.

    The first is before training, the last after it. What is measured and what is trained on are
    one stream of batches: a network is never measured on images that it has met in this epoch.
    Where it remembers them, losses are several per cent lower otherwise.
    """

    def loss(params, data, index):
        image = data["image"][index]
        if image.dtype == jnp.uint8:
            image = image.astype(jnp.float32) / 255
        examples = {"image": image, "label": data["label"][index]}
        key = jax.random.key(0)  # these problems draw nothing
        value, _ = problem.test(key, params, (), examples)
        return value

    @jax.jit
    def run(key, rate, data):
        tx = optax.with_extra_args_support(contender.make(rate, length.steps))
        k_init, k_order = jax.random.split(key)
        stretches = length.steps // length.every
        in_stretches = stretches * (length.batches + length.every)
        num_images = len(data["label"])
        indices = order(k_order, num_images, batch, in_stretches + length.last)

        def measured(params, state, indices):
            judged = contender.judged(state, params)
            return lax.map(lambda index: loss(judged, data, index), indices).mean()

        def step(carry, index):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, data, index)
            updates, state = tx.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), None

        def stretch(carry, indices):
            params, state = carry
            value = measured(params, state, indices[: length.batches])
            carry, _ = lax.scan(step, carry, indices[length.batches :])
            return carry, value

        params, _ = problem.init(k_init, ())
        grouped = indices[:in_stretches].reshape(stretches, -1, batch)
        start = (params, tx.init(params))
        (params, state), losses = lax.scan(stretch, start, grouped)
        last = measured(params, state, indices[in_stretches:])
        return jnp.append(losses, last)

    return run
