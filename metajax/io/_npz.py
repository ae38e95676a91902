"""npz: the format that the package itself uses. It holds all dtypes."""

import math
import zipfile
from typing import IO

import jax.numpy as jnp
import numpy as np

from metajax.io._arrays import Arrays, Shapes


def write(f: IO[bytes], arrays: Arrays) -> None:
    # np.savez takes names as keywords, among which it has some of its own.
    with zipfile.ZipFile(f, "w") as archive:
        for name, x in arrays.items():
            named = _with_dtype_name(x)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, named, allow_pickle=False)


def read_shapes(f: IO[bytes]) -> Shapes:
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


def read(f: IO[bytes]) -> Arrays:
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
