"""A tree of parameters as one flat vector of coordinates and back, dtypes, scalars and empty leaves included."""

import jax
import jax.numpy as jnp

from metajax import checks
from metajax.types import Array, PyTree


def size(tree: PyTree) -> int:
    """The number of coordinates."""
    return sum(jnp.size(x) for x in jax.tree.leaves(tree))


def dtype(tree: PyTree) -> jnp.dtype:
    """The dtype of `ravel`: float32, or wider where a leaf is."""
    return jnp.result_type(jnp.float32, *jax.tree.leaves(tree))


def ravel(tree: PyTree) -> Array:
    """All leaves as one vector ``[P]``."""
    leaves = [jnp.ravel(x).astype(dtype(tree)) for x in jax.tree.leaves(tree)]
    return jnp.concatenate(leaves) if leaves else jnp.zeros(0)


def unravel(vector: Array, like: PyTree) -> PyTree:
    """The inverse of `ravel`: leaves of the shapes and dtypes of ``like``."""
    leaves, treedef = jax.tree.flatten(like)
    out, start = [], 0
    for x in leaves:
        out.append(vector[start : start + jnp.size(x)].reshape(jnp.shape(x)).astype(jnp.result_type(x)))
        start += jnp.size(x)
    return jax.tree.unflatten(treedef, out)


def check_updates(updates: PyTree, size_at_init: int) -> None:
    """Says that ``updates`` are not those of the parameters that the state was made for."""
    checks.floating("updates", updates)
    if size(updates) != size_at_init:
        raise ValueError(
            f"updates must have the tree of the params given to init: they hold {size(updates)} coordinates, the state "
            f"was made for {size_at_init}; call init again for these params"
        )
