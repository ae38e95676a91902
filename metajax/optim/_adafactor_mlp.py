"""A tiny network on the features of Adam and Adafactor (Metz et al. 2022, arXiv 2203.11860)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from metajax import _checks
from metajax.optim import _flat
from metajax.optim._lstm import check_hidden
from metajax.optim._mlp import (
    TIMESCALES,
    averages,
    check_decays,
    init_averages,
    init_network,
    second_moments,
    step,
    unit_scale,
)
from metajax.types import Array, LearnedOptimizer


class Factored(NamedTuple):
    """Moving averages, with ``K`` decays, of a leaf's squared gradient: over its rows, over its
    columns.

    Of the two longest axes ``row`` lacks the longest and ``col`` the other. A leaf with fewer than
    two axes has no factors: its ``row`` is the average itself, ``[K, *shape]``, and its ``col``
    empty.
    """

    row: Array
    col: Array


class AdafactorState(NamedTuple):
    """Steps done, moving averages ``m [K, P]`` and ``v [J, P]``, and the factored ones of each
    leaf.
    """

    count: Array
    m: Array
    v: Array
    factored: tuple[Factored, ...]


def adafactor_mlp(
    *,
    hidden: tuple[int, ...] = (4, 4),
    momentum_decays: tuple[float, ...] = (0.9, 0.99, 0.999),
    rms_decays: tuple[float, ...] = (0.999,),
    factored_decays: tuple[float, ...] = (0.9, 0.99, 0.999),
    scale: float = 1e-3,
    exp_scale: float = 1e-3,
    state_dtype: jax.typing.DTypeLike | None = None,
) -> LearnedOptimizer:
    """The ``small_fc_lopt`` of Metz et al. 2022: `mlp` with learned decays and Adafactor's moments,
    197 parameters.

    Besides the features of `mlp` with second moments it sees, for each factored decay, the averages
    of the squared gradient over rows and over columns, their inverse roots, and gradient and
    momentum divided by the root of the second moment that the two factors make (Shazeer & Stern
    2018); 39 features with those of time. For a tensor with more than two axes the two longest are
    factored, for one with fewer the second moment itself is taken. A decay ``b`` is learned as
    ``x`` in ``1 - (1 - b) exp(10 x)``, from ``x = 0``.

    Features, their order, constants and network are those of the authors' `learned_optimization`,
    with weights that are transposed. As many momenta as factored decays are needed, since they are
    multiplied pair by pair.

    Args: hidden: units of each hidden layer, with ReLU. momentum_decays: initial decays of the
      moving averages of the gradient. rms_decays: initial decay of the moving average of its
      square, exactly one. factored_decays: initial decays of the averages over rows and columns.
      scale: factor on the update. exp_scale: factor in the exponent. state_dtype: dtype in which
      momenta are kept between steps, as in `mlp`; second moments stay in the default.

    Raises:
      TypeError, ValueError: as `mlp`, or numbers of decays that do not fit.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> opt = mx.optim.adafactor_mlp()
    >>> meta_params = opt.init(jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(meta_params))
    197
    >>> tx = opt.tx(meta_params)
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> updates, state = tx.update(params, tx.init(params), params)
    """
    hidden = check_hidden(hidden)
    momentum_decays = check_decays("momentum_decays", momentum_decays)
    rms_decays = check_decays("rms_decays", rms_decays)
    factored_decays = check_decays("factored_decays", factored_decays)
    if len(rms_decays) != 1 or len(momentum_decays) != len(factored_decays):
        raise ValueError(
            f"rms_decays must be one, and momentum_decays as many as factored_decays, got {len(rms_decays)}, "
            f"{len(momentum_decays)} and {len(factored_decays)}"
        )
    scale, exp_scale = (
        _checks.positive_float("scale", scale),
        _checks.positive_float("exp_scale", exp_scale),
    )
    _flat.check_state_dtype(state_dtype)
    count = len(factored_decays)
    features = 2 + 8 * count + 2 + len(TIMESCALES)
    first = {"momentum": momentum_decays, "rms": rms_decays, "factored": factored_decays}

    def init(key: Array):
        _checks.key(key)
        decays = {name: jnp.zeros(len(values)) for name, values in first.items()}
        return {"decays": decays, "network": init_network(key, (features, *hidden, 2))}

    like = jax.eval_shape(init, jax.random.key(0))

    def tx(meta_params) -> optax.GradientTransformation:
        _flat.check_meta_params(meta_params, like)

        def decay(name):
            return 1 - (1 - jnp.asarray(first[name])) * jnp.exp(10 * meta_params["decays"][name])

        def init_fn(params) -> AdafactorState:
            _checks.floating("params", params)
            factored = tuple(_zeros(x, count) for x in jax.tree.leaves(params))
            return AdafactorState(*init_averages(params, count, 1, state_dtype), factored)

        def update_fn(updates, state, params=None):
            _flat.check_updates(updates, state.m.shape[-1])
            _flat.check_params(params, updates)
            grad, theta = _flat.ravel(updates), _flat.ravel(params)
            m, v = averages(state, grad, decay("momentum"), jnp.clip(decay("rms"), 0.0, 1.0))
            b = jnp.clip(decay("factored"), 0.0, 1.0)
            factored, parts = (
                [],
                [[jnp.zeros((count, 0), grad.dtype)] * 4],
            )  # a tree may have no leaf
            for old, g in zip(state.factored, jax.tree.leaves(updates), strict=True):
                factored.append(
                    _average(old, jnp.asarray(g, old.row.dtype), b.astype(old.row.dtype))
                )
                parts.append(_features(factored[-1], jnp.shape(g)))
            row, col, by_grad, by_m = (jnp.concatenate(x, -1) for x in zip(*parts, strict=True))
            inverse = (lax.rsqrt(row + 1e-8), lax.rsqrt(col + 1e-8))
            x = [
                grad[None],
                theta[None],
                m,
                *second_moments(m, v),
                grad * by_grad,
                row,
                col,
                *inverse,
                m * by_m,
            ]
            x = unit_scale(jnp.concatenate(x), updates)
            new = step(meta_params["network"], x, state.count, scale, exp_scale)
            state = AdafactorState(
                state.count + 1, m.astype(state.m.dtype), v.astype(state.v.dtype), tuple(factored)
            )
            return _flat.unravel(new, updates), state

        return optax.GradientTransformation(init_fn, update_fn)

    return LearnedOptimizer(init, tx)


def _axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    # The second longest axis and the longest.
    if len(shape) < 2:
        return None
    *_, second, longest = np.argsort(shape, kind="stable")
    return int(second), int(longest)


def _zeros(leaf: Array, count: int) -> Factored:
    shape, dtype, axes = jnp.shape(leaf), _flat.dtype(leaf), _axes(jnp.shape(leaf))
    if axes is None:
        return Factored(jnp.zeros((count, *shape), dtype), jnp.zeros((count, 0), dtype))
    row, col = ((count, *np.delete(shape, axis).tolist()) for axis in axes[::-1])
    return Factored(jnp.zeros(row, dtype), jnp.zeros(col, dtype))


def _average(old: Factored, grad: Array, decays: Array) -> Factored:
    def mix(average, new):
        b = decays.reshape(-1, *[1] * (average.ndim - 1))
        return b * average + (1 - b) * new

    square, axes = grad**2 + 1e-30, _axes(grad.shape)
    if axes is None:
        return Factored(mix(old.row, square), old.col)
    if grad.size == 0:
        return old
    second, longest = axes
    return Factored(mix(old.row, square.mean(longest)), mix(old.col, square.mean(second)))


def _features(new: Factored, shape: tuple[int, ...]) -> list[Array]:
    # For each coordinate: the row's and the column's average, and what multiplies the gradient and
    # the momentum.
    axes = _axes(shape)
    if axes is None:
        v, flat = new.row, (len(new.row), -1)
        return [x.reshape(flat) for x in (v, v, _safe_rsqrt(v + 1e-9), (v + 1e-6) ** -0.5)]
    second, longest = axes
    row, col = jnp.expand_dims(new.row, 1 + longest), jnp.expand_dims(new.col, 1 + second)
    by = _safe_rsqrt(row / (row.mean(1 + second, keepdims=True) + 1e-9)) * _safe_rsqrt(col)
    whole = (len(row), *shape)
    return [jnp.broadcast_to(x, whole).reshape(len(row), -1) for x in (row, col, by, by)]


def _safe_rsqrt(x: Array) -> Array:
    return lax.rsqrt(jnp.maximum(x, 1e-9))
