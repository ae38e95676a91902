"""Moving averages of each leaf's gradient and of its square, and moves that are made of them.

Leaves of one shape are moved by one program: stacked and at once, or large ones in turn. What is
written here is for one leaf, a scalar being a vector of one entry.
"""

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from metajax import _checks
from metajax.optim import _by_shape, _features
from metajax.optim._factored import (
    Factored,
    Whitening,
    init_factors,
    update_factors,
    whitening,
)
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

# On a CPU, leaves of as many coordinates are moved one after the other, and not stacked for that:
# the working memory of one is faster than that of all. Measured: with 10 leaves of a million
# coordinates 0.6 of the time, with 194 leaves of a transformer 0.75 of it. Other devices want few
# and large kernels.
_ONE_BY_ONE_FROM = 2**16


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
    largest_gradient: float = math.inf,
) -> tuple[PyTree, tuple[Moments, ...]]:
    """What ``move`` makes of each leaf, and the moments after the gradients ``updates``.

    ``move`` is a function of new moments, gradient and parameters. Gradients are clipped to
    ``largest_gradient`` before all else.
    """
    shapes = [x.v.shape for x in state]
    _by_shape.check_trees(shapes, updates=updates, params=params)

    def step(moments: Moments, grad: Array, theta: Array) -> tuple[Array, Moments]:
        if math.isfinite(largest_gradient):
            grad = jnp.clip(grad, -largest_gradient, largest_gradient)
        new = _update_moments(moments, grad, decays)
        # What reads the moments shall not compute them once more.
        new, grad = lax.optimization_barrier((new, grad))
        return move(new, grad, theta), optax.tree.cast_like(new, moments)

    moves = []
    new_state = []
    groups = (_by_shape.group(updates), _by_shape.group(params))
    for moments, grads, thetas in zip(state, *groups, strict=True):
        moved, new_moments = _each(step, moments, grads, thetas)
        moves.append(moved)
        new_state.append(new_moments)
    return _by_shape.unstack(tuple(moves), updates), tuple(new_state)


Step = Callable[[Moments, Array, Array], tuple[Array, Moments]]


def _each(
    step: Step,
    moments: Moments,
    grads: list[Array],
    thetas: list[Array],
) -> tuple[Array, Moments]:
    """``step`` of each leaf."""
    if len(grads) == 1 or grads[0].size < _ONE_BY_ONE_FROM:
        return _at_once(step, moments, grads, thetas)
    return lax.platform_dependent(
        moments,
        grads,
        thetas,
        cpu=partial(_in_turn, step),
        default=partial(_at_once, step),
    )


def _at_once(
    step: Step,
    moments: Moments,
    grads: list[Array],
    thetas: list[Array],
) -> tuple[Array, Moments]:
    return jax.vmap(step)(moments, jnp.stack(grads), jnp.stack(thetas))


def _in_turn(
    step: Step,
    moments: Moments,
    grads: list[Array],
    thetas: list[Array],
) -> tuple[Array, Moments]:
    """As `_at_once`, one leaf after the other; new moments take the place of the old."""

    def next_leaf(moments: Moments, i: Array) -> tuple[Moments, Array]:
        read = partial(lax.dynamic_index_in_dim, index=i, keepdims=False)
        write = partial(lax.dynamic_update_index_in_dim, index=i, axis=0)
        grad, theta = (
            lax.switch(i, [lambda x=x: x for x in xs]) for xs in (grads, thetas)
        )
        moved, new = step(jax.tree.map(read, moments), grad, theta)
        return jax.tree.map(write, moments, new), moved

    moments, moved = lax.scan(next_leaf, moments, jnp.arange(len(grads)))
    return moved, moments


def _update_moments(moments: Moments, grad: Array, decays: Decays) -> Moments:
    m, v, factored = moments
    v_decay = jnp.asarray(decays.v, grad.dtype)
    return Moments(
        m=_features.update_averages(m, grad, decays.m),
        v=v_decay * v + (1 - v_decay) * grad**2,
        factored=update_factors(factored, grad, decays.factored),
    )


class Seen(NamedTuple):
    """What the features of a leaf are made of, for all decays or for one.

    Attributes:
      m: ``[K, *shape]``, or without ``K``.
      second: `Whitening` of the second moments, or of a vector these themselves; likewise.
      v: ``[*shape]``, as what follows.
      grad: the gradient.
      theta: the parameters.
    """

    m: Array
    second: Whitening | Array
    v: Array
    grad: Array
    theta: Array

    def of_decay(self, k: int) -> "Seen":
        """With what belongs to one decay."""
        m, second = jax.tree.map(lambda x: x[k], (self.m, self.second))
        return self._replace(m=m, second=second)


def seen(moments: Moments, grad: Array, theta: Array) -> Seen:
    """What there is to see of a leaf."""
    m, v, factored = moments
    is_matrix = grad.ndim >= 2
    second = whitening(factored, grad.shape) if is_matrix else factored.row
    return Seen(m, second, v, grad, theta)


def normalized(
    inputs: Callable[[Seen], list[Array]],
    seen: Seen,
    num_axes: int,
    epsilon: float,
) -> list[Array]:
    """Each feature over its root mean square along its last axes, by itself.

    ``inputs`` gives groups of features: arrays that broadcast to the shape of the leaf, or of the
    decays and the leaf. They are computed twice, for their mean squares and where a network reads
    them, since to keep them in memory costs more.
    """
    groups = [x if x.ndim > seen.grad.ndim else x[None] for x in inputs(seen)]
    factors = _inverse_sizes(groups, num_axes, epsilon)
    seen, factors = lax.optimization_barrier((seen, factors))

    of_decays = [inputs(seen.of_decay(k)) for k in range(len(seen.m))]
    features = []
    for x, *of_decay in zip(groups, *of_decays, strict=True):
        features += of_decay[: len(x)]
    return list(map(operator.mul, features, factors))


def _inverse_sizes(groups: list[Array], num_axes: int, epsilon: float) -> Array:
    """Of the features of all ``groups [., ...]``, from the first to the last."""
    axes = tuple(range(-num_axes, 0))
    sums = [(x**2).sum(axes, keepdims=True) for x in groups]
    lengths = [math.prod(x.shape[-num_axes:]) for x in groups for _ in x]
    shape = jnp.broadcast_shapes(*(x.shape[1:] for x in sums))
    sums = jnp.concatenate([jnp.broadcast_to(x, (len(x), *shape)) for x in sums])
    lengths = np.reshape(lengths, (-1, *[1] * len(shape)))
    return lax.rsqrt(epsilon + sums / lengths.astype(sums.dtype))


def inverse_size(x: Array, num_axes: int, epsilon: float) -> Array:
    """The inverse of the root mean square along the last axes, which are kept."""
    axes = tuple(range(-num_axes, 0))
    mean_square = (x**2).mean(axes, keepdims=True)
    return lax.rsqrt(epsilon + mean_square)
