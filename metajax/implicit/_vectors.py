"""Linear systems over trees as systems over vectors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from metajax import _checks
from metajax.types import Array, PyTree


class System(NamedTuple):
    """A system ``A x = b`` over vectors of at least float32.

    Attributes:
      operator: ``(x [N]) -> A x [N]``.
      b: ``[N]``.
      restore: ``(x [N]) -> tree``, with the shapes and dtypes that ``b`` had as a tree.
    """

    operator: Callable[[Array], Array]
    b: Array
    restore: Callable[[Array], PyTree]


def flatten(matvec: Callable, b: PyTree, damping: float = 0.0) -> System:
    """The system ``(matvec + damping I) x = b`` over vectors."""
    _checks.floating("b", b)
    like = _structure_and_shapes(b)
    b, unravel = ravel_pytree(b)
    own_dtype = b.dtype
    dtype = jnp.promote_types(own_dtype, jnp.float32)

    def restore(x: Array) -> PyTree:
        return unravel(x.astype(own_dtype))

    def operator(x: Array) -> Array:
        product = matvec(restore(x))
        got = _structure_and_shapes(product)
        if got != like:
            raise ValueError(
                f"matvec must give a tree like b, {like}, got {got}; does a linear solver stand in "
                f"the place of a solver?"
            )
        product, _ = ravel_pytree(product)
        return product.astype(dtype) + damping * x

    return System(operator, b.astype(dtype), restore)


def _structure_and_shapes(tree: PyTree) -> tuple[Any, list[tuple[int, ...]]]:
    return jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)]


def dot(a: Array, b: Array) -> Array:
    """The inner product of two vectors, at full precision."""
    # Not as a matrix product: accelerators compute those with fewer bits by default.
    return jnp.sum(a * b)


def relative_norm(residual_squared: Array, b_squared: Array) -> Array:
    """``|residual| / |b|`` from the squares of the norms, 0 where ``b`` is."""
    zero = b_squared == 0
    ratio = residual_squared / jnp.where(zero, 1, b_squared)
    return jnp.where(zero, 0, jnp.sqrt(ratio))
