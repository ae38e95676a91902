"""What evolution strategies perturb meta-parameters by."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from metajax import _trees
from metajax._arguments import PositiveInt, checked
from metajax._arrays import matmul
from metajax.types import Array, Key, MetaParams, PyTree


class Perturbation(NamedTuple):
    """Noise of mean 0 and variance 1 for each floating meta-parameter.

    Attributes:
      sample: ``(key, meta_params, num) -> noise``, its leaves with a leading axis of ``num``
        independent members.
      move: ``(meta_params, noise, step) -> meta_params``, moved by ``step`` times the noise of one
        member.
      combine: ``(weights [num], noise, meta_params) -> tree``, the weighted sum over members, like
        the meta-parameters.
    """

    sample: Callable[[Key, MetaParams, int], PyTree]
    move: Callable[[MetaParams, PyTree, Array], MetaParams]
    combine: Callable[[Array, PyTree, MetaParams], PyTree]


class Factors(NamedTuple):
    """The noise ``a b^T`` of a matrix: ``a [m, rank]``, ``b [n, rank]``."""

    a: Array
    b: Array


class MovedMatrix:
    """``w + a b^T``, which is multiplied from either side without being made.

    It is neither an array nor a tree, so that whatever else is done with it is an error: what took
    it for either would make the matrix, or change its parts one by one, without a word.
    """

    def __init__(self, w: Array, a: Array, b: Array):
        self.w = w
        self.a = a
        self.b = b

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix."""
        return self.w.shape

    @property
    def dtype(self) -> Any:
        """Of the matrix."""
        return self.w.dtype

    def __rmatmul__(self, x: Array) -> Array:
        return x @ self.w + matmul(matmul(x, self.a), self.b.T)

    def __matmul__(self, x: Array) -> Array:
        return self.w @ x + matmul(self.a, matmul(self.b.T, x))

    def dense(self) -> Array:
        """The matrix itself."""
        return self.w + matmul(self.a, self.b.T)


@checked
def gaussian() -> Perturbation:
    """Independent standard normal noise.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> noise = mx.gaussian().sample(jax.random.key(0), {"w": jnp.zeros((4, 3))}, 8)
    >>> noise["w"].shape
    (8, 4, 3)
    """
    return Perturbation(_normal, _move, _combine)


@checked
def low_rank(rank: PositiveInt = 1, *, shared: bool = False) -> Perturbation:
    """Noise of a low rank for matrices (Sarkar et al. 2025, arXiv 2511.16652).

    A matrix ``[m, n]`` is moved by ``A B^T / sqrt(rank)``, with standard normal ``A [m, rank]`` and
    ``B [n, rank]``, so that a population's noise takes ``rank (m + n)`` numbers a member. The
    gradient of a linear meta-loss is estimated without bias at any rank, and of others with a bias
    that falls with ``std`` and with ``1 / rank``; the variance is that of full rank but for a share
    of the order of ``1 / m + 1 / n``. The update is of full rank. The leading axes of a leaf with
    more than two count as rows; vectors, and matrices that factors would not make smaller, get
    `gaussian` noise.

    Args:
      rank: of the noise; 1 unless ``std`` is large.
      shared: hand matrices to the learner as objects that only know ``@``, from either side. All
        members then share the product with the matrix itself, and each adds two thin ones: several
        times faster where meta-parameters are large matrices that few rows are multiplied with at
        every inner step. Learners that adapt their meta-parameters (MAML) cannot take these.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> noise = mx.low_rank().sample(jax.random.key(0), {"w": jnp.zeros((40, 30))}, 8)
    >>> noise["w"].a.shape, noise["w"].b.shape
    ((8, 40, 1), (8, 30, 1))
    """

    def sample(key, meta_params, num):
        floating, _ = _trees.partition(meta_params)
        blanks = jax.tree.map(partial(_blank_noise, rank), floating)
        noise = _normal(key, blanks, num)
        scale = rank**-0.5
        return jax.tree.map(
            lambda x: Factors(scale * x.a, x.b) if _is_factors(x) else x,
            noise,
            is_leaf=_is_factors,
        )

    def move_leaf(step, x, noise):
        step = step.astype(x.dtype)
        if not _is_factors(noise):
            return x + step * noise
        a = step * noise.a
        if shared and x.ndim == 2:
            return MovedMatrix(x, a, noise.b)
        return x + matmul(a, noise.b.T).reshape(x.shape)

    def move(meta_params, noise, step):
        return _moved(partial(move_leaf, step), meta_params, noise)

    def combine(weights, noise, meta_params):
        def combine_leaf(x, noise):
            if not _is_factors(noise):
                return _weighted_sum(weights, noise)
            # One product over members and ranks: no member's matrix is made.
            weighted = weights.astype(x.dtype)[:, None, None] * noise.a
            total = jnp.einsum("imr,inr->mn", weighted, noise.b, precision="highest")
            return total.reshape(x.shape)

        floating, _ = _trees.partition(meta_params)
        return jax.tree.map(combine_leaf, floating, noise)

    return Perturbation(sample, move, combine)


