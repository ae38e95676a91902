"""Parameters in files: npz, without pickle, so that loading runs no code."""

import os
import tempfile
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from metajax import checks, hosts
from metajax.types import PyTree


def save(path: str | os.PathLike, tree: PyTree) -> None:
    """Writes a tree of finite arrays to an npz file, each leaf under its path; the file appears whole or not at all.

    On several hosts all call it and the first writes.

    Raises:
      ValueError: a leaf holds NaN or infinity: a good file is not overwritten by a bad state.

    >>> import jax, metajax as mx, tempfile, os
    >>> params = mx.optim.lstm().init(jax.random.key(0))
    >>> path = os.path.join(tempfile.mkdtemp(), "l2l.npz")
    >>> mx.save(path, params)
    >>> same = mx.load(path, like=params)
    """
    tree = jax.tree.map(hosts.whole, tree)
    checks.finite("tree", tree)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {jax.tree_util.keystr(p, simple=True, separator="/") or ".": np.asarray(x) for p, x in leaves}
    if len(arrays) != len(leaves):
        raise ValueError("tree has two leaves of one path; rename one")
    if hosts.is_first():
        write_npz(Path(path), arrays)


def load(path: str | os.PathLike, like: PyTree) -> PyTree:
    """Reads what `save` wrote into a tree like ``like`` (arrays, or `jax.eval_shape` of them).

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that is no npz, or one whose names or shapes differ from ``like``; the message says where.

    >>> import jax, metajax as mx, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "rate.npz")
    >>> mx.save(path, {"rate": jax.numpy.float32(0.5)})
    >>> mx.load(path, like={"rate": jax.numpy.zeros(())})
    {'rate': Array(0.5, dtype=float32)}
    """
    try:
        arrays = read_npz(Path(path))
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as e:
        raise ValueError(f"path {path} is not a readable npz file ({e}); save the parameters again") from e
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(p, simple=True, separator="/") or "." for p, _ in leaves]
    if set(names) != set(arrays):
        missing, unknown = sorted(set(names) - set(arrays)), sorted(set(arrays) - set(names))
        raise ValueError(
            f"the parameters in {path} are not like the argument like: missing {missing}, unknown {unknown}"
        )
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if arrays[name].shape != jnp.shape(leaf):
            raise ValueError(f"{name} in {path} has the shape {arrays[name].shape}, like has {jnp.shape(leaf)}")
    return jax.tree.unflatten(
        treedef, [jnp.asarray(arrays[n], leaf.dtype) for n, (_, leaf) in zip(names, leaves, strict=True)]
    )


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file."""
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as f:
        return {k: f[k] for k in f.files}


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an npz file through a temporary one beside it, so that no reader meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as f:
        try:
            np.savez(f, **arrays)  # pyright: ignore[reportArgumentType]
            f.flush()
            os.fsync(f.fileno())
            os.replace(f.name, path)
        except BaseException:
            Path(f.name).unlink(missing_ok=True)
            raise
