"""A meta-training run described in a TOML file: names of the library's functions, and their
arguments.

Each section is a call: ``name`` picks a function from the section's table, the other keys are its
arguments, checked against its signature. What one section makes is an argument of the next.
Whatever is wrong is said with the line.
"""

import collections.abc
import difflib
import functools
import inspect
import re
import tomllib
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import optax

import metajax as mx
from metajax import _checks
from metajax.types import Inner, LearnedOptimizer, Learner, Problem, Trainer


class ConfigError(ValueError):
    """What is wrong with a config, and in which line."""


class Made(NamedTuple):
    """A learner, and what its meta-parameters are before training, ``(key) -> meta_params``."""

    init: Callable
    learner: Learner


class Run(NamedTuple):
    """The section ``[run]``.

    Attributes:
      steps: the meta-step to train to, a total: with more of them a finished run goes on.
      out: the folder for what comes out, one for each run.
      seed: of everything that is drawn.
      checkpoint_every: meta-steps between two checkpoints.
      validate_every: meta-steps between two validations, by which the best meta-parameters are
        chosen.
      validation_tasks: tasks of a validation.
      patience: stop after so many validations without a new best; never by default.
      chunk: meta-steps between two looks at the progress.
    """

    steps: int
    out: str
    seed: int = 0
    checkpoint_every: int = 100
    validate_every: int = 100
    validation_tasks: int = 32
    patience: int | None = None
    chunk: int = 10


class Experiment(NamedTuple):
    """What a config describes, ready to run.

    Attributes:
      run: the section ``[run]``.
      inner: the inner loop.
      trainer: the outer loop.
      init: ``() -> meta_params``, before training.
      start: ``() -> (state, data)``, where training starts, once a step of it has been traced.
      data: ``(part) -> data``, the part being ``"train"``, ``"validation"`` or ``"test"``.
      keys: one for each of ``"init"``, ``"run"``, ``"validation"`` and ``"test"``.
    """

    run: Run
    inner: Inner
    trainer: Trainer
    init: Callable
    start: Callable
    data: Callable
    keys: dict[str, jax.Array]


def _l2l(problem: Problem, optimizer: LearnedOptimizer, second_order: bool = False) -> Made:
    return Made(optimizer.init, mx.l2l(optimizer.tx, problem, second_order))


def _params(problem: Problem, key: jax.Array) -> Any:
    return problem.init(key, ())


def _meta_sgd(problem: Problem, rate: float) -> Made:
    return Made(lambda key: mx.with_rates(problem.init(key, ()), rate), mx.meta_sgd(problem))


def _network(make: Callable) -> Callable:
    @functools.wraps(make)  # and with it the signature
    def problem(*args, **kwargs):
        return mx.problems.classifier(*make(*args, **kwargs))

    return problem


def _all(module: Any, *names: str) -> dict[str, Callable]:
    return {name: getattr(module, name) for name in names}


def _as_they_are(module: Any, *names: str) -> dict[str, Callable]:
    def giver(value: Any) -> Callable:
        return lambda: value

    return {name: giver(getattr(module, name)) for name in names}


_IN_CONTEXT = ("vsml", "meta_rnn", "hebbian", "fast_weight_memory", "external_memory")
_GRADIENT_STEPS = ("maml", "fomaml", "reptile", "imaml")
_ACTIVATIONS = _as_they_are(jax.nn, "sigmoid", "tanh", "relu", "gelu", "silu", "elu", "softplus")
_SCHEDULES = (
    "cosine_decay_schedule",
    "warmup_cosine_decay_schedule",
    "exponential_decay",
    "linear_schedule",
)

