"""Nadam with learned hyperparameters (after Metz et al. 2020, arXiv 2002.11887)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import _checks
from metajax.optim import _flat
from metajax.optim._rates import check_knots, interpolate
from metajax.optim._rnnprop import check_decay
from metajax.types import Array, LearnedOptimizer, PyTree

_FAN_IN = 100.0  # where the exponent changes nothing: a size in the middle of the usual ones


class NadamState(NamedTuple):
    """Steps done and the two moments of the gradient, each a tree like the parameters."""

    count: Array
    m: PyTree
    v: PyTree


def nadam(
    *,
    rate: float = 1e-3,
    knots: tuple[int, ...] = (1, 10, 100, 1000, 10_000),
    b1: float = 0.9,
    b2: float = 0.99,
    power: float = 0.45,
    eps: float = 1e-12,
) -> LearnedOptimizer:
    """Nadam, all of whose hyperparameters are learned: a dozen numbers, which an evolution strategy
    finds in minutes.

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

    Raises: TypeError, ValueError: settings out of range, meta-parameters of other settings, or
      updates that are not those of the parameters given to ``init``.

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
    rate, eps, knots = (
        _checks.positive_float("rate", rate),
        _checks.positive_float("eps", eps),
        check_knots(knots),
    )
    first = {"b1": _logit("b1", check_decay("b1", b1)), "b2": _logit("b2", check_decay("b2", b2))}
    if not 0 < power < 0.5:
        raise ValueError(f"power must be above 0 and below 1/2, got {power}")
    first |= {"power": _logit("power", 2 * power), "fan_in": 0.0, "vector": 0.0}

    def init(key: Array):
        _checks.key(key)
        return {
            "rates": jnp.zeros(len(knots)) + math.log(rate),
            **{k: jnp.asarray(x, float) for k, x in first.items()},
        }

    like = jax.eval_shape(init, jax.random.key(0))

    def tx(meta_params) -> optax.GradientTransformation:
        _flat.check_meta_params(meta_params, like)
        b1, b2, twice = (jax.nn.sigmoid(meta_params[k]) for k in ("b1", "b2", "power"))

        def init_fn(params) -> NadamState:
            _checks.floating("params", params)
            zeros = jax.tree.map(lambda x: jnp.zeros_like(x, dtype=_flat.dtype(x)), params)
            return NadamState(jnp.zeros((), jnp.int32), zeros, zeros)

        def update_fn(updates, state, params=None):
            del params
            _flat.check_updates(updates, _flat.size(state.m))
            count = state.count + 1
            rate = jnp.exp(interpolate(meta_params["rates"], knots, count))

            def new_m(m, g):
                return (b1 * m + (1 - b1) * g).astype(m.dtype)

            def new_v(v, g):
                return (b2 * v + (1 - b2) * g.astype(v.dtype) ** 2).astype(v.dtype)

            def update(m, v, g):
                ahead = b1 * m / (1 - b1 ** (count + 1)) + (1 - b1) * g / (1 - b1**count)
                step = ahead / (v / (1 - b2**count) + eps) ** (twice / 2)
                log_factor = meta_params["vector"]
                if g.ndim > 1:
                    log_factor = -meta_params["fan_in"] * math.log(
                        max(math.prod(g.shape[:-1]), 1) / _FAN_IN
                    )
                return (-rate * jnp.exp(log_factor) * step).astype(g.dtype)

            updates = jax.tree.map(jnp.asarray, updates)
            m, v = jax.tree.map(new_m, state.m, updates), jax.tree.map(new_v, state.v, updates)
            return jax.tree.map(update, m, v, updates), NadamState(count, m, v)

        return optax.GradientTransformation(init_fn, update_fn)

    return LearnedOptimizer(init, tx)


def _logit(name: str, x: float) -> float:
    if x <= 0:
        raise ValueError(f"{name} must be above 0, since its logit is learned, got {x}")
    return math.log(x / (1 - x))
