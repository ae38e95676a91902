"""The simplest learned optimizers: hand-made ones whose learning rate is learned, over time or over
parameters.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import _checks
from metajax.optim import _flat
from metajax.optim._lstm import check_hidden
from metajax.optim._mlp import apply_network, init_network
from metajax.types import Array, LearnedOptimizer, PyTree


class ScheduleState(NamedTuple):
    """Steps done and the state of the optimizer that is scheduled."""

    count: Array
    base: PyTree


def piecewise_schedule(
    base: optax.GradientTransformation,
    knots: tuple[int, ...] = (1, 10, 100, 1000, 10_000),
    rate: float = 1e-3,
) -> LearnedOptimizer:
    """The updates of ``base`` times a learning rate that is learned at some steps.

    The meta-parameters are the logarithms of the rates at ``knots``. Between them the logarithm of
    the rate is linear in that of the step, before the first and after the last it is constant.
    Steps count from 1.

    Args:
      base: any optax transformation with the learning rate 1, e.g. ``optax.adam(1.0)``.
      knots: steps in increasing order.
      rate: the initial rate at all of them.

    Raises: TypeError, ValueError: something other than an optax transformation, knots out of order,
      or meta-parameters that are not those of this schedule.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> opt = mx.optim.piecewise_schedule(optax.sgd(1.0), knots=(1, 100), rate=0.5)
    >>> tx = opt.tx(opt.init(jax.random.key(0)))
    >>> updates, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    >>> updates.round(3).tolist()
    [-0.5, -0.5]
    """
    _checks.positive_float(rate=rate)
    knots = check_knots(knots)

    def log_rate(log_rates, count):
        return interpolate(log_rates, knots, count)

    return _schedule(base, lambda key: jnp.zeros(len(knots)) + math.log(rate), log_rate)


def check_knots(knots: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the knots of a schedule, or says what is wrong with them."""
    if not isinstance(knots, tuple) or not knots:
        raise TypeError(f"knots must be a tuple of steps, e.g. (1, 10, 100), got {knots!r}")
    knots = tuple(_checks.positive_int("knots", k) for k in knots)
    if sorted(set(knots)) != list(knots):
        raise ValueError(f"knots must increase, got {knots}")
    return knots


def interpolate(log_rates: Array, knots: tuple[int, ...], count: Array) -> Array:
    """The logarithm of the rate at a step: between knots linear in the logarithm of the step,
    beyond them constant.
    """
    return jnp.interp(
        jnp.log(count.astype(log_rates.dtype)),
        jnp.log(jnp.asarray(knots, log_rates.dtype)),
        log_rates,
    )


def mlp_schedule(
    base: optax.GradientTransformation, hidden: tuple[int, ...] = (8,), rate: float = 1e-3
) -> LearnedOptimizer:
    """The updates of ``base`` times a learning rate that a small network makes from the step.

    The rate at step ``t``, counted from 1, is ``rate * exp(f(log t))``. The output layer of ``f``
    starts at zero, so that the rate starts as a constant.

    Args:
      base: any optax transformation with the learning rate 1, e.g. ``optax.adam(1.0)``.
      hidden: units of each hidden layer, with ReLU.
      rate: the initial rate.

    Raises:
      TypeError, ValueError: as `piecewise_schedule`.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> opt = mx.optim.mlp_schedule(optax.adam(1.0), rate=0.5)
    >>> tx = opt.tx(opt.init(jax.random.key(0)))
    >>> updates, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    >>> updates.round(3).tolist()
    [-0.5, -0.5]
    """
    hidden, rate = check_hidden(hidden), _checks.positive_float("rate", rate)

    def init(key):
        *network, out = init_network(key, (1, *hidden, 1))
        return [*network, jax.tree.map(jnp.zeros_like, out)]

    def log_rate(network, count):
        x = jnp.log(count.astype(network[0]["w"].dtype)).reshape(1, 1)
        return math.log(rate) + apply_network(network, x)[0, 0]

    return _schedule(base, init, log_rate)


