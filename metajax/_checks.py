"""Checks at the boundary: each says which argument is wrong and what to do about it."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from metajax.types import Problem


def positive_int(name: str, value: Any) -> int:
    """Returns ``value`` as an int, or says that ``name`` must be one and at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(
            f"{name} must be a Python int, got {value!r} of type {type(value).__name__}"
        )
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def positive_float(name: str, value: Any) -> float:
    """Returns ``value`` as a float, or says that ``name`` must be one, finite and above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(
            f"{name} must be a Python number, got {value!r} of type {type(value).__name__}"
        )
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and greater than 0, got {value}")
    return float(value)


def at_least_zero(name: str, value: Any) -> float:
    """Returns ``value`` as a float, or says that ``name`` must be one, finite and not below 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(
            f"{name} must be a Python number, got {value!r} of type {type(value).__name__}"
        )
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {value}")
    return float(value)


def instance(name: str, value: Any, kind: type, maker: str) -> None:
    """Says that ``name`` must be a ``kind`` and which function makes one."""
    if not isinstance(value, kind):
        raise TypeError(
            f"{name} must be a metajax.{kind.__name__} as made by {maker}, got {type(value).__name__}"
        )


def function(name: str, value: Any) -> None:
    """Says that ``name`` must be callable."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {type(value).__name__}")


def entries(name: str, value: Any, wanted: tuple[str, ...], maker: str) -> Any:
    """Returns the dict ``value``, or says which entries it must have and which function makes
    it.
    """
    if not isinstance(value, Mapping) or not set(wanted) <= set(value):
        got = sorted(value) if isinstance(value, Mapping) else type(value).__name__
        raise ValueError(
            f"{name} must be as made by metajax.{maker}, with the entries {list(wanted)}, got {got}"
        )
    return value


def key(value: Any) -> None:
    """Says that ``key`` must be one typed key, as made by `jax.random.key`."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"key must be a typed key as made by jax.random.key(seed), got {_describe(value)}; "
            f"wrap an old-style key with jax.random.wrap_key_data"
        )
    if value.shape != ():
        raise ValueError(
            f"key must be a single key, got an array of keys of shape {value.shape}; use jax.vmap"
        )


def floating(name: str, tree: Any) -> None:
    """Says which leaf of ``name`` is not a floating-point array."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = getattr(leaf, "dtype", None)
        dtype = (
            jnp.result_type(leaf)
            if dtype is None and isinstance(leaf, (int, float, complex))
            else dtype
        )
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} must be a floating-point array, got {_describe(leaf)}; "
                f"convert it with jnp.asarray(x, jnp.float32), or keep it out with optax.masked"
            )


def returned(name: str, value: Any, parts: str) -> None:
    """Says that ``name`` must return a tuple of ``parts``, e.g. ``"state, loss, metrics"``."""
    if not isinstance(value, tuple) or len(value) != parts.count(",") + 1:
        raise TypeError(f"{name} must return ({parts}), got {_describe(value)}")


def scalar(name: str, value: Any) -> None:
    """Says that ``name`` must be a real scalar."""
    if isinstance(value, (tuple, list, dict)) or value is None:
        raise TypeError(f"{name} must be a floating-point scalar alone, got {_describe(value)}")
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{name} must be a floating-point scalar, got {dtype}{list(shape)}; reduce it, e.g. by .mean()"
        )


def metrics(name: str, value: Any) -> None:
    """Says that ``name`` must give a dict of scalars."""
    if not isinstance(value, dict):
        raise TypeError(
            f"the metrics returned by {name} must be a dict of scalars, {{}} if none, got {_describe(value)}"
        )
    for metric, x in value.items():
        if jnp.shape(x) != ():
            raise ValueError(
                f"the metric {metric!r} returned by {name} must be a scalar, got {_describe(x)}; reduce it, e.g. by "
                f".mean(), or give each number a name of its own"
            )


def unused_names(who: str, metrics: dict[str, Any], own: tuple[str, ...]) -> None:
    """Says which of the metrics has a name that ``who`` gives to one of its own."""
    for name in own:
        if name in metrics:
            raise ValueError(
                f"the metric {name!r} has the name of one that {who} reports itself; give it another"
            )


def problem(name: str, value: Any) -> Problem:
    """Returns the problem with a loss that says so when it gives something other than a scalar and
    metrics.
    """
    instance(name, value, Problem, "metajax.problems")

    def loss(key, params, batch):
        found = value.loss(key, params, batch)
        returned(f"{name}.loss", found, "loss, metrics")
        scalar(f"the loss returned by {name}.loss", found[0])
        metrics(f"{name}.loss", found[1])
        return found

    return value._replace(loss=loss)


def same_structure(name: str, got: Any, want: Any, like: str) -> None:
    """Says where the tree ``name`` differs from the tree ``like`` in structure, shape or dtype."""
    a, b = jax.tree.structure(got), jax.tree.structure(want)
    if a != b:
        raise ValueError(f"{name} must have the tree structure of {like}:\n  got  {a}\n  want {b}")
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        if jnp.shape(x) != jnp.shape(y) or jnp.result_type(x) != jnp.result_type(y):
            at = jax.tree_util.keystr(path)
            raise ValueError(
                f"{name}{at} must be like {like}{at}: got {_describe(x)}, want {_describe(y)}"
            )


def positive(name: str, tree: Any) -> None:
    """Says which leaf of ``name`` holds values that are not above 0; traced leaves pass."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not isinstance(leaf, jax.core.Tracer) and not np.all(np.asarray(leaf, np.float64) > 0):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must be greater than 0, got {leaf}"
            )


def finite(name: str, tree: Any) -> None:
    """Says which leaf of ``name`` holds NaN or infinity; traced leaves and those that are not
    floats pass.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, (bool, int, float, complex)):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} must be an array, got {leaf!r}; leave it out"
            )
        if isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(
            jnp.result_type(leaf), jnp.floating
        ):
            continue
        bad = int(
            np.size(leaf) - np.isfinite(np.asarray(leaf, np.float64)).sum()
        )  # on the host, also under jit
        if bad:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} holds {bad} NaN or infinite values of {jnp.size(leaf)}; "
                f"clean them before training, e.g. with jnp.nan_to_num"
            )


def _describe(x: Any) -> str:
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"{x.dtype}{list(x.shape)}"
    if isinstance(x, tuple):
        return f"{type(x).__name__} of {len(x)}"
    return f"{type(x).__name__}"
