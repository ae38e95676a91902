"""A meta-training run described in a TOML file.

The file names functions of the library and gives their arguments.
Each section is a call: ``name`` picks a function, the other keys are its arguments, checked against
its signature. What one section makes is an argument of the next. Whatever is wrong is said with the
line.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

import metajax as mx
from metajax._arguments import PositiveFloat, PositiveInt, check, checked
from metajax.cli._calls import ConfigFile
from metajax.cli._names import ARGUMENTS, SECTIONS
from metajax.types import Inner, Learner, Problem, Tasks, Trainer, TrainState


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


class Data(NamedTuple):
    """The section ``[data]``.

    Attributes:
      name: of a data set.
      train: its split for training.
      validation: its split for validation; by default other tasks from the training split.
      test: its split for the test.
      few_shot: whether the splits are of classes, as those of `metajax.data.few_shot`.
      size: to so many pixels a side images are scaled.
      data_dir: the folder of data sets.
    """

    name: str
    train: str = "train"
    validation: str | None = None
    test: str = "test"
    few_shot: bool = False
    size: int | None = None
    data_dir: str | None = None


class Experiment(NamedTuple):
    """What a config describes, ready to run.

    Attributes:
      file: the config.
      run: the section ``[run]``.
      problem: what an inner optimizer minimises, None of a learner that has no such.
      tasks: where the inner loop draws from.
      learner: the inner algorithm.
      inner: the inner loop.
      trainer: the outer loop.
      data: ``(part) -> data``, the part being ``"train"``, ``"validation"`` or ``"test"``.
      keys: one for each of ``"init"``, ``"run"``, ``"validation"`` and ``"test"``.
    """

    file: ConfigFile
    run: Run
    problem: Problem | None
    tasks: Tasks
    learner: Learner
    inner: Inner
    trainer: Trainer
    data: Callable
    keys: dict[str, jax.Array]

    def meta_params(self) -> Any:
        """The meta-parameters before training."""
        with self.file.blame("learner"):
            return self.learner.meta(self.keys["init"])

    def start(self) -> tuple[TrainState, Any]:
        """Where training starts, and its data; says what does not fit together."""
        with self.file.blame("inner"):
            data = self.data("train")
            state = self.trainer.init(self.keys["run"], self.meta_params(), data)
            jax.eval_shape(self.trainer.step, state, data)
        return state, data


def experiment(path: Path, **changes: Any) -> Experiment:
    """Makes what a config describes; ``changes`` take the place of what ``[run]`` says.

    Raises:
      ConfigError: whatever is wrong with it.
    """
    file = ConfigFile(path)
    file.check_sections("data", "inner", "run")

    run = _run(file, changes)
    problem = _problem(file)
    learner = file.make_section("learner", problem=problem)
    drawn = file.make_section("tasks")
    data = _data(file, drawn)
    tasks = _augmented(file, drawn)
    inner = _inner(file, learner, tasks)
    estimator = file.make_section("estimator", inner=inner)
    trainer = mx.trainer(estimator, _optimizer(file), chunk=run.chunk)

    uses = ("init", "run", "validation", "test")
    keys = jax.random.split(jax.random.key(run.seed), len(uses))
    return Experiment(
        file,
        run,
        problem,
        tasks,
        learner,
        inner,
        trainer,
        data,
        keys=dict(zip(uses, keys, strict=True)),
    )


def _run(file: ConfigFile, changes: dict[str, Any]) -> Run:
    run = file.call("run", Run, file.section("run") | changes)
    with file.blame("run"):
        for name, value in run._asdict().items():
            if isinstance(value, int) and name != "seed":
                check(PositiveInt, **{name: value})
        if not run.out.strip():
            raise ValueError(f"out must be the name of a folder, got {run.out!r}")
    return run


def _problem(file: ConfigFile) -> Problem | None:
    section = file.section("learner")
    function = file.named("learner", SECTIONS["learner"], section)
    if "problem" in inspect.signature(function).parameters:
        return file.make_section("problem", needed_by="learner")
    file.refuse("problem", f"the learner {section['name']} has no problem")
    return None


def _data(file: ConfigFile, tasks: Tasks) -> Callable:
    if _can_draw(tasks, ()):
        file.refuse("data", f"the tasks {file.section('tasks')['name']} need no data")
        return lambda part: ()
    data = file.call("data", Data, file.section("data", needed_by="tasks"))

    def load(part):
        with file.blame(f"data.{part}"):
            return _load(data, part, tasks)

    return load


def _augmented(file: ConfigFile, tasks: Tasks) -> Tasks:
    place = "tasks.augment"
    augmentations = file.section("tasks").get("augment", [])
    if not isinstance(augmentations, list):
        file.fail(place, 'augment must be a list such as ["permute_pixels"]')
    for augmentation in augmentations:
        tasks = file.make(place, ARGUMENTS["augment"], augmentation, tasks=tasks)
    return tasks


def _inner(file: ConfigFile, learner: Learner, tasks: Tasks) -> Inner:
    return file.call(
        "inner", mx.inner, file.section("inner"), learner=learner, tasks=tasks
    )


def _optimizer(file: ConfigFile) -> optax.GradientTransformation:
    tx = file.make_section("optimizer")
    section = file.section("optimizer")
    if "clip" not in section:
        return tx
    return file.call("optimizer", _clipped, {"clip": section["clip"]}, tx=tx)


@checked
def _clipped(
    tx: optax.GradientTransformation, clip: PositiveFloat
) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(clip), tx)


def _load(data: Data, part: str, tasks: Tasks) -> Any:
    split: Any = getattr(data, part) or data.train
    if data.name == "sums":
        return mx.data.sums(split)
    if data.few_shot:
        arrays = mx.data.few_shot(data.name, split, data.data_dir)
    else:
        arrays = mx.data.load(data.name, split, data.data_dir)

    # Tasks that do not draw classes keep the labels that the data have.
    if not _can_draw(tasks, arrays):
        arrays = mx.data.by_class(arrays)
    return arrays if data.size is None else mx.data.resize(arrays, data.size)


def _can_draw(tasks: Tasks, data: Any) -> bool:
    """Whether tasks make batches of these data, or refuse them."""

    def batch(key, data):
        task = tasks.sample(key, data)
        return tasks.train(key, data, task)

    try:
        jax.eval_shape(batch, jax.random.key(0), data)
    except (TypeError, ValueError):
        return False
    return True