def rates(base: optax.GradientTransformation, like: PyTree, rate: float = 1e-3) -> LearnedOptimizer:
    """The updates of ``base`` times a learning rate for each parameter, or for each leaf.

    The meta-parameters are the logarithms of the rates, a tree like ``like``: as for Meta-SGD (Li
    et al. 2017) without its learned initialisation, and with rates that stay positive (there they
    may change sign).

    Args: base: any optax transformation with the learning rate 1, e.g. ``optax.sgd(1.0)``. like:
      the parameters, or their `jax.eval_shape`, for one rate a parameter; or a tree with the same
      structure and leaves that broadcast against them, such as scalars for one rate a leaf. rate:
      the initial rate.

    Raises:
      TypeError, ValueError: as `piecewise_schedule`, or updates that do not fit to ``like``.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    >>> opt = mx.optim.rates(optax.sgd(1.0), {"w": 0.0, "b": jnp.zeros(2)}, rate=0.1)
    >>> log_rates = opt.init(jax.random.key(0))
    >>> log_rates["b"].shape, log_rates["w"].shape
    ((2,), ())
    >>> tx = opt.tx(log_rates)
    >>> updates, state = tx.update(params, tx.init(params))
    """
    _check_base(base)
    _checks.positive_float(rate=rate)

    def init(key):
        _checks.key(key)
        return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x)) + math.log(rate), like)

    wanted = jax.eval_shape(init, jax.random.key(0))

    def tx(log_rates) -> optax.GradientTransformation:
        _flat.check_meta_params(log_rates, wanted)

        def scaled(log_rate, update):
            try:
                fits = jnp.broadcast_shapes(log_rate.shape, update.shape) == update.shape
            except ValueError:
                fits = False
            if not fits:
                raise ValueError(
                    f"like has a leaf of shape {log_rate.shape} for updates of shape {update.shape}"
                )
            return (jnp.exp(log_rate) * update).astype(update.dtype)

        def update_fn(updates, state, params=None, **extra):
            updates, state = base_update(updates, state, params, **extra)
            if jax.tree.structure(updates) != jax.tree.structure(log_rates):
                raise ValueError(
                    f"updates must have the tree structure of like:\n  got  {jax.tree.structure(updates)}\n"
                    f"  want {jax.tree.structure(log_rates)}"
                )
            return jax.tree.map(scaled, log_rates, updates), state

        base_update = optax.with_extra_args_support(base).update
        return optax.GradientTransformationExtraArgs(base.init, update_fn)

    return LearnedOptimizer(init, tx)


def _schedule(
    base: Any, init: Callable[..., PyTree], log_rate: Callable[..., Array]
) -> LearnedOptimizer:
    # log_rate: (meta_params, step from 1) -> logarithm of the rate.
    _check_base(base)

    def checked_init(key):
        _checks.key(key)
        return init(key)

    like = jax.eval_shape(init, jax.random.key(0))

    def tx(meta_params) -> optax.GradientTransformation:
        _flat.check_meta_params(meta_params, like)
        extended = optax.with_extra_args_support(base)

        def update_fn(updates, state, params=None, **extra):
            updates, inner = extended.update(updates, state.base, params, **extra)
            rate = jnp.exp(log_rate(meta_params, state.count + 1))
            updates = jax.tree.map(lambda x: (rate * x).astype(x.dtype), updates)
            return updates, ScheduleState(state.count + 1, inner)

        return optax.GradientTransformationExtraArgs(
            lambda params: ScheduleState(jnp.zeros((), jnp.int32), base.init(params)), update_fn
        )

    return LearnedOptimizer(checked_init, tx)


def _check_base(base) -> None:
    if not (hasattr(base, "init") and hasattr(base, "update")):
        raise TypeError(
            f"base must be an optax.GradientTransformation with the learning rate 1, such as optax.adam(1.0), got "
            f"{type(base).__name__}"
        )
