"""Bad values for every argument of every public function: refused early, and by its name.

Driven by signatures, so that a new function is covered without anybody remembering. Each argument
in turn takes each value of a pool, while the others are right. What an annotation does not allow
must be refused with a TypeError or ValueError that names the argument, and what it allows must
work. Nothing is compiled: what runs long is only called with what it must refuse.
"""

import collections.abc
import inspect
import math
import os
import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from evosax.algorithms import Open_ES
from flax import linen, nnx
from public import FUNCTIONS
from systems import System, estimators, learners

import metajax as mx

KEY = jax.random.key(0)


def function(*args):
    return args[0]


POOL = {
    "None": None,
    "True": True,
    "0": 0,
    "1": 1,
    "-1": -1,
    "10**30": 10**30,
    "0.5": 0.5,
    "-0.5": -0.5,
    "2.5": 2.5,
    "nan": math.nan,
    "inf": math.inf,
    "1j": 1j,
    "''": "",
    "'x'": "x",
    "b'x'": b"x",
    "[]": [],
    "[0]": [0],
    "[2.5]": [2.5],
    "['x']": ["x"],
    "[[1], [1, 2]]": [[1], [1, 2]],
    "{}": {},
    "{'x': 'x'}": {"x": "x"},
    "object": object(),
    "function": function,
    "floats": np.ones((2, 3, 4), np.float32),
    "nans": np.full(3, np.nan, np.float32),
    "strings": np.array(["x", "y"]),
    "key": KEY,
    "old key": np.zeros(2, np.uint32),
    "keys": jax.random.split(KEY, 2),
}

IMAGES = {
    "image": np.zeros((8, 2, 2, 1), np.uint8),
    "label": np.arange(8, dtype=np.int32) % 3,
}
TASKS = mx.tasks.minibatches(4)
PROBLEM = mx.problems.mlp((4, 3))
LEARNER = mx.l2l(mx.optim.lstm(hidden=(2,)), PROBLEM)
META = LEARNER.meta(KEY)
INNER = mx.inner(LEARNER, TASKS, 4)
ESTIMATOR = mx.bptt(INNER, 2)
TRAINER = mx.trainer(ESTIMATOR, optax.sgd(1.0))
STATE = TRAINER.init(KEY, META, IMAGES)
NET = mx.nets.dense4(3, (2, 2, 1), (4,))
SQUARES = np.ones((2, 2), np.float32)
DIAGNOSIS = mx.Diagnosis(*[1.0] * len(mx.Diagnosis._fields))


