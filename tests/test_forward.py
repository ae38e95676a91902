"""Forward mode against reverse mode, and its memory."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import metajax as mx


def rates_and_steps(horizon, meta_loss="online"):
    """Gradient descent with 7 meta-parameters: a rate and a bias for each coordinate, and where to
    start.
    """

    def make_tx(m):
        def update(grads, state, params=None):
            return -m["rate"] * grads + m["bias"] * jnp.tanh(state), state + grads

        return optax.GradientTransformation(jnp.zeros_like, update)

    learner = mx.l2l(make_tx, mx.problems.quadratic(), second_order=True)

    def init(key, m, task):
        state = learner.init(key, m, task)
        return state._replace(params=state.params + m["start"])

    inner = mx.inner(
        replace(learner, init=init), mx.tasks.quadratics(3), horizon, meta_loss
    )
    return inner, {
        "rate": jnp.array([0.01, 0.02, 0.03]),
        "bias": jnp.full(3, -0.01),
        "start": jnp.array(0.1),
    }


def learned_optimizer(horizon, meta_loss="online"):
    opt = mx.optim.lstm(hidden=(2,), p=None)
    inner = mx.inner(
        mx.l2l(opt, mx.problems.quadratic()), mx.tasks.quadratics(2), horizon, meta_loss
    )
    return inner, jax.tree.map(lambda x: x.astype(float), opt.init(jax.random.key(0)))


@pytest.mark.parametrize(
    ("system", "meta_loss", "window", "chunk"),
    [
        (rates_and_steps, "online", {}, 1),
        (rates_and_steps, "online", {}, 3),  # does not divide 7
        (rates_and_steps, "online", {}, 7),
        (rates_and_steps, "heldout", {}, 100),
        (rates_and_steps, "online", {"truncation": 2}, 2),
        (rates_and_steps, "online", {"truncation": 2, "stagger": True}, 4),
        (learned_optimizer, "online", {}, 16),
        (learned_optimizer, "heldout", {}, 5),
    ],
)
@pytest.mark.slow
def test_forward_equals_reverse(x64, system, meta_loss, window, chunk):
    inner, meta_params = system(6, meta_loss)
    a, b = mx.forward(inner, 3, chunk=chunk, **window), mx.bptt(inner, 3, **window)
    s, t = (e.init(jax.random.key(1), meta_params, ()) for e in (a, b))
    step_a, step_b = jax.jit(a.estimate), jax.jit(b.estimate)
    for i in range(4 if window else 1):  # over the end of an episode
        (got, s), (want, t) = (
            f(jax.random.key(i), meta_params, x, ())
            for f, x in ((step_a, s), (step_b, t))
        )
        chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)
        chex.assert_trees_all_equal(s.t, t.t)
        chex.assert_trees_all_close(s.learner, t.learner, rtol=1e-9, atol=1e-12)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want.updates)) > 1e-3


@pytest.mark.slow
def test_memory_does_not_grow_with_the_horizon():
    def temporaries(estimator, horizon):
        inner, meta_params = rates_and_steps(horizon)
        estimate = estimator(inner)
        state = estimate.init(jax.random.key(0), meta_params, ())
        compiled = (
            jax.jit(estimate.estimate)
            .lower(jax.random.key(1), meta_params, state, ())
            .compile()
        )
        return compiled.memory_analysis().temp_size_in_bytes

    def forward(inner):
        return mx.forward(inner, 64, chunk=4)

    def reverse(inner):
        return mx.bptt(inner, 64)

    short, long = 8, 512
    per_loss = 8 * 64 * (long - short)  # the unroll keeps one loss a step and task
    assert temporaries(forward, long) - temporaries(forward, short) < 4 * per_loss
    assert temporaries(reverse, long) - temporaries(reverse, short) > 4 * per_loss


@pytest.mark.slow
def test_leaves_of_several_dtypes_keep_them():
    learner = mx.l2l(
        lambda m: optax.sgd(m["a"].astype(jnp.float32) + m["b"]),
        mx.problems.quadratic(),
    )
    inner = mx.inner(learner, mx.tasks.quadratics(2), 3)
    meta_params = {
        "a": jnp.bfloat16(0.01),
        "b": jnp.float32(0.0),
        "empty": jnp.zeros((0, 3)),
    }
    estimator = mx.forward(inner, 2)
    result, _ = estimator.estimate(
        jax.random.key(1),
        meta_params,
        estimator.init(jax.random.key(0), meta_params, ()),
        (),
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(result.updates, meta_params)
    chex.assert_trees_all_close(
        result.updates["a"].astype(jnp.float32), result.updates["b"], rtol=1e-2
    )


INNER, _ = rates_and_steps(6)
HELDOUT, _ = rates_and_steps(6, "heldout")
BAD = {
    "inner a learner": (
        lambda: mx.forward(mx.l2l(optax.sgd, mx.problems.quadratic()), 2),
        TypeError,
        "inner",
    ),
    "no tasks": (lambda: mx.forward(INNER, 0), ValueError, "num_tasks"),
    "tasks a float": (lambda: mx.forward(INNER, 2.0), TypeError, "num_tasks"),
    "window does not divide": (
        lambda: mx.forward(INNER, 2, truncation=4),
        ValueError,
        "truncation.*take 3",
    ),
    "window and held-out loss": (
        lambda: mx.forward(HELDOUT, 2, truncation=2),
        ValueError,
        "truncation.*online",
    ),
    "chunk of none": (lambda: mx.forward(INNER, 2, chunk=0), ValueError, "chunk"),
    "chunk a float": (lambda: mx.forward(INNER, 2, chunk=2.5), TypeError, "chunk"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=f"(?s){message}"):
        call()
