"""What an argument may be is said by its annotation."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import optax
import pytest

import metajax as mx
from metajax import _arguments
from metajax._arguments import (
    Decay,
    Finite,
    NonNegative,
    PositiveFloat,
    PositiveInt,
    UnitInterval,
    checked,
)

NUMBERS = {
    PositiveInt: ([1, np.int64(3), 2**31 - 1], [0, -1, 2**31, 10**400, 1.0, True, "1"]),
    PositiveFloat: ([1, 0.5, np.float32(2)], [0, -0.1, np.inf, np.nan, True, "1"]),
    NonNegative: ([0, 1.5], [-1e-9, np.inf, [0]]),
    UnitInterval: ([0, 1, 0.5], [-0.1, 1.1, np.nan]),
    Decay: ([0, 0.999], [1, -0.1, np.nan]),
    Finite: ([-3, 0.0], [np.inf, np.nan, False]),
}
OTHERS = {
    bool: ([True, np.bool_(False)], [1, 0, "false", None]),
    str: (["", "name"], [1, None, b"name"]),
    Literal["mean", "sum"]: (["mean", "sum"], ["max", None, 3]),
    Callable: ([print, np.sum], [3, None]),
    Callable[[int], int]: ([abs], ["abs"]),
    optax.GradientTransformation: ([optax.sgd(1.0)], [optax.sgd, 0.1]),
    mx.Tasks: ([mx.tasks.quadratics(2)], [mx.tasks.quadratics, (1, 2, 3)]),
    PositiveInt | None: ([None, 2], [0, "2"]),
    Sequence[PositiveInt]: ([(1, 2), [3], ()], [3, "12", (1, 0), (1, 2.0)]),
}
CASES = [
    (kind, value, is_right)
    for kind, values in (NUMBERS | OTHERS).items()
    for is_right, group in zip((True, False), values, strict=True)
    for value in group
]


def test_arguments_of_other_names_are_answered_with_the_right_ones():
    @checked
    def f(first, *, learning_rate: float = 0.1):
        return learning_rate

    for call, wrong in {
        lambda: f(1, lr=0.1): "got an unexpected keyword argument 'lr'",
        lambda: f(): "missing a required argument: 'first'",
        lambda: f(1, 2): "too many positional arguments",
    }.items():
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == f"f() {wrong}; it takes first, learning_rate"


@pytest.mark.parametrize(("kind", "value", "is_right"), CASES)
def test_an_argument_is_what_its_annotation_says(kind, value, is_right):
    @checked
    def f(first, size: kind = "unused"):
        return size

    if is_right:
        assert f(0, value) is value
        assert f(0, size=value) is value
    else:
        with pytest.raises((TypeError, ValueError), match=r"^size"):
            f(0, value)
        with pytest.raises((TypeError, ValueError), match=r"^size"):
            f(0, size=value)


def test_an_argument_that_is_left_out_is_not_checked():
    @checked
    def f(size: PositiveInt = 0):
        return size

    assert f() == 0


def test_other_annotations_pass():
    @checked
    def f(anything: Any, rate: float | mx.Tasks, untold):
        return anything, rate, untold

    assert f("x", "y", untold=3) == ("x", "y", 3)


def test_a_checked_function_looks_like_the_function():
    assert list(inspect.signature(mx.bptt).parameters)[:2] == ["inner", "num_tasks"]
    assert mx.bptt.__doc__.startswith("Backpropagation")
    assert mx.bptt.__module__ == "metajax.estimators._bptt"


def exported():
    """All public functions by name."""
    parts = [
        mx,
        *(part for part in map(mx.__dict__.get, mx.__all__) if inspect.ismodule(part)),
    ]
    found = {}
    for part in parts:
        for name in getattr(part, "__all__", ()):
            if inspect.isfunction(function := getattr(part, name)):
                found[f"{part.__name__}.{name}"] = function
    return found


def test_no_public_function_forgets_what_its_annotations_say():
    for name, function in exported().items():
        annotations = [
            p.annotation for p in inspect.signature(function).parameters.values()
        ]
        can_be_checked = [_arguments.can_check(kind) for kind in annotations]
        assert hasattr(function, "__wrapped__") or not any(can_be_checked), name
        assert int not in annotations, f"{name}: an int of which range?"
