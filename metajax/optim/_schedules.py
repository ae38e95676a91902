"""Hand-made optimizers with a learned learning rate that changes over time."""

import math

import jax.numpy as jnp
import optax

from metajax import _checks
from metajax._arguments import PositiveFloat, checked
from metajax.optim import _networks
from metajax.optim._learned import learned_optimizer
from metajax.types import Array, LearnedOptimizer


@checked
def piecewise_schedule(
    base: optax.GradientTransformation,
    knots: tuple[int, ...] = (1, 10, 100, 1000, 10_000),
    rate: PositiveFloat = 1e-3,
) -> LearnedOptimizer:
    """The updates of ``base`` times a learning rate that is learned at some steps.

    The meta-parameters are the logarithms of the rates at ``knots``. Between them the logarithm of
    the rate is linear in that of the step, before the first and after the last it is constant.
    Steps count from 1.

    Args:
      base: any optax transformation with the learning rate 1, e.g. ``optax.adam(1.0)``.
      knots: steps in increasing order.
      rate: the initial rate at all of them.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> opt = mx.optim.piecewise_schedule(optax.sgd(1.0), knots=(1, 100), rate=0.5)
    >>> tx = opt.tx(opt.init(jax.random.key(0)))
    >>> updates, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    >>> updates.round(3).tolist()
    [-0.5, -0.5]
    """
    knots = check_knots(knots)
    log_rate = math.log(rate)

    def init(key):
        del key
        return jnp.full(len(knots), log_rate, float)

    def tx(log_rates) -> optax.GradientTransformationExtraArgs:
        def schedule(count):
            # optax counts steps from 0.
            return jnp.exp(interpolate(log_rates, knots, count + 1))

        return optax.chain(base, optax.scale_by_schedule(schedule))

    return learned_optimizer(init, tx)


@checked
def mlp_schedule(
    base: optax.GradientTransformation,
    hidden: tuple[int, ...] = (8,),
    rate: PositiveFloat = 1e-3,
) -> LearnedOptimizer:
    """The updates of ``base`` times a learning rate that a small network makes from the step.

    The rate at step ``t``, counted from 1, is ``rate * exp(f(log t))``. The output layer of ``f``
    starts at zero, so that the rate starts as a constant.

    Args:
      base: any optax transformation with the learning rate 1, e.g. ``optax.adam(1.0)``.
      hidden: units of each hidden layer, with ReLU.
      rate: the initial rate.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> opt = mx.optim.mlp_schedule(optax.adam(1.0), rate=0.5)
    >>> tx = opt.tx(opt.init(jax.random.key(0)))
    >>> updates, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    >>> updates.round(3).tolist()
    [-0.5, -0.5]
    """
    hidden = _checks.positive_ints("hidden", hidden, like=(8,))
    log_rate = math.log(rate)

    def init(key):
        sizes = (1, *hidden, 1)
        *layers, output = _networks.init_mlp(key, sizes)
        return [*layers, optax.tree.zeros_like(output)]

    def tx(network) -> optax.GradientTransformationExtraArgs:
        def schedule(count):
            # optax counts steps from 0.
            dtype = network[0]["w"].dtype
            step = jnp.asarray(count + 1, dtype)
            log_step = jnp.log(step).reshape(1, 1)
            output = _networks.mlp(network, log_step)
            return jnp.exp(log_rate + output[0, 0])

        return optax.chain(base, optax.scale_by_schedule(schedule))

    return learned_optimizer(init, tx)


def interpolate(
    log_rates: Array,
    knots: tuple[int, ...],
    step: Array,
) -> Array:
    """The logarithm of the rate at a ``step``, counted from 1.

    Between knots it is linear in the logarithm of the step, beyond them constant.
    """
    dtype = log_rates.dtype
    log_step = jnp.log(step.astype(dtype))
    log_knots = jnp.log(jnp.asarray(knots, dtype))
    return jnp.interp(log_step, log_knots, log_rates)


def check_knots(knots: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the steps ``knots``, which must increase."""
    knots = _checks.positive_ints("knots", knots, like=(100,))
    if sorted(set(knots)) != list(knots):
        raise ValueError(f"knots must increase, got {knots}")
    return knots
