"""The inner loop: a learner on a task, unrolled."""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from metajax import _binomial, _checks
from metajax._arguments import PositiveInt, check, checked
from metajax._losses import at_least_float32
from metajax._trees import clone_keys
from metajax.types import Array, Inner, InnerState, Learner, Metrics, PyTree, Tasks

Remat = bool | Literal["nested"] | int
INNER_GRADIENT = "inner_gradient"  # the name of what a rematerialised step keeps

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
      ValueError: lengths out of order, a pair of them with a held-out meta-loss, or another length
        or meta-loss than a learner is made for.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=10)
    >>> state = loop.init(jax.random.key(0), 0.1, ())
    >>> state, loss, metrics = mx.unroll(loop, 0.1, state, (), length=10)
    >>> int(state.t), loss.shape
    (10, ())
    """
    _check_signatures(learner, tasks)
    heldout = meta_loss == "heldout"
    shortest, longest = _lengths(horizon)
    if shortest is not None and heldout:
        raise ValueError(
            "horizon may be a pair (shortest, longest) only with the meta-loss 'online', since it "
            "takes effect between the windows of a truncated estimator; give one int, or "
            "meta_loss='online'"
        )

    _check_steps(learner, horizon)
    _check_meta_loss(learner, meta_loss)

    def init(key, meta_params, data):
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
        reported = at_least_float32((loss, metrics))
        return state._replace(t=state.t + 1, learner=new), reported

    def test(meta_params, state, data):
        k_data, k_test = jax.random.split(jax.random.fold_in(state.key, _TEST))
        batch = tasks.test(k_data, data, state.task)
        result = learner.test(k_test, meta_params, state.learner, batch)

        _checks.returned("learner.test", result, "loss, metrics")
        loss, metrics = result
        _checks.loss_and_metrics("learner.test", loss, metrics)
        return at_least_float32((loss, metrics))

    return Inner(init, step, test, heldout, longest, shortest)


def _check_steps(learner: Learner, horizon: int | tuple[int, int]) -> None:
    if learner.steps is not None and horizon != learner.steps:
        raise ValueError(
            f"horizon must be {learner.steps}, the steps that learner is made for (its weights or "
            f"rates are one a step), got {horizon}; make the learner for another number, or give "
            f"evaluate other steps"
        )


def _check_meta_loss(learner: Learner, meta_loss: str) -> None:
    if learner.meta_loss not in (None, meta_loss):
        raise ValueError(
            f"meta_loss must be {learner.meta_loss!r}, which learner is made for, got "
            f"{meta_loss!r}; one that weighs its steps is judged by the last alone with the "
            f"weights metajax.step_weights(steps, 1.0)"
        )


def _check_signatures(learner: Learner, tasks: Tasks) -> None:
    _checks.takes("tasks.sample", tasks.sample, "key, data")
    _checks.takes("tasks.train", tasks.train, "key, data, task")
    _checks.takes("tasks.test", tasks.test, "key, data, task")
    _checks.takes("learner.init", learner.init, "key, meta_params, task")
    _checks.takes("learner.step", learner.step, "key, meta_params, state, batch")
    _checks.takes("learner.test", learner.test, "key, meta_params, state, batch")


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
    remat: Remat = False,
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
      remat: what the backward pass makes anew instead of storing it (Griewank & Walther 2000). With
        False, nothing. With True a learner state is kept for each step, and the gradient in it
        where updates depend on that. ``"nested"`` keeps about ``2 sqrt(length)`` states, for one
        more pass over the steps. A number, at most so many states beside the one at work, for the
        fewest steps that this allows (binomial checkpointing): with 10 states, 66 steps take one
        more pass, 286 two. It takes reverse mode, once.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=4)
    >>> state = loop.init(jax.random.key(0), 0.1, ())
    >>> state, loss, metrics = mx.unroll(loop, 0.1, state, (), length=4)
    """
    check_remat(remat)
    _checks.arrays("meta_params", meta_params)
    _checks.arrays("data", data)

    # A step leaves the task of its episode as it is: the loop does not carry it.
    def body(carried, _):
        key, t, learner = carried
        before = InnerState(key, t, state.task, learner)
        after, found = inner.step(meta_params, before, data)
        return (after.key, after.t, after.learner), found

    carried = (state.key, state.t, state.learner)
    carried, (losses, metrics) = _scan(body, carried, length, remat)
    key, t, learner = carried
    state = InnerState(key, t, state.task, learner)
    metrics = jax.tree.map(jnp.mean, metrics)
    if not inner.heldout:
        return state, losses.mean(), metrics

    loss, tested = inner.test(meta_params, state, data)
    metrics |= {f"test_{name}": x for name, x in tested.items()}
    return state, loss, metrics


def _scan(
    body: Callable[[PyTree, None], tuple[PyTree, PyTree]],
    state: PyTree,
    length: int,
    remat: Remat,
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan`, whose backward pass makes anew what it does not keep."""
    # A single step would be run twice, and save nothing.
    if remat is False or length == 1:
        return lax.scan(body, state, None, length=length)

    keep_gradients = jax.checkpoint_policies.save_only_these_names(INNER_GRADIENT)
    step = jax.checkpoint(body, policy=keep_gradients)
    if remat is True:
        return lax.scan(step, state, None, length=length)
    if remat == "nested":
        return _nested_scan(step, state, length)

    return _binomial.scan(body, state, length, remat)


def _nested_scan(step: Callable, state: PyTree, length: int) -> tuple[PyTree, PyTree]:
    """A scan over blocks of steps: their first states are kept, then those in the one at work."""
    in_block = math.ceil(length**0.5)
    num_blocks, rest = divmod(length, in_block)
    run = jax.checkpoint(
        lambda state, length: lax.scan(step, state, None, length=length),
        static_argnums=1,
    )

    def block(state, _):
        state, found = run(state, in_block)
        return clone_keys(state), found

    state, found = lax.scan(block, state, None, length=num_blocks)
    found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
    if rest:
        state, last = run(state, rest)
        found = jax.tree.map(lambda *x: jnp.concatenate(x), found, last)
    return state, found


def check_remat(remat: Remat) -> None:
    """True, False, ``"nested"`` or a number of states."""
    if isinstance(remat, bool) or (isinstance(remat, str) and remat == "nested"):
        return
    if not isinstance(remat, int):
        raise TypeError(
            f"remat must be True, False, 'nested' or a number of states, got {remat!r}"
        )
    check(PositiveInt, remat=remat)
