"""Broadcasting said aloud, for those who run with ``jax_numpy_rank_promotion="raise"``."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from metajax.types import Array


def lift(x: ArrayLike, like: Array) -> Array:
    """``x`` with as many axes as ``like``: those it lacks come first, and have the length 1."""
    missing = like.ndim - jnp.ndim(x)
    return jnp.reshape(x, (*[1] * missing, *jnp.shape(x)))


def affine(x: Array, w: Array, b: Array) -> Array:
    """``x W + b``."""
    y = x @ w
    return y + lift(b, y)
