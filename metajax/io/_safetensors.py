"""safetensors: the format that others read. Its dtypes have names of their own."""

import json
import os
from functools import partial
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from metajax.io._arrays import Arrays, Shapes, digest

_DTYPES = {
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


def write(f: IO[bytes], arrays: Arrays) -> None:
    contiguous = jax.tree.map(partial(np.asarray, order="C"), arrays)
    metadata = {"sha256": _digest_with_dtypes(contiguous)}
    f.write(safetensors.numpy.save(contiguous, metadata))


def read_shapes(f: IO[bytes]) -> Shapes:
    header = _header(f)
    header.pop("__metadata__", None)
    return {name: tuple(tensor["shape"]) for name, tensor in header.items()}


def read(f: IO[bytes]) -> Arrays:
    metadata = _header(f).get("__metadata__", {})
    f.seek(0)
    arrays = {}
    for name, tensor in safetensors.deserialize(f.read()):
        dtype = _DTYPES[tensor["dtype"]]
        flat = np.frombuffer(tensor["data"], dtype)
        arrays[name] = flat.reshape(tensor["shape"])

    sha256 = metadata.get("sha256")  # which files of other programs lack
    if sha256 is not None and sha256 != _digest_with_dtypes(arrays):
        raise ValueError("its contents do not match their digest")
    return arrays


def _header(f: IO[bytes]) -> dict[str, Any]:
    length = int.from_bytes(f.read(8), "little")
    if length > os.fstat(f.fileno()).st_size:
        raise ValueError("its header is longer than the file")
    return json.loads(f.read(length))


def _digest_with_dtypes(arrays: Arrays) -> str:
    return digest({f"{name} {x.dtype}": x for name, x in arrays.items()}).hex()


def check_dtypes(arrays: Arrays) -> None:
    for name, x in arrays.items():
        if x.dtype not in _DTYPES.values():
            raise ValueError(
                f"{name} has the dtype {x.dtype}, which safetensors does not read back; write a "
                f".npz file"
            )
