"""Parameters in files: npz or safetensors, never pickle, so that loading runs no code."""

import contextlib
import hashlib
import json
import math
import os
import uuid
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from metajax import _checks
from metajax._arguments import checked
from metajax.sharding import _hosts as hosts
from metajax.types import Array, PyTree

Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]

_SAFETENSORS_DTYPES = {
    "BOOL": jnp.bool_,
    "U8": jnp.uint8,
    "U16": jnp.uint16,
    "U32": jnp.uint32,
    "U64": jnp.uint64,
    "I8": jnp.int8,
    "I16": jnp.int16,
    "I32": jnp.int32,
    "I64": jnp.int64,
    "BF16": jnp.bfloat16,
    "F16": jnp.float16,
    "F32": jnp.float32,
    "F64": jnp.float64,
    "C64": jnp.complex64,
}


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
    if _is_safetensors(path):
        _check_safetensors_dtypes(arrays)

    if hosts.is_first():
        write(path, arrays)


@checked
def load(path: str | os.PathLike, like: PyTree) -> PyTree:
    """Reads what `save` wrote into a tree like ``like`` (arrays, or `jax.eval_shape` of them).

    Numbers take the dtypes of ``like``, and keys its kind of key. Floats may be rounded by that,
    e.g. from float32 to bfloat16; nothing else may get lost.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that cannot be read; one whose names or shapes differ from ``like``; or an
        array that holds NaN or infinity, or that its dtype in ``like`` cannot hold: a fraction in
        an int, 300 in a uint8, a complex number in a float. The message names the leaf.

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


def load_arrays(path: str | os.PathLike, like: Shapes | None = None) -> Arrays:
    """All arrays of a file by their names, in the dtypes that they were saved in.

    Names and shapes are read first, and those of ``like`` asked for: a file of something else is
    refused before any of its arrays is read, however large.
    """
    path = Path(path)
    read_shapes, read_arrays = _shapes_in_npz, _read_npz
    if _is_safetensors(path):
        read_shapes, read_arrays = _shapes_in_safetensors, _read_safetensors
    with path.open("rb") as f:
        with _readable(path):
            shapes = read_shapes(f)
        if like is not None:
            _check_shapes(path, shapes, like)
        f.seek(0)
        with _readable(path):
            return read_arrays(f)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as e:  # a damaged zip file alone can raise seven types
        kind = "safetensors" if _is_safetensors(path) else "npz"
        raise ValueError(
            f"path {path} is not a readable {kind} file ({e!r}); save it again"
        ) from e


def _check_shapes(path: Path, shapes: Shapes, like: Shapes) -> None:
    if like.keys() != shapes.keys():
        missing = sorted(like.keys() - shapes.keys())
        unknown = sorted(shapes.keys() - like.keys())
        raise ValueError(
            f"the parameters in {path} are not like the argument like: missing {missing}, "
            f"unknown {unknown}"
        )
    for name, shape in like.items():
        if shapes[name] != shape:
            raise ValueError(
                f"{name} in {path} has the shape {shapes[name]}, like has {shape}"
            )


def write(path: Path, arrays: Arrays) -> None:
    """Writes a file through a temporary one beside it, so that no reader meets half a file."""
    write_to = _write_safetensors if _is_safetensors(path) else _write_npz
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as f:
            write_to(f, arrays)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def digest(arrays: Arrays) -> bytes:
    """The SHA-256 of names, shapes and contents."""
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        x = arrays[name]
        sha256.update(f"{name}{x.shape}".encode())
        sha256.update(x.reshape(-1).view(np.uint8).data)
    return sha256.digest()


# Trees.


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

    with np.errstate(over="ignore"):
        cast = value.astype(dtype)
    if not np.isfinite(cast).all():
        raise ValueError(
            f"{name} is {value.dtype} and too large for {dtype}, which like has"
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


# npz: the format that the package itself uses. It holds all dtypes.


def _write_npz(f: IO[bytes], arrays: Arrays) -> None:
    # np.savez takes names as keywords, among which it has some of its own.
    with zipfile.ZipFile(f, "w") as archive:
        for name, x in arrays.items():
            named = _with_dtype_name(x)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, named, allow_pickle=False)


def _shapes_in_npz(f: IO[bytes]) -> Shapes:
    shapes = {}
    with zipfile.ZipFile(f) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                read_header = np.lib.format.read_array_header_2_0
                if version == (1, 0):
                    read_header = np.lib.format.read_array_header_1_0
                shape, _, dtype = read_header(member)
                size = member.tell() + math.prod(shape) * dtype.itemsize
            if size != info.file_size:
                raise ValueError(
                    f"{info.filename} has {info.file_size} bytes, its header tells of {size}"
                )
            shapes[_array_name(info)] = shape
    return shapes


def _read_npz(f: IO[bytes]) -> Arrays:
    arrays = {}
    with zipfile.ZipFile(f) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                x = np.lib.format.read_array(member, allow_pickle=False)
            arrays[_array_name(info)] = _with_named_dtype(x)
    return arrays


def _array_name(info: zipfile.ZipInfo) -> str:
    return info.filename.removesuffix(".npy")


def _with_dtype_name(x: np.ndarray) -> np.ndarray:
    """Puts the name of a dtype that NumPy's format does not know, such as bfloat16, with its bytes.

    The array becomes one of records whose only field has that name.
    """
    dtype = x.dtype
    comes_from_another_package = dtype.isbuiltin == 2
    if not comes_from_another_package:
        return x
    record = [(dtype.name, f"V{dtype.itemsize}")]
    return x.view(record)


def _with_named_dtype(x: np.ndarray) -> np.ndarray:
    if x.dtype.names:
        [name] = x.dtype.names
        return x.view(jnp.dtype(name))
    if x.dtype == np.dtype("V2"):
        return x.view(
            jnp.bfloat16
        )  # saved without its name, and there is no other of two bytes
    return x


# safetensors: the format that others read. Its dtypes have names of their own.


def _write_safetensors(f: IO[bytes], arrays: Arrays) -> None:
    contiguous = jax.tree.map(partial(np.asarray, order="C"), arrays)
    metadata = {"sha256": _digest_with_dtypes(contiguous)}
    f.write(safetensors.numpy.save(contiguous, metadata))


def _shapes_in_safetensors(f: IO[bytes]) -> Shapes:
    header = _safetensors_header(f)
    header.pop("__metadata__", None)
    return {name: tuple(tensor["shape"]) for name, tensor in header.items()}


def _read_safetensors(f: IO[bytes]) -> Arrays:
    metadata = _safetensors_header(f).get("__metadata__", {})
    f.seek(0)
    arrays = {}
    for name, tensor in safetensors.deserialize(f.read()):
        dtype = _SAFETENSORS_DTYPES[tensor["dtype"]]
        flat = np.frombuffer(tensor["data"], dtype)
        arrays[name] = flat.reshape(tensor["shape"])

    sha256 = metadata.get("sha256")  # which files of other programs lack
    if sha256 is not None and sha256 != _digest_with_dtypes(arrays):
        raise ValueError("its contents do not match their digest")
    return arrays


def _safetensors_header(f: IO[bytes]) -> dict[str, Any]:
    length = int.from_bytes(f.read(8), "little")
    if length > os.fstat(f.fileno()).st_size:
        raise ValueError("its header is longer than the file")
    return json.loads(f.read(length))


def _digest_with_dtypes(arrays: Arrays) -> str:
    return digest({f"{name} {x.dtype}": x for name, x in arrays.items()}).hex()


def _check_safetensors_dtypes(arrays: Arrays) -> None:
    for name, x in arrays.items():
        if x.dtype not in _SAFETENSORS_DTYPES.values():
            raise ValueError(
                f"{name} has the dtype {x.dtype}, which safetensors does not read back; write a "
                f".npz file"
            )


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"
