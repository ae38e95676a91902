"""The five nouns of metajax, each a NamedTuple of pure functions over pytrees.

Argument order is the same everywhere: ``key``, ``meta_params``, state, ``data``. Whatever is large
(``data``) is an argument and never a closure, so that it is not baked into the compiled program.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

__all__ = [
    "Estimate",
    "Estimator",
    "InContext",
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


class Tasks(NamedTuple):
    """A distribution over tasks; a task is a pytree of arrays.

    Attributes:
      sample: ``(key, data) -> task``.
      train: ``(key, data, task, t) -> batch``, what the learner adapts to at inner step ``t``.
      test: ``(key, data, task) -> batch``, what it is judged on afterwards.
    """

    sample: Callable[..., PyTree]
    train: Callable[..., PyTree]
    test: Callable[..., PyTree]


class Problem(NamedTuple):
    """What an inner optimizer minimises: parameters and a loss on batches.

    Attributes:
      init: ``(key, task) -> params``.
      loss: ``(key, params, batch) -> (loss, metrics)``, a scalar and a dict of scalars.
    """

    init: Callable[..., PyTree]
    loss: Callable[..., tuple[Array, dict[str, Array]]]


def no_metrics(*args: Any) -> dict[str, Array]:
    """The ``metrics`` of what has none."""
    del args
    return {}


class Learner(NamedTuple):
    """An inner algorithm: anything that turns batches into better behaviour.

    Attributes: init: ``(key, meta_params, task) -> state``. step: ``(key, meta_params, state,
      batch) -> (state, loss, metrics)``; the loss is that of the prediction made *before* the batch
      is learned from. loss: ``(key, meta_params, state, batch) -> loss``; evaluates and does not
      adapt. metrics: ``(key, meta_params, state, batch) -> metrics``, a dict of scalars that go
      with that loss, such as the accuracy; empty by default.
    """

    init: Callable[..., PyTree]
    step: Callable[..., tuple[PyTree, Array, dict[str, Array]]]
    loss: Callable[..., Array]
    metrics: Callable[..., dict[str, Array]] = no_metrics


class InnerState(NamedTuple):
    """The state of one episode: its own key, the inner step ``t`` (int32), the task and the
    learner's state.
    """

    key: Array
    t: Array
    task: PyTree
    learner: PyTree


def vmap(f: Callable, in_axes: Any = 0, *, whole: bool = False) -> Callable:
    """`jax.vmap` over episodes; ``whole`` asks for all results on every device, should they be
    divided over several.
    """
    del whole
    return jax.vmap(f, in_axes)


class Inner(NamedTuple):
    """A learner on a task distribution, made by `metajax.inner`.

    Attributes: init: ``(key, meta_params, data) -> InnerState``. step: ``(meta_params, state, data)
      -> (state, (loss, metrics))``; randomness comes from ``state``. loss: ``(meta_params, state,
      data) -> loss`` on the task's test batch, or None where the meta-loss is the mean of the
      losses met on the way. test: ``(meta_params, state, data) -> loss`` on the task's test batch,
      whatever the meta-loss is. horizon: the number of inner steps in an episode, the longest if
      they differ. shortest: the number of inner steps in the shortest episode, or None if all are
      equally long. vmap: ``(f, in_axes, whole=False) -> f`` over a leading axis of episodes or of
      population members, `jax.vmap` unless `metajax.sharding.split` put one in its place that
      divides the axis over devices. What ``f`` needs is among its arguments; it closes over no
      traced value. test_metrics: ``(meta_params, state, data) -> metrics`` on the task's test
      batch.
    """

    init: Callable[..., InnerState]
    step: Callable[..., tuple[InnerState, tuple[Array, dict[str, Array]]]]
    loss: Callable[..., Array] | None
    test: Callable[..., Array]
    horizon: int
    shortest: int | None = None
    vmap: Callable[..., Any] = vmap
    test_metrics: Callable[..., dict[str, Array]] = no_metrics


class Estimate(NamedTuple):
    """A meta-gradient (or descent direction) as a pytree like ``meta_params``, the meta-loss and
    scalar metrics.
    """

    updates: PyTree
    loss: Array
    metrics: dict[str, Array]


class Estimator(NamedTuple):
    """A way of differentiating an unrolled inner loop.

    Attributes:
      init: ``(key, meta_params, data) -> state``.
      estimate: ``(key, meta_params, state, data) -> (Estimate, state)``.
    """

    init: Callable[..., PyTree]
    estimate: Callable[..., tuple[Estimate, PyTree]]


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


class Trainer(NamedTuple):
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
    step: Callable[..., tuple[TrainState, dict[str, Array]]]
    run: Callable[..., tuple[TrainState, dict[str, Array]]]
    chunk: int
    max_skipped: int


class LearnedOptimizer(NamedTuple):
    """An optimizer with parameters of its own.

    Attributes:
      init: ``(key) -> meta_params``.
      tx: ``(meta_params) -> optax.GradientTransformation``.
    """

    init: Callable[..., PyTree]
    tx: Callable[..., Any]


class InContext(NamedTuple):
    """A learner that learns in its own activations, not by gradients, and the meta-parameters it
    learns with.

    Its batches are ``{"image": [B, ...], "label": [B]}``, usually ``B = 1``: each step predicts
    first, then takes the label in. Its loss is the mean cross-entropy, in nats, of the prediction
    made before the label was seen, its metric ``accuracy``; ``learner.loss`` predicts every example
    of a batch from the one state and changes nothing.

    Attributes:
      init: ``(key) -> meta_params``.
      learner: the inner algorithm that runs with them.
    """

    init: Callable[..., PyTree]
    learner: Learner
