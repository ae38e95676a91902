"""Decoded arrays in files, so that no set is decoded twice."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from metajax import io
from metajax.io import Arrays


def cached(file: Path, decode: Callable[[], Arrays]) -> Arrays:
    """The arrays in ``file``; where it is not there or damaged, ``decode()``, kept in it."""
    # A file that cannot be read was written half, or by another program.
    with contextlib.suppress(OSError, ValueError):
        return read_only(io.load_arrays(file))

    arrays = decode()
    # Without room, or in a home that cannot be written to, they are in memory at least.
    with contextlib.suppress(OSError):
        io.write(file, arrays)
    return read_only(arrays)


def cache_file(
    name: str,
    part: str,
    folder: Path,
    sources: Sequence[str | os.PathLike],
) -> Path:
    """The file for a part of a set, which changes its name when the set's files change."""
    versions = []
    for source in sources:
        if os.path.exists(source):
            stat = os.stat(source)
            version = str(source), stat.st_size, stat.st_mtime_ns
            versions.append(version)
    identity = 1, str(folder), part, versions
    digest = hashlib.sha256(repr(identity).encode())
    fingerprint = digest.hexdigest()[:16]

    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    file = f"{name.replace('/', '-')}-{fingerprint}.npz"
    return Path(root).expanduser() / "metajax" / file


def read_only(arrays: Arrays) -> Arrays:
    """The same arrays, which can no longer be changed."""
    for x in arrays.values():
        x.flags.writeable = False
    return arrays
