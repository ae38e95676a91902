"""What users check their own learners and estimators with finds what is wrong with them."""

from dataclasses import replace

import jax.numpy as jnp
import optax
import pytest

import metajax as mx

LEARNER = mx.l2l(optax.sgd, mx.problems.quadratic())
TASKS = mx.tasks.quadratics(2)


def learner_with(step):
    """A learner that does after each step of gradient descent what ``step`` says."""

    def both(key, meta_params, state, batch):
        return step(*LEARNER.step(key, meta_params, state, batch))

    return replace(LEARNER, step=both)


class Counts:
    """Something that changes from call to call, as no pure function does."""

    def __init__(self):
        self.calls = 0

    def __call__(self, state, loss, metrics):
        self.calls += 1
        return state, self.calls * loss, metrics


FAULTY_LEARNERS = {
    "a state that changes its dtype": (
        lambda state, loss, metrics: (
            state._replace(params=state.params.astype(jnp.float16)),
            loss,
            metrics,
        ),
        "params.*float32",
    ),
    "a NaN": (
        lambda state, loss, metrics: (state, loss * jnp.nan, metrics),
        "skipped|finite",
    ),
    "the same losses for all": (
        lambda state, loss, metrics: (state, 0 * loss, metrics),
        "moved nothing|same losses",
    ),
    "memory outside of its state": (Counts(), "beside"),
}


@pytest.mark.parametrize("case", FAULTY_LEARNERS)
@pytest.mark.slow
def test_a_learner_with_a_mistake(case):
    step, message = FAULTY_LEARNERS[case]
    with pytest.raises((AssertionError, ValueError), match=message):
        mx.testing.check_learner(
            learner_with(step), TASKS, meta_params=jnp.float32(0.01)
        )


def estimator_with(change):
    """Backpropagation through time that gives what ``change`` makes of its estimate and state."""

    def make(inner, meta_params):
        estimator = mx.bptt(inner, 2)

        def estimate(key, meta_params, state, data):
            return change(*estimator.estimate(key, meta_params, state, data))

        return mx.Estimator(estimator.init, estimate)

    return make


FAULTY_ESTIMATORS = {
    "a state of another kind": (
        lambda estimate, state: (estimate, (state, jnp.zeros(2))),
        "the trainer's state after|carry|structure",
    ),
    "no gradient": (
        lambda estimate, state: (estimate._replace(updates=jnp.zeros(())), state),
        "training moved nothing",
    ),
    "a gradient that is not finite": (
        lambda estimate, state: (
            estimate._replace(updates=jnp.float32(jnp.nan)),
            state,
        ),
        "a step was skipped|finite",
    ),
}


@pytest.mark.parametrize("case", FAULTY_ESTIMATORS)
@pytest.mark.slow
def test_an_estimator_with_a_mistake(case):
    change, message = FAULTY_ESTIMATORS[case]
    with pytest.raises((AssertionError, ValueError, TypeError), match=message):
        mx.testing.check_estimator(estimator_with(change))
