"""Tasks whose data make their episodes diverge: left out of the estimate, and counted.

Each estimate is compared with a loop over its episodes, one after the other, that passes over those
whose task is hopeless.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from evosax.algorithms import Open_ES
from jax.flatten_util import ravel_pytree
from systems import estimators

import metajax as mx

NUM_TASKS, HORIZON, WINDOW, STD = 8, 4, 2, 1e-3
META = {"rate": np.array(0.01), "momentum": np.array([0.3])}
# What the numbers of a task are multiplied with: the square of the last overflows.
MIXED = np.array([1.0, 0.5, 2.0, 1e200])
HOPELESS = np.full(4, 1e200)
NAN = np.array([1.0, 0.5, 2.0, np.nan])


def loop(horizon=HORIZON):
    quadratics = mx.tasks.quadratics(3)

    def sample(key, data):
        k_task, k_factor = jax.random.split(key)
        task = quadratics.sample(k_task, ())
        return optax.tree.scale(jax.random.choice(k_factor, data), task)

    def make_tx(m):
        return optax.sgd(m["rate"], m["momentum"][0])

    learner = mx.l2l(make_tx, mx.problems.quadratic(), second_order=True)
    return mx.inner(learner, replace(quadratics, sample=sample), horizon)


INNER = loop()


def is_hopeless(tasks):
    """``[num_tasks]``."""
    return ~(np.abs(tasks["W"]).max((1, 2)) < 1e100)


def episode(states, i):
    return jax.tree.map(lambda x: x[i], states)


def begun(key, meta_params, states, i, data):
    """The i-th episode at the begin of a window: a new one, if the last has come to its end."""
    if states.t[i] < HORIZON:
        return episode(states, i)
    return INNER.init(key, meta_params, data)


def window_loss(meta_params, begin, data, window):
    return mx.unroll(INNER, meta_params, begin, data, window)[1]


def checked(result, tasks, wanted):
    """The estimate is the mean of what is ``wanted`` of the tasks that are not hopeless.

    Gives the number of those that are.
    """
    lost = is_hopeless(tasks)
    assert result.metrics["diverged"] == lost.mean()
    losses, updates = zip(*wanted, strict=True)
    assert len(losses) == (~lost).sum()
    np.testing.assert_allclose(result.loss, np.mean(losses), rtol=1e-10)
    got = ravel_pytree(result.updates)[0]
    mean = np.mean([ravel_pytree(x)[0] for x in updates], 0)
    # Differences of losses that are nearly the same, where evolution strategies take them.
    np.testing.assert_allclose(got, mean, rtol=1e-8, atol=1e-10)
    return lost.sum()


@pytest.mark.parametrize("data", [MIXED, NAN], ids=["overflow", "NaN"])
@pytest.mark.parametrize("window", [HORIZON, WINDOW])
@pytest.mark.parametrize("make", [mx.bptt, mx.forward])
@pytest.mark.slow
def test_gradients_are_those_of_the_other_tasks(x64, make, window, data):
    estimator, meta_params = (
        make(INNER, NUM_TASKS, window),
        jax.tree.map(jnp.asarray, META),
    )
    state = estimator.init(jax.random.key(0), meta_params, data)
    estimate = jax.jit(estimator.estimate)

    @jax.jit
    def fresh_window(key, meta_params):
        def loss(m):
            return window_loss(m, INNER.init(key, m, data), data, window)

        return jax.value_and_grad(loss)(meta_params)

    @jax.jit
    def later_window(begin, meta_params):
        return jax.value_and_grad(window_loss)(meta_params, begin, data, window)

    num_lost = []
    for k in range(4):
        key = jax.random.key(10 + k)
        before = state
        result, state = estimate(key, meta_params, before, data)
        keys = jax.random.split(key, NUM_TASKS)
        wanted = []
        for i in np.flatnonzero(~is_hopeless(state.task)):
            if before.t[i] < HORIZON:
                wanted.append(later_window(episode(before, i), meta_params))
            else:
                wanted.append(fresh_window(keys[i], meta_params))
        num_lost.append(checked(result, state.task, wanted))
        assert (np.asarray(state.t)[is_hopeless(state.task)] == HORIZON).all()
        assert {int(t) for t in state.t} <= {window, HORIZON}
    assert sum(n > 0 for n in num_lost) > 1


@pytest.mark.parametrize("make", [mx.bptt, mx.forward])
def test_a_gradient_that_is_not_finite_counts_as_diverged(x64, make):
    """Though the loss is: the root of 0, in half of the tasks."""

    def step(key, m, state, task):
        return state, jnp.sqrt(task * m) + (m - 1.0) ** 2, {}

    learner = mx.Learner(lambda key, m, task: (), step, lambda *args: (0.0, {}))
    tasks = mx.Tasks(
        lambda key, data: jax.random.bernoulli(key).astype(float),
        lambda key, data, task: task,
        lambda key, data, task: task,
    )
    estimator = make(mx.inner(learner, tasks, 1), NUM_TASKS)
    m = jnp.asarray(4.0)
    state = estimator.init(jax.random.key(0), m, ())
    result, state = jax.jit(estimator.estimate)(jax.random.key(1), m, state, ())
    share = np.mean(state.task == 0)
    assert 0 < share < 1
    assert result.metrics["diverged"] == share
    np.testing.assert_allclose(result.updates, 0.5 / 2 + 2 * 3, rtol=1e-12)
    np.testing.assert_allclose(result.loss, 2 + 3**2, rtol=1e-12)


STRATEGIES = {
    "es": lambda: mx.es(INNER, NUM_TASKS, STD),
    "pes": lambda: mx.pes(INNER, NUM_TASKS, STD, WINDOW),
    "noise_reuse_es": lambda: mx.noise_reuse_es(
        INNER, NUM_TASKS, STD, WINDOW, stagger=False
    ),
}


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.slow
def test_evolution_strategies_weigh_the_other_pairs(x64, kind):
    estimator, meta_params = STRATEGIES[kind](), jax.tree.map(jnp.asarray, META)
    window = HORIZON if kind == "es" else WINDOW
    state = estimator.init(jax.random.key(0), meta_params, MIXED)
    estimate = jax.jit(estimator.estimate)
    run = jax.jit(lambda m, begin: window_loss(m, begin, MIXED, window))
    num_lost = []
    for k in range(4):
        key = jax.random.key(20 + k)
        before = state
        result, state = estimate(key, meta_params, before, MIXED)
        k_noise, k_start = jax.random.split(key)
        keys = jax.random.split(k_start, NUM_TASKS)
        if kind == "es":  # whole episodes, of which nothing is kept
            noises = mx.gaussian().sample(k_noise, meta_params, NUM_TASKS)
            starts = jax.vmap(INNER.init, (0, None, None))(keys, meta_params, MIXED)
            tasks = starts.task
        else:
            noises = state.noise
            tasks = state.episodes.task
        wanted = []
        for i in np.flatnonzero(~is_hopeless(tasks)):
            weight = episode(noises, i)
            noise = weight
            if kind == "pes" and before.episodes.t[i] < HORIZON:
                noise = optax.tree.sub(weight, episode(before.noise, i))
            losses = []
            for twin, sign in enumerate((1, -1)):
                moved = optax.tree.add_scale(meta_params, sign * STD, noise)
                if kind == "es":
                    begin = INNER.init(keys[i], moved, MIXED)
                else:
                    learners = jax.tree.map(
                        lambda x, j=twin: x[:, j], before.episodes.learner
                    )
                    twins = before.episodes._replace(learner=learners)
                    begin = begun(keys[i], moved, twins, i, MIXED)
                losses.append(run(moved, begin))
            slope = (losses[0] - losses[1]) / (2 * STD)
            wanted.append((np.mean(losses), optax.tree.scale(slope, weight)))
        num_lost.append(checked(result, tasks, wanted))
    assert sum(n > 0 for n in num_lost) > 1


@pytest.mark.slow
def test_ask_tell_is_told_of_the_other_tasks(x64):
    """Of each member the mean over the tasks that any of them got through."""
    meta_params = jax.tree.map(jnp.asarray, META)
    strategy = Open_ES(6, solution=meta_params)
    estimator = mx.ask_tell(INNER, strategy, NUM_TASKS)
    state = estimator.init(jax.random.key(0), meta_params, MIXED)
    estimate = jax.jit(estimator.estimate)

    @jax.jit
    def loss_at(member, key):
        begin = INNER.init(key, member, MIXED)
        return begin.task, window_loss(member, begin, MIXED, HORIZON)

    for k in range(2):
        key = jax.random.key(30 + k)
        k_ask, k_tasks, k_tell = jax.random.split(key, 3)
        population, asked = strategy.ask(k_ask, state, strategy.default_params)
        keys = jax.random.split(k_tasks, NUM_TASKS)
        tasks, _ = jax.vmap(loss_at, (None, 0))(meta_params, keys)
        good = np.flatnonzero(~is_hopeless(tasks))
        losses = np.array(
            [
                np.mean([loss_at(episode(population, j), keys[i])[1] for i in good])
                for j in range(6)
            ]
        )
        told, _ = strategy.tell(
            k_tell, population, losses, asked, strategy.default_params
        )

        result, state = estimate(key, meta_params, state, MIXED)
        meta_params = optax.tree.sub(meta_params, result.updates)
        np.testing.assert_allclose(ravel_pytree(meta_params)[0], told.mean, rtol=1e-8)
        np.testing.assert_allclose(result.loss, losses.mean(), rtol=1e-10)
        assert result.metrics["diverged"] == 1 - len(good) / NUM_TASKS
        assert 0 < len(good) < NUM_TASKS


@pytest.mark.slow
def test_a_member_of_ask_tell_that_diverges_alone_is_the_worst(x64):
    """On one of the tasks, where others do not: that task is not left out."""
    base = INNER.step

    def step(meta_params, state, data):
        state, (loss, metrics) = base(meta_params, state, data)
        is_lost = (meta_params["rate"] > META["rate"]) & (state.task["y"][0] > 0)
        return state, (jnp.where(is_lost, jnp.inf, loss), metrics)

    meta_params = jax.tree.map(jnp.asarray, META)
    strategy = Open_ES(6, solution=meta_params)
    estimator = mx.ask_tell(replace(INNER, step=step), strategy, 3)
    key, ones = jax.random.key(3), np.ones(4)
    state = estimator.init(jax.random.key(0), meta_params, ones)
    result, _ = jax.jit(estimator.estimate)(key, meta_params, state, ones)

    k_ask, k_tasks, k_tell = jax.random.split(key, 3)
    population, asked = strategy.ask(k_ask, state, strategy.default_params)
    keys = jax.random.split(k_tasks, 3)
    tasks = jax.vmap(lambda k: INNER.init(k, meta_params, ones).task)(keys)
    num_hard = int((tasks["y"][:, 0] > 0).sum())
    lost = np.asarray(population["rate"] > META["rate"])
    assert 0 < num_hard < 3
    assert 0 < lost.sum() < 6
    run = jax.jit(lambda m, k: window_loss(m, INNER.init(k, m, ones), ones, HORIZON))
    losses = np.array(
        [np.mean([run(episode(population, j), k) for k in keys]) for j in range(6)]
    )
    fitness = np.where(lost, losses[~lost].max(), losses)
    told, _ = strategy.tell(k_tell, population, fitness, asked, strategy.default_params)
    new = optax.tree.sub(meta_params, result.updates)
    np.testing.assert_allclose(ravel_pytree(new)[0], told.mean, rtol=1e-8)
    np.testing.assert_allclose(result.loss, losses[~lost].mean(), rtol=1e-10)
    share = lost.sum() * num_hard / (6 * 3)
    np.testing.assert_allclose(result.metrics["diverged"], share, rtol=1e-12)


@pytest.mark.parametrize("name", estimators())
@pytest.mark.slow
def test_where_all_diverge_the_step_is_skipped_and_the_run_goes_on(x64, name):
    meta_params = jax.tree.map(jnp.asarray, META)
    estimator = estimators()[name](INNER, meta_params)
    trainer = mx.trainer(estimator, optax.sgd(1e-4))
    state = trainer.init(jax.random.key(0), meta_params, HOPELESS)
    estimate, _ = jax.jit(estimator.estimate)(
        jax.random.key(1), meta_params, state.estimator, HOPELESS
    )
    assert all(np.isnan(x).all() for x in jax.tree.leaves(estimate.updates))
    assert np.isnan(estimate.loss)
    told = [x for metric, x in estimate.metrics.items() if metric.endswith("diverged")]
    assert told
    assert all(x == 1 for x in told)

    step = jax.jit(trainer.step)
    for k in range(2):
        state, metrics = step(state, HOPELESS)
        assert int(state.skipped) == metrics["skipped"] == k + 1
        jax.tree.map(np.testing.assert_array_equal, state.meta_params, meta_params)
    state, metrics = step(state, np.ones(4))
    assert int(state.skipped) == 0
    assert np.isfinite(metrics["loss"])
    assert (state.meta_params["rate"] != meta_params["rate"]).all()


def test_a_task_that_is_hopeless_does_not_stop_a_run(x64):
    outer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-4))
    trainer = mx.trainer(mx.bptt(INNER, NUM_TASKS), outer, chunk=5)
    state = trainer.init(jax.random.key(0), META, MIXED)
    result = mx.fit(trainer, state, MIXED, num_steps=20, progress=None)
    diverged = result.history["diverged"]
    assert (result.history["skipped"] == 0).all()
    assert np.isfinite(result.history["loss"]).all()
    assert set(diverged * NUM_TASKS) <= set(range(NUM_TASKS))
    assert 0.1 < diverged.mean() < 0.4, "a quarter of the tasks"
