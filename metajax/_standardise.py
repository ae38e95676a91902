"""Zero mean and unit variance."""

import jax.numpy as jnp
from jax import lax

from metajax.types import Array


def standardise(x: Array, axes: int | tuple[int, ...] = -1) -> Array:
    """``(x - mean) / sqrt(variance + 1e-5)`` over some of the axes.

    In two passes. `jax.nn.standardize` takes the square of the mean from the mean of the squares,
    and nothing is left of a variance that is small beside the mean.
    """
    centred = x - x.mean(axes, keepdims=True)
    variance = jnp.square(centred).mean(axes, keepdims=True)
    return centred * lax.rsqrt(variance + 1e-5)
