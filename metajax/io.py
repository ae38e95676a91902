"""Parameters in files: npz or safetensors, never pickle, so that loading runs no code."""

import os
import uuid
import zipfile
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from metajax import _checks
from metajax.sharding import _hosts as hosts
from metajax.types import PyTree


def save(path: str | os.PathLike, tree: PyTree) -> None:
    """Writes a tree of finite arrays to a file, each leaf under its path; the file appears whole or
    not at all.

    Its name ends in ``.npz``, or in ``.safetensors`` for a file of that format, which PyTorch and
    others read too. On several hosts all call it and the first writes.

    Raises: ValueError: another name; a dtype that cannot be read back from safetensors, such as
      float8; or a leaf holds NaN or infinity: a good file is not overwritten by a bad state.

    >>> import jax, metajax as mx, tempfile, os
    >>> params = mx.optim.lstm().init(jax.random.key(0))
    >>> path = os.path.join(tempfile.mkdtemp(), "l2l.npz")
    >>> mx.save(path, params)
    >>> same = mx.load(path, like=params)
    """
    if Path(path).suffix not in (".npz", ".safetensors"):
        raise ValueError(f"path must end in .npz or .safetensors, got {path}")
    tree = jax.tree.map(hosts.gathered, tree)
    _checks.finite("tree", tree)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {
        jax.tree_util.keystr(p, simple=True, separator="/") or ".": np.asarray(x) for p, x in leaves
    }
    if len(arrays) != len(leaves):
        raise ValueError("tree has two leaves of one path; rename one")
    for name, x in arrays.items() if _is_safetensors(path) else ():
        if x.dtype.kind == "V" and x.dtype != jnp.bfloat16:
            raise ValueError(
                f"{name} has the dtype {x.dtype}, which safetensors does not read back; write a .npz file"
            )
    if hosts.is_first():
        write(Path(path), arrays)


def load(path: str | os.PathLike, like: PyTree) -> PyTree:
    """Reads what `save` wrote into a tree like ``like`` (arrays, or `jax.eval_shape` of them).

    Raises: FileNotFoundError: no such file. ValueError: a file that cannot be read, or one whose
      names, shapes or kinds of numbers differ from ``like``; the message says where.

    >>> import jax, metajax as mx, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "rate.npz")
    >>> mx.save(path, {"rate": jax.numpy.float32(0.5)})
    >>> mx.load(path, like={"rate": jax.numpy.zeros(())})
    {'rate': Array(0.5, dtype=float32)}
    """
    arrays = load_arrays(path)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(p, simple=True, separator="/") or "." for p, _ in leaves]
    if set(names) != set(arrays):
        missing, unknown = sorted(set(names) - set(arrays)), sorted(set(arrays) - set(names))
        raise ValueError(
            f"the parameters in {path} are not like the argument like: missing {missing}, unknown {unknown}"
        )
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if arrays[name].shape != jnp.shape(leaf):
            raise ValueError(
                f"{name} in {path} has the shape {arrays[name].shape}, like has {jnp.shape(leaf)}"
            )
    values = []
    for name, (_, leaf) in zip(names, leaves, strict=True):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
        value = _view(arrays[name], dtype)
        if jnp.issubdtype(value.dtype, jnp.inexact) and not jnp.issubdtype(dtype, jnp.inexact):
            raise ValueError(
                f"{name} in {path} is {value.dtype}, like has {dtype}, which would cut it off"
            )
        values.append(jnp.asarray(value, dtype))
    return jax.tree.unflatten(treedef, values)


def _view(x: np.ndarray, dtype: Any) -> np.ndarray:
    """NumPy's format forgets the names of dtypes that are not its own, such as bfloat16, and keeps
    their bytes.
    """
    return (
        x.view(dtype) if x.dtype.kind == "V" and x.dtype.itemsize == np.dtype(dtype).itemsize else x
    )


def load_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of a user's file, or what is wrong with it."""
    try:
        return read(Path(path))
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, safetensors.SafetensorError) as e:
        kind = "safetensors" if _is_safetensors(path) else "npz"
        raise ValueError(f"path {path} is not a readable {kind} file ({e}); save it again") from e


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file."""
    if _is_safetensors(path):
        with safetensors.safe_open(
            path, framework="flax"
        ) as f:  # framework="numpy" knows no bfloat16
            return {k: np.asarray(f.get_tensor(k)) for k in f.keys()}  # noqa: SIM118
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as f:
        return {k: f[k] for k in f.files}


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a file through a temporary one beside it, so that no reader meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as f:
            if _is_safetensors(path):
                f.write(
                    safetensors.numpy.save({k: np.asarray(x, order="C") for k, x in arrays.items()})
                )
            else:
                _savez(f, arrays)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _savez(f: IO[bytes], arrays: dict[str, np.ndarray]) -> None:
    # np.savez takes names as keywords, among which it has some of its own.
    with zipfile.ZipFile(f, "w") as z:
        for name, x in arrays.items():
            with z.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, x, allow_pickle=False)


def _is_safetensors(path: str | os.PathLike) -> bool:
    return Path(path).suffix == ".safetensors"
