"""Meta-gradients of a bandit, whose expectations have a closed form."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax as mx

COSTS = jnp.array([1.0, 0.2, 0.5])
RATE = 0.8
NOTHING = mx.Tasks(lambda key, data: (), *[lambda key, data, task: ()] * 2)
START = jnp.log(jnp.array([3.0, 2.0, 1.0]) / 6)
AS_EXPECTED = jnp.array([0, 0, 0, 1, 1, 2])  # the arms as often as the policy means


def surrogate(log_prob):
    """The right gradient, and a wrong Hessian."""
    return log_prob


def bandit(arms, factor=mx.dice):
    """Learns from the costs of ``arms(key, logits)``; the test is the expected cost."""

    def loss(key, logits, batch):
        pulled = arms(key, logits)
        log_prob = jax.nn.log_softmax(logits)[pulled]
        return (factor(log_prob) * COSTS[pulled]).mean(), {}

    def test(key, logits, model_state, batch):
        return expected(logits), {}

    problem = mx.problems.stateless(lambda key, task: jnp.zeros(3), loss)
    return replace(problem, test=test)


def expected(logits):
    return jax.nn.softmax(logits) @ COSTS


def after_a_step(logits):
    """Of gradient descent on the expected cost."""
    return expected(logits - RATE * jax.grad(expected)(logits))


def meta_gradient(problem, num_tasks=1):
    loop = mx.inner(mx.maml(problem, RATE), NOTHING, 1, meta_loss="heldout")
    estimator = mx.bptt(loop, num_tasks)
    state = estimator.init(jax.random.key(0), START, ())
    estimate, _ = jax.jit(estimator.estimate)(jax.random.key(1), START, state, ())
    return np.asarray(estimate.updates)


@pytest.mark.slow
def test_the_meta_gradient_of_a_bandit_that_pulls_as_it_means():
    """Sums over these arms are expectations, so that nothing is left to chance."""
    right = jax.grad(after_a_step)(START)
    found = meta_gradient(bandit(lambda key, logits: AS_EXPECTED))
    np.testing.assert_allclose(found, right, rtol=1e-5)

    usual = meta_gradient(bandit(lambda key, logits: AS_EXPECTED, surrogate))
    assert np.abs(usual - right).max() > 0.1 * np.abs(right).max()


def test_the_meta_gradient_of_a_bandit_that_samples():
    def arms(key, logits):
        return jax.random.categorical(key, logits, shape=(1000,))

    found = meta_gradient(bandit(arms), num_tasks=200)
    np.testing.assert_allclose(found, jax.grad(after_a_step)(START), atol=2e-3)


@pytest.mark.parametrize("order", range(4))
def test_derivatives_of_any_order_are_those_of_a_probability(order):
    """Of the expected cost over both sides of a coin."""
    sides = {
        jax.nn.log_sigmoid: 3.0,
        lambda theta: jax.nn.log_sigmoid(-theta): -1.0,
    }

    def of_order(f):
        for _ in range(order):
            f = jax.grad(f)
        return f(0.4)

    estimates = []
    probabilities = []
    for log_prob, cost in sides.items():
        estimates.append(of_order(lambda t, p=log_prob, c=cost: mx.dice(p(t)) * c))
        probabilities.append(jnp.exp(log_prob(0.4)))
    right = of_order(lambda t: sum(jnp.exp(p(t)) * c for p, c in sides.items()))
    np.testing.assert_allclose(np.dot(probabilities, estimates), right, rtol=1e-5)
