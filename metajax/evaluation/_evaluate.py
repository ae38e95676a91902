"""Learning curves on fresh tasks."""

from functools import partial
from typing import Any, NamedTuple

import jax
from jax import lax

from metajax import _checks
from metajax.types import Array, Inner, InnerState, PyTree


class Curves(NamedTuple):
    """Learning curves over many tasks, as returned by `metajax.evaluate`.

    Attributes: loss: ``[num_tasks, steps]``, the loss before each step. test_loss: ``[num_tasks]``,
      the loss on each task's test batch after the last step. metrics: the learner's metrics, each
      ``[num_tasks, steps]``. state: the final inner states, each leaf with a leading axis of
      ``num_tasks``. test_metrics: the learner's metrics on each task's test batch after the last
      step, each ``[num_tasks]``.
    """

    loss: Array
    test_loss: Array
    metrics: dict[str, Array]
    state: InnerState
    test_metrics: dict[str, Array]


def evaluate(
    inner: Inner,
    key: Array,
    meta_params: PyTree,
    data: PyTree = (),
    *,
    num_tasks: int = 32,
    steps: int | None = None,
) -> Curves:
    """Learning curves on fresh tasks, past the training horizon too.

    The whole is one compiled program, cached by ``inner``, ``num_tasks`` and ``steps``. Two calls
    with one key and one ``tasks`` meet the same tasks, minibatches and initial keys, whatever the
    learner: comparisons are paired.

    Args:
      inner: the inner loop.
      key: a single typed key.
      meta_params: what is evaluated.
      data: handed to the tasks; give held-out data here.
      num_tasks: number of independent tasks.
      steps: inner steps, by default the horizon of ``inner``.

    Raises:
      TypeError, ValueError: a bad count or key, or NaN in ``data`` or ``meta_params``.

    >>> import jax, metajax as mx, optax
    >>> loop = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), horizon=10)
    >>> curves = mx.evaluate(loop, jax.random.key(0), 0.01, num_tasks=8, steps=50)
    >>> curves.loss.shape, curves.test_loss.shape
    ((8, 50), (8,))
    >>> bool(curves.loss[:, -1].mean() < curves.loss[:, 0].mean())
    True
    """
    _checks.instance(Inner, inner=inner)
    _checks.key(key)
    _checks.positive_int(num_tasks=num_tasks)
    steps = inner.horizon if steps is None else _checks.positive_int("steps", steps)
    _checks.finite("meta_params", meta_params)
    _checks.finite("data", data)
    return _evaluate(inner, num_tasks, steps, key, meta_params, data)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _evaluate(
    inner: Inner, num_tasks: int, steps: int, key: Array, meta_params: Any, data: Any
) -> Curves:
    def run(key, meta_params, data):
        state = inner.init(key, meta_params, data)
        state, (losses, metrics) = lax.scan(
            lambda s, _: inner.step(meta_params, s, data), state, None, length=steps
        )
        test_loss, test_metrics = inner.test(meta_params, state, data)
        return Curves(
            losses, test_loss, metrics, state, test_metrics
        )

    return inner.vmap(run, (0, None, None))(jax.random.split(key, num_tasks), meta_params, data)