# A right value for an argument of this name, or of this name in this function.
ARGUMENTS = {
    "activation": jnp.tanh,
    "activations": (jnp.tanh,),
    "adapts": function,
    "apply": function,
    "ax": None,
    "axes": None,
    "axis": "tasks",
    "base": optax.sgd(1.0),
    "batch": {"label": np.zeros(2, int), "y": np.zeros((2, 3), np.float32)},
    "c": SQUARES,
    "callbacks": [],
    "cell": mx.cells.lstm(2, 2),
    "cells": jnp.ones((2, 3)),
    "compare_estimators.estimators": {"bptt": ESTIMATOR},
    "check_for_nan": False,
    "checkpoint": None,
    "content": ["conv1_1"],
    "count": np.int32(1),
    "data": IMAGES,
    "diagnoses": {"bptt": DIAGNOSIS},
    "directory": "never",
    "draw": function,
    "estimator": ESTIMATOR,
    "estimators": [ESTIMATOR],
    "f": function,
    "features": function,
    "grad": np.ones(3, np.float32),
    "head": lambda name: True,
    "horizon": 4,
    "init": function,
    "inner": INNER,
    "key": KEY,
    "knots": (1, 10),
    "labels": None,
    "lam": 1.0,
    "layers": (4, 3),
    "learn": function,
    "learner": LEARNER,
    "like": META,
    "linear_solver": mx.implicit.cg(2),
    "log_prob": jnp.zeros(2),
    "logits": np.zeros((2, 3), np.float32),
    "loss": function,
    "losses": {"ours": np.ones((2, 3))},
    "make": lambda problem: mx.maml(problem, 0.1),
    "make_tx": optax.sgd,
    "mean": 0.0,
    "mesh": mx.sharding.mesh(1),
    "meta": function,
    "meta_params": META,
    "net": NET,
    "net_apply": function,
    "net_init": function,
    "norm": mx.nets.layer_norm,
    "objective": function,
    "opt": mx.optim.lstm(),
    "optimizer": mx.optim.lstm(),
    "optimizers": {"SGD": optax.sgd},
    "params": None,
    "path": "never.npz",
    "predict": function,
    "predicted": np.zeros(2, int),
    "predictions": np.zeros((2, 3), np.float32),
    "problem": PROBLEM,
    "query": {"image": np.zeros((2, 2, 2, 1)), "label": np.zeros(2, int)},
    "reference": META,
    "sample": function,
    "search": mx.RateSearch(),
    "shape": (2, 2, 1),
    "sizes": (4, 3),
    "solver": mx.implicit.descend(optax.sgd(0.1), 2),
    "start": function,
    "state": STATE,
    "states": np.ones((4, 3)),
    "std": 1.0,
    "strategy": Open_ES(4, solution=META),
    "support": {"image": np.zeros((2, 2, 2, 1)), "label": np.zeros(2, int)},
    "surrogate": ESTIMATOR,
    "saba.test": mx.Batches(function, 2),
    "saba.train": mx.Batches(function, 2),
    "tasks": TASKS,
    "teacher": optax.sgd(0.1),
    "trainer": TRAINER,
    "tree": META,
    "tx": optax.sgd(0.1),
    "unroll.state": INNER.init(KEY, META, IMAGES),
    "validate": None,
    "values": np.ones((2, 3)),
    "b": np.ones(2, np.float32),
    "clone_backprop.cell": mx.cells.lstm(2, slots=1),
    "cells.store.w": np.ones(2, np.float32),
    "cells.minimal_vsml.state": np.ones((2, 2, 2), np.float32),
    "data.few_shot.name": "digits",
    "data.load.name": "digits",
    "data.rotations.data": mx.data.by_class(IMAGES),
    "load.path": Path(mx.data.__file__).with_name("digits.npz"),
    "name": "vsml-mnist",
    "nets.conv.w": np.ones((3, 3, 1, 2), np.float32),
    "num_classes": 2,
    "normalisation": ((0.0,), (1.0,)),
    "pretrained.read.format": "celo",
    "plot.scaling.values": {"ours": [1.0, 2.0]},
    "plot.scaling.x": [1.0, 2.0],
    "plot.state_map.shape": (2, 2),
    "problems.equinox.make": lambda key: equinox.nn.Linear(4, 3, key=key),
    "problems.gram.x": np.ones((2, 2, 3), np.float32),
    "problems.linen.module": linen.Dense(3),
    "problems.nnx.make": lambda rngs: nnx.Linear(4, 3, rngs=rngs),
    "problems.vgg.weights": {"conv1_1": {"w": np.ones((3, 3, 1, 2)), "b": np.zeros(2)}},
    "w": SQUARES,
    "weights": [1.0],
    "writer": "never",
    "x": np.ones((2, 4, 4, 1), np.float32),
}

