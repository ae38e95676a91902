"""Checks at the boundary: each says which argument is wrong and what to do about it.

What a single argument may be is said by its annotation (``_arguments``); these look at trees, at
what functions return, and at several values together.
"""

import inspect
import re
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from metajax._arguments import PositiveInt, check, short, shown


def positive_ints(
    name: str, values: Any, like: tuple[int, ...], any_length: bool = False
) -> tuple[int, ...]:
    """Returns ``values``, ints of at least 1, as a tuple; as many as ``like`` has, or any number.

    ``like`` is an example of what is wanted, for the message.
    """
    if not isinstance(values, (tuple, list)):
        raise TypeError(f"{name} must be a tuple such as {like}, got {shown(values)}")
    any_length = any_length or len(like) == 1
    if not values:
        raise ValueError(f"{name} is empty; give numbers such as {like}")
    if len(values) != len(like) and not any_length:
        raise ValueError(
            f"{name} must have {len(like)} numbers, such as {like}, got {values}"
        )
    for value in values:
        check(PositiveInt, **{name: value})
    return tuple(map(int, values))


def increasing_pair(name: str, values: Any, like: tuple[int, int]) -> tuple[int, int]:
    """Returns a pair ``(fewest, most)`` of ints of at least 1."""
    low, high = positive_ints(name, values, like)
    if low > high:
        raise ValueError(
            f"{name} must be a pair (fewest, most), got {values}; swap them"
        )
    return low, high


def entries(name: str, value: Any, wanted: tuple[str, ...], maker: str) -> Any:
    """Returns the dict ``value``, which must have the entries ``wanted``; ``maker`` makes it."""
    if _is_pair_of_dicts(value):
        raise ValueError(
            f"{name} must be a dict, got a pair of them, as metajax.tasks.with_query(tasks) gives "
            f"it to learners that are judged on the way; give this one the tasks themselves"
        )
    if not isinstance(value, Mapping) or not set(wanted) <= set(value):
        got = sorted(value) if isinstance(value, Mapping) else type(value).__name__
        if not isinstance(value, Mapping) and not wanted:
            raise ValueError(f"{name} must be a dict as made by {maker}, got {got}")
        raise ValueError(
            f"{name} must be as made by {maker}, with the entries {list(wanted)}, got {got}"
        )
    return value


def _is_pair_of_dicts(value: Any) -> bool:
    is_pair = isinstance(value, tuple) and len(value) == 2
    return is_pair and all(isinstance(part, Mapping) for part in value)


def floating(name: str, tree: Any) -> None:
    """All leaves must be floating-point arrays."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        plain = isinstance(leaf, (int, float, complex))
        dtype = jnp.result_type(leaf) if plain else getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} must be a floating-point array, got "
                f"{describe(leaf)}; convert it with jnp.asarray(x, jnp.float32), or keep it out "
                f"with optax.masked"
            )


def learnable(name: str, tree: Any) -> None:
    """There must be floating-point arrays; integers, booleans and keys are kept as they are."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    kinds = (jnp.floating, jnp.integer, jnp.bool_, jax.dtypes.prng_key)
    num_floating = 0
    for path, leaf in leaves:
        # An integer of Python was hardly meant to stay.
        dtype = float if isinstance(leaf, float) else getattr(leaf, "dtype", object)
        if not any(jnp.issubdtype(dtype, kind) for kind in kinds):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} must be a floating-point array, got "
                f"{describe(leaf)}; convert it with jnp.asarray(x, jnp.float32), or, if it is not "
                f"to be learned, make it an array of integers or booleans"
            )
        num_floating += jnp.issubdtype(dtype, jnp.floating)
    if not num_floating:
        got = [describe(leaf) for _, leaf in leaves]
        raise TypeError(f"{name} must hold a floating-point array to learn, got {got}")


