"""Estimators against finite differences, against each other and against the reference library."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from evosax.algorithms import CMA_ES, SNES, Open_ES
from jax.flatten_util import ravel_pytree

import metajax as mx


def lstm_on_quadratics(second_order, horizon=6, meta_loss="online"):
    opt = mx.optim.lstm(hidden=(3, 2), p=None)
    learner = mx.l2l(opt, mx.problems.quadratic(), second_order=second_order)
    inner = mx.inner(learner, mx.tasks.quadratics(3), horizon, meta_loss)
    return inner, jax.tree.map(lambda x: x.astype(float), opt.init(jax.random.key(0)))


def directional(f, x, direction, h=1e-5):
    moved = lambda s: jax.tree.map(lambda a, d: a + s * h * d, x, direction)  # noqa: E731
    return (f(moved(1.0)) - f(moved(-1.0))) / (2 * h)


@pytest.mark.parametrize("meta_loss", ["online", "heldout"])
@pytest.mark.parametrize("remat", [True, False, "nested"])
@pytest.mark.slow
def test_second_order_bptt_equals_finite_differences(x64, meta_loss, remat):
    inner, meta_params = lstm_on_quadratics(True, meta_loss=meta_loss)
    estimator = mx.bptt(inner, 2, remat=remat)
    state = estimator.init(jax.random.key(1), meta_params, ())
    estimate = jax.jit(lambda m: estimator.estimate(jax.random.key(2), m, state, ())[0])
    grads = estimate(meta_params).updates
    for seed in range(3):
        d = jax.tree.map(
            lambda x, s=seed: jax.random.normal(jax.random.key(s + x.size), x.shape),
            meta_params,
        )
        want = directional(lambda m: estimate(m).loss, meta_params, d)
        got = optax.tree.vdot(grads, d)
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "estimator",
    [
        lambda inner: mx.bptt(inner, 3, 2),
        lambda inner: mx.forward(inner, 3, 2),
        lambda inner: mx.pes(inner, 3, 0.1, 2),
    ],
)
@pytest.mark.slow
def test_an_estimate_does_not_see_what_the_episodes_held_before_they_began(estimator):
    """The states of `init` are blanks that are marked as over; whatever stands there must give the
    same.
    """
    inner, meta_params = lstm_on_quadratics(False)
    estimator = estimator(inner)
    state = estimator.init(jax.random.key(1), meta_params, ())

    def fill(episodes):
        held = jax.tree.map(lambda x: x + 3.0, (episodes.task, episodes.learner))
        return episodes._replace(
            key=jax.random.split(jax.random.key(5), 3), task=held[0], learner=held[1]
        )

    began = (
        fill(state)
        if isinstance(state, mx.InnerState)
        else state._replace(episodes=fill(state.episodes))
    )
    got, want = (
        jax.jit(estimator.estimate)(jax.random.key(2), meta_params, s, ())[0]
        for s in (state, began)
    )
    chex.assert_trees_all_equal(got, want)
    assert float(optax.tree.norm(got.updates)) > 0


@pytest.mark.slow
def test_first_order_bptt_equals_finite_differences_with_frozen_gradients(x64):
    """The optimizee's gradients are recorded along one run and replayed while the meta-parameters
    are moved.
    """
    inner, meta_params = lstm_on_quadratics(False)
    opt = mx.optim.lstm(hidden=(3, 2), p=None)
    start = inner.init(jax.random.key(1), meta_params, ())
    task = start.task

    def f(x):
        return jnp.sum((task["W"] @ x - task["y"]) ** 2)

    def rollout(m, recorded=None):
        tx, x = opt.tx(m), start.learner.params
        state, losses, grads = tx.init(x), [], []
        for t in range(6):
            losses.append(f(x))
            grads.append(jax.grad(f)(x) if recorded is None else recorded[t])
            updates, state = tx.update(grads[-1], state)
            x = x + updates
        return jnp.stack(losses).mean(), grads

    _, recorded = rollout(meta_params)
    got = jax.grad(lambda m: mx.unroll(inner, m, start, (), 6)[1])(meta_params)
    for seed in range(3):
        d = jax.tree.map(
            lambda x, s=seed: jax.random.normal(jax.random.key(s + x.size), x.shape),
            meta_params,
        )
        want = directional(lambda m: rollout(m, recorded)[0], meta_params, d)
        np.testing.assert_allclose(optax.tree.vdot(got, d), want, rtol=1e-6, atol=1e-9)


def test_first_and_second_order_differ(x64):
    grads = []
    for second_order in (False, True):
        inner, meta_params = lstm_on_quadratics(second_order)
        state = inner.init(jax.random.key(1), meta_params, ())

        def meta_loss(meta_params, inner=inner, state=state):
            return mx.unroll(inner, meta_params, state, (), 6)[1]

        grads.append(ravel_pytree(jax.grad(meta_loss)(meta_params))[0])
    assert np.linalg.norm(grads[0] - grads[1]) > 1e-4 * np.linalg.norm(grads[0])


@pytest.mark.slow
def test_the_gradient_of_a_learning_rate_in_closed_form(x64):
    """One step of gradient descent on |Wx - y|^2: d loss / d rate = -grad(x') . grad(x)."""
    inner = mx.inner(
        mx.l2l(optax.sgd, mx.problems.quadratic(), second_order=True),
        mx.tasks.quadratics(3),
        1,
        "heldout",
    )
    rate = jnp.float64(0.01)
    estimator = mx.bptt(inner, 1)
    estimate, after = estimator.estimate(
        jax.random.key(5), rate, estimator.init(jax.random.key(1), rate, ()), ()
    )
    start = inner.init(jax.random.split(jax.random.key(5), 1)[0], rate, ())
    w, y, x = start.task["W"], start.task["y"], start.learner.params
    grad = lambda x: 2 * w.T @ (w @ x - y)  # noqa: E731
    np.testing.assert_allclose(
        estimate.updates, -grad(x - rate * grad(x)) @ grad(x), rtol=1e-10
    )
    np.testing.assert_allclose(after.learner.params[0], x - rate * grad(x), rtol=1e-12)


@pytest.mark.slow
def test_a_window_of_the_whole_horizon_is_no_truncation():
    inner, meta_params = lstm_on_quadratics(True)
    results = []
    for estimator in (
        mx.bptt(inner, 2),
        mx.bptt(inner, 2, truncation=6),
        mx.bptt(inner, 2, 6, stagger=True),
    ):
        state = estimator.init(jax.random.key(1), meta_params, ())
        results.append(
            jax.jit(estimator.estimate)(jax.random.key(2), meta_params, state, ())[
                0
            ].updates
        )
    chex.assert_trees_all_equal(*results)


@pytest.mark.slow
def test_windows_carry_on_and_episodes_restart():
    inner, meta_params = lstm_on_quadratics(True)
    estimator = mx.bptt(inner, 2, truncation=2)
    state = estimator.init(jax.random.key(1), meta_params, ())
    seen = []
    for i in range(6):
        task = state.task["y"]
        _, state = estimator.estimate(jax.random.key(i), meta_params, state, ())
        seen.append((state.t.tolist(), bool((task == state.task["y"]).all())))
    assert [t for t, _ in seen] == [[2, 2], [4, 4], [6, 6]] * 2
    assert [same for _, same in seen] == [False, True, True, False, True, True]


@pytest.mark.slow
def test_staggered_episodes_are_at_different_phases():
    inner, meta_params = lstm_on_quadratics(True)
    estimator = mx.bptt(inner, 4, truncation=2, stagger=True)
    state = estimator.init(jax.random.key(1), meta_params, ())
    for i in range(4):
        _, state = estimator.estimate(jax.random.key(i), meta_params, state, ())
        assert sorted(set(state.t.tolist())) == [2, 4, 6]


def _blowing_up():
    """Half of the tasks, those below 0, become infinite in the second step; all states hold an
    infinity by design.
    """

    def step(key, meta_params, state, task):
        lost = (task < 0) & (state["t"] == 1)
        new = {
            "t": state["t"] + 1,
            "x": jnp.where(lost, jnp.inf, state["x"]),
            "lowest": state["lowest"],
        }
        return new, (meta_params - task) ** 2, {}

    def init(key, meta_params, task):
        return {"t": jnp.int32(0), "x": jnp.float32(0), "lowest": jnp.float32(jnp.inf)}

    tasks = mx.Tasks(
        lambda key, data: jax.random.normal(key),
        lambda key, data, task: task,
        lambda *_: None,
    )
    return mx.inner(mx.Learner(init, step, lambda *_: None), tasks, horizon=6)


@pytest.mark.parametrize(
    "make",
    [
        lambda inner: mx.bptt(inner, 8, truncation=2),
        lambda inner: mx.forward(inner, 8, truncation=2),
        lambda inner: mx.pes(inner, 8, 0.1, truncation=2),
        lambda inner: mx.noise_reuse_es(inner, 8, 0.1, truncation=2, stagger=False),
    ],
    ids=["bptt", "forward", "pes", "noise_reuse_es"],
)
@pytest.mark.slow
def test_an_episode_that_blows_up_is_replaced_and_one_that_holds_infinity_is_not(make):
    estimator, theta, episodes = make(_blowing_up()), jnp.float32(0.5), []
    state = estimator.init(jax.random.key(1), theta, ())
    for i in range(3):
        estimate, state = estimator.estimate(jax.random.key(i), theta, state, ())
        assert np.isfinite(estimate.loss)
        episodes.append(getattr(state, "episodes", state))
    first, second, third = ([np.asarray(x) for x in (e.t, e.task)] for e in episodes)
    lost = first[1] < 0
    assert 0 < lost.sum() < 8
    np.testing.assert_array_equal(first[0], np.where(lost, 6, 2))
    np.testing.assert_array_equal(second[1] == first[1], ~lost)
    np.testing.assert_array_equal(
        second[0], np.where(~lost, 4, np.where(second[1] < 0, 6, 2))
    )
    np.testing.assert_array_equal(third[0][~lost], 6)


@pytest.mark.parametrize("strategy", [Open_ES, CMA_ES, SNES])
@pytest.mark.slow
def test_ask_tell_equals_the_loop_of_evosax(strategy):
    """Generation by generation from one state: CMA-ES's eigenvectors of equal eigenvalues amplify
    any rounding.
    """
    inner, meta_params = lstm_on_quadratics(False)
    meta_params = jax.tree.map(lambda x: x.astype(jnp.float32), meta_params)
    es = strategy(population_size=6, solution=meta_params)
    trainer = mx.trainer(mx.ask_tell(inner, es, num_tasks=2), optax.sgd(1.0))
    state = trainer.init(jax.random.key(0), meta_params)
    step = jax.jit(trainer.step)
    episode = jax.jit(
        lambda m, k: mx.unroll(inner, m, inner.init(k, m, ()), (), inner.horizon)[1]
    )
    for i in range(4):
        k_ask, k_tasks, k_tell = jax.random.split(jax.random.fold_in(state.key, i), 3)
        population, native = es.ask(k_ask, state.estimator, es.default_params)
        members = [jax.tree.map(lambda x, j=j: x[j], population) for j in range(6)]
        fitness = [
            np.mean([episode(m, k) for k in jax.random.split(k_tasks, 2)])
            for m in members
        ]
        native, _ = es.tell(
            k_tell, population, jnp.asarray(fitness), native, es.default_params
        )
        state, metrics = step(state)
        np.testing.assert_allclose(metrics["loss"], np.mean(fitness), rtol=1e-5)
        chex.assert_trees_all_close(
            state.meta_params, es.get_mean(native), rtol=1e-4, atol=1e-5
        )
        chex.assert_trees_all_close(state.estimator, native, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_open_es_with_an_outer_adam_is_open_es_with_adam():
    inner, meta_params = lstm_on_quadratics(False)
    meta_params = jax.tree.map(lambda x: x.astype(jnp.float32), meta_params)
    inside = Open_ES(6, solution=meta_params, optimizer=optax.adam(0.01))
    outside = Open_ES(6, solution=meta_params, optimizer=optax.sgd(1.0))
    a = mx.trainer(mx.ask_tell(inner, inside, 2), optax.sgd(1.0))
    b = mx.trainer(mx.ask_tell(inner, outside, 2), optax.adam(0.01))
    s, t = (
        a.init(jax.random.key(0), meta_params),
        b.init(jax.random.key(0), meta_params),
    )
    for _ in range(3):
        s, t = a.step(s)[0], b.step(t)[0]
    chex.assert_trees_all_close(s.meta_params, t.meta_params, rtol=1e-3, atol=1e-4)