# What a section may name.
SECTIONS: dict[str, dict[str, Callable]] = {
    "learner": {"l2l": _l2l, "meta_sgd": _meta_sgd} | _all(mx, *_IN_CONTEXT, *_GRADIENT_STEPS),
    "problem": _all(
        mx.problems, "mlp", "logistic", "autoencoder", "convnet", "character_gru", "quadratic"
    )
    | {name: _network(make) for name, make in _all(mx.nets, "conv4", "dense4", "resnet12").items()},
    "tasks": _all(mx.tasks, "minibatches", "classification", "episodes", "text")
    | _all(mx.tasks, "prototypes", "random_images", "sum_sign", "quadratics"),
    "estimator": _all(mx, "bptt", "forward", "es", "pes", "noise_reuse_es"),
    "optimizer": _all(
        optax, "sgd", "adam", "adamw", "rmsprop", "adagrad", "adabelief", "nadam", "lion"
    ),
}
# What an argument may be made by: learning_rate = { name = "cosine_decay_schedule", ... }.
ARGUMENTS: dict[str, dict[str, Callable]] = {
    "optimizer": _all(mx.optim, "lstm", "ntm_bfgs", "rnnprop", "mlp", "adafactor_mlp", "nadam"),
    "tx": SECTIONS["optimizer"],
    "learning_rate": _all(optax, *_SCHEDULES),
    "solver": _all(mx.implicit, "descend", "newton"),
    "linear_solver": _all(mx.implicit, "cg", "neumann", "direct", "lanczos"),
    "cell": _all(mx.cells, "lstm", "rnn"),
    "activation": _ACTIVATIONS,
    "norm": _as_they_are(mx.nets, "layer_norm", "transductive_batch_norm"),
    "augment": _all(
        mx.tasks,
        "flatten",
        "project",
        "permute_pixels",
        "permute_labels",
        "standardize",
        "unit_spread",
    ),
}
_NEED_DATA = {"minibatches", "classification", "episodes", "text"}


class _Data(NamedTuple):
    name: str
    train: str = "train"
    validation: str | None = None  # other tasks from the training split
    test: str = "test"
    few_shot: bool = False
    size: int | None = None
    data_dir: str | None = None


def _load(data: _Data, split: str, tasks: str) -> Any:
    if data.name == "sums":
        return mx.data.sums(split)
    if data.few_shot:
        arrays = mx.data.few_shot(data.name, split, data.data_dir)
    else:
        arrays = mx.data.load(data.name, split, data.data_dir)
        if (
            tasks != "minibatches"
        ):  # they draw from classes, all others keep the labels that the data have
            arrays = mx.data.by_class(arrays)
    return arrays if data.size is None else mx.data.resize(arrays, data.size)


