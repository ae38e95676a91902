"""What the backward pass makes anew changes its memory, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx
from metajax._inner import blocks_of_steps

LEARNER = mx.l2l(optax.sgd, mx.problems.quadratic(), second_order=True)


def gradient(horizon, remat):
    loop = mx.inner(LEARNER, mx.tasks.quadratics(2), horizon)
    estimator = mx.bptt(loop, 2, remat=remat)
    state = estimator.init(jax.random.key(0), 0.1, ())
    estimate, _ = jax.jit(estimator.estimate)(jax.random.key(1), 0.1, state, ())
    return np.array([estimate.updates, estimate.loss, estimate.metrics["diverged"]])


@pytest.mark.parametrize(
    ("horizon", "remat"),
    [(1, "nested"), (2, "nested"), (7, "nested"), (7, 6), (12, 8), (13, 20)],
)
@pytest.mark.slow
def test_the_estimate_is_the_same(x64, horizon, remat):
    np.testing.assert_allclose(
        gradient(horizon, remat), gradient(horizon, False), rtol=1e-12
    )


@pytest.mark.parametrize("length", [2, 3, 10, 64, 100, 1000, 1024])
def test_no_more_states_are_kept_than_asked(length):
    """Those at the beginning of blocks, and those of the block that is at work."""

    def kept(blocks):
        length, *inner_blocks = blocks
        if not inner_blocks:
            return length
        return -(-length // inner_blocks[0]) + kept(inner_blocks)

    assert kept(blocks_of_steps(length, "nested")) <= 2 * length**0.5 + 2
    for states in range(4 + 3 * length.bit_length(), length + 1, 7):
        blocks = blocks_of_steps(length, states)
        assert blocks[0] == length
        assert kept(blocks) <= states
    fewest = length.bit_length()
    with pytest.raises(
        ValueError, match=f"remat must be at least .* for {length} steps"
    ):
        blocks_of_steps(length, fewest // 2)


@pytest.mark.parametrize("remat", [0, -1, 2.5, "nest", None])
def test_a_bad_remat_is_refused_when_the_estimator_is_made(remat):
    loop = mx.inner(LEARNER, mx.tasks.quadratics(2), 10)
    with pytest.raises((TypeError, ValueError), match=r"^remat must be"):
        mx.bptt(loop, 2, remat=remat)


def temporary_memory(loop, remat):
    estimator = mx.bptt(loop, 2, remat=remat)
    meta_params = {"w": jnp.zeros((64, 64))}
    arguments = (jax.random.key(0), meta_params)
    state = jax.eval_shape(estimator.init, *arguments, ())
    compiled = jax.jit(estimator.estimate).lower(*arguments, state, ()).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_grows_with_what_is_kept():
    """Steps whose state is a matrix and that make ten more on the way."""

    def loss(key, params, batch):
        x = params["w"]
        for _ in range(10):
            x = jnp.sin(x) + params["w"]
        return jnp.mean(x**2), {}

    problem = mx.problems.stateless(lambda key, task: {"w": jnp.zeros((64, 64))}, loss)
    nothing = mx.Tasks(lambda key, data: (), *[lambda key, data, task: ()] * 2)
    loop = mx.inner(mx.maml(problem, 0.1), nothing, 64)

    step = temporary_memory(loop, True)
    assert temporary_memory(loop, "nested") < 0.45 * step
    assert temporary_memory(loop, 12) < temporary_memory(loop, "nested")
