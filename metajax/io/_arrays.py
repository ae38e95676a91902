"""Arrays by name, and their digest."""

import hashlib

import numpy as np

Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


def digest(arrays: Arrays) -> bytes:
    """The SHA-256 of names, shapes and contents."""
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        x = arrays[name]
        sha256.update(f"{name}{x.shape}".encode())
        sha256.update(x.reshape(-1).view(np.uint8).data)
    return sha256.digest()
