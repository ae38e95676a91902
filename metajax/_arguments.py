"""What arguments may be, said by their annotations and checked before the first line.

>>> from metajax._arguments import Decay, PositiveInt, checked
>>> @checked
... def average(num_steps: PositiveInt, decay: Decay = 0.9, *, debias: bool = True):
...     return num_steps, decay, debias
>>> average(0)
Traceback (most recent call last):
    ...
ValueError: num_steps must be at least 1, got 0
>>> average(3, debias="no")
Traceback (most recent call last):
    ...
TypeError: debias must be True or False, got 'no' of type str
"""

import collections.abc
import dataclasses
import functools
import inspect
import math
import operator
import os
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

P = ParamSpec("P")
R = TypeVar("R")
Check = Callable[[str, Any], None]  # of an argument's name and value


class Range(NamedTuple):
    """The numbers that an argument may be, in words and as a predicate."""

    says: str
    holds: Callable[[Any], bool]

    def __repr__(self) -> str:
        return self.says


PositiveInt = Annotated[int, Range("at least 1", lambda x: x >= 1)]
NonNegativeInt = Annotated[int, Range("at least 0", lambda x: x >= 0)]
Finite = Annotated[float, Range("finite", lambda x: True)]
PositiveFloat = Annotated[float, Range("finite and greater than 0", lambda x: x > 0)]
NonNegative = Annotated[float, Range("finite and at least 0", lambda x: x >= 0)]
UnitInterval = Annotated[float, Range("in [0, 1]", lambda x: 0 <= x <= 1)]
Decay = Annotated[float, Range("at least 0 and below 1", lambda x: 0 <= x < 1)]

_LARGEST = 2**31 - 1  # counts are int32
_LONGEST = 100  # characters of a value in a message
_MAKERS = {
    "Batches": "metajax.Batches(batch, num)",
    "Cell": "metajax.cells.lstm or another cell",
    "Checkpoints": "metajax.checkpoints",
    "Estimator": "metajax.bptt or another estimator",
    "Inner": "metajax.inner",
    "InnerState": "the init of an inner loop",
    "LearnedOptimizer": "metajax.optim",
    "Learner": "metajax.l2l or another learner",
    "Perturbation": "metajax.gaussian or metajax.low_rank",
    "Problem": "metajax.problems",
    "Tasks": "metajax.tasks",
    "Trainer": "metajax.trainer",
    "TrainState": "trainer.init",
    "Validation": "metajax.validation",
}


def checked(f: Callable[P, R]) -> Callable[P, R]:
    """Checks the arguments of ``f`` against its annotations.

    What can be checked is a number, also in a `Range`, a flag, a string, a path, a choice, a
    function, an array, a mapping, an optax transformation and a metajax type, each also ``| None``
    or in a ``Sequence``; other annotations pass. Where ``f`` makes functions of a ``key``, such as
    those of a learner, they check it.
    """
    signature = inspect.signature(f)
    checks = {}
    for name, parameter in signature.parameters.items():
        if (check := _check(parameter.annotation)) is not None:
            checks[name] = check

    @functools.wraps(f)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            names = ", ".join(signature.parameters) or "no arguments"
            raise TypeError(f"{f.__name__}() {error}; it takes {names}") from None
        for name, check in checks.items():
            if name in arguments:
                check(name, arguments[name])
        return _with_checked_keys(f(*args, **kwargs))

    return call


def check(annotation: Any, **values: Any) -> None:
    """Each value, given by the name that its owner knows it by, must be as ``annotation`` says."""
    check = _check(annotation)
    assert check is not None, annotation
    for name, value in values.items():
        check(name, value)