def read(path: Path) -> dict[str, Any]:
    """The sections of a TOML file."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from e
    except ValueError as e:  # from the decoder of UTF-8, or that of TOML, which names the line
        line = re.findall(r"at line (\d+)", str(e)) or [1]
        raise ConfigError(f"{path}:{line[0]}: this is not TOML: {e}") from e


def experiment(path: Path, **changes: Any) -> Experiment:
    """Makes what a config describes; ``changes`` take the place of what ``[run]`` says.

    Raises:
      ConfigError: whatever is wrong with it.
    """
    return _Config(path, read(path)).experiment(changes)


class _Config:
    def __init__(self, path: Path, sections: dict[str, Any]):
        self.path, self.sections, self.text = path, sections, path.read_text()
        self.lines = _lines(self.text, sections)

    def experiment(self, changes: dict[str, Any]) -> Experiment:
        known = [*SECTIONS, "data", "inner", "run"]
        for name, section in self.sections.items():
            if name not in known:
                self.fail((name,), f"unknown section [{name}]{_choice(name, known)}")
            if not isinstance(section, dict):
                self.fail((name,), f"{name} must be a section, [{name}]")

        run = self.call(("run",), Run, self.section("run") | changes)
        for name in ("steps", "checkpoint_every", "validate_every", "validation_tasks", "chunk"):
            self.blamed(("run",), _checks.positive_int, name, getattr(run, name))
        if run.patience is not None:
            self.blamed(("run",), _checks.positive_int, "patience", run.patience)
        learner, arguments = self.pick(("learner",), SECTIONS["learner"], self.section("learner"))
        problem: Any = None
        if "problem" in inspect.signature(learner).parameters:
            problem = self.make(
                ("problem",), SECTIONS["problem"], self.section("problem", by="learner")
            )
        elif "problem" in self.sections:
            self.fail(
                ("problem",),
                f"the learner {self.sections['learner']['name']} has no problem; remove [problem]",
            )
        made = self.call(("learner",), learner, arguments, {"problem": problem})
        if isinstance(made, Learner):  # of a family whose meta-parameters are those of the problem
            made = Made(functools.partial(_params, problem), made)

        section = dict(self.section("tasks"))
        augmentations = section.pop("augment", [])
        tasks = self.make(("tasks",), SECTIONS["tasks"], section, more=("augment",))
        if not isinstance(augmentations, list):
            self.fail(("tasks", "augment"), 'augment must be a list such as ["permute_pixels"]')
        for one in augmentations:
            tasks = self.make(("tasks", "augment"), ARGUMENTS["augment"], one, {"tasks": tasks})
        data = self.data(section["name"])

        inner = self.call(
            ("inner",), mx.inner, self.section("inner"), {"learner": made.learner, "tasks": tasks}
        )
        estimator = self.make(
            ("estimator",), SECTIONS["estimator"], self.section("estimator"), {"inner": inner}
        )
        section = dict(self.section("optimizer"))
        clip = section.pop("clip", None)
        tx = self.make(("optimizer",), SECTIONS["optimizer"], section, more=("clip",))
        if clip is not None:
            clip = self.blamed(("optimizer",), _checks.positive_float, "clip", clip)
            tx = optax.chain(optax.clip_by_global_norm(clip), tx)
        trainer = mx.trainer(estimator, tx)

        names = ["init", "run", "validation", "test"]
        keys = dict(zip(names, jax.random.split(jax.random.key(run.seed), len(names)), strict=True))

        def start():
            arrays = data("train")
            state = trainer.init(keys["run"], made.init(keys["init"]), arrays)
            jax.eval_shape(trainer.step, state, arrays)  # what does not fit together is said here
            return state, arrays

        return Experiment(
            run,
            inner,
            trainer,
            lambda: made.init(keys["init"]),
            lambda: self.blamed(("inner",), start),
            data,
            keys,
        )

    def data(self, tasks: str) -> Callable:
        if tasks not in _NEED_DATA:
            if "data" in self.sections:
                self.fail(("data",), f"the tasks {tasks} need no data; remove [data]")
            return lambda part: ()
        data = self.call(("data",), _Data, self.section("data", by="tasks"))

        def load(part):
            at = ("data", part) if self.sections["data"].get(part) else ("data",)
            return self.blamed(at, _load, data, getattr(data, part) or data.train, tasks)

        return load

    def section(self, name: str, by: str = "") -> dict[str, Any]:
        if name not in self.sections:
            self.fail(
                (by, "name"), f"the section [{name}] is missing{f'; [{by}] needs it' if by else ''}"
            )
        return self.sections[name]

    def make(
        self,
        path: tuple,
        table: dict,
        values: Any,
        given: dict | None = None,
        more: Sequence[str] = (),
    ) -> Any:
        """What the function of a table makes that ``values`` name, with their other keys as its
        arguments.
        """
        return self.call(path, *self.pick(path, table, values), given, more)

    def pick(self, path: tuple, table: dict, values: Any) -> tuple[Callable, dict[str, Any]]:
        values = {"name": values} if isinstance(values, str) else values
        if not isinstance(values, dict) or "name" not in values:
            self.fail(path, f"{'.'.join(path)} must have a name{_choice('', table)}")
        arguments = dict(values)
        name = arguments.pop("name")
        if not isinstance(name, str) or name not in table:
            self.fail(
                (*path, "name"), f"unknown name {name!r} in {'.'.join(path)}{_choice(name, table)}"
            )
        return table[name], arguments

    def call(
        self,
        path: tuple,
        f: Callable,
        values: dict,
        given: dict | None = None,
        more: Sequence[str] = (),
    ) -> Any:
        """``f`` with the arguments ``values``, read by its signature, and those of ``given`` that
        it takes.
        """
        signature, where = inspect.signature(f).parameters, ".".join(path)
        given = {k: x for k, x in (given or {}).items() if k in signature}
        known = {
            k: p for k, p in signature.items() if k not in given and (k in ARGUMENTS or _kinds(p))
        }
        for k in values:
            if k not in known:
                self.fail(
                    (*path, k), f"unknown argument {k!r} in {where}{_choice(k, [*known, *more])}"
                )
        for k, p in known.items():
            if k not in values and p.default is p.empty:
                self.fail(path, f"{where} lacks the argument {k!r}, {_said(p)}")
        return self.blamed(
            path, f, **given, **{k: self.value((*path, k), known[k], x) for k, x in values.items()}
        )

    def value(self, path: tuple, parameter: inspect.Parameter, value: Any) -> Any:
        if path[-1] in ARGUMENTS and isinstance(value, (dict, str)):
            return self.make(path, ARGUMENTS[path[-1]], value)
        try:
            return _value(_kinds(parameter), value)
        except TypeError:
            self.fail(path, f"{path[-1]} must be {_said(parameter)}, got {value!r}")

    def blamed(self, path: tuple, f: Callable, *args: Any, **kwargs: Any) -> Any:
        """``f(...)``; its errors, which begin with the name of an argument, are given the line of
        that argument.
        """
        try:
            return f(*args, **kwargs)
        except ConfigError:
            raise
        except (TypeError, ValueError) as e:
            word = re.split(r"\W", str(e), maxsplit=1)[0]
            places = [p for p in self.lines if p[-1] == word]
            self.fail(
                next((p for p in places if p[: len(path)] == path), places[0] if places else path),
                str(e),
                e,
            )
        except KeyError as e:
            self.fail(
                path,
                f"{e} is missing from what the tasks give: do tasks, problem and data go together?",
                e,
            )

    def fail(self, path: tuple, message: str, cause: Exception | None = None) -> NoReturn:
        known = (path[:n] for n in range(len(path), 0, -1) if path[:n] in self.lines)
        line = self.lines.get(next(known, ()), len(self.text.splitlines()))
        raise ConfigError(f"{self.path}:{line}: {message}") from cause


def _lines(text: str, sections: dict[str, Any]) -> dict[tuple[str, ...], int]:
    """In which line each key and section is: what looks like one, and is among those that were
    read.
    """
    lines, table = {}, ()
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[([^\[\]]+)\]\s*(#.*)?$", line)
        found = header or re.match(r"\s*([\w.\s\"'-]+?)\s*=", line)
        if found:
            path = tuple(part.strip(" \"'") for part in found[1].split("."))
            path = path if header else table + path
            table = path if header and _has(sections, path) else table
            if _has(sections, path):
                lines.setdefault(path, number)
    return lines


def _has(tree: Any, path: tuple[str, ...]) -> bool:
    return not path or (
        isinstance(tree, dict) and path[0] in tree and _has(tree[path[0]], path[1:])
    )


def _choice(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, 1, cutoff=0.5) if isinstance(name, str) else []
    return f"; there are {', '.join(known)}" + (f": did you mean {near[0]!r}?" if near else "")


def _kinds(parameter: inspect.Parameter) -> set[Any]:
    """Which of a parameter's types a TOML file can give."""
    kinds = _flat(parameter.annotation)
    if parameter.default is not parameter.empty:
        kinds.discard(Any)  # anything at all, and not needed: too much is not checked
    return kinds


