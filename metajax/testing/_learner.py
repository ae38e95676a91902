"""What every learner keeps, looked at through its inner loop."""

import jax
import numpy as np
import optax

from metajax import _checks
from metajax._arguments import checked
from metajax._inner import inner as make_inner
from metajax._inner import unroll
from metajax.estimators import bptt
from metajax.evaluation import evaluate
from metajax.testing._compare import assert_close, assert_equal, assert_finite
from metajax.testing._estimator import compiled, fits_a_scan, steps_alike
from metajax.training import trainer as make_trainer
from metajax.types import Data, Inner, Learner, MetaParams, Tasks


@checked
def check_learner(
    learner: Learner,
    tasks: Tasks,
    data: Data = (),
    meta_params: MetaParams | None = None,
) -> None:
    """Checks a learner on tasks of yours, in episodes of 4 steps.

    Its state keeps structure, shapes and dtypes; a meta-gradient of backpropagation through time is
    finite and moves the meta-parameters; an unroll of 12 steps is four of 3, bit for bit; a step
    comes to the same without `jax.jit`; `metajax.evaluate` gives what a loop gives, and other
    losses for other tasks.

    Args:
      learner: what is checked.
      tasks: small ones, since all of this is compiled.
      data: handed to the tasks.
      meta_params: where meta-training begins; by default ``learner.meta(key)``.

    Raises:
      AssertionError: what does not hold.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> mx.testing.check_learner(learner, mx.tasks.quadratics(2), meta_params=0.01)
    """
    if meta_params is None:
        meta_params = learner.meta(jax.random.key(7))
    _checks.finite("meta_params", meta_params)
    _checks.finite("data", data)
    for meta_loss in ("online", "heldout"):
        if learner.meta_loss not in (None, meta_loss):
            continue
        loop = make_inner(learner, tasks, 4, meta_loss)
        trainer = compiled(make_trainer(bptt(loop, num_tasks=2), optax.adam(1e-2)))
        fits_a_scan(trainer, meta_params, data)
    steps_alike(trainer, meta_params, data)
    for check in (needs_no_jit, unrolls_in_parts, evaluates_as_a_loop):
        check(loop, meta_params, data)


def needs_no_jit(inner: Inner, meta_params: MetaParams, data: Data) -> None:
    """A step comes to the same without `jax.jit`."""
    state = inner.init(jax.random.key(0), meta_params, data)
    with jax.disable_jit():
        plain, (loss, _) = inner.step(meta_params, state, data)
    after, (same, _) = jax.jit(inner.step)(meta_params, state, data)
    what = "the learner's state and loss without jit, beside those with it,"
    assert_close(
        what, (plain.learner, loss), (after.learner, same), rtol=1e-4, atol=1e-6
    )


def unrolls_in_parts(inner: Inner, meta_params: MetaParams, data: Data) -> None:
    """An unroll of 12 steps is four of 3, bit for bit."""

    def several(state, num_steps):
        return unroll(inner, meta_params, state, data, num_steps)[0]

    run = jax.jit(several, static_argnums=1)
    whole = parts = jax.jit(inner.init)(jax.random.key(0), meta_params, data)
    whole = run(whole, 12)
    for _ in range(4):
        parts = run(parts, 3)
    assert_equal("the state after four unrolls of 3 steps", parts, whole)


def evaluates_as_a_loop(inner: Inner, meta_params: MetaParams, data: Data) -> None:
    """`metajax.evaluate` gives what a loop gives, beyond the horizon too."""
    key = jax.random.key(0)
    curves = evaluate(inner, key, meta_params, data, num_tasks=3, steps=9)
    assert curves.loss.shape == (3, 9)
    assert curves.test_loss.shape == (3,)
    assert_finite("what evaluate gives", (curves.loss, curves.test_loss))
    assert len(np.unique(curves.loss.mean(1))) == 3, "all tasks gave the same losses"

    first, *_ = jax.random.split(key, 3)
    step = jax.jit(inner.step)
    state = jax.jit(inner.init)(first, meta_params, data)
    losses = []
    for _ in range(9):
        state, (loss, _) = step(meta_params, state, data)
        losses.append(float(loss))
    what = "the losses of a loop, beside those of evaluate,"
    losses = np.asarray(losses, curves.loss.dtype)
    assert_close(what, losses, np.asarray(curves.loss[0]), rtol=2e-4, atol=1e-6)
