"""Second moments of tensors, kept as those of rows and of columns.

This is Adafactor's way (Shazeer & Stern 2018, arXiv 1804.04235).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from metajax._arrays import lift
from metajax.optim import _features, _flat
from metajax.types import Array


class Factored(NamedTuple):
    """Moving averages, with K decays, of a leaf's squared gradient over its rows and its columns.

    A leaf with fewer than two axes has no factors.

    Attributes:
      row: ``[K, ...]``, without the longest axis; or the average itself, ``[K, *shape]``.
      col: ``[K, ...]``, without the second longest axis; or empty.
    """

    row: Array
    col: Array


def init_factors(leaf: Array, num_decays: int) -> Factored:
    """Zeros."""
    shape = jnp.shape(leaf)
    dtype = _flat.dtype(leaf)
    row_shape = shape
    col_shape = (0,)
    axes = _longest_axes(shape)
    if axes is not None:
        second, longest = axes
        row_shape = np.delete(shape, longest)
        col_shape = np.delete(shape, second)
    return Factored(
        row=jnp.zeros((num_decays, *row_shape), dtype),
        col=jnp.zeros((num_decays, *col_shape), dtype),
    )


def update_factors(
    factored: Factored,
    grad: Array,
    decays: Array,
) -> Factored:
    """The averages after one more gradient of the leaf, with ``decays [K]``."""
    row, col = factored
    square = jnp.asarray(grad, row.dtype) ** 2 + 1e-30
    axes = _longest_axes(square.shape)
    if axes is None:
        row = _features.update_averages(row, square, decays)
        return Factored(row, col)
    if square.size == 0:
        # The mean over an axis of length 0 would put NaN into the state.
        return factored
    second, longest = axes
    row = _features.update_averages(row, square.mean(longest), decays)
    col = _features.update_averages(col, square.mean(second), decays)
    return Factored(row, col)


class Whitening(NamedTuple):
    """The second moments of rows and of columns, and two factors of the inverse root of all.

    All are ``[K, ...]`` and broadcast to ``[K, *shape]`` of a leaf.
    """

    row: Array
    col: Array
    row_factor: Array
    col_factor: Array


def whitening(factored: Factored, shape: tuple[int, ...]) -> Whitening:
    """Of a leaf with at least two axes."""
    axes = _longest_axes(shape)
    assert axes is not None, shape
    second, longest = axes
    # The first axis is that of the decays.
    row = jnp.expand_dims(factored.row, 1 + longest)
    col = jnp.expand_dims(factored.col, 1 + second)
    mean = row.mean(1 + second, keepdims=True)
    relative_row = row / (mean + 1e-9)
    return Whitening(row, col, safe_rsqrt(relative_row), safe_rsqrt(col))


def whitened(grad: Array, m: Array, by: Whitening) -> tuple[Array, Array]:
    """Both times the inverse root of the second moments."""
    # Factors that the two shared would be repeated to the shape of the leaf, in memory.
    own = lax.optimization_barrier(by)
    grad = lift(grad, m)
    return grad * by.row_factor * by.col_factor, m * own.row_factor * own.col_factor


def safe_rsqrt(x: Array) -> Array:
    """The inverse root, as if ``x`` were at least 1e-9."""
    return lax.rsqrt(jnp.maximum(x, 1e-9))


def _longest_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    # The second longest axis and the longest; of equally long ones the later counts as longer.
    if len(shape) < 2:
        return None
    by_length = np.argsort(shape, kind="stable")
    second, longest = by_length[-2:].tolist()
    return second, longest
