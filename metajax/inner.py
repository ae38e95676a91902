"""The inner loop: a learner on a task, unrolled."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metajax import checks
from metajax.types import Array, Inner, InnerState, Learner, PyTree, Tasks

_TEST = 2**31 - 1  # the fold_in tag of the test batch: no inner step reaches it


def inner(learner: Learner, tasks: Tasks, horizon: int | tuple[int, int], meta_loss: str = "online") -> Inner:
    """Joins a learner and a task distribution into episodes of ``horizon`` steps.

    The episode's key lives in its state and step ``t`` draws from ``fold_in(key, t)``, so that an unroll of 12 steps
    equals four of 3 bit for bit, and two episodes started from one key meet the same data whatever their parameters.

    Args:
      learner: the inner algorithm.
      tasks: where tasks and batches come from.
      horizon: inner steps in an episode; or ``(shortest, longest)``, and truncated estimators draw each episode's
        length log-uniformly between them, rounded up to whole windows, so that early steps weigh more and episodes
        are met at all phases. What runs whole episodes (`evaluate`, or an estimator without ``truncation``) takes the
        longest.
      meta_loss: ``"online"``, the mean of the losses met during adaptation, or ``"heldout"``, the loss on the task's
        test batch after it.

    Raises:
      TypeError, ValueError: an argument of another type, a horizon below 1, lengths that are not in order or come
        with a held-out meta-loss, or an unknown ``meta_loss``.

    >>> import jax, metajax as mx, optax
    >>> loop = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), horizon=10)
    >>> state = loop.init(jax.random.key(0), 0.1, ())
    >>> state, loss, metrics = mx.unroll(loop, 0.1, state, (), length=10)
    >>> int(state.t), loss.shape
    (10, ())
    """
    checks.instance("learner", learner, Learner, "metajax.l2l or another learner")
    checks.instance("tasks", tasks, Tasks, "metajax.tasks")
    shortest, longest = _lengths(horizon)
    if meta_loss not in ("online", "heldout"):
        raise ValueError(f"meta_loss must be 'online' or 'heldout', got {meta_loss!r}")
    if shortest is not None and meta_loss == "heldout":
        raise ValueError(
            "horizon may be a pair (shortest, longest) only with the meta-loss 'online', since it takes effect between "
            "the windows of a truncated estimator; give one int, or meta_loss='online'"
        )

    def init(key, meta_params, data):
        checks.key(key)
        k_task, k_init, key = jax.random.split(key, 3)
        task = tasks.sample(k_task, data)
        return InnerState(key, jnp.int32(0), task, learner.init(k_init, meta_params, task))

    def step(meta_params, state, data):
        k_data, k_step = jax.random.split(jax.random.fold_in(state.key, state.t))
        batch = tasks.train(k_data, data, state.task, state.t)
        result = learner.step(k_step, meta_params, state.learner, batch)
        checks.returned("learner.step", result, "state, loss, metrics")
        new, loss, metrics = result
        checks.scalar("the loss returned by learner.step", loss)
        checks.metrics("learner.step", metrics)
        checks.same_structure("the state returned by learner.step", new, state.learner, "the state it was given")
        return state._replace(t=state.t + 1, learner=new), (loss, metrics)

    def on_test(f, meta_params, state, data):
        k_data, k_loss = jax.random.split(jax.random.fold_in(state.key, _TEST))
        return f(k_loss, meta_params, state.learner, tasks.test(k_data, data, state.task))

    def test(meta_params, state, data):
        loss = on_test(learner.loss, meta_params, state, data)
        checks.scalar("the loss returned by learner.loss", loss)
        return loss

    heldout = test if meta_loss == "heldout" else None

    def test_metrics(meta_params, state, data):
        metrics = on_test(learner.metrics, meta_params, state, data)
        checks.metrics("learner.metrics", metrics)
        return metrics

    return Inner(init, step, heldout, test, longest, shortest, test_metrics=test_metrics)


def _lengths(horizon: int | tuple[int, int]) -> tuple[int | None, int]:
    if not isinstance(horizon, tuple):
        return None, checks.positive_int("horizon", horizon)
    if len(horizon) != 2:
        raise ValueError(f"horizon must be an int or a pair (shortest, longest), got {horizon}")
    shortest, longest = (checks.positive_int("horizon", steps) for steps in horizon)
    if shortest > longest:
        raise ValueError(f"horizon must be a pair (shortest, longest), got {horizon}; swap them")
    return shortest, longest


def unroll(
    inner: Inner, meta_params: PyTree, state: InnerState, data: PyTree, length: int, remat: bool = False
) -> tuple[InnerState, Array, dict[str, Array]]:
    """Runs ``length`` inner steps; returns the state, the meta-loss and the metrics averaged over the steps.

    Where the meta-loss is held out, the metrics on the test batch are there too, as ``test_<name>``.

    Args:
      inner: the inner loop.
      meta_params: what it is run with.
      state: where it starts.
      data: handed to the tasks.
      length: inner steps.
      remat: recompute each step in the backward pass instead of storing what it made (Griewank & Walther 2000): the
        memory of reverse mode becomes one learner state a step.

    >>> import jax, metajax as mx, optax
    >>> loop = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), horizon=4)
    >>> state = loop.init(jax.random.key(0), 0.1, ())
    >>> state, loss, metrics = mx.unroll(loop, 0.1, state, (), length=4)
    """
    length = checks.positive_int("length", length)

    def body(state, _):
        return inner.step(meta_params, state, data)

    remat = remat and length > 1  # a single step would be run twice, and save nothing
    state, (losses, metrics) = lax.scan(jax.checkpoint(body) if remat else body, state, None, length=length)
    metrics = jax.tree.map(lambda x: x.mean(), metrics)
    if inner.loss is None:
        return state, losses.mean(), metrics
    tested = {f"test_{name}": x for name, x in inner.test_metrics(meta_params, state, data).items()}
    return state, inner.loss(meta_params, state, data), metrics | tested


class Curves(NamedTuple):
    """Learning curves over many tasks, as returned by `metajax.evaluate`.

    Attributes:
      loss: ``[num_tasks, steps]``, the loss before each step.
      test_loss: ``[num_tasks]``, the loss on each task's test batch after the last step.
      metrics: the learner's metrics, each ``[num_tasks, steps]``.
      state: the final inner states, each leaf with a leading axis of ``num_tasks``.
      test_metrics: the learner's metrics on each task's test batch after the last step, each ``[num_tasks]``.
    """

    loss: Array
    test_loss: Array
    metrics: dict[str, Array]
    state: InnerState
    test_metrics: dict[str, Array]


def evaluate(
    inner: Inner, key: Array, meta_params: PyTree, data: PyTree = (), *, num_tasks: int = 32, steps: int | None = None
) -> Curves:
    """Learning curves on fresh tasks, past the training horizon too.

    The whole is one compiled program, cached by ``inner``, ``num_tasks`` and ``steps``. Two calls with one key and one
    ``tasks`` meet the same tasks, minibatches and initial keys, whatever the learner: comparisons are paired.

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
    checks.instance("inner", inner, Inner, "metajax.inner")
    checks.key(key)
    num_tasks = checks.positive_int("num_tasks", num_tasks)
    steps = inner.horizon if steps is None else checks.positive_int("steps", steps)
    checks.finite("meta_params", meta_params)
    checks.finite("data", data)
    return _evaluate(inner, num_tasks, steps, key, meta_params, data)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _evaluate(inner: Inner, num_tasks: int, steps: int, key: Array, meta_params: Any, data: Any) -> Curves:
    def run(key, meta_params, data):
        state = inner.init(key, meta_params, data)
        state, (losses, metrics) = lax.scan(lambda s, _: inner.step(meta_params, s, data), state, None, length=steps)
        test_loss = inner.test(meta_params, state, data)
        return Curves(losses, test_loss, metrics, state, inner.test_metrics(meta_params, state, data))

    return inner.vmap(run, (0, None, None))(jax.random.split(key, num_tasks), meta_params, data)