def check_key(key: Any) -> None:
    """``key`` must be one typed key."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"key must be a typed key, e.g. jax.random.key(0), got {shown(key)}; wrap an old-style "
            f"key with jax.random.wrap_key_data"
        )
    if key.shape != ():
        raise ValueError(
            f"key must be a single key, e.g. jax.random.key(0), got an array of keys of shape "
            f"{key.shape}; use jax.vmap"
        )


def can_check(annotation: Any) -> bool:
    """Whether there is anything to check about arguments of this annotation."""
    return _check(annotation) is not None


def is_transformation(value: Any) -> bool:
    """Whether ``value`` is an optax transformation."""
    return hasattr(value, "init") and hasattr(value, "update")


def _with_checked_keys(made: Any) -> Any:
    """``made``; if it consists of functions of a ``key``, with those that check it."""
    if dataclasses.is_dataclass(type(made)):
        fields = {x.name: getattr(made, x.name) for x in dataclasses.fields(made)}
        checking = {name: _with_checked_keys(x) for name, x in fields.items()}
        changed = {name: x for name, x in checking.items() if x is not fields[name]}
        return dataclasses.replace(made, **changed) if changed else made
    if type(made) is tuple:
        make = tuple
    elif hasattr(made, "_make"):
        make = made._make
    else:
        return _with_checked_key(made) if _takes_key(made) else made
    parts = make(map(_with_checked_keys, made))
    return made if all(map(operator.is_, parts, made)) else parts


def _takes_key(value: Any) -> bool:
    if not callable(value) or hasattr(value, "checks_key"):
        return False
    try:
        return next(iter(inspect.signature(value).parameters), None) == "key"
    except (TypeError, ValueError):
        return False  # of what is not written in Python nothing is known


def _with_checked_key(f: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(f)
    def call(key, *args, **kwargs):
        check_key(key)
        return f(key, *args, **kwargs)

    call.checks_key = True  # pyright: ignore[reportAttributeAccessIssue]
    return call


def _check(annotation: Any) -> Check | None:
    origin = typing.get_origin(annotation)
    members = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _check_optional(members)
    if origin is Annotated and isinstance(members[1], Range):
        return functools.partial(_check_number, *members)
    if origin is Literal:
        return functools.partial(_check_choice, members)
    if origin is collections.abc.Sequence:
        return _check_each(members[0])
    if origin in (dict, collections.abc.Mapping):
        return _check_mapping
    if collections.abc.Callable in (origin, annotation):
        return _check_function
    if annotation in _CHECKS:
        return _CHECKS[annotation]
    if getattr(annotation, "__name__", None) in _MAKERS:
        return functools.partial(_check_instance, annotation)
    return None


def _check_optional(members: tuple[Any, ...]) -> Check | None:
    others = [member for member in members if member is not types.NoneType]
    is_path = set(others) == {str, os.PathLike}
    check = _check_path if is_path else _check(others[0])
    if check is None or (len(others) > 1 and not is_path):
        return None
    if len(others) == len(members):
        return check

    def check_optional(name: str, value: Any) -> None:
        if value is None:
            return
        try:
            check(name, value)
        except TypeError as error:
            raise TypeError(f"{error}; it may also be None") from None

    return check_optional


def _check_each(member: Any) -> Check | None:
    check = _check(member)
    if check is None:
        return None

    def check_each(name: str, values: Any) -> None:
        is_vector = isinstance(values, np.ndarray) and values.ndim == 1
        is_text = isinstance(values, (str, bytes))
        if not (isinstance(values, collections.abc.Sequence) or is_vector) or is_text:
            raise TypeError(f"{name} must be a tuple or a list, got {shown(values)}")
        for i, value in enumerate(values):
            check(f"{name}[{i}]", value)

    return check_each


def _check_number(kind: type, allowed: Range, name: str, value: Any) -> None:
    kinds = (int, np.integer) if kind is int else (int, float, np.number)
    if isinstance(value, bool) or not isinstance(value, kinds):
        wanted = "int" if kind is int else "number"
        raise TypeError(f"{name} must be a Python {wanted}, got {shown(value)}")
    is_int = isinstance(value, (int, np.integer))  # which may be larger than any float
    if not ((is_int or math.isfinite(value)) and allowed.holds(value)):
        raise ValueError(f"{name} must be {allowed}, got {value}")
    if is_int and abs(value) > _LARGEST:
        raise ValueError(f"{name} must be at most {_LARGEST}, got {value}")


def _check_choice(choices: tuple[Any, ...], name: str, value: Any) -> None:
    if not isinstance(value, str) or value not in choices:
        listed = " or ".join(map(repr, choices))
        raise ValueError(f"{name} must be {listed}, got {value!r}")


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")


def _check_string(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {shown(value)}")


def _check_path(name: str, value: Any) -> None:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, got {shown(value)}")


def _check_mapping(name: str, value: Any) -> None:
    if not isinstance(value, collections.abc.Mapping):
        raise TypeError(f"{name} must be a dict, got {shown(value)}")


def _check_array(name: str, value: Any) -> None:
    if name == "key":
        return check_key(value)
    dtype = getattr(value, "dtype", None)
    is_number = dtype is not None and jnp.issubdtype(dtype, np.number)
    if not (is_number or dtype == np.bool_) or not hasattr(value, "shape"):
        got = shown(value) if dtype is None else f"one of {dtype}"
        raise TypeError(f"{name} must be an array of numbers, got {got}")


def _check_function(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {type(value).__name__}")


def _check_transformation(name: str, value: Any) -> None:
    if not is_transformation(value):
        got = type(value).__name__
        raise TypeError(
            f"{name} must be an optax.GradientTransformation, e.g. optax.adam(1e-3), got {got}"
        )


def _check_instance(kind: type, name: str, value: Any) -> None:
    if not isinstance(value, kind):
        got = type(value).__name__
        raise TypeError(
            f"{name} must be a metajax.{kind.__name__} as made by {_MAKERS[kind.__name__]}, "
            f"got {got}"
        )


_CHECKS: dict[Any, Check] = {
    bool: _check_flag,
    str: _check_string,
    float: functools.partial(_check_number, *typing.get_args(Finite)),
    jax.Array: _check_array,
    optax.GradientTransformation: _check_transformation,
}


def shown(value: Any) -> str:
    """A value and its type, for messages."""
    return f"{short(value)} of type {type(value).__name__}"


def short(value: Any) -> str:
    """A value in a line: the shape of an array, the beginning of what is long."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    text = repr(value)
    is_long = len(text) > _LONGEST or "\n" in text
    return f"{text[:_LONGEST].splitlines()[0]} ..." if is_long else text