def _flat(annotation: Any) -> set[Any]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        kinds = set().union(*map(_flat, typing.get_args(annotation)))
        return kinds - {int, bool} if float in kinds else kinds
    if origin in (tuple, collections.abc.Sequence):
        return {annotation} if set().union(*map(_flat, typing.get_args(annotation))) else set()
    return {annotation} & {int, float, bool, str, Any}


def _value(kinds: set[Any], value: Any) -> Any:
    """A TOML value as one of the kinds; a list is a tuple."""
    if isinstance(value, list):
        sequences = [k for k in kinds if typing.get_origin(k)]
        if not sequences:
            raise TypeError
        elements = set().union(*map(_flat, typing.get_args(sequences[0])))
        return tuple(_value(elements, x) for x in value)
    if type(value) in kinds:
        return value
    if type(value) in (int, float) and kinds & {float, Any}:
        return float(value)
    raise TypeError


def _said(parameter: inspect.Parameter) -> str:
    words = {
        int: "a whole number",
        float: "a number",
        Any: "a number",
        bool: "true or false",
        str: "text in quotes",
    }
    kinds = _kinds(parameter)
    said = [word for kind, word in words.items() if kind in kinds]
    said += ["a list of numbers" for kind in kinds if typing.get_origin(kind)]
    said += (
        [f"one of {', '.join(ARGUMENTS[parameter.name])}"] if parameter.name in ARGUMENTS else []
    )
    return " or ".join(said)
