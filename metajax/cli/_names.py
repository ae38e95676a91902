"""What a config may name: the functions of the library, found by what they return.

A function is left out if it needs an argument that a TOML file cannot give, such as a function.
"""

import functools
import inspect
from collections.abc import Callable
from types import ModuleType

import jax
import optax

import metajax as mx
from metajax import learners
from metajax.cells import Cell
from metajax.cli._values import types_from_toml
from metajax.nets import Net
from metajax.types import Estimator, LearnedOptimizer, Learner, Problem, Tasks

Table = dict[str, Callable]


def _named(module: ModuleType, *names: str) -> Table:
    return {name: getattr(module, name) for name in names}


def _as_they_are(functions: Table) -> Table:
    """Functions that are an argument themselves, and not called to make one."""
    return {
        name: lambda function=function: function for name, function in functions.items()
    }


def _returning(kind: type, module: ModuleType, made: tuple[str, ...] = ()) -> Table:
    """The functions of a module that return a ``kind``; ``made`` are arguments that they get."""
    found = {}
    for name in getattr(module, "__all__", vars(module)):
        function = getattr(module, name)
        if not inspect.isfunction(function):
            continue
        signature = inspect.signature(function)
        needed = [p for p in signature.parameters.values() if p.default is p.empty]
        available = all(p.name in made or can_be_given(p) for p in needed)
        if signature.return_annotation is kind and available:
            found[name] = function
    return found


def can_be_given(parameter: inspect.Parameter) -> bool:
    """Whether a TOML file can give an argument, or name what makes it."""
    return parameter.name in ARGUMENTS or bool(types_from_toml(parameter))


def _as_problem(make_net: Callable[..., Net]) -> Callable[..., Problem]:
    @functools.wraps(make_net)  # and with it the signature
    def make_problem(**arguments):
        return mx.problems.classifier(*make_net(**arguments))

    return make_problem


_OPTIMIZERS = _named(
    optax, "sgd", "adam", "adamw", "rmsprop", "adagrad", "adabelief", "nadam", "lion"
)
_SCHEDULES = _named(
    optax,
    "cosine_decay_schedule",
    "warmup_cosine_decay_schedule",
    "exponential_decay",
    "linear_schedule",
)
_ACTIVATIONS = _named(
    jax.nn, "sigmoid", "tanh", "relu", "gelu", "silu", "elu", "softplus"
)
_NORMS = _named(mx.nets, "layer_norm", "transductive_batch_norm")

# What makes an argument, by its name: learning_rate = { name = "cosine_decay_schedule", ... }.
ARGUMENTS: dict[str, Table] = {
    "learning_rate": _SCHEDULES,
    "tx": _OPTIMIZERS,
    "base": _OPTIMIZERS,
    "teacher": _OPTIMIZERS,
    "solver": _named(mx.implicit, "descend", "newton"),
    "linear_solver": _named(mx.implicit, "cg", "neumann", "direct", "lanczos"),
    "activation": _as_they_are(_ACTIVATIONS),
    "norm": _as_they_are(_NORMS),
}
# The functions of these may need arguments of those above.
ARGUMENTS["optimizer"] = _returning(LearnedOptimizer, mx.optim)
ARGUMENTS["cell"] = _returning(Cell, mx.cells)
ARGUMENTS["net"] = _returning(Net, mx.nets)

_TASKS = _returning(Tasks, mx.tasks)
_TASKS_OF_TASKS = _returning(Tasks, mx.tasks, made=("tasks",))
ARGUMENTS["augment"] = {
    name: function for name, function in _TASKS_OF_TASKS.items() if name not in _TASKS
}
_NETS = {name: _as_problem(make) for name, make in ARGUMENTS["net"].items()}

# What a section may name.
SECTIONS: dict[str, Table] = {
    "learner": _returning(Learner, learners, made=("problem",)),
    "problem": _returning(Problem, mx.problems) | _NETS,
    "tasks": _TASKS,
    "estimator": _returning(Estimator, mx.estimators, made=("inner",)),
    "optimizer": _OPTIMIZERS,
}
