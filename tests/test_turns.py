"""Episodes a few at a time: the same numbers, in the memory of a few."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from evosax.algorithms import Open_ES

import metajax as mx

META = {"rate": np.float64(0.01), "momentum": np.float64(0.3)}
ESTIMATORS_IN_TURNS = {
    "bptt": lambda loop: mx.bptt(loop, 7, 2),
    "forward": lambda loop: mx.forward(loop, 7),
    "pes": lambda loop: mx.pes(loop, 7, 1e-2, 2),
    "ask_tell": lambda loop: mx.ask_tell(loop, Open_ES(8, solution=META), 3),
}


def quadratics():
    learner = mx.l2l(
        lambda m: optax.sgd(m["rate"], m["momentum"]),
        mx.problems.quadratic(),
        second_order=True,
    )
    return mx.inner(learner, mx.tasks.quadratics(3), 4)


def two_estimates(estimator):
    meta_params = jax.tree.map(jnp.asarray, META)
    state = estimator.init(jax.random.key(0), meta_params, ())
    estimate = jax.jit(estimator.estimate)
    first, state = estimate(jax.random.key(1), meta_params, state, ())
    second, _ = estimate(jax.random.key(2), meta_params, state, ())
    return first, second


@pytest.mark.parametrize(
    ("name", "is_split"),
    [*[(name, False) for name in ESTIMATORS_IN_TURNS], ("bptt", True)],
)
@pytest.mark.slow
def test_estimates_are_those_of_all_at_once(x64, name, is_split):
    """Of 7 episodes, 3 at once: turns of 3, 3 and 1."""
    make, loop = ESTIMATORS_IN_TURNS[name], quadratics()
    if is_split:
        loop = mx.sharding.split(loop, mx.sharding.mesh(1))
    in_turns = two_estimates(make(mx.sharding.in_turns(loop, 3)))
    chex.assert_trees_all_close(in_turns, two_estimates(make(loop)), rtol=1e-12)


@pytest.mark.slow
def test_curves_are_those_of_all_at_once(x64):
    loop, key = quadratics(), jax.random.key(0)
    want = mx.evaluate(loop, key, META, num_tasks=6)
    got = mx.evaluate(loop, key, META, num_tasks=6, at_once=2)
    more = mx.evaluate(mx.sharding.in_turns(loop, 4), key, META, num_tasks=6)
    for curves in (got, more):
        chex.assert_trees_all_close(numbers(curves), numbers(want), rtol=1e-12)

    compared = [
        mx.compare(
            {"SGD": optax.sgd},
            mx.problems.quadratic(),
            mx.tasks.quadratics(3),
            key,
            steps=4,
            num_tasks=4,
            at_once=at_once,
            search=mx.RateSearch([0.001, 0.01, 0.1]),
        )
        for at_once in (None, 3)
    ]
    np.testing.assert_allclose(compared[0].loss["SGD"], compared[1].loss["SGD"])


def numbers(tree):
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.number)]


@pytest.mark.slow
def test_memory_is_that_of_the_tasks_at_once():
    """Of a convolutional network that adapts; what is temporary, asked of the compiler."""
    data = mx.data.by_class(
        {"image": np.zeros((20, 16, 16, 1), np.float32), "label": np.arange(20) % 5}
    )
    learner = mx.maml(mx.problems.convnet(5, (16, 16, 1), (8,), 8, 3), 0.1)
    loop = mx.inner(learner, mx.tasks.episodes(5, 1), 2, "heldout")
    meta_params = learner.meta(jax.random.key(0))
    num_tasks = 16
    num_params = sum(x.size for x in jax.tree.leaves(meta_params))

    def temporary(loop):
        estimator = mx.bptt(loop, num_tasks)
        state = estimator.init(jax.random.key(1), meta_params, data)
        program = jax.jit(estimator.estimate).lower(
            jax.random.key(2), meta_params, state, data
        )
        return program.compile().memory_analysis().temp_size_in_bytes

    few = temporary(mx.sharding.in_turns(loop, 4))
    all_at_once = temporary(loop)
    kept = 4 * num_tasks * num_params  # a gradient for each task
    assert few < 4 / num_tasks * all_at_once + 4 * kept


def test_at_once_is_checked():
    with pytest.raises(ValueError, match="at_once must be at least 1, got 0"):
        mx.sharding.in_turns(quadratics(), 0)
    with pytest.raises(TypeError, match="at_once must be a Python int"):
        mx.evaluate(quadratics(), jax.random.key(0), META, at_once=2.5)
    with pytest.raises(ValueError, match=r"or takes turns; split .* after that"):
        mx.sharding.split(mx.sharding.in_turns(quadratics(), 2), mx.sharding.mesh(1))
