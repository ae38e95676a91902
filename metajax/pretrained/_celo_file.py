"""The authors' files of weights for Celo and Celo2: msgpack, as flax writes it.

Decoded here, with nothing but the few kinds of values that occur in such files.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from metajax.optim import _celo, _celo2
from metajax.types import Array, PyTree

Format = Literal["celo", "celo2"]
Arrays = dict[str, np.ndarray]

_LARGEST_FILE = 1_000_000  # bytes; Celo's has 149,216
_DEEPEST = 8
_ARRAY = 1  # flax's extension type
_RULE = "ff_mod_stack/~/"
# How many inputs of the network each of the authors' groups has.
_WIDTHS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)


def read(path: Path, wanted: Format) -> PyTree:
    """The meta-parameters of the rule that is ``wanted``; a ValueError says what is wrong."""
    size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise ValueError(
            f"path {path} has {size} bytes, which no weights of Celo or Celo2 have; VeLO's, which "
            f"are larger, are not read"
        )
    try:
        arrays = _decode(path.read_bytes())
    except _Damaged as e:
        raise ValueError(
            f"path {path} is not a readable file of weights ({e}); download it again"
        ) from e

    _check_is(path, wanted, arrays)
    for name, x in arrays.items():
        if not np.isfinite(x).all():
            raise ValueError(f"{name} in {path} holds NaN or infinity")
    meta_params = _celo_params(arrays) if wanted == "celo" else _celo2_params(arrays)
    return meta_params


# Which rule it is.


def _check_is(path: Path, wanted: Format, arrays: Arrays) -> None:
    shapes = {name: x.shape for name, x in arrays.items()}
    known = {name: make_shapes() for name, make_shapes in _SHAPES.items()}
    if shapes == known[wanted]:
        return
    for name, others in known.items():
        if shapes == others:
            raise ValueError(
                f"path {path} holds the weights of {name}, not of {wanted}; read them with "
                f"format={name!r}"
            )
    want = known[wanted]
    missing = sorted(want.keys() - shapes.keys())
    unknown = sorted(shapes.keys() - want.keys())
    if missing or unknown:
        raise ValueError(
            f"path {path} holds weights of another rule than {wanted}: missing {missing}, unknown "
            f"{unknown}"
        )
    name = next(name for name in want if shapes[name] != want[name])
    raise ValueError(
        f"{name} in {path} has the shape {shapes[name]}, {wanted} has {want[name]}"
    )


def _rule_shapes(units: int, *stack: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i, width in enumerate(_WIDTHS):
        shapes[f"w0__{i}"] = (width, units)
    shapes |= {"b0": (units,), "w1": (units, units), "b1": (units,)}
    shapes |= {"w2": (units, 3), "b2": (3,)}
    return {_RULE + name: (*stack, *shape) for name, shape in shapes.items()}


def _celo2_shapes() -> dict[str, tuple[int, ...]]:
    return _rule_shapes(_celo2.SIZES[1])


def _celo_shapes() -> dict[str, tuple[int, ...]]:
    units, features = _celo.NUM_UNITS, _celo.NUM_FEATURES
    shapes: dict[str, tuple[int, ...]] = _rule_shapes(_celo.RULE_SIZES[1], 1)
    for name in ("hidden", "cell"):
        shapes[f"lstm_init_state/{name}"] = (1, units)
    layers = {
        "linear": (features, units),
        "linear_1": (features, units),
        "linear_2": (features, units),
        "rnn/linear": (2 * units, 4 * units),
        "rnn_to_controls": (units, 1),
        "step_size": (units, 1),
    }
    for name, shape in layers.items():
        shapes[f"rnn_params/{name}/w"] = shape
        shapes[f"rnn_params/{name}/b"] = shape[1:]
    return shapes


_SHAPES: dict[Format, Callable[[], dict[str, tuple[int, ...]]]] = {
    "celo": _celo_shapes,
    "celo2": _celo2_shapes,
}


# From the authors' layout, inputs x outputs, to ours, without what has no effect.


def _celo2_params(arrays: Arrays) -> PyTree:
    return _rule(arrays, outputs=_celo2.SIZES[-1])


def _celo_params(arrays: Arrays) -> PyTree:
    alone = {name: x[0] for name, x in arrays.items() if name.startswith(_RULE)}
    out = _layer(arrays, "step_size")
    schedule = {
        "linear": _layer(arrays, "linear_2"),
        "rectified": _layer(arrays, "linear_1"),
        "lstm": _layer(arrays, "rnn/linear"),
        "hidden": jnp.asarray(arrays["lstm_init_state/hidden"][0]),
        "cell": jnp.asarray(arrays["lstm_init_state/cell"][0]),
        "out": {"w": out["w"][0], "b": out["b"][0]},
    }
    return {"rule": _rule(alone, outputs=_celo.RULE_SIZES[-1]), "schedule": schedule}


def _rule(arrays: Arrays, outputs: int) -> list[dict[str, Array]]:
    groups = [arrays[f"{_RULE}w0__{i}"] for i in range(len(_WIDTHS))]
    first, second, last = (arrays[f"{_RULE}b{i}"] for i in range(3))
    return [
        {"w": jnp.asarray(np.concatenate(groups).T), "b": jnp.asarray(first)},
        {"w": jnp.asarray(arrays[f"{_RULE}w1"].T), "b": jnp.asarray(second)},
        {
            "w": jnp.asarray(arrays[f"{_RULE}w2"].T[:outputs]),
            "b": jnp.asarray(last[:outputs]),
        },
    ]


def _layer(arrays: Arrays, name: str) -> dict[str, Array]:
    w = arrays[f"rnn_params/{name}/w"]
    b = arrays[f"rnn_params/{name}/b"]
    return {"w": jnp.asarray(w.T), "b": jnp.asarray(b)}


# The format.


class _Damaged(Exception):
    """What is wrong with the bytes."""


def _decode(data: bytes) -> Arrays:
    reader = _Reader(data)
    tree = reader.value()
    reader.expect_end()
    if not isinstance(tree, dict):
        raise _Damaged("it holds no dict")
    arrays: Arrays = {}
    for name, x in _leaves(tree):
        if not isinstance(x, np.ndarray):
            raise _Damaged(f"{name} is no array")
        if name in arrays:
            raise _Damaged(f"{name} occurs twice")
        arrays[name] = x
    return arrays


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


class _Reader:
    """The part of msgpack that such files consist of; every length is checked before it is used."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def value(self, depth: int = 0) -> Any:
        if depth > _DEEPEST:
            raise _Damaged(f"it is nested more than {_DEEPEST} deep")
        kind = self._int(1)
        if kind < 0x80:
            return kind
        if kind < 0x90:
            return self._map(kind & 0x0F, depth)
        if kind < 0xA0:
            return [self.value(depth + 1) for _ in range(kind & 0x0F)]
        if kind < 0xC0:
            return self._text(kind & 0x1F)
        if kind not in _KINDS:
            raise _Damaged(f"a value of the kind 0x{kind:02x} at byte {self._at - 1}")
        what, width = _KINDS[kind]
        size = self._int(width)
        if what == "int":
            return size
        if what == "map":
            return self._map(size, depth)
        if what == "text":
            return self._text(size)
        if what == "bytes":
            return self._take(size)
        return self._array(size)

    def expect_end(self) -> None:
        if left := len(self._data) - self._at:
            raise _Damaged(f"{left} bytes are left at its end")

    def _take(self, size: int) -> bytes:
        left = len(self._data) - self._at
        if size > left:
            raise _Damaged(f"it ends too early: {size} bytes are due, {left} left")
        self._at += size
        return self._data[self._at - size : self._at]

    def _int(self, width: int) -> int:
        return int.from_bytes(self._take(width), "big")

    def _text(self, size: int) -> str:
        try:
            return self._take(size).decode()
        except UnicodeDecodeError as e:
            raise _Damaged("a name is no text") from e

    def _map(self, size: int, depth: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for _ in range(size):
            key = self.value(depth + 1)
            if not isinstance(key, str) or key in entries:
                raise _Damaged(f"the key {key!r} is no name, or occurs twice")
            entries[key] = self.value(depth + 1)
        return entries

    def _array(self, size: int) -> np.ndarray:
        kind = self._int(1)
        if kind != _ARRAY:
            raise _Damaged(f"an extension of type {kind}, which is no array")
        inner = _Reader(self._take(size))
        shape, dtype, content = _three(inner.value())
        inner.expect_end()
        if dtype != "float32":
            raise _Damaged(f"an array of {dtype}, where all should be float32")
        if 4 * math.prod(shape) != len(content):
            raise _Damaged(f"an array of shape {shape} with {len(content)} bytes")
        return np.frombuffer(content, "<f4").reshape(shape)


def _three(value: Any) -> tuple[list[int], str, bytes]:
    if isinstance(value, list) and len(value) == 3:
        shape, dtype, content = value
        is_shape = isinstance(shape, list) and all(isinstance(n, int) for n in shape)
        if is_shape and isinstance(dtype, str) and isinstance(content, bytes):
            return shape, dtype, content
    raise _Damaged("an array that does not consist of shape, dtype and bytes")


# What comes after these bytes: what it is, and how many bytes its length, or it itself, has.
_KINDS = {
    0xC4: ("bytes", 1),
    0xC5: ("bytes", 2),
    0xC6: ("bytes", 4),
    0xC7: ("array", 1),
    0xC8: ("array", 2),
    0xC9: ("array", 4),
    0xCC: ("int", 1),
    0xCD: ("int", 2),
    0xD9: ("text", 1),
    0xDE: ("map", 2),
}
