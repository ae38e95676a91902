"""A tree of parameters as one flat vector of coordinates, and back.

Trees may hold scalars, empty leaves and several dtypes, and may have no leaf at all.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from metajax import _checks
from metajax.types import Array, PyTree

Unravel = Callable[[Array], PyTree]


def dtype(tree: PyTree) -> jnp.dtype:
    """The dtype of `ravel`: float32, or wider where a leaf is."""
    # Leaf by leaf first: weakly typed ones, such as `jnp.asarray(0.5)`, count as what they are.
    dtypes = map(jnp.result_type, jax.tree.leaves(tree))
    return jnp.result_type(jnp.float32, *dtypes)


def ravel(tree: PyTree) -> tuple[Array, Unravel]:
    """All leaves as one vector ``[P]``, and the function that makes a tree of such a vector.

    As `jax.flatten_util.ravel_pytree`, but in float32 or wider.
    """
    wide_dtype = dtype(tree)
    wide = jax.tree.map(lambda x: jnp.asarray(x, wide_dtype), tree)
    vector, unravel_wide = ravel_pytree(wide)

    def unravel(vector: Array) -> PyTree:
        return optax.tree.cast_like(unravel_wide(vector), tree)

    return vector, unravel


def split(x: Array, like: PyTree) -> list[Array]:
    """The columns of ``x [F, P]`` that belong to each leaf of ``like``."""
    leaves = jax.tree.leaves(like)
    sizes = [jnp.size(leaf) for leaf in leaves]
    ends = np.cumsum(sizes, dtype=int)
    return jnp.split(x, ends[:-1], axis=-1)


def zeros(
    params: PyTree,
    *rows: int,
    state_dtype: jax.typing.DTypeLike | None = None,
) -> Array:
    """Zeros ``[*rows, P]``, a column for each coordinate of ``params``."""
    if state_dtype is None:
        state_dtype = dtype(params)
    size = optax.tree.size(params)
    return jnp.zeros((*rows, size), state_dtype)


def check_state_dtype(state_dtype: jax.typing.DTypeLike | None) -> None:
    """``state_dtype`` must be a floating-point dtype or None."""
    if state_dtype is None:
        return
    is_array = isinstance(state_dtype, (np.ndarray, jax.Array))
    try:
        is_floating = not is_array and jnp.issubdtype(
            jnp.dtype(state_dtype), jnp.floating
        )
    except (TypeError, ValueError):
        is_floating = False
    if not is_floating:
        raise TypeError(
            f"state_dtype must be a floating-point dtype such as 'bfloat16', got {state_dtype!r}"
        )


def check_trees(size_at_init: int, **trees: PyTree) -> None:
    """Each must have as many coordinates as the parameters that the state was made for."""
    for name, tree in trees.items():
        _checks.floating(name, tree)
        size = optax.tree.size(tree)
        if size != size_at_init:
            raise ValueError(
                f"{name} must have the tree of the params given to init: got {size} coordinates, "
                f"but the state is for {size_at_init}; call tx.update(updates, state, params) for "
                f"those params, or init for these"
            )