# What the pool has for an annotation.
FITTING = {
    int: {"0", "1", "-1"},
    float: {"0", "1", "-1", "0.5", "-0.5", "2.5"},
    bool: {"True"},
    str: {"''", "'x'"},
    jax.Array: {"floats", "nans", "old key"},
    os.PathLike: set(),
    types.NoneType: {"None"},
}
# What it has besides for an argument.
NUMBERS = {
    "True",
    "0",
    "1",
    "-1",
    "0.5",
    "-0.5",
    "2.5",
    "[0]",
    "[2.5]",
    "[[1], [1, 2]]",
    "floats",
}
EMPTY = {"None", "[]", "{}"}
ARRAYS = {"floats", "nans", "old key"}
ALSO = {
    "ax": {"None"},
    "axes": {"None"},
    "ask_tell.params": {"None"},
    "cells.recall.cells": {"floats", "nans"},
    "compare_estimators.windows": {"None", "{}"},
    "fit.callbacks": {"[]"},
    "bptt.remat": {"True", "False"},
    "optim.decay_weights.mask": {"None", "True", "False", "function"},
    "imaml.lam": {"1", "0.5", "2.5", "[2.5]", "[[1], [1, 2]]", "function", "floats"},
    "imaml_diagnosed.lam": {
        "1",
        "0.5",
        "2.5",
        "[2.5]",
        "[[1], [1, 2]]",
        "function",
        "floats",
    },
    "labels": {"None", "old key"},
    "mix.weights": {"None", "[0]", "[2.5]"},
    "plot.episode.predicted": {"old key"},
    "tensorboard.writer": {"''", "'x'"},
    "optim.rates.like": NUMBERS
    | EMPTY
    | ARRAYS
    | {"nan", "inf", "10**30", "key", "keys", "strings"},
    "reference": {"None"},
    "save.tree": NUMBERS | EMPTY | {"1j", "key", "keys", "old key"},
    "sharding.gather.tree": set(POOL),
    "sharding.place.tree": NUMBERS
    | EMPTY
    | ARRAYS
    | {"nan", "inf", "1j", "key", "keys"},
    "tasks.standardize.mean": NUMBERS - {"True"} | {"old key"},
    "tasks.standardize.std": {"1", "0.5", "2.5", "[2.5]", "[[1], [1, 2]]", "floats"},
    "validation.data": NUMBERS | EMPTY | {"1j", "key", "old key", "keys"},
    "key": {"key"},
}
# What runs long, or touches files: called only with what it must refuse.
RUNS = {
    "compare",
    "compare_estimators",
    "diagnose",
    "evaluate",
    "fit",
    "mean_gradient",
    "problems.equinox",
    "problems.nnx",
    "sharding.initialize",
    "tensorboard",
    "testing.check_estimator",
    "testing.check_learner",
    "unroll",
}


EAGER = ("plot.", "data.resize", "save", "sharding.")


def fitting(annotation: Any) -> set[str]:
    """The values of the pool that an annotation allows."""
    origin = typing.get_origin(annotation)
    members = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(fitting, members))
    if origin is Annotated:
        kind, allowed = members
        numbers = FITTING[kind]
        return {name for name in numbers if allowed.holds(POOL[name])}
    if origin is collections.abc.Sequence:
        return sequences_of(fitting(members[0]))
    if collections.abc.Callable in (origin, annotation):
        return {"function"}
    return FITTING.get(annotation, set()) if isinstance(annotation, type) else set()


def sequences_of(elements):
    """The vectors of the pool that have nothing but such elements."""
    texts = {"['x']", "strings"} if "'x'" in elements else set()
    zeros = {"[0]", "old key"} if "0" in elements else set()
    fractions = {"[2.5]"} if "2.5" in elements else set()
    return {"[]"} | texts | zeros | fractions


def right_arguments(name, function):
    """The arguments that a call needs."""
    arguments = {}
    for parameter in inspect.signature(function).parameters.values():
        own = f"{name}.{parameter.name}"
        if own in ARGUMENTS:
            arguments[parameter.name] = ARGUMENTS[own]
        elif is_needed(parameter):
            arguments[parameter.name] = right_argument(parameter)
    return arguments


def is_needed(parameter):
    if parameter.kind is parameter.VAR_KEYWORD:
        return False
    return parameter.default is parameter.empty or parameter.name == "data"


def right_argument(parameter):
    if parameter.name in ARGUMENTS:
        return ARGUMENTS[parameter.name]
    if isinstance(parameter.annotation, type) and issubclass(parameter.annotation, str):
        return "x"
    numbers = [
        POOL[name] for name in ("1", "0.5") if name in fitting(parameter.annotation)
    ]
    assert numbers, f"give ARGUMENTS a right value for {parameter}"
    return numbers[0]


def allowed_for(name, function, parameter):
    annotation = inspect.signature(function).parameters[parameter].annotation
    place = f"{name}.{parameter}"
    return fitting(annotation) | ALSO.get(place, ALSO.get(parameter, set()))


def call(name, function, arguments):
    """Traced, so that nothing is compiled; what draws or resizes needs its numbers."""
    if name.startswith(EAGER):
        function(**arguments)
        return

    def traced():
        function(**arguments)
        return ()

    jax.eval_shape(traced)


CASES = [
    pytest.param(
        name.removeprefix("metajax."), function, parameter, id=f"{name}.{parameter}"
    )
    for name, function in FUNCTIONS.items()
    for parameter, what in inspect.signature(function).parameters.items()
    if what.kind is not what.VAR_KEYWORD
]


