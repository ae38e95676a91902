"""Nadam with learned hyperparameters (after Metz et al. 2020, arXiv 2002.11887)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import _checks
from metajax._arguments import Decay, PositiveFloat, check, checked
from metajax.optim import _flat
from metajax.optim._learned import learned_optimizer
from metajax.optim._schedules import check_knots, interpolate
from metajax.types import Array, LearnedOptimizer, PyTree

# The fan-in for which its learned exponent changes nothing: in the middle of the usual ones.
_USUAL_FAN_IN = 100


class NadamState(NamedTuple):
    """Steps done and the two moments of the gradient, each a tree like the parameters."""

    count: Array
    m: PyTree
    v: PyTree


@checked
def nadam(
    *,
    rate: PositiveFloat = 1e-3,
    knots: tuple[int, ...] = (1, 10, 100, 1000, 10_000),
    b1: PositiveFloat = 0.9,
    b2: PositiveFloat = 0.99,
    power: float = 0.45,
    eps: PositiveFloat = 1e-12,
) -> LearnedOptimizer:
    """Nadam, all of whose hyperparameters are learned: a dozen numbers.

    An evolution strategy finds them in minutes.

    The update of a tensor at step ``t``, counted from 1, is ``-rate(t) f m' / (v' + eps) **
    power``. ``m'`` is the first moment with Nesterov's step ahead (Dozat 2016) and ``v'`` the
    second, both corrected for their start at zero. With the power 1/2 it is Nadam, with 0 it would
    be Nesterov's momentum, and between lies Padam (Chen et al. 2018). The rate is that of
    `piecewise_schedule`. ``f`` is ``(fan_in / 100) ** -a`` for a tensor with two axes or more,
    whose ``fan_in`` is the product of all but the last, and ``exp(c)`` for others: what was learned
    on one network is to fit wider ones too.

    Learned are, from the arguments, the logarithms ``rates`` at the knots and the logits of ``b1``,
    ``b2`` and twice the ``power``; and from zero ``fan_in``, which is ``a``, and ``vector``, which
    is ``c``. Those of Metz et al. are of NAdamW.

    Args:
      rate: the initial rate at all knots.
      knots: steps in increasing order.
      b1: initial decay of the first moment, above 0 and below 1.
      b2: initial decay of the second moment, above 0 and below 1.
      power: initial power, above 0 and below 1/2.
      eps: keeps the division from zero.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> opt = mx.optim.nadam(rate=0.1)
    >>> meta_params = opt.init(jax.random.key(0))
    >>> sorted(meta_params)
    ['b1', 'b2', 'fan_in', 'power', 'rates', 'vector']
    >>> tx = opt.tx(meta_params)
    >>> params = {"w": jnp.ones((100, 2)), "b": jnp.zeros(2)}
    >>> updates, state = tx.update(params, tx.init(params))
    >>> updates["w"].shape
    (100, 2)
    """
    check(Decay, b1=b1, b2=b2)
    if not 0 < power < 0.5:
        raise ValueError(f"power must be above 0 and below 1/2, got {power}")
    knots = check_knots(knots)

    def init(key):
        del key
        return {
            "rates": jnp.full(len(knots), math.log(rate), float),
            "b1": _init_logit(b1),
            "b2": _init_logit(b2),
            "power": _init_logit(2 * power),
            "fan_in": jnp.zeros(()),
            "vector": jnp.zeros(()),
        }

    def tx(meta_params) -> optax.GradientTransformation:
        b1, b2, power = _from_logits(meta_params)

        def init_fn(params) -> NadamState:
            _checks.floating("params", params)
            count = jnp.zeros((), jnp.int32)
            zeros = optax.tree.zeros_like(params, dtype=_flat.dtype(params))
            return NadamState(count, m=zeros, v=zeros)

        def update_fn(updates, state, params=None):
            del params
            _flat.check_trees(optax.tree.size(state.m), updates=updates)
            count = state.count + 1
            log_rate = interpolate(meta_params["rates"], knots, count)

            grads = optax.tree.cast_like(updates, state.m)
            m = optax.tree.update_moment(grads, state.m, b1, 1)
            v = optax.tree.update_moment(grads, state.v, b2, 2)
            m_hat = _look_ahead(m, grads, b1, count)
            v_hat = optax.tree.bias_correction(v, b2, count)

            def scale(m: Array, v: Array) -> Array:
                factor = jnp.exp(log_rate + _log_factor(meta_params, m.shape))
                return -factor * m / (v + eps) ** power

            new_updates = jax.tree.map(scale, m_hat, v_hat)
            new_updates = optax.tree.cast_like(new_updates, updates)
            new_state = NadamState(count, m, v)
            return new_updates, optax.tree.cast_like(new_state, state)

        return optax.GradientTransformation(init_fn, update_fn)

    return learned_optimizer(init, tx)


def _look_ahead(
    m: PyTree,
    grads: PyTree,
    decay: Array,
    count: Array,
) -> PyTree:
    # Nesterov's step: the first moment as if the same gradient came once more (Dozat 2016).
    m_hat = optax.tree.bias_correction(m, decay, count + 1)
    grads_hat = optax.tree.bias_correction(grads, decay, count)
    return optax.tree.update_moment(grads_hat, m_hat, decay, 1)


def _log_factor(
    meta_params: dict[str, Array],
    shape: tuple[int, ...],
) -> Array:
    # Of a tensor's rate.
    if len(shape) < 2:
        return meta_params["vector"]
    fan_in = max(math.prod(shape[:-1]), 1)
    return -meta_params["fan_in"] * math.log(fan_in / _USUAL_FAN_IN)


def _from_logits(meta_params: dict[str, Array]) -> tuple[Array, Array, Array]:
    b1 = jax.nn.sigmoid(meta_params["b1"])
    b2 = jax.nn.sigmoid(meta_params["b2"])
    power = jax.nn.sigmoid(meta_params["power"]) / 2
    return b1, b2, power


def _init_logit(probability: float) -> Array:
    logit = math.log(probability / (1 - probability))
    return jnp.asarray(logit, float)