def integers(name: str, value: Any) -> None:
    """``name`` must be an array of integers."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        got = type(value).__name__ if dtype is None else f"one of {dtype}"
        raise TypeError(f"{name} must be an array of integers, got {got}")


def takes(name: str, function: Any, arguments: str) -> None:
    """A function of the user's must take these ``arguments``, e.g. ``"key, params, batch"``."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # of one that is not written in Python nothing is known
    try:
        signature.bind(*arguments.split(", "))
    except TypeError:
        raise TypeError(
            f"{name} must take ({arguments}), in this order, got {name}{signature}"
        ) from None


def returned(name: str, value: Any, parts: str) -> None:
    """``name`` must return a tuple of ``parts``, e.g. ``"state, loss, metrics"``."""
    outermost = re.sub(r"\(.*?\)", "", parts)
    if not isinstance(value, tuple) or len(value) != outermost.count(",") + 1:
        raise TypeError(f"{name} must return ({parts}), got {describe(value)}")


def loss_and_metrics(name: str, loss: Any, metrics: Any) -> None:
    """What ``name`` returned must be a real scalar and a dict of scalars."""
    scalar(f"the loss returned by {name}", loss)
    if not isinstance(metrics, dict):
        raise TypeError(
            f"the metrics returned by {name} must be a dict of scalars, {{}} if none, got "
            f"{describe(metrics)}"
        )
    for metric, x in metrics.items():
        if jnp.shape(x) != ():
            raise ValueError(
                f"the metric {metric!r} returned by {name} must be a scalar, got {describe(x)}; "
                f"reduce it, e.g. by .mean(), or give each number a name of its own"
            )


def scalar(name: str, value: Any) -> None:
    """``name`` must be a real scalar."""
    if isinstance(value, (tuple, list, dict)) or value is None:
        raise TypeError(
            f"{name} must be a floating-point scalar alone, got {describe(value)}"
        )
    shape = jnp.shape(value)
    dtype = jnp.result_type(value)
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        remedy = "reduce it, e.g. by .mean()" if shape else "make it e.g. float32"
        raise ValueError(
            f"{name} must be a floating-point scalar, got {dtype}{list(shape)}; {remedy}"
        )


def unused_names(who: str, metrics: dict[str, Any], own: tuple[str, ...]) -> None:
    """No metric may have a name that ``who`` gives to one of its own."""
    for name in own:
        if name in metrics:
            raise ValueError(
                f"the metric {name!r} has the name of one that {who} reports itself; give it "
                f"another"
            )


def same_structure(name: str, got: Any, want: Any, like: str) -> None:
    """The tree ``name`` must agree with the tree ``like`` in structure, shapes and dtypes."""
    structure = jax.tree.structure(got)
    wanted = jax.tree.structure(want)
    if structure != wanted:
        raise ValueError(
            f"{name} must have the tree structure of {like}:\n  got  {structure}\n  want {wanted}"
        )
    leaves = jax.tree_util.tree_leaves_with_path(got)
    for (path, x), y in zip(leaves, jax.tree.leaves(want), strict=True):
        if jnp.shape(x) != jnp.shape(y) or jnp.result_type(x) != jnp.result_type(y):
            at = jax.tree_util.keystr(path)
            raise ValueError(
                f"{name}{at} must be like {like}{at}: got {describe(x)}, want {describe(y)}"
            )


def positive(name: str, tree: Any) -> None:
    """All values of all leaves, of which there are some, must be above 0; traced ones pass."""
    real(name, tree)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.core.Tracer):
            continue
        values = np.asarray(leaf, np.float64)
        if not np.all((values > 0) & np.isfinite(values)):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must be greater than 0 and finite, got {leaf}"
            )


def real(name: str, tree: Any) -> None:
    """All leaves, of which there are some, must be real numbers or arrays of them."""
    arrays(name, tree)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise TypeError(f"{name} must be a number or an array, got {shown(tree)}")
    for path, leaf in leaves:
        is_number = isinstance(leaf, (int, float)) and not isinstance(leaf, bool)
        dtype = getattr(leaf, "dtype", np.bool_)
        is_array = any(
            jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer)
        )
        if not (is_number or is_array):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} must be a real number or an array of them, "
                f"got {shown(leaf)}"
            )


