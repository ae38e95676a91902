"""Estimators that go forward with the episode, against backpropagation through all of it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import metajax as mx

ESTIMATORS = {
    "rtrl": lambda inner, _: mx.rtrl(inner, 3, 2),
    "uoro": lambda inner, _: mx.uoro(inner, 3, 2),
    "forward_gradient": lambda inner, _: mx.forward_gradient(inner, 3, 2),
}
WINDOWS = 3


def learned_momentum():
    """Two meta-parameters, whose influence grows from step to step."""

    def init(key):
        return {"rate": jnp.asarray(0.05), "decay": jnp.asarray(0.7)}

    def tx(m):
        return optax.sgd(m["rate"], m["decay"])

    return mx.LearnedOptimizer(init, tx)


LEARNER = mx.l2l(learned_momentum(), mx.problems.quadratic(), second_order=True)
LOOP = mx.inner(LEARNER, mx.tasks.quadratics(2), 2 * WINDOWS)


def estimates(estimator, key, num_estimates=WINDOWS):
    """The updates ``[num_estimates, 2]`` of consecutive windows, of episodes that begin with it."""
    meta_params = jax.tree.map(lambda x: x.astype(float), LEARNER.meta(key))
    state = estimator.init(key, meta_params, ())
    keys = jax.random.split(jax.random.fold_in(key, 1), num_estimates)

    def step(state, key):
        estimate, state = estimator.estimate(key, meta_params, state, ())
        return state, ravel_pytree(estimate.updates)[0]

    return jax.lax.scan(step, state, keys)[1]


@pytest.mark.slow
def test_the_windows_of_rtrl_have_the_gradient_of_the_episode(x64, key):
    """Of two episodes, the second of which begins within the state of the first."""
    online = jax.jit(lambda: estimates(mx.rtrl(LOOP, 3, 2), key, 2 * WINDOWS))()

    @jax.jit
    def whole_episodes():
        estimator = mx.rtrl(
            LOOP, 3
        )  # an episode begins with the key of its first window
        meta_params = jax.tree.map(lambda x: x.astype(float), LEARNER.meta(key))
        keys = jax.random.split(jax.random.fold_in(key, 1), 2 * WINDOWS)[::WINDOWS]
        state = estimator.init(key, meta_params, ())
        return jax.lax.map(
            lambda k: ravel_pytree(
                estimator.estimate(k, meta_params, state, ())[0].updates
            )[0],
            keys,
        )

    means = online.reshape(2, WINDOWS, 2).mean(1)
    np.testing.assert_allclose(means, whole_episodes(), rtol=1e-10)


@pytest.mark.slow
def test_without_truncation_rtrl_is_forward_mode_is_reverse_mode(x64, key):
    def gradient(estimator):
        return jax.jit(lambda: estimates(estimator, key, 1))()

    # The estimators draw alike but for the key that they keep aside.
    loop = replace(LOOP, init=lambda k, m, d: LOOP.init(jax.random.key(3), m, d))
    want = gradient(mx.bptt(loop, 2))
    np.testing.assert_allclose(gradient(mx.rtrl(loop, 2)), want, rtol=1e-10)
    np.testing.assert_allclose(gradient(mx.forward(loop, 2)), want, rtol=1e-10)


def differences(make, truncation, num_keys):
    """From the gradients of RTRL on the same tasks, ``[num_keys, 2]``."""

    def one(key):
        exact = estimates(mx.rtrl(LOOP, 1, truncation), key)
        return (estimates(make(LOOP, 1, truncation), key) - exact).mean(0)

    return np.asarray(
        jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), num_keys))
    )


def z_scores(x):
    return np.abs(x.mean(0)) / (x.std(0) / len(x) ** 0.5)


@pytest.mark.parametrize(
    ("make", "truncation"), [(mx.uoro, 2), (mx.uoro, 1), (mx.forward_gradient, None)]
)
@pytest.mark.slow
def test_what_is_estimated_is_right_in_the_mean(x64, make, truncation):
    found = differences(make, truncation, 4000)
    assert found.std(0).min() > 1e-3, "it is an estimate"
    assert z_scores(found).max() < 4


@pytest.mark.slow
def test_a_truncated_forward_gradient_is_biased(x64):
    """And the test above would notice."""
    assert z_scores(differences(mx.forward_gradient, 2, 4000)).max() > 6
