"""Values of a TOML file as arguments, by the annotations of a function's parameters."""

import inspect
import types
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text in quotes",
}
# Parameters that take trees of arrays too, and are annotated Any: a file gives a number.
_NUMBERS = ("lam", "mean", "std")
# Parameters of optax, which lets them be anything.
_AT_LEAST_ZERO = (
    "learning_rate",
    "init_value",
    "peak_value",
    "end_value",
    "weight_decay",
    "eps",
    "eps_root",
    "transition_steps",
    "decay_steps",
    "warmup_steps",
    "transition_begin",
)
_BELOW_ONE = ("b1", "b2", "decay", "momentum")

_LARGEST_INT = 2**31 - 1  # counts and seeds are int32
_LARGEST_FLOAT = float(np.finfo(np.float32).max)


def types_from_toml(parameter: inspect.Parameter) -> list[Any]:
    """The types of a parameter that a TOML file can give; none of those of a function, say."""
    if parameter.annotation is Any and parameter.name in _NUMBERS:
        return [float]
    return _types(parameter.annotation)


def describe(parameter: inspect.Parameter) -> list[str]:
    """The same in words."""
    kinds = types_from_toml(parameter)
    words = [word for kind, word in _WORDS.items() if kind in kinds]
    lists = ["a list of numbers" for kind in kinds if kind not in _WORDS]
    return words + lists


def convert(parameter: inspect.Parameter, value: Any) -> Any:
    """``value`` as an argument: a list as a tuple, a whole number as a float where one is wanted.

    Raises:
      TypeError: a value of another type.
      ValueError: a value out of range.
    """
    converted = _as_one_of(types_from_toml(parameter), value)
    if parameter.name in _AT_LEAST_ZERO and converted < 0:
        raise ValueError("must be at least 0")
    if parameter.name in _BELOW_ONE and not 0 <= converted < 1:
        raise ValueError("must be at least 0 and below 1")
    return converted


def _types(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        members = _types_of_all(typing.get_args(annotation))
        # A float says all that is to be said of a parameter that takes any number.
        others = [kind for kind in members if kind not in (int, bool)]
        return others if float in members else members
    if origin is typing.Annotated:
        return _types(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return [str]
    if origin in (tuple, Sequence):
        return [annotation] if _types_of_all(typing.get_args(annotation)) else []
    return [annotation] if annotation in _WORDS else []


def _types_of_all(annotations: Sequence[Any]) -> list[Any]:
    return [kind for annotation in annotations for kind in _types(annotation)]


def _as_one_of(kinds: list[Any], value: Any) -> Any:
    sequences = [kind for kind in kinds if kind not in _WORDS]
    if isinstance(value, list) and sequences:
        elements = _types_of_all(typing.get_args(sequences[0]))
        return tuple(_as_one_of(elements, element) for element in value)

    _check_range(value)
    if type(value) is int and float in kinds:
        value = float(value)
    if type(value) not in kinds:
        raise TypeError
    return value


def _check_range(value: Any) -> None:
    if isinstance(value, int) and abs(value) > _LARGEST_INT:
        raise ValueError(f"must lie within ±{_LARGEST_INT}")
    if isinstance(value, float) and not abs(value) <= _LARGEST_FLOAT:
        raise ValueError("must be finite and fit float32")
    if isinstance(value, str) and "\0" in value:
        raise ValueError("must not hold the character NUL")
