"""Learning curves on fresh tasks."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from jax import lax

from metajax import _checks
from metajax._arguments import PositiveInt, checked
from metajax._rehearsal import Rehearsal, run_episode
from metajax.types import Array, Inner, InnerState, PyTree


class Curves(NamedTuple):
    """Learning curves over many tasks, as returned by `metajax.evaluate`.

    Attributes:
      loss: ``[num_tasks, steps]``, the loss before each step.
      test_loss: ``[num_tasks]``, the loss on each task's test batch after the last step.
      metrics: the learner's metrics, each ``[num_tasks, steps]``.
      state: the final inner states, each leaf with a leading axis of ``num_tasks``.
      test_metrics: the learner's metrics on each task's test batch after the last step, each
        ``[num_tasks]``.
    """

    loss: Array
    test_loss: Array
    metrics: dict[str, Array]
    state: InnerState
    test_metrics: dict[str, Array]


@checked
def evaluate(
    inner: Inner,
    key: Array,
    meta_params: PyTree,
    data: PyTree = (),
    *,
    num_tasks: PositiveInt = 32,
    steps: PositiveInt | None = None,
    at_once: PositiveInt | None = None,
) -> Curves:
    """Learning curves on fresh tasks, past the training horizon too.

    All tasks run in one compiled program, which is kept, as long as ``inner`` is, for the next call
    with the same ``inner``, ``num_tasks`` and ``steps``; an equal loop that is made anew has to be
    compiled anew. Two calls with one key and one ``tasks`` meet the same tasks,
    minibatches and initial keys, whatever the learner: comparisons are paired.

    Args:
      inner: the inner loop.
      key: a single typed key.
      meta_params: what is evaluated.
      data: handed to the tasks; give held-out data here.
      num_tasks: number of independent tasks.
      steps: inner steps, by default the horizon of ``inner``.
      at_once: how many tasks run side by side, where all of them would not fit into memory; see
        `metajax.sharding.in_turns`, which does the same for estimators.

    Raises:
      ValueError: NaN or infinity in ``data`` or ``meta_params``; data that the tasks cannot use,
        or labels that the learner has no output for; or a bad count.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=10)
    >>> curves = mx.evaluate(loop, jax.random.key(0), 0.01, num_tasks=8, steps=50)
    >>> curves.loss.shape, curves.test_loss.shape
    ((8, 50), (8,))
    >>> bool(curves.loss[:, -1].mean() < curves.loss[:, 0].mean())
    True
    """
    if steps is None:
        steps = inner.horizon
    _checks.finite("meta_params", meta_params)
    _checks.finite("data", data)

    run = _compiled(inner, num_tasks, steps, at_once)
    return run(key, meta_params, data)


def _compiled(
    inner: Inner, num_tasks: int, steps: int, at_once: int | None
) -> Callable[..., Curves]:
    """The program for such a call, made once for each inner loop.

    It lives with the loop and goes with it: in one cache for all, the programs of a sweep would
    fill the memory.
    """
    programs = getattr(inner.step, "programs", None)
    if programs is None:
        programs = {}
        with contextlib.suppress(AttributeError):  # a method cannot hold any
            inner.step.programs = programs  # pyright: ignore[reportFunctionMemberAccess]
    call = (inner, num_tasks, steps, at_once)
    if call not in programs:
        programs[call] = _program(*call)
    return programs[call]


def _program(
    inner: Inner, num_tasks: int, steps: int, at_once: int | None
) -> Callable[..., Curves]:
    # An inner loop may be in turns already.
    turns = {} if at_once is None else {"at_once": at_once}

    def episode(key, meta_params, data):
        def step(state, _):
            return inner.step(meta_params, state, data)

        start = inner.init(key, meta_params, data)
        state, (losses, metrics) = lax.scan(step, start, None, length=steps)
        test_loss, test_metrics = inner.test(meta_params, state, data)
        return Curves(losses, test_loss, metrics, state, test_metrics)

    rehearse = Rehearsal(partial(run_episode, inner))

    def run(key, meta_params, data):
        rehearse(key, meta_params, data=data)
        return episodes(key, meta_params, data)

    @jax.jit
    def episodes(key, meta_params, data):
        keys = jax.random.split(key, num_tasks)
        run_all = inner.vmap(episode, (0, None, None), **turns)
        return run_all(keys, meta_params, data)

    return run
