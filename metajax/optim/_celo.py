"""Celo: a learned rule, and a learned schedule that sees loss and time (Moudgil et al. 2025)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from metajax._arguments import PositiveInt, check, checked
from metajax.optim import _networks
from metajax.optim._celo_rule import (
    NUM_INPUTS,
    init_moments,
    inputs,
    move_leaves,
)
from metajax.optim._factored import Whitening
from metajax.optim._leaf_moments import Moments, Seen, normalized, seen
from metajax.optim._learned import learned_optimizer
from metajax.types import Array, LearnedOptimizer, PyTree

NUM_UNITS = 64
RULE_SIZES = (NUM_INPUTS, 4, 4, 2)
TIMES = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
NUM_FEATURES = 18

_NUM_AVERAGES = 10  # of the loss, each compared with the next slower one
_SHORTEST_AVERAGE = 10.0


class Schedule(NamedTuple):
    """What the schedule remembers.

    Attributes:
      count: steps done, int32.
      means: ``[10]``, moving averages of the loss, not corrected for their start.
      minima: ``[10]``, the lowest that they were, corrected.
      hidden: ``[64]``, of the LSTM.
      cell: ``[64]``, of the LSTM.
    """

    count: Array
    means: Array
    minima: Array
    hidden: Array
    cell: Array


class CeloState(NamedTuple):
    """The state of the schedule, and moving averages for the leaves of each shape."""

    schedule: Schedule
    moments: tuple[Moments, ...]


@checked
def celo(num_steps: PositiveInt | Array) -> LearnedOptimizer:
    """Celo of Moudgil et al. 2025, arXiv 2501.12670: no rate to choose, but a length of the run.

    A network 30-4-4-2 sees what `celo2_base` sees, each input over its root mean square over the
    leaf, and gives a direction ``d`` and an exponent ``e``. An LSTM of 64 units sees how far the
    run has come and how the loss has fallen, and gives one factor ``F`` a step. The step is
    ``-0.001 * F * d * exp(0.001 * e) * scale``, with the root mean square of the leaf for a scale:
    what is exactly 0 moves slowly at first. Meta-trained by the authors for up to 2,000 steps.

    All is as in the authors' code, but for what is without effect there and left out here: 1,286 of
    its 37,089 numbers, and a row of the LSTM for each leaf, all of which are equal. A loss below 0
    is capped oddly, as there.

    It needs parameters and loss, ``tx.update(updates, state, params, value=loss)``; learners give
    them. `metajax.pretrained.read` reads the authors' weights.

    Args:
      num_steps: how long the run will be, an int or an array, which may be traced. What comes after
        has the factor of the end.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> opt = mx.optim.celo(num_steps=100)
    >>> meta_params = opt.init(jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(meta_params))
    35803
    >>> tx = opt.tx(meta_params)
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> updates, state = jax.jit(tx.update)(params, tx.init(params), params, value=jnp.float32(2.3))
    """
    _check_num_steps(num_steps)

    def tx(meta_params) -> optax.GradientTransformationExtraArgs:
        def init_fn(params) -> CeloState:
            schedule = _begin(meta_params["schedule"])
            return CeloState(schedule, init_moments(params))

        def update_fn(updates, state, params=None, *, value=None, **others):
            del others
            if value is None:
                raise ValueError(
                    "value, the loss, is needed: tx.update(updates, state, params, value=loss)"
                )
            factor, schedule = _advance(
                meta_params["schedule"], state.schedule, value, num_steps
            )
            schedule = optax.tree.cast_like(schedule, state.schedule)

            def move(moments, grad, theta):
                return -factor * _rule(meta_params["rule"], moments, grad, theta)

            moves, moments = move_leaves(move, 0.999, updates, state.moments, params)
            return moves, CeloState(schedule, moments)

        return optax.GradientTransformationExtraArgs(init_fn, update_fn)

    return learned_optimizer(_init, tx)


def _check_num_steps(num_steps: int | Array) -> None:
    if not isinstance(num_steps, jax.Array):
        check(PositiveInt, num_steps=num_steps)
        return
    check(jax.Array, num_steps=num_steps)
    if num_steps.shape:
        raise ValueError(f"num_steps must be a scalar, got {list(num_steps.shape)}")


def _init(key: Array) -> PyTree:
    k_rule, k_linear, k_rectified, k_out, *k_lstm = jax.random.split(key, 6)
    [lstm] = _networks.init_lstm(k_lstm, NUM_UNITS, (NUM_UNITS,))
    schedule = {
        "linear": _networks.init_linear(k_linear, (NUM_UNITS, NUM_FEATURES)),
        "rectified": _networks.init_linear(k_rectified, (NUM_UNITS, NUM_FEATURES)),
        "lstm": lstm,
        "hidden": jnp.zeros(NUM_UNITS),
        "cell": jnp.zeros(NUM_UNITS),
        "out": _networks.init_linear(k_out, (NUM_UNITS,)),
    }
    return {"rule": _networks.init_mlp(k_rule, RULE_SIZES), "schedule": schedule}


# The rule.


def _rule(
    network: list[_networks.Layer],
    moments: Moments,
    grad: Array,
    theta: Array,
) -> Array:
    """The step of one leaf, upwards, for a factor of 1."""
    x = normalized(_inputs, seen(moments, grad, theta), grad.ndim, 1e-5)
    direction, exponent = _networks.mlp_of_arrays(network, x)
    scale = jnp.sqrt((theta**2).mean() + 1e-9)
    return 0.001 * direction * jnp.exp(0.001 * exponent) * scale


def _inputs(seen: Seen) -> list[Array]:
    """Of a vector 30 too: there its average square stands for rows and columns."""
    x = inputs(seen, v_epsilon=1e-6)
    if isinstance(seen.second, Whitening):
        return x
    square = seen.second
    inverse_root = lax.rsqrt(square + 1e-8)
    whitened = seen.m * lax.rsqrt(square)
    return [*x, square, square, inverse_root, inverse_root, whitened]


# The schedule.


def _begin(weights: PyTree) -> Schedule:
    hidden = weights["hidden"]
    return Schedule(
        count=jnp.zeros((), jnp.int32),
        means=jnp.zeros(_NUM_AVERAGES, hidden.dtype),
        minima=jnp.full(_NUM_AVERAGES, 999999999999.0, hidden.dtype),
        hidden=hidden,
        cell=weights["cell"],
    )


def _advance(
    weights: PyTree,
    schedule: Schedule,
    loss: Array,
    num_steps: int | Array,
) -> tuple[Array, Schedule]:
    """The factor of this step, and the state after it."""
    past = schedule.count / jnp.asarray(num_steps, schedule.means.dtype)
    time_features = jnp.tanh(10 * (past - jnp.asarray(TIMES, past.dtype)))
    loss_features, schedule = _follow_loss(schedule, loss, num_steps)
    features = jnp.concatenate([time_features, loss_features])[:, None]

    rectified = jax.nn.relu(_networks.linear(weights["rectified"], features))
    x = _networks.linear(weights["linear"], features) + rectified
    state = (schedule.hidden[:, None], schedule.cell[:, None])
    hidden, cell = _networks.lstm_step(weights["lstm"], x, *state)
    [log_factor] = _networks.linear(weights["out"], hidden)
    new = schedule._replace(hidden=hidden[:, 0], cell=cell[:, 0])
    return 0.1 * jnp.exp(log_factor), new


def _follow_loss(
    schedule: Schedule,
    loss: Array,
    num_steps: int | Array,
) -> tuple[Array, Schedule]:
    """How the loss has fallen, ``[9]`` in [-1, 1], and its averages with one more loss."""
    count, means, minima, *_ = schedule
    longest = jnp.log(jnp.asarray(num_steps, means.dtype))
    lengths = jnp.exp(jnp.linspace(jnp.log(_SHORTEST_AVERAGE), longest, _NUM_AVERAGES))

    # The authors' cap counts the new loss before it has come in.
    corrected = means / _total_weight(count + 1, lengths)
    top = jnp.where(count == 0, loss, corrected.max())
    loss = jnp.minimum(2 * jnp.abs(top), loss)

    means = means + (loss - means) * _total_weight(1, lengths)
    count = count + 1
    corrected = means / _total_weight(count, lengths)
    minima = jnp.minimum(minima, corrected)

    above = corrected - minima
    slower_above = jnp.maximum(1e-8, corrected[1:] - minima[:-1])
    features = jnp.clip(above[:-1] / slower_above - 1, -1, 1)
    features = jnp.where(count <= 2, 0.0, features)
    return features, schedule._replace(count=count, means=means, minima=minima)


def _total_weight(count: int | Array, lengths: Array) -> Array:
    # 1 - exp(-1 / lengths) ** count, without cancellation.
    return -jnp.expm1(-count / lengths)
