"""What Celo and Celo2 share: moving averages of a leaf's gradient, and what a network sees of them.

Moudgil et al. 2025, arXiv 2501.12670; 2026, arXiv 2602.19142; after Metz et al. 2022,
arXiv 2211.09760. All is of one leaf with at least one axis; the leaves of a tree come stacked by
shape, through `jax.vmap`.
"""

import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from metajax import _checks
from metajax.optim import _by_shape, _features
from metajax.optim._factored import (
    Factored,
    init_factors,
    of_matrix,
    safe_rsqrt,
    update_factors,
)
from metajax.types import Array, PyTree

NUM_INPUTS = 30
_DECAYS = (0.9, 0.99, 0.999)
_LARGEST_GRADIENT = 1_000.0


class Moments(NamedTuple):
    """Moving averages of the gradients of the ``L`` leaves of one shape, and of their squares.

    They begin at zero and are not corrected for it.

    Attributes:
      m: ``[L, 3, *shape]``, of the gradient.
      v: ``[L, *shape]``, of its square.
      factored: of its square, over rows and over columns, ``[L, 3, ...]``.
    """

    m: Array
    v: Array
    factored: Factored


Move = Callable[[Moments, Array, Array], Array]


def init_moments(params: PyTree) -> tuple[Moments, ...]:
    """Zeros, for each shape among ``params``."""
    _checks.floating("params", params)

    def zeros(leaf: Array) -> Moments:
        m = jnp.zeros((len(_DECAYS), *leaf.shape), leaf.dtype)
        return Moments(m, jnp.zeros_like(leaf), init_factors(leaf, len(_DECAYS)))

    return tuple(jax.vmap(zeros)(x) for x in _by_shape.stack(params))


def move_leaves(
    move: Move,
    v_decay: float,
    updates: PyTree,
    state: tuple[Moments, ...],
    params: PyTree,
) -> tuple[PyTree, tuple[Moments, ...]]:
    """The moments after the gradients ``updates``, and what ``move`` makes of them for each leaf.

    ``move`` is a function of moments, gradient and parameters.
    """
    if params is None:
        raise ValueError("params are needed: tx.update(updates, state, params)")
    shapes = [x.v.shape for x in state]
    _by_shape.check_trees(shapes, updates=updates, params=params)

    def step(moments: Moments, grad: Array, theta: Array) -> tuple[Array, Moments]:
        grad = jnp.clip(grad, -_LARGEST_GRADIENT, _LARGEST_GRADIENT)
        moments = _update_moments(moments, grad, v_decay)
        return move(moments, grad, theta), moments

    moves = []
    new_state = []
    stacks = (_by_shape.stack(updates), _by_shape.stack(params))
    for moments, grads, thetas in zip(state, *stacks, strict=True):
        moved, new_moments = _each(step)(moments, grads, thetas)
        moves.append(moved)
        new_state.append(optax.tree.cast_like(new_moments, moments))
    return _by_shape.unstack(tuple(moves), updates), tuple(new_state)


# Leaves of as many coordinates are moved one after the other: the working memory of one is faster
# than that of all. Measured: on a CPU a half of the time with 10 leaves of a million coordinates.
_ONE_BY_ONE_FROM = 2**17


def _each(step: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """``step`` on each leaf of a stack."""

    def steps(moments: Moments, grads: Array, thetas: Array) -> PyTree:
        if len(grads) == 1 or grads[0].size < _ONE_BY_ONE_FROM:
            return jax.vmap(step)(moments, grads, thetas)
        return lax.map(lambda x: step(*x), (moments, grads, thetas))

    return steps


def _update_moments(moments: Moments, grad: Array, v_decay: float) -> Moments:
    m, v, factored = moments
    return Moments(
        m=_features.update_averages(m, grad, _DECAYS),
        v=v_decay * v + (1 - v_decay) * grad**2,
        factored=update_factors(factored, grad, jnp.asarray(_DECAYS, grad.dtype)),
    )


def inputs(
    moments: Moments,
    grad: Array,
    theta: Array,
    v_epsilon: float,
) -> list[Array]:
    """The inputs of the network in the authors' groups and order, ``[1 or 3, ...]`` each.

    30 in all, the first 15 for a vector. They broadcast to the shape of the leaf: averages over
    rows or columns have an axis of length 1.
    """
    m, v, factored = moments
    g = grad[None]
    v = v[None]
    inverse_root = lax.rsqrt(v + v_epsilon)
    first = [g, jnp.clip(g, -0.1, 0.1), theta[None], m, v]
    first += [m * inverse_root, inverse_root]
    if grad.ndim < 2:
        factor = safe_rsqrt(factored.row + 1e-9)
        return [*first, g * factor, g * inverse_root]

    row, col, factor = of_matrix(factored, grad.shape)
    of_factors = [row, col, lax.rsqrt(row + 1e-8), lax.rsqrt(col + 1e-8)]
    return [*first, g * factor, g * inverse_root, *of_factors, m * factor]


def normalized(groups: list[Array], num_axes: int, epsilon: float) -> list[Array]:
    """Each feature over its root mean square along its last axes, by itself.

    Groups are taken apart here, and not before: so one kernel squares a group, and what reads the
    features can compute them in passing.
    """
    features = []
    for x in groups:
        factors = inverse_size(x, num_axes, epsilon)
        features += map(operator.mul, x, factors)
    return features


def inverse_size(x: Array, num_axes: int, epsilon: float) -> Array:
    """The inverse of the root mean square along the last axes, which are kept."""
    axes = tuple(range(x.ndim)[-num_axes:])
    mean_square = (x**2).mean(axes, keepdims=True)
    return lax.rsqrt(epsilon + mean_square)
