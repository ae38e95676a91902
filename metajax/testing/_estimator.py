"""What every estimator keeps, looked at through a trainer."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
from jax import lax

from metajax._arguments import checked
from metajax._inner import inner
from metajax.learners import l2l
from metajax.problems import quadratic
from metajax.tasks import quadratics
from metajax.testing._compare import (
    assert_alike,
    assert_close,
    assert_equal,
    assert_finite,
    assert_moved,
)
from metajax.training import trainer as make_trainer
from metajax.types import Data, Estimator, Inner, MetaParams, Trainer

_STEPS = 3


@checked
def check_estimator(make: Callable[[Inner, MetaParams], Estimator]) -> None:
    """Checks an estimator on a learning rate, meta-learned on quadratics in episodes of 4 steps.

    Its state and that of its trainer keep structure, shapes and dtypes, so that they go through
    `jax.lax.scan`; its second step is not traced again; estimates are finite, and training moves;
    steps in a scan, in a loop and without `jax.jit` come to the same.

    Args:
      make: ``(inner, meta_params) -> estimator``, for the inner loop it is given.

    Raises:
      AssertionError: what does not hold.

    >>> import metajax as mx
    >>> mx.testing.check_estimator(lambda inner, meta_params: mx.bptt(inner, num_tasks=2))
    """
    meta_params = jnp.float32(0.01)
    loop = inner(l2l(optax.sgd, quadratic()), quadratics(2), horizon=4)
    trainer = compiled(make_trainer(make(loop, meta_params), optax.adam(1e-2)))
    for check in (fits_a_scan, steps_alike, scans_as_it_loops, needs_no_jit):
        check(trainer, meta_params, ())


def compiled(trainer: Trainer) -> Trainer:
    """Checks of one trainer share what is traced and compiled."""
    return replace(trainer, init=jax.jit(trainer.init), step=jax.jit(trainer.step))


def fits_a_scan(trainer: Trainer, meta_params: MetaParams, data: Data) -> None:
    """The state is a fit carry of a scan, weak types included; nothing is compiled for that."""
    first = jax.eval_shape(trainer.init, jax.random.key(0), meta_params, data)
    scanned, metrics = jax.eval_shape(_scan(trainer), first, data)
    assert_alike("the trainer's state after some steps", scanned, first)
    like = jax.eval_shape(lambda: meta_params)
    assert_alike("state.meta_params", scanned.meta_params, like)
    assert metrics["loss"].shape == (_STEPS,), "the loss must be a scalar"


def steps_alike(trainer: Trainer, meta_params: MetaParams, data: Data) -> None:
    """One trace serves all steps, which are finite and move the meta-parameters."""
    traces = []

    @jax.jit
    def step(state, data):
        traces.append(None)
        return trainer.step(state, data)

    state = first = trainer.init(jax.random.key(0), meta_params, data)
    for _ in range(_STEPS):
        state, metrics = step(state, data)
        assert_alike("the trainer's state after a step", state, first)
        assert_finite("what a step gives", (state.meta_params, metrics))
    assert len(traces) == 1, "the second step was traced again"
    assert int(state.step) == _STEPS
    assert int(state.skipped) == 0, "a step was skipped"
    assert_moved("training", state.meta_params, first.meta_params)


def scans_as_it_loops(trainer: Trainer, meta_params: MetaParams, data: Data) -> None:
    """Steps in a scan come to the same as steps in a loop."""
    state = start = trainer.init(jax.random.key(0), meta_params, data)
    for _ in range(_STEPS):
        state, _ = trainer.step(state, data)
    scanned, _ = jax.jit(_scan(trainer))(start, data)
    what = "state.meta_params of a scan, beside those of a loop,"
    assert_close(what, scanned.meta_params, state.meta_params, rtol=1e-5)


def needs_no_jit(trainer: Trainer, meta_params: MetaParams, data: Data) -> None:
    """A step comes to the same without `jax.jit`, and twice to the same bits with it."""
    state = trainer.init(jax.random.key(0), meta_params, data)
    with jax.disable_jit():
        plain, _ = trainer.step(state, data)
    after, _ = trainer.step(state, data)
    again, _ = trainer.step(state, data)
    what = "state.meta_params without jit, beside those with it,"
    assert_close(what, plain.meta_params, after.meta_params, rtol=1e-4)
    assert_equal("the state of a step that is run again", again, after)


def _scan(trainer: Trainer) -> Callable:
    def run(state, data):
        return lax.scan(
            lambda state, _: trainer.step(state, data), state, None, length=_STEPS
        )

    return run
