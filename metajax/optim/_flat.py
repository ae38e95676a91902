"""A tree of parameters as one flat vector of coordinates and back, dtypes, scalars and empty leaves
included.
"""

import jax
import jax.numpy as jnp

from metajax import _checks
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
        out.append(
            vector[start : start + jnp.size(x)].reshape(jnp.shape(x)).astype(jnp.result_type(x))
        )
        start += jnp.size(x)
    return jax.tree.unflatten(treedef, out)


def split(x: Array, like: PyTree) -> list[Array]:
    """The columns of ``x [F, P]`` that belong to each leaf of ``like``."""
    parts, start = [], 0
    for leaf in jax.tree.leaves(like):
        parts.append(x[:, start : start + jnp.size(leaf)])
        start += jnp.size(leaf)
    return parts


def check_meta_params(meta_params: PyTree, like: PyTree) -> None:
    """Says where ``meta_params`` are not like those of the optimizer's init."""
    got, want = jax.tree.structure(meta_params), jax.tree.structure(like)
    if got != want:
        raise ValueError(
            f"meta_params must be those of this optimizer's init:\n  got  {got}\n  want {want}"
        )
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(meta_params), jax.tree.leaves(like), strict=True
    ):
        if jnp.shape(x) != y.shape:
            raise ValueError(
                f"meta_params{jax.tree_util.keystr(path)} must have the shape {y.shape} of this optimizer's init, got "
                f"{jnp.shape(x)}; were they made with other settings?"
            )
    _checks.floating("meta_params", meta_params)


def check_state_dtype(state_dtype: jax.typing.DTypeLike | None) -> None:
    """Says that ``state_dtype`` must be a floating-point dtype or None."""
    if state_dtype is not None and not jnp.issubdtype(state_dtype, jnp.floating):
        raise TypeError(f"state_dtype must be a floating-point dtype, got {state_dtype!r}")


def check_updates(updates: PyTree, size_at_init: int) -> None:
    """Says that ``updates`` are not those of the parameters that the state was made for."""
    _checks.floating("updates", updates)
    if size(updates) != size_at_init:
        raise ValueError(
            f"updates must have the tree of the params given to init: they hold {size(updates)} coordinates, the state "
            f"was made for {size_at_init}; call init again for these params"
        )


def check_params(params: PyTree, updates: PyTree) -> None:
    """Says that the transformation looks at the parameters and did not get those of the
    ``updates``.
    """
    if params is None:
        raise ValueError(
            "params must be given to this transformation: tx.update(updates, state, params)"
        )
    shapes = [[jnp.shape(x) for x in jax.tree.leaves(tree)] for tree in (params, updates)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"params must have the shapes of updates, {shapes[1]}, got {shapes[0]}")
