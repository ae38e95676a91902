"""The nouns of metajax: pure functions over pytrees, and what these pass on.

What consists of functions is a frozen dataclass: `dataclasses.replace` puts another function in the
place of one. States are NamedTuples, which JAX knows as pytrees.

Argument order is the same everywhere: ``key``, ``meta_params``, state, ``data``. Whatever is large
(``data``) is an argument and never a closure, so that it is not baked into the compiled program.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax

from metajax._vmap import vmap

__all__ = [
    "Estimate",
    "Estimator",
    "Inner",
    "InnerState",
    "LearnedOptimizer",
    "Learner",
    "Problem",
    "Tasks",
    "TrainState",
    "Trainer",
]

Array = jax.Array
PyTree = Any

# What the arguments below are.
Key = Array  # a single typed key
Data = PyTree  # arrays that tasks draw from
Task = PyTree
Batch = (
    PyTree  # of a task; may carry a "mask" [B], False for examples that do not count
)
Inputs = PyTree  # a batch without what is to be predicted
Params = PyTree
ModelState = (
    PyTree  # of a model: what it keeps and does not train, such as running statistics
)
MetaParams = PyTree
State = PyTree  # of a learner or an estimator
Metrics = dict[str, Array]  # scalars


@dataclass(frozen=True)
class Tasks:
    """A distribution over tasks; a task is a pytree of arrays.

    Attributes:
      sample: ``(key, data) -> task``.
      train: ``(key, data, task) -> batch``, what the learner adapts to, drawn anew at each step.
      test: ``(key, data, task) -> batch``, what it is judged on afterwards.

    Where a batch is a dict and has a ``mask [B]``, its examples with False do not count: tasks may
    have different numbers of them.
    """

    sample: Callable[[Key, Data], Task]
    train: Callable[[Key, Data, Task], Batch]
    test: Callable[[Key, Data, Task], Batch]


def no_predictions(*args: Any) -> Any:
    """The ``predict`` of what has none."""
    del args
    raise TypeError(
        "this learner was made of something that has no predict; give it one"
    )


@dataclass(frozen=True)
class Problem:
    """What an inner optimizer minimises: the parameters of a model and their loss on a batch.

    A model may keep a state that is not trained (running statistics), and behave in training
    (dropout) as it does not in evaluation. ``loss`` is training; ``test`` and ``predict`` are
    evaluation and change nothing. A model with neither is one line:
    `metajax.problems.stateless`.

    Attributes:
      init: ``(key, task) -> (params, model_state)``.
      loss: ``(key, params, model_state, batch) -> (loss, (metrics, model_state))``, a scalar, a
        dict of scalars and the state after the batch.
      test: ``(key, params, model_state, batch) -> (loss, metrics)``.
      predict: ``(key, params, model_state, inputs) -> outputs``.
    """

    init: Callable[[Key, Task], tuple[Params, ModelState]]
    loss: Callable[
        [Key, Params, ModelState, Batch], tuple[Array, tuple[Metrics, ModelState]]
    ]
    test: Callable[[Key, Params, ModelState, Batch], tuple[Array, Metrics]]
    predict: Callable[[Key, Params, ModelState, Inputs], PyTree] = no_predictions


def no_meta(key: Key) -> MetaParams:
    """The ``meta`` of a learner that does not know its meta-parameters."""
    del key
    raise TypeError(
        "this learner does not say how its meta-parameters begin: give its optimizer as a "
        "metajax.LearnedOptimizer, or take "
        "dataclasses.replace(learner, meta=lambda key: ...)"
    )


@dataclass(frozen=True)
class Learner:
    """An inner algorithm: anything that turns batches into better behaviour.

    Attributes:
      init: ``(key, meta_params, task) -> state``.
      step: ``(key, meta_params, state, batch) -> (state, loss, metrics)``; the loss is that of the
        prediction made *before* the batch is learned from.
      test: ``(key, meta_params, state, batch) -> (loss, metrics)``; evaluates, does not adapt.
      predict: ``(key, meta_params, state, inputs) -> outputs``, e.g. logits ``[B, C]`` of images
        ``[B, ...]``, from what was learned.
      meta: ``(key) -> meta_params``, where meta-training begins.
      steps: the number of inner steps that it is made for, None if any will do; the ``horizon`` of
        `metajax.inner` must be the same.
      meta_loss: the meta-loss that it is made for, None if either will do; so must that of
        `metajax.inner`.
    """

    init: Callable[[Key, MetaParams, Task], State]
    step: Callable[[Key, MetaParams, State, Batch], tuple[State, Array, Metrics]]
    test: Callable[[Key, MetaParams, State, Batch], tuple[Array, Metrics]]
    predict: Callable[[Key, MetaParams, State, Inputs], PyTree] = no_predictions
    meta: Callable[[Key], MetaParams] = no_meta
    steps: int | None = None
    meta_loss: Literal["online", "heldout"] | None = None


class InnerState(NamedTuple):
    """The state of one episode.

    Attributes:
      key: its own key; step ``t`` draws from ``fold_in(key, t)``.
      t: int32, the inner steps done.
      task: what it is about.
      learner: the learner's state.
    """

    key: Key
    t: Array
    task: Task
    learner: State


@dataclass(frozen=True)
class Inner:
    """A learner on a task distribution, made by `metajax.inner`.

    Attributes:
      init: ``(key, meta_params, data) -> InnerState``.
      step: ``(meta_params, state, data) -> (state, (loss, metrics))``; randomness comes from
        ``state``, whose task stays as it is.
      test: ``(meta_params, state, data) -> (loss, metrics)`` on the task's test batch.
      heldout: whether the meta-loss is that of the test batch after the last step, and not the mean
        of the losses met on the way.
      horizon: the number of inner steps in an episode, the longest if they differ.
      shortest: the number of inner steps in the shortest episode, None if all are equally long.
      vmap: ``(f, in_axes, whole=False, at_once=None) -> f`` over a leading axis of episodes or of
        population members: `jax.vmap`, unless `metajax.sharding.split` put one in its place that
        divides the axis over devices, or `metajax.sharding.in_turns` one that runs a few at a time.
        What ``f`` needs is among its arguments: it closes over no traced value.
    """

    init: Callable[[Key, MetaParams, Data], InnerState]
    step: Callable[
        [MetaParams, InnerState, Data], tuple[InnerState, tuple[Array, Metrics]]
    ]
    test: Callable[[MetaParams, InnerState, Data], tuple[Array, Metrics]]
    heldout: bool
    horizon: int
    shortest: int | None = None
    vmap: Callable[..., Callable] = vmap


class Estimate(NamedTuple):
    """What an estimator gives.

    Attributes:
      updates: a meta-gradient, or a descent direction: a tree like ``meta_params``, with None in
        the place of what is not floating-point.
      loss: the meta-loss.
      metrics: scalars.
    """

    updates: PyTree
    loss: Array
    metrics: Metrics


@dataclass(frozen=True)
class Estimator:
    """A way of differentiating an unrolled inner loop.

    Attributes:
      init: ``(key, meta_params, data) -> state``.
      estimate: ``(key, meta_params, state, data) -> (Estimate, state)``.
      inner: the inner loop that is run, if it is one: through it the data can be looked at without
        tracing an estimate.
    """

    init: Callable[[Key, MetaParams, Data], State]
    estimate: Callable[[Key, MetaParams, State, Data], tuple[Estimate, State]]
    inner: Inner | None = None


class TrainState(NamedTuple):
    """All that a meta-training run is: save it and the run can go on from there.

    Attributes:
      key: the run's key; step ``i`` uses ``fold_in(key, i)``.
      step: int32, meta-steps done.
      meta_params: what is being learned.
      opt_state: state of the outer optax transformation.
      estimator: state of the estimator.
      skipped: int32, steps *in a row* whose meta-gradient was not finite and was therefore not
        applied.
    """

    key: Array
    step: Array
    meta_params: PyTree
    opt_state: PyTree
    estimator: PyTree
    skipped: Array


@dataclass(frozen=True)
class Trainer:
    """An estimator joined to an optax transformation, made by `metajax.trainer`.

    Attributes:
      init: ``(key, meta_params, data) -> TrainState``.
      step: ``(state, data) -> (TrainState, metrics)``, one meta-step.
      run: ``(state, data, n) -> (TrainState, metrics)``, ``n`` meta-steps in one compiled call, at
        most ``chunk``. It ends early after ``max_skipped`` skipped steps in a row. Each metric is
        a buffer ``[chunk, ...]`` that begins with the steps taken. The state's buffers are
        donated, so the state that goes in cannot be used afterwards.
      chunk: the most meta-steps that one call of ``run`` takes.
      max_skipped: how many skipped steps in a row end a run.
    """

    init: Callable[..., TrainState]
    step: Callable[..., tuple[TrainState, Metrics]]
    run: Callable[[TrainState, Data, int], tuple[TrainState, Metrics]]
    chunk: int
    max_skipped: int


@dataclass(frozen=True)
class LearnedOptimizer:
    """An optimizer with parameters of its own.

    Attributes:
      init: ``(key) -> meta_params``.
      tx: ``(meta_params) -> optax.GradientTransformation``.
    """

    init: Callable[[Key], MetaParams]
    tx: Callable[[MetaParams], Any]
