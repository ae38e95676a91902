"""Weight decay after an optimizer against AdamW's formula (Loshchilov & Hutter 2019)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx

RATE, DECAY, STEPS = 0.1, 0.3, 6
START = np.array([2.0, -1.0, 0.5])


def gradient(x, t):
    return 0.2 * x + np.array([1.0, -0.5, 0.1]) * np.cos(t)


def adamw_by_hand(rate_at):
    x, m, v = START.copy(), np.zeros(3), np.zeros(3)
    for t in range(1, STEPS + 1):
        g = gradient(x, t)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        direction = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        x = x - rate_at(t - 1) * (direction + DECAY * x)
    return x


def run(tx):
    x = jnp.asarray(START)
    state = tx.init(x)
    for t in range(1, STEPS + 1):
        updates, state = tx.update(jnp.asarray(gradient(x, t)), state, x)
        x = optax.apply_updates(x, updates)
    return np.asarray(x)


def test_it_is_adamw_by_hand_and_by_optax(x64):
    tx = optax.chain(optax.adam(RATE), mx.optim.decay_weights(RATE * DECAY))
    np.testing.assert_allclose(run(tx), adamw_by_hand(lambda t: RATE), rtol=1e-12)
    adamw = optax.adamw(RATE, weight_decay=DECAY)
    np.testing.assert_allclose(run(tx), run(adamw), rtol=1e-12)


def test_with_a_schedule_it_decays_as_fast_as_it_learns(x64):
    schedule = optax.linear_schedule(RATE, 0.0, STEPS)
    decay = mx.optim.decay_weights(lambda t: DECAY * schedule(t))
    tx = optax.chain(optax.adam(schedule), decay)
    np.testing.assert_allclose(run(tx), adamw_by_hand(lambda t: schedule(t)), rtol=1e-6)


def test_after_a_learned_optimizer_weights_shrink_and_masked_ones_do_not(x64):
    learned = mx.optim.nadam(knots=(1,))
    alone = learned.tx(learned.init(jax.random.key(0)))
    params = {"w": jnp.array([4.0, -4.0]), "b": jnp.array([4.0])}
    grads = jax.tree.map(jnp.zeros_like, params)
    decay = mx.optim.decay_weights(0.25, mask={"w": True, "b": False})
    tx = optax.chain(alone, decay)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], [-1.0, 1.0])
    np.testing.assert_allclose(updates["b"], [0.0])


def test_how_fast_can_be_learned(x64):
    """Two steps of decay alone: ``x2 = x0 (1 - r)^2``."""

    def make_tx(rate):
        return optax.chain(optax.sgd(0.0), mx.optim.decay_weights(rate))

    problem = mx.problems.stateless(
        lambda key, task: jnp.float64(3.0), lambda key, x, batch: (x, {})
    )
    tasks = mx.Tasks(*[lambda key, data, *task: ()] * 3)
    loop = mx.inner(mx.l2l(make_tx, problem), tasks, 2, "heldout")

    def end(rate):
        return mx.unroll(loop, rate, loop.init(jax.random.key(0), rate, ()), (), 2)[1]

    value, slope = jax.value_and_grad(end)(jnp.float64(0.1))
    np.testing.assert_allclose([value, slope], [3 * 0.9**2, -2 * 3 * 0.9])


def test_bad_input():
    with pytest.raises(
        ValueError, match=r"rate must be finite and at least 0, got -0\.1"
    ):
        mx.optim.decay_weights(-0.1)
    with pytest.raises(TypeError, match="rate must be a Python number"):
        mx.optim.decay_weights("0.1")
    tx = mx.optim.decay_weights(0.1)
    with pytest.raises(ValueError, match="needs params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
