"""Products in full precision, and broadcasting said aloud.

The latter for those who run with ``jax_numpy_rank_promotion="raise"``.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from metajax.types import Array


def lift(x: ArrayLike, like: Array) -> Array:
    """``x`` with as many axes as ``like``: those it lacks come first, and have the length 1."""
    missing = like.ndim - jnp.ndim(x)
    return jnp.reshape(x, (*[1] * missing, *jnp.shape(x)))


def matmul(a: Any, b: Any) -> Any:
    """``a @ b`` with all bits of float32.

    For what is small and decides everything. By default a GPU may round what it multiplies to 10
    bits of mantissa, and a TPU to 7. Either may be a `MovedMatrix`, which only knows ``@``.
    """
    with jax.default_matmul_precision("highest"):
        return a @ b


def affine(x: Array, w: Array, b: Array) -> Array:
    """``x W + b``."""
    y = x @ w
    return y + lift(b, y)


def standardise(x: Array, axes: int | tuple[int, ...] = -1) -> Array:
    """``(x - mean) / sqrt(variance + 1e-5)`` over some of the axes.

    In two passes. `jax.nn.standardize` takes the square of the mean from the mean of the squares,
    and nothing is left of a variance that is small beside the mean.
    """
    y, _ = _standardised(axes, x)
    return y


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _standardised(axes: int | tuple[int, ...], x: Array) -> tuple[Array, Array]:
    """And the factor that the centred ``x`` had."""
    centred = x - x.mean(axes, keepdims=True)
    variance = jnp.square(centred).mean(axes, keepdims=True)
    factor = lax.rsqrt(variance + 1e-5)
    return centred * factor, factor


@_standardised.defjvp
def _derivative(axes, primals, tangents):
    # From the outputs alone: a backward pass then stores no other array of the size of x.
    [x] = primals
    [dx] = tangents
    y, factor = _standardised(axes, x)
    centred = dx - dx.mean(axes, keepdims=True)
    along_y = (y * centred).mean(axes, keepdims=True)
    dy = factor * (centred - y * along_y)
    return (y, factor), (dy, -(factor**2) * along_y)
