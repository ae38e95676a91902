"""Files of arrays, in either format: nobody meets half of one."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from metajax.io import _npz as npz
from metajax.io import _safetensors as safetensors
from metajax.io._arrays import Arrays, Shapes


def load_arrays(path: str | os.PathLike, like: Shapes | None = None) -> Arrays:
    """All arrays of a file by their names, in the dtypes that they were saved in.

    Names and shapes are read first, and those of ``like`` asked for: a file of something else is
    refused before any of its arrays is read, however large.
    """
    path = Path(path)
    read_shapes, read_arrays = npz.read_shapes, npz.read
    if is_safetensors(path):
        read_shapes, read_arrays = safetensors.read_shapes, safetensors.read
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
        kind = "safetensors" if is_safetensors(path) else "npz"
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
    write_to = safetensors.write if is_safetensors(path) else npz.write
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


def is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"
