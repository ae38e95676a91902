"""The inner loop: a learner on a task, unrolled."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from metajax import _checks
from metajax._arguments import PositiveInt, check, checked
from metajax.types import Array, Inner, InnerState, Learner, Metrics, PyTree, Tasks

_TEST = 2**31 - 1  # the fold_in tag of the test batch: no inner step reaches it


@checked
def inner(
    learner: Learner,
    tasks: Tasks,
    horizon: int | tuple[int, int],
    meta_loss: Literal["online", "heldout"] = "online",
) -> Inner:
    """Joins a learner and a task distribution into episodes of ``horizon`` steps.

    The episode's key lives in its state and step ``t`` draws from ``fold_in(key, t)``, so that an
    unroll of 12 steps equals four of 3 bit for bit, and two episodes started from one key meet the
    same data whatever their parameters.

    Args:
      learner: the inner algorithm.
      tasks: where tasks and batches come from.
      horizon: inner steps in an episode; or ``(shortest, longest)``, and truncated estimators draw
        each episode's length log-uniformly between them, rounded up to whole windows, so that early
        steps weigh more and episodes are met at all phases. What runs whole episodes (`evaluate`,
        or an estimator without ``truncation``) takes the longest.
      meta_loss: ``"online"``, the mean of the losses met during adaptation, or ``"heldout"``, the
        loss on the task's test batch after it.

    Raises:
      ValueError: lengths out of order, or a pair of them with a held-out meta-loss.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=10)
    >>> state = loop.init(jax.random.key(0), 0.1, ())
    >>> state, loss, metrics = mx.unroll(loop, 0.1, state, (), length=10)
    >>> int(state.t), loss.shape
    (10, ())
    """
    heldout = meta_loss == "heldout"
    shortest, longest = _lengths(horizon)
    if shortest is not None and heldout:
        raise ValueError(
            "horizon may be a pair (shortest, longest) only with the meta-loss 'online', since it "
            "takes effect between the windows of a truncated estimator; give one int, or "
            "meta_loss='online'"
        )

    def init(key, meta_params, data):
        _checks.key(key)
        k_task, k_init, key = jax.random.split(key, 3)
        task = tasks.sample(k_task, data)
        state = learner.init(k_init, meta_params, task)
        return InnerState(key, jnp.int32(0), task, state)

    def step(meta_params, state, data):
        k_data, k_step = jax.random.split(jax.random.fold_in(state.key, state.t))
        batch = tasks.train(k_data, data, state.task)
        result = learner.step(k_step, meta_params, state.learner, batch)

        _checks.returned("learner.step", result, "state, loss, metrics")
        new, loss, metrics = result
        _checks.loss_and_metrics("learner.step", loss, metrics)
        _checks.same_structure(
            "the state returned by learner.step",
            new,
            state.learner,
            "the state it was given",
        )
        return state._replace(t=state.t + 1, learner=new), (loss, metrics)

    def test(meta_params, state, data):
        k_data, k_test = jax.random.split(jax.random.fold_in(state.key, _TEST))
        batch = tasks.test(k_data, data, state.task)
        result = learner.test(k_test, meta_params, state.learner, batch)

        _checks.returned("learner.test", result, "loss, metrics")
        loss, metrics = result
        _checks.loss_and_metrics("learner.test", loss, metrics)
        return loss, metrics

    return Inner(init, step, test, heldout, longest, shortest)


def _lengths(horizon: int | tuple[int, int]) -> tuple[int | None, int]:
    """The shortest length, None if there is but one, and the longest."""
    if isinstance(horizon, tuple):
        return _checks.increasing_pair("horizon", horizon, like=(10, 100))
    check(PositiveInt, horizon=horizon)
    return None, horizon


@checked
def unroll(
    inner: Inner,
    meta_params: PyTree,
    state: InnerState,
    data: PyTree,
    length: PositiveInt,
    remat: bool = False,
) -> tuple[InnerState, Array, Metrics]:
    """Runs ``length`` inner steps; returns the state, the meta-loss and the mean metrics.

    Where the meta-loss is held out, the metrics on the test batch are there too, as
    ``test_<name>``.

    Args:
      inner: the inner loop.
      meta_params: what it is run with.
      state: where it starts.
      data: handed to the tasks.
      length: inner steps.
      remat: recompute each step in the backward pass instead of storing what it made (Griewank &
        Walther 2000): the memory of reverse mode becomes one learner state a step.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=4)
    >>> state = loop.init(jax.random.key(0), 0.1, ())
    >>> state, loss, metrics = mx.unroll(loop, 0.1, state, (), length=4)
    """
    _checks.arrays("meta_params", meta_params)
    _checks.arrays("data", data)

    def body(state, _):
        return inner.step(meta_params, state, data)

    if remat and length > 1:  # a single step would be run twice, and save nothing
        body = jax.checkpoint(body)
    state, (losses, metrics) = lax.scan(body, state, None, length=length)
    metrics = jax.tree.map(jnp.mean, metrics)
    if not inner.heldout:
        return state, losses.mean(), metrics

    loss, tested = inner.test(meta_params, state, data)
    metrics |= {f"test_{name}": x for name, x in tested.items()}
    return state, loss, metrics
