"""What the backward pass makes anew changes its memory, and nothing else."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import learners

import metajax as mx
from metajax import _binomial
from metajax._binomial import schedule

SYSTEMS = learners()
LEARNER = mx.l2l(optax.sgd, mx.problems.quadratic(), second_order=True)


def gradient(horizon, remat, truncation=None):
    """Of an episode, or of its first two windows and the one after."""
    loop = mx.inner(LEARNER, mx.tasks.quadratics(2), horizon)
    estimator = mx.bptt(loop, 2, truncation, remat=remat)
    state = estimator.init(jax.random.key(0), 0.1, ())
    run = jax.jit(estimator.estimate)
    found = []
    for k in jax.random.split(jax.random.key(1), 3 if truncation else 1):
        estimate, state = run(k, 0.1, state, ())
        found.append([estimate.updates, estimate.loss, estimate.metrics["diverged"]])
    return np.array(found)


@pytest.mark.parametrize(
    ("horizon", "remat"),
    [
        (1, "nested"),
        (2, "nested"),
        (7, "nested"),
        (1, 1),
        (2, 1),
        (7, 1),
        (7, 3),
        (13, 4),
        (13, 20),
    ],
)
@pytest.mark.slow
def test_the_estimate_is_the_same(x64, horizon, remat):
    np.testing.assert_allclose(
        gradient(horizon, remat), gradient(horizon, False), rtol=1e-12
    )


@pytest.mark.parametrize("remat", [1, 2, 5, "nested"])
@pytest.mark.slow
def test_the_windows_of_an_episode_have_the_same_gradient(x64, remat):
    found = gradient(10, remat, truncation=5)
    np.testing.assert_allclose(found, gradient(10, False, truncation=5), rtol=1e-12)
    assert len(np.unique(found[:, 0])) == 3, "each window has its own"


@functools.cache
def fewest_runs(length, num_states):
    """Of steps, before each has been differentiated: the best of all ways to cut a loop in two."""
    if num_states == 1:
        return length * (length - 1) // 2
    if length <= 2:
        return length - 1
    return min(
        cut + fewest_runs(length - cut, num_states - 1) + fewest_runs(cut, num_states)
        for cut in range(1, length)
    )


@pytest.mark.parametrize("num_states", [1, 2, 3, 5, 8, 13, 64])
def test_no_schedule_runs_fewer_steps(num_states):
    for length in range(1, 65):
        table = schedule(length, num_states)
        runs = len(table.first) - 1 + len(table.again) - 1
        times = next(
            n for n in itertools.count(1) if math.comb(num_states + n, n) >= length
        )
        # The forward pass ends after the last step: the state before it may have to be made anew.
        assert 0 <= runs - fewest_runs(length, num_states) <= times


@pytest.mark.parametrize(
    ("length", "num_states"), [(1, 1), (10, 3), (64, 11), (50, 50)]
)
def test_a_schedule_has_each_state_when_it_is_wanted(length, num_states):
    """Followed by numbers: the state after a step is the state before it plus 1."""
    table = schedule(length, num_states)
    rows = np.zeros(num_states + 1, int)

    for step, row in enumerate(table.first):
        rows[row] = step
    begin = 0
    for step in reversed(range(length)):
        for source, target in table.again[begin : table.until[step]]:
            rows[target] = rows[source] + 1
        begin = table.until[step]
        assert rows[table.row[step]] == step


def everything(state, x, inputs):
    """A loop over a state of all kinds, and where it starts."""

    def body(state, _):
        key, count, x, z = state
        key, k_noise = jax.random.split(key)
        noise = jax.random.normal(k_noise, x.shape)
        x = jnp.tanh(inputs["w"] @ x) + 0.1 * noise * (count % 3)
        z = z * jnp.exp(1j * x[0]) * inputs["label"]
        return (key, count + 1, x, z), (x.sum(), {"z": jnp.abs(z), "count": count})

    return body, (*state, x, x[0] + 0j)


@pytest.mark.parametrize("batched", ["inputs", "start", "both"])
@pytest.mark.parametrize("num_states", [1, 2, 4, 30])
def test_a_scan_within_states_is_the_scan(x64, batched, num_states):
    """Keys, counts and complex numbers in the state, integers and matrices from without."""
    w = jax.random.normal(jax.random.key(1), (2, 3, 3))
    x = jax.random.normal(jax.random.key(2), (2, 3))
    inputs = {"w": w, "label": jnp.array([2, 3])}

    def loss(scan):
        def of_one(floating, label):
            w, x = floating
            start = (jax.random.key(0), jnp.int32(0))
            body, state = everything(start, x, {"w": w, "label": label})
            (_, count, x, z), (sums, metrics) = scan(body, state)
            return x.sum() + jnp.abs(z) + (sums**2).mean() + metrics["z"][3] + count

        return of_one

    def within(body, state):
        return _binomial.scan(body, state, 9, num_states)

    def plain(body, state):
        return jax.lax.scan(body, state, None, length=9)

    axes = {"inputs": ((0, None), 0), "start": ((None, 0), None), "both": ((0, 0), 0)}
    of_floating, of_label = axes[batched]
    arguments = (
        (w if of_floating[0] == 0 else w[0], x if of_floating[1] == 0 else x[0]),
        inputs["label"] if of_label == 0 else inputs["label"][0],
    )
    found, want = [
        jax.jit(jax.vmap(jax.value_and_grad(loss(scan)), (of_floating, of_label)))(
            *arguments
        )
        for scan in (within, plain)
    ]
    for a, b in zip(*map(jax.tree.leaves, (found, want)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_what_is_not_differentiated_costs_nothing():
    """A million images that the steps read have no cotangent in the program."""
    images = jax.ShapeDtypeStruct((1_000_000,), jnp.float32)

    def loss(rate, images):
        def body(x, _):
            return x - rate * images[:10] * x, x.sum()

        return _binomial.scan(body, jnp.ones(10), 20, 4)[1].mean()

    compiled = jax.jit(jax.grad(loss)).lower(0.1, images).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 10_000


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.slow
@pytest.mark.long
def test_every_learner_has_the_same_gradient(name, x64):
    """Nested, and within one state and two, as where everything is kept."""
    system = SYSTEMS[name]
    meta_params = system.meta_params()

    def updates(remat):
        estimator = mx.bptt(system.inner(), 2, remat=remat)
        state = estimator.init(jax.random.key(0), meta_params, system.data)
        run = jax.jit(estimator.estimate)
        estimate, _ = run(jax.random.key(1), meta_params, state, system.data)
        return jax.tree.leaves((estimate.updates, estimate.loss))

    want = updates(False)
    for remat in (1, 2, "nested"):
        for a, b in zip(updates(remat), want, strict=True):
            scale = float(jnp.abs(b).max()) + 1e-30
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7 * scale)


@pytest.mark.parametrize("remat", [0, -1, 2.5, "nest", None, jnp.int32(3)])
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
