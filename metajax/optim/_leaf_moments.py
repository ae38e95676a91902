"""Moving averages of each leaf's gradient and of its square, and moves that are made of them.

Leaves of one shape are stacked and moved at once. What is written here for one leaf, a scalar being
a vector of one entry, comes to all through `jax.vmap`.
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
from metajax.optim._factored import Factored, init_factors, update_factors
from metajax.types import Array, PyTree


class Decays(NamedTuple):
    """Of the averages, ``[K]``, a scalar, and ``[K]``."""

    m: Array
    v: Array
    factored: Array


class Moments(NamedTuple):
    """Moving averages of the gradients of the ``L`` leaves of one shape, and of their squares.

    They begin at zero and are not corrected for it.

    Attributes:
      m: ``[L, K, *shape]``, of the gradient.
      v: ``[L, *shape]``, of its square.
      factored: of its square, over rows and over columns, ``[L, K, ...]``.
    """

    m: Array
    v: Array
    factored: Factored


Move = Callable[[Moments, Array, Array], Array]

# Leaves of as many coordinates are moved one after the other: the working memory of one is faster
# than that of all. Measured: on a CPU a half of the time with 10 leaves of a million coordinates.
_ONE_BY_ONE_FROM = 2**17


def init_moments(params: PyTree, num_decays: int) -> tuple[Moments, ...]:
    """Zeros, for each shape among ``params``."""
    _checks.floating("params", params)

    def zeros(leaf: Array) -> Moments:
        m = jnp.zeros((num_decays, *leaf.shape), leaf.dtype)
        return Moments(m, jnp.zeros_like(leaf), init_factors(leaf, num_decays))

    return tuple(jax.vmap(zeros)(x) for x in _by_shape.stack(params))


def move_leaves(
    move: Move,
    decays: Decays,
    updates: PyTree,
    state: tuple[Moments, ...],
    params: PyTree,
) -> tuple[PyTree, tuple[Moments, ...]]:
    """What ``move`` makes of each leaf, and the moments after the gradients ``updates``.

    ``move`` is a function of new moments, gradient and parameters.
    """
    shapes = [x.v.shape for x in state]
    _by_shape.check_trees(shapes, updates=updates, params=params)

    def step(moments: Moments, grad: Array, theta: Array) -> tuple[Array, Moments]:
        moments = _update_moments(moments, grad, decays)
        return move(moments, grad, theta), moments

    moves = []
    new_state = []
    stacks = (_by_shape.stack(updates), _by_shape.stack(params))
    for moments, grads, thetas in zip(state, *stacks, strict=True):
        moved, new_moments = _each(step)(moments, grads, thetas)
        moves.append(moved)
        new_state.append(optax.tree.cast_like(new_moments, moments))
    return _by_shape.unstack(tuple(moves), updates), tuple(new_state)


def _each(step: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """``step`` on each leaf of a stack."""

    def steps(moments: Moments, grads: Array, thetas: Array) -> PyTree:
        if len(grads) == 1 or grads[0].size < _ONE_BY_ONE_FROM:
            return jax.vmap(step)(moments, grads, thetas)
        return lax.map(lambda x: step(*x), (moments, grads, thetas))

    return steps


def _update_moments(moments: Moments, grad: Array, decays: Decays) -> Moments:
    m, v, factored = moments
    v_decay = jnp.asarray(decays.v, grad.dtype)
    return Moments(
        m=_features.update_averages(m, grad, decays.m),
        v=v_decay * v + (1 - v_decay) * grad**2,
        factored=update_factors(factored, grad, decays.factored),
    )


def normalized(groups: list[Array], num_axes: int, epsilon: float) -> list[Array]:
    """Each feature over its root mean square along its last axes, by itself.

    Groups ``[., ...]`` of features are taken apart here, and not before: so one kernel squares a
    group, and what reads the features can compute them in passing.
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