def no_windows(noise: PyTree, most: int) -> PyTree:
    """The sum of the noises of no window yet, with room for those of ``most``."""

    def empty(x):
        if not _is_factors(x):
            return jnp.zeros_like(x)
        wide = [jnp.zeros((*f.shape[:-1], most * f.shape[-1]), f.dtype) for f in x]
        return Factors(*wide)

    return jax.tree.map(empty, noise, is_leaf=_is_factors)


def with_window(total: PyTree, noise: PyTree) -> PyTree:
    """The sum of noises and one more.

    Factors stand side by side, the oldest first, and what stood longest falls out: zeros, as long
    as there is room. Their sum has their ranks together and is never made.
    """

    def add(total, noise):
        if not _is_factors(noise):
            return total + noise
        rank = noise.a.shape[-1]
        pairs = zip(total, noise, strict=True)
        return Factors(*(jnp.concatenate([t[..., rank:], x], -1) for t, x in pairs))

    return jax.tree.map(add, total, noise, is_leaf=_is_factors)


def _normal(key: Key, like: PyTree, num: int) -> PyTree:
    """Standard normal leaves ``[num, ...]``.

    In one draw: each draw costs compile time, and trees have many leaves.
    """
    floating, _ = _trees.partition(like)
    flat, unravel = ravel_pytree(floating)
    noise = jax.random.normal(key, (num, flat.size), flat.dtype)
    return jax.vmap(unravel)(noise)


def _move(meta_params: MetaParams, noise: PyTree, step: Array) -> MetaParams:
    return _moved(lambda x, e: x + step.astype(x.dtype) * e, meta_params, noise)


def _moved(move_leaf: Callable, meta_params: MetaParams, noise: PyTree) -> MetaParams:
    """What is not floating stays."""
    floating, others = _trees.partition(meta_params)
    return _trees.combine(jax.tree.map(move_leaf, floating, noise), others)


def _combine(weights: Array, noise: PyTree, meta_params: MetaParams) -> PyTree:
    del meta_params
    return jax.tree.map(partial(_weighted_sum, weights), noise)


def _weighted_sum(weights: Array, noise: Array) -> Array:
    return jnp.tensordot(weights.astype(noise.dtype), noise, 1, precision="highest")


def _blank_noise(rank: int, x: Array) -> Array | Factors:
    """What the noise of a leaf looks like, for one member."""
    rows = math.prod(x.shape[:-1])
    columns = x.shape[-1] if x.ndim else 1
    if x.ndim < 2 or rank * (rows + columns) >= rows * columns:
        return jnp.zeros(x.shape, x.dtype)
    return Factors(
        jnp.zeros((rows, rank), x.dtype), jnp.zeros((columns, rank), x.dtype)
    )


def _is_factors(x: Any) -> bool:
    return isinstance(x, Factors)
