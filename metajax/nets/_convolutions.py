"""Convolutions as products of two matrices."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from metajax.types import Array


def convolve(
    x: Array,
    w: Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int] | None = None,
    **options: Any,
) -> Array:
    """The convolution of ``x [B, *size, C]`` with ``w [*kernel, C, F]``: patches times weights.

    Args:
      x: of any number of spatial axes.
      w: as many.
      strides: along each of them.
      padding: before and after, along each of them, at least 0.
      dilation: the distance of the weights' places, along each of them; 1 by default.
      options: those of `jax.numpy.matmul`.
    """
    *kernel, channels, filters = w.shape
    dilation = [1] * len(kernel) if dilation is None else dilation
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))

    # The positions of the kernel: as many as fit.
    axes = zip(x.shape[1:-1], kernel, dilation, strides, strict=True)
    positions = [(n - (k - 1) * d - 1) // s + 1 for n, k, d, s in axes]

    # For each weight of the kernel, what it is multiplied with at all positions.
    shifted = []
    for offsets in itertools.product(*map(range, kernel)):
        at = map(_places, offsets, dilation, positions, strides)
        shifted.append(x[:, *at])
    patches = jnp.concatenate(shifted, -1)

    # In two dimensions, or XLA turns the derivatives around before it multiplies them with the
    # patches.
    patches = patches.reshape(-1, math.prod(kernel) * channels)
    product = jnp.matmul(patches, w.reshape(-1, filters), **options)
    return product.reshape(-1, *positions, filters)


def _places(offset: int, dilation: int, positions: int, stride: int) -> slice:
    first = offset * dilation
    return slice(first, first + (positions - 1) * stride + 1, stride)
