"""Leaves of equal shapes as one array, so that what treats leaves alike is compiled once for them.

Scalars count as vectors of one entry. Empty leaves, which have nothing to move, are left out.
"""

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax.optim import _flat
from metajax.types import Array, PyTree

Shape = tuple[int, ...]


def group(tree: PyTree) -> tuple[list[Array], ...]:
    """The ``L`` leaves of each shape, in float32 or wider."""
    leaves = jax.tree.leaves(tree)
    groups = []
    for shape, places in _places(leaves).items():
        same = [leaves[i] for i in places]
        wide_dtype = _flat.dtype(same)
        groups.append([jnp.asarray(x, wide_dtype).reshape(shape) for x in same])
    return tuple(groups)


def stack(tree: PyTree) -> tuple[Array, ...]:
    """An array ``[L, *shape]`` for each shape, of the ``L`` leaves that have it.

    They are in float32 or wider.
    """
    return tuple(map(jnp.stack, group(tree)))


def unstack(stacks: tuple[Array, ...], like: PyTree) -> PyTree:
    """The tree that `stack` has taken apart, in the shapes and dtypes of ``like``."""
    leaves, structure = jax.tree.flatten(like)
    new = [jnp.zeros_like(x) for x in leaves]
    for places, x in zip(_places(leaves).values(), stacks, strict=True):
        for i, entry in zip(places, x, strict=True):
            new[i] = entry.reshape(jnp.shape(leaves[i])).astype(new[i].dtype)
    return jax.tree.unflatten(structure, new)


def check_trees(shapes_at_init: list[Shape], **trees: PyTree) -> None:
    """Each must have leaves of the shapes of the parameters that the state was made for."""
    for name, tree in trees.items():
        _checks.floating(name, tree)
        places = _places(jax.tree.leaves(tree))
        shapes = [(len(same), *shape) for shape, same in places.items()]
        if shapes != shapes_at_init:
            raise ValueError(
                f"{name} must have the tree of the params given to init: got leaves stacked by "
                f"shape {shapes}, but the state is for {shapes_at_init}; call tx.update(updates, "
                f"state, params) for those params, or init for these"
            )


def _places(leaves: list) -> dict[Shape, list[int]]:
    # Where in the tree the leaves of each shape are.
    places: dict[Shape, list[int]] = {}
    for i, x in enumerate(leaves):
        if jnp.size(x):
            places.setdefault(jnp.shape(x) or (1,), []).append(i)
    return places