@pytest.mark.parametrize(("name", "function", "parameter"), CASES)
def test_bad_values_are_refused_by_name(
    name, function, parameter, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    arguments = right_arguments(name, function)
    allowed = allowed_for(name, function, parameter)
    wrong = []
    for described, value in POOL.items():
        is_allowed = described in allowed
        if is_allowed and name in RUNS:
            continue
        try:
            call(name, function, arguments | {parameter: value})
        except OSError as e:
            if not is_allowed:  # the name of a file that is not there
                wrong.append(f"{described}: {type(e).__name__}: {str(e)[:100]}")
        except (TypeError, ValueError) as e:
            is_named = re.search(rf"\b{parameter}\b", str(e))
            if not is_named:
                wrong.append(f"{described}: {type(e).__name__}: {str(e)[:100]}")
        except Exception as e:
            wrong.append(f"{described}: {type(e).__name__}: {str(e)[:100]}")
        else:
            if not is_allowed:
                wrong.append(f"{described}: silent")
    assert not wrong, "\n".join(wrong)


# What is drawn, and what a learner is given of it.
BATCH = {
    "image": np.zeros((5, 2, 2, 1), np.float32),
    "label": np.array([0, 1, 2, 0, 1]),
}
BATCHES = {
    "none": None,
    "a pair, as with_query gives it": (BATCH, BATCH),
    "a list": [BATCH["image"], BATCH["label"]],
    "no label": {"image": BATCH["image"]},
    "no image": {"label": BATCH["label"]},
    "labels in a list": BATCH | {"label": [0, 1, 2, 0, 1]},
    "labels that are texts": BATCH | {"label": ["0", "1", "2", "0", "1"]},
    "labels that are floats": BATCH | {"label": np.zeros(5, np.float32)},
    "labels out of range": BATCH | {"label": np.full(5, 3)},
}
SYSTEMS = {
    name: system
    for name, system in learners().items()
    if isinstance(system.data, dict) and "image" in system.data
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_bad_batches_are_refused(name):
    learner = SYSTEMS[name].learner
    is_judged_on_the_way = name == "maml_plus_plus"

    def step(batch):
        meta_params = learner.meta(KEY)
        state = learner.init(KEY, meta_params, ())
        return learner.step(KEY, meta_params, state, batch)[1]

    for batch in BATCHES.values():
        if is_judged_on_the_way:
            batch = (batch, batch)
        with pytest.raises((TypeError, ValueError), match=r"\b(batch|label)"):
            jax.eval_shape(lambda batch=batch: step(batch))


PLAIN = learners() | {
    "clone_backprop": System(
        mx.clone_backprop(mx.cells.lstm(2, slots=1, reduce="sum"), 0.1),
        mx.tasks.signals(4),
    )
}


@pytest.mark.parametrize("name", PLAIN)
def test_batches_with_queries_and_without_are_told_apart(name):
    system = PLAIN[name]
    is_judged_on_the_way = name == "maml_plus_plus"
    tasks = TASKS if is_judged_on_the_way else mx.tasks.with_query(system.tasks)
    loop = mx.inner(system.learner, tasks, 4)

    def step():
        meta_params = system.learner.meta(KEY)
        state = loop.init(KEY, meta_params, system.data)
        return loop.step(meta_params, state, system.data)[1]

    with pytest.raises(
        (TypeError, ValueError), match=r"batch.*give.*tasks.with_query|with_query.*give"
    ):
        jax.eval_shape(step)


DATA = {
    "none": None,
    "a pair": (IMAGES["image"], IMAGES["label"]),
    "labels in a list": IMAGES | {"label": [0] * 8},
    "labels that are texts": IMAGES | {"label": ["0"] * 8},
    "labels that are floats": IMAGES | {"label": np.zeros(8)},
    "labels in two columns": IMAGES | {"label": np.zeros((8, 2), int)},
    "images in a list": IMAGES | {"image": [0] * 8},
}
SORTED = mx.data.by_class(IMAGES)
START = {
    "start reversed": SORTED["start"][::-1],
    "start beyond the images": SORTED["start"] + 1,
    "start in a list": SORTED["start"].tolist(),
    "start with one number": SORTED["start"][:1],
    "start as fractions": SORTED["start"] / 1.0,
}


@pytest.mark.parametrize("kind", ["minibatches", "classification", "episodes"])
def test_bad_data_are_refused(kind):
    tasks = {
        "minibatches": mx.tasks.minibatches(2),
        "classification": mx.tasks.classification(2),
        "episodes": mx.tasks.episodes(2, 1),
    }[kind]
    bad = list(DATA.values())
    if kind != "minibatches":
        bad += [SORTED | {"start": start} for start in START.values()]

    def draw(data):
        return tasks.train(KEY, data, tasks.sample(KEY, data))

    for data in bad:
        with pytest.raises((TypeError, ValueError), match=r"^data"):
            jax.eval_shape(lambda data=data: draw(data))


KEYED = {
    "problem": mx.problems.mlp((4, 3)),
    "problem of flax": mx.problems.linen(linen.Dense(3), (4,)),
    "tasks": TASKS,
    "episodes": mx.tasks.episodes(2, 1),
    "quadratics": mx.tasks.quadratics(2),
    "tasks with queries": mx.tasks.with_query(TASKS),
    "learner": LEARNER,
    "protonet": SYSTEMS["protonet"].learner,
    "vsml": SYSTEMS["vsml"].learner,
    "inner": INNER,
    "trainer": TRAINER,
    "optimizer": mx.optim.lstm(),
    "cell": mx.cells.lstm(2, 2),
    "net": NET,
    "gaussian": mx.gaussian(),
    "low_rank": mx.low_rank(1),
} | {name: make(INNER, META) for name, make in estimators().items()}


@pytest.mark.parametrize("value", ["None", "0", "old key", "keys"])
@pytest.mark.parametrize("name", KEYED)
def test_what_is_no_key_is_refused(name, value):
    whole = KEYED[name]
    fields = whole if isinstance(whole, tuple) else vars(whole).values()
    parts = [part for part in fields if callable(part)]
    arguments = [list(inspect.signature(part).parameters) for part in parts]
    assert any(names[0] == "key" for names in arguments)
    for part, names in zip(parts, arguments, strict=True):
        if names[0] == "key":
            with pytest.raises(
                (TypeError, ValueError), match=r"key must.*random.key.0"
            ):
                part(POOL[value], *names[1:])


def test_symbols_out_of_range():
    problem = mx.problems.character_gru(symbols=5, hidden=2)
    for text in ([[0, 5, 1]], [[0, -1, 1]]):
        batch = {"text": np.array(text)}

        def loss(text):
            params, model_state = problem.init(KEY, ())
            return problem.test(KEY, params, model_state, {"text": text})[0]

        with pytest.raises(ValueError, match=r"text must be in 0\.\.4, got \["):
            loss(batch["text"])
        assert np.isnan(jax.jit(loss)(batch["text"]))


SOLVERS = {
    "cg": mx.implicit.cg(2),
    "neumann": mx.implicit.neumann(2, 0.1),
    "lanczos": mx.implicit.lanczos(2, 0.1),
    "direct": mx.implicit.direct(),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_bad_systems_are_refused(name):
    solve, b = SOLVERS[name], jnp.ones(3)
    with pytest.raises(TypeError, match=r"^b must be a floating-point array"):
        jax.eval_shape(lambda: solve(lambda x: x, jnp.arange(3)).x)
    for matvec in (lambda x: x[:2], lambda x: {"x": x}, lambda x: x[:, None]):
        with pytest.raises(ValueError, match=r"^matvec must give a tree like b"):
            jax.eval_shape(lambda matvec=matvec: solve(matvec, b).x)


def test_constants_that_do_not_fit_an_image():
    tasks = mx.tasks.standardize(TASKS, np.zeros(3), np.ones(3))

    def draw():
        return tasks.train(KEY, IMAGES, tasks.sample(KEY, IMAGES))

    with pytest.raises(ValueError, match=r"mean and std must .* an image \[2, 2, 1\]"):
        jax.eval_shape(draw)


def test_a_penalty_of_another_tree():
    learner = mx.imaml(
        PROBLEM, ARGUMENTS["solver"], ARGUMENTS["linear_solver"], [1.0, 2.0]
    )

    def step():
        meta_params = learner.meta(KEY)
        state = learner.init(KEY, meta_params, ())
        return learner.step(KEY, meta_params, state, BATCH)[1]

    with pytest.raises(ValueError, match=r"\blam\b"):
        jax.eval_shape(step)