def arrays(name: str, tree: Any) -> None:
    """All leaves must be arrays, or Python numbers that JAX makes arrays of."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        at = f"{name}{jax.tree_util.keystr(path)}"
        is_number = isinstance(leaf, (bool, int, float, complex))
        dtype = getattr(leaf, "dtype", None)
        is_other = getattr(dtype, "kind", None) in tuple(
            "OSUMm"
        )  # objects, texts, dates
        if is_other or not (is_number or dtype is not None):
            remedy = "give what it returns" if callable(leaf) else "leave it out"
            if isinstance(leaf, str) and not jax.tree_util.keystr(path):
                remedy = "of a set by its name, give metajax.data.load(name)"
            raise TypeError(f"{at} must be an array, got {short(leaf)}; {remedy}")
        if isinstance(leaf, int) and abs(leaf) > 2**31 - 1:
            raise ValueError(f"{at} must fit int32, got {leaf}; make it a float")


def finite(name: str, tree: Any) -> None:
    """No leaf may hold NaN or infinity; traced leaves and those that are not floats pass."""
    # JAX itself is about to refuse iterators, in other words.
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: isinstance(x, Iterator)
    ):
        if is_iterable_of_data(leaf):
            at = f"{name}{jax.tree_util.keystr(path)}"
            raise TypeError(
                f"{at} must be an array, got {type(leaf).__name__}, which is an iterable; only "
                f"metajax.fit takes one: give one of its items here"
            )
    arrays(name, tree)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        at = f"{name}{jax.tree_util.keystr(path)}"
        if isinstance(leaf, jax.core.Tracer):
            continue
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        if num_bad := _num_not_finite(leaf):
            raise ValueError(
                f"{at} holds {num_bad} NaN or infinite values of {jnp.size(leaf)}; clean them "
                f"before training, e.g. with jnp.nan_to_num"
            )


def is_iterable_of_data(x: Any) -> bool:
    """Whether ``x``, a leaf, is a generator, a loader of batches or the like."""
    is_array = hasattr(x, "dtype") or isinstance(x, jax.core.Tracer)
    is_other = is_array or isinstance(x, (str, bytes, type))
    return hasattr(x, "__iter__") and not is_other


# Large arrays of JAX, which cannot change, that were found to be finite, by their ids.
_KNOWN_FINITE: weakref.WeakValueDictionary[int, jax.Array] = (
    weakref.WeakValueDictionary()
)
_LARGE = 2**20


def _num_not_finite(x: Any) -> int:
    if not isinstance(x, jax.Array) or x.size < _LARGE:
        return _count_on_host(np.asarray(x))
    if _KNOWN_FINITE.get(id(x)) is x:
        return 0
    num_bad = _count_where_it_lies(x)
    if not num_bad:
        _KNOWN_FINITE[id(x)] = x
    return num_bad


def _count_where_it_lies(x: jax.Array) -> int:
    if all(device.platform == "cpu" for device in x.devices()):
        return _count_on_host(np.asarray(x))
    # Also while something else is traced.
    with jax.ensure_compile_time_eval():
        return int(_count_on_device(x))


@jax.jit
def _count_on_device(x: jax.Array) -> jax.Array:
    return jnp.sum(~jnp.isfinite(x))


def _count_on_host(x: np.ndarray) -> int:
    """In blocks that stay in the processor's cache, and without a copy of the whole."""
    flat = x.ravel(order="K")
    block = 2**16
    count = 0
    with np.errstate(all="ignore"):
        for begin in range(0, flat.size, block):
            values = flat[begin : begin + block]
            # A sum takes half the time, and is finite only if all of it is.
            if not np.isfinite(values.sum()):
                count += values.size - int(np.isfinite(values).sum())
    return count


def describe(x: Any) -> str:
    """The dtype and shape of an array, the type of anything else."""
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"{x.dtype}{list(x.shape)}"
    if isinstance(x, tuple):
        return f"{type(x).__name__} of {len(x)}"
    return f"{type(x).__name__}"
