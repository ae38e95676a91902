"""Trees in files: ``save`` and ``load``."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax._arguments import checked
from metajax.io import _safetensors as safetensors
from metajax.io._files import is_safetensors, load_arrays, write
from metajax.sharding import _hosts as hosts
from metajax.types import Array, PyTree


@checked
def save(path: str | os.PathLike, tree: PyTree) -> None:
    """Writes a tree of finite arrays to a file, each leaf under its path, e.g. ``lstm/0/w``.

    Of a typed key the words are written, ``uint32 [..., n]``, so that a whole `metajax.TrainState`
    can be saved; a run that is to go on is kept by `metajax.checkpoints`.

    The file's name ends in ``.npz``, or in ``.safetensors`` for a file of that format, which
    PyTorch and others read too. It appears whole or not at all. On several hosts all call this, and
    the first writes.

    Raises:
      ValueError: another ending; a dtype that safetensors has no name for, such as float8; or a
        leaf that holds NaN or infinity, so that no good file is overwritten by a bad state.

    >>> import jax, metajax as mx, tempfile, os
    >>> params = mx.optim.lstm().init(jax.random.key(0))
    >>> path = os.path.join(tempfile.mkdtemp(), "l2l.npz")
    >>> mx.save(path, params)
    >>> same = mx.load(path, like=params)
    """
    path = Path(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"path must end in .npz or .safetensors, got {path}")
    tree = jax.tree.map(hosts.gathered, tree)
    _checks.finite("tree", tree)
    tree = jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)

    leaves = _leaves_by_name("tree", tree)
    arrays = jax.tree.map(np.asarray, leaves)
    if is_safetensors(path):
        safetensors.check_dtypes(arrays)

    if hosts.is_first():
        write(path, arrays)


@checked
def load(path: str | os.PathLike, like: PyTree) -> PyTree:
    """Reads what `save` wrote into a tree like ``like`` (arrays, or `jax.eval_shape` of them).

    Numbers take the dtypes of ``like``, and keys its kind of key. Floats may be rounded by that,
    e.g. from float32 to bfloat16, the smallest beside larger ones to 0; nothing else may get lost.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that cannot be read; one whose names or shapes differ from ``like``; or an
        array that holds NaN or infinity, or that its dtype in ``like`` cannot hold: a fraction in
        an int, 300 in a uint8, a complex number in a float, 1e-8 in a float16. The message names
        the leaf.

    >>> import jax, metajax as mx, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "rate.npz")
    >>> mx.save(path, {"rate": jax.numpy.float32(0.5)})
    >>> mx.load(path, like={"rate": jax.numpy.zeros(())})
    {'rate': Array(0.5, dtype=float32)}
    """
    leaves = _leaves_by_name("like", like)
    shapes = {name: _shape_in_file(leaf) for name, leaf in leaves.items()}
    arrays = load_arrays(path, shapes)
    values = []
    for name, leaf in leaves.items():
        value = _cast_like(f"{name} in {path}", arrays[name], leaf)
        values.append(value)
    return jax.tree.unflatten(jax.tree.structure(like), values)


def _leaves_by_name(argument: str, tree: PyTree) -> dict[str, Any]:
    _checks.arrays(argument, tree)
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "."
        if name in leaves:
            raise ValueError(
                f"{argument} has two leaves with the path {name}; rename one"
            )
        leaves[name] = leaf
    return leaves


def _cast_like(name: str, value: np.ndarray, like: Any) -> Array:
    """``value`` in the dtype of ``like``; what does not fit is an error that begins with ``name``.

    Floats may be rounded, everything else must come through unchanged.
    """
    if _is_key(like):
        return _as_key(name, value, like)
    dtype = jnp.result_type(like)
    if value.size == 0:
        return jnp.zeros(value.shape, dtype)
    if _is_inexact(value.dtype):
        return _cast_floats(name, value, dtype)
    return _cast_integers(name, value, dtype)


def _shape_in_file(like: Any) -> tuple[int, ...]:
    words = jax.eval_shape(jax.random.key_data, like) if _is_key(like) else like
    return jnp.shape(words)


def _as_key(name: str, words: np.ndarray, like: Any) -> Array:
    """The keys that ``words`` are those of, of the kind of ``like``, which may be a shape alone."""
    kinds: list[Any] = []

    def words_of(key):
        kinds.append(jax.random.key_impl(key))
        return jax.random.key_data(key)

    shape = jax.eval_shape(words_of, like)
    return jax.random.wrap_key_data(_cast_like(name, words, shape), impl=kinds[0])


def _cast_floats(name: str, value: np.ndarray, dtype: np.dtype) -> Array:
    kind = jnp.complexfloating if np.iscomplexobj(value) else jnp.inexact
    if not jnp.issubdtype(dtype, kind):
        raise ValueError(
            f"{name} is {value.dtype}, like has {dtype}, which would cut it off"
        )
    if not np.isfinite(value).all():
        raise ValueError(
            f"{name} holds NaN or infinity; take an earlier file of the run"
        )

    with np.errstate(over="ignore", under="ignore"):
        cast = value.astype(dtype)
    if not np.isfinite(cast).all():
        raise ValueError(
            f"{name} is {value.dtype} and too large for {dtype}, which like has"
        )
    if value.any() and not cast.any():
        raise ValueError(
            f"{name} is {value.dtype} and too small for {dtype}, which like has: only zeros would "
            f"be left"
        )
    return jnp.asarray(cast)


def _cast_integers(name: str, value: np.ndarray, dtype: np.dtype) -> Array:
    if not jnp.issubdtype(value.dtype, jnp.integer) and value.dtype != np.bool_:
        raise ValueError(
            f"{name} is {value.dtype}, which is no dtype of numbers; save it again"
        )
    low, high = _exact_integers(dtype)
    smallest = int(value.min())
    largest = int(value.max())
    if smallest < low or largest > high:
        raise ValueError(
            f"{name} has values from {smallest} to {largest}, like has {dtype}, which holds "
            f"all integers only from {low} to {high}"
        )
    return jnp.asarray(value.astype(dtype))


def _exact_integers(dtype: np.dtype) -> tuple[int, int]:
    """The range in which ``dtype`` holds every integer."""
    if jnp.issubdtype(dtype, jnp.bool_):
        return 0, 1
    if _is_inexact(dtype):
        limit = 2 ** (jnp.finfo(dtype).nmant + 1)
        return -limit, limit
    info = jnp.iinfo(dtype)
    return int(info.min), int(info.max)


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _is_inexact(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)
