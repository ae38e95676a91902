"""Trees of arrays: which parts are learned, choosing between two, whether they are finite."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from metajax.types import Array, PyTree

_SMALL = 4_096  # entries of an array that is packed with others


def is_floating(x: Any) -> bool:
    """Whether it can be learned; integers, booleans and keys are kept as they are."""
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def is_inexact(x: Any) -> bool:
    """Whether it can be differentiated by, complex numbers too."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def partition(
    tree: PyTree, among: Callable[[Any], bool] = is_floating
) -> tuple[PyTree, PyTree]:
    """The leaves that are ``among`` them, and the others, with None in the place of the rest."""
    chosen = jax.tree.map(lambda x: x if among(x) else None, tree)
    others = jax.tree.map(lambda x: None if among(x) else x, tree)
    return chosen, others


def combine(chosen: PyTree, others: PyTree) -> PyTree:
    """What `partition` has taken apart."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, chosen, others, is_leaf=_is_none
    )


def _is_none(x: Any) -> bool:
    return x is None


def where(pred: Array, a: PyTree, b: PyTree) -> PyTree:
    """Takes entry ``i`` of the leaves ``[n, ...]`` from ``a`` if ``pred[i]``, else from ``b``."""
    return clone_keys(jax.vmap(optax.tree.where)(pred, a, b))


def all_finite(tree: PyTree, batch: bool = False) -> Array:
    """Whether all floating leaves are finite.

    With ``batch`` the answer is ``[n]``, one for each index of the leading axis that all leaves
    share.
    """
    return _all([jnp.isfinite(x) for x in _floating_leaves(tree)], batch)


def stays_finite(new: PyTree, old: PyTree, batch: bool = False) -> Array:
    """Whether no value that was finite in ``old`` is infinite or NaN in ``new``.

    Some states begin with infinity: the lowest loss so far, a mask. ``batch`` is as in
    `all_finite`.
    """
    pairs = zip(_floating_leaves(new), _floating_leaves(old), strict=True)
    return _all([jnp.isfinite(x) | ~jnp.isfinite(y) for x, y in pairs], batch)


def _all(conditions: list[Array], batch: bool) -> Array:
    all_values = jax.vmap(jnp.all) if batch else jnp.all
    leaves = [all_values(x) for x in conditions]
    return jnp.array(leaves, bool).all(axis=0)


def clone_keys(tree: PyTree) -> PyTree:
    """The same tree, whose keys may be used though they have been: it is meant so.

    For the checker that ``jax_debug_key_reuse`` switches on. It takes a key for used that was
    chosen, by `jax.numpy.where`, from two.
    """

    def clone(x):
        is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
        return jax.random.clone(x) if is_key else x

    return jax.tree.map(clone, tree)


def keys_as_numbers(tree: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """The tree with the numbers of its keys in their place, and what makes keys of them again."""
    leaves, structure = jax.tree.flatten(tree)
    kinds = []
    for x in leaves:
        is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
        kinds.append(jax.random.key_impl(x) if is_key else None)

    def number(x, kind):
        return x if kind is None else jax.random.key_data(x)

    def key(x, kind):
        return x if kind is None else jax.random.wrap_key_data(x, impl=kind)

    def restore(tree):
        leaves = jax.tree.leaves(tree)
        return jax.tree.unflatten(structure, map(key, leaves, kinds))

    return jax.tree.unflatten(structure, map(number, leaves, kinds)), restore


def copy_per_episode(weights: PyTree, x: Array) -> PyTree:
    """The same values, but where `jax.vmap` runs several ``x``, a copy for each.

    A product with a matrix that all share has the episodes on another axis than products within an
    episode, and XLA turns everything around, what comes back in its derivative too. For an LSTM
    optimizer with 1,500 coordinates that was a fifth of the time of a meta-step on a CPU, for VSML
    a third; with a few dozen rows one large product is worth more.
    """
    # A condition that depends on the episode, and both of whose branches are the same.
    depends_on_episode = x.reshape(-1)[0] > 0
    return optax.tree.where(depends_on_episode, weights, weights)


def packing(tree: PyTree) -> tuple[Callable[[PyTree], list], Callable[[list], PyTree]]:
    """``pack`` and ``unpack`` of such trees: their small leaves as one vector for each dtype.

    What a loop keeps for its backward pass takes two kernels for each array, one that writes and
    one that reads. What is large is left as it is, since it would be copied.
    """
    leaves, structure = jax.tree.flatten(tree)
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        if is_floating(x) and jnp.size(x) <= _SMALL:
            groups.setdefault(jnp.result_type(x), []).append(i)
    packed = {i for group in groups.values() for i in group}
    alone = [i for i in range(len(leaves)) if i not in packed]

    def pack(tree):
        leaves = jax.tree.leaves(tree)
        small = [
            jnp.concatenate([leaves[i].reshape(-1) for i in group])
            for group in groups.values()
        ]
        return [*small, *(leaves[i] for i in alone)]

    def unpack(arrays):
        found = dict(zip(alone, arrays[len(groups) :], strict=True))
        for vector, group in zip(arrays, groups.values(), strict=False):
            sizes = [jnp.size(leaves[i]) for i in group]
            parts = jnp.split(vector, list(itertools.accumulate(sizes))[:-1])
            for i, part in zip(group, parts, strict=True):
                found[i] = part.reshape(jnp.shape(leaves[i]))
        return structure.unflatten([found[i] for i in range(len(leaves))])

    return pack, unpack


def floating_vector(tree: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """The floating leaves as one vector, and a function that puts another vector in their place."""
    leaves, structure = jax.tree.flatten(tree)
    is_floating = [jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves]
    floating = [x for x, is_one in zip(leaves, is_floating, strict=True) if is_one]
    vector, unravel = ravel_pytree(floating)

    def with_vector(vector):
        new = iter(unravel(vector))
        pairs = zip(leaves, is_floating, strict=True)
        return structure.unflatten([next(new) if is_one else x for x, is_one in pairs])

    return vector, with_vector


def _floating_leaves(tree: PyTree) -> list[Array]:
    leaves = jax.tree.leaves(tree)
    return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]
