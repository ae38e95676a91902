"""Evolution strategies against closed forms, loops and the reference library; mixtures and random
horizons.

The toy: ``x_0 = m / 2``, ``x_{t+1} = RHO x_t + m``, and at step t a loss ``sum(CUBIC x^3 + (x -
y_t)^2)`` with ``y_t = task + sin(t)`` and ``E task = 1``. Its smoothed gradient is known exactly,
the part of the noise included."""

from dataclasses import replace
from statistics import NormalDist
from typing import NamedTuple

import chex
import evosax.algorithms as evosax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx
from metajax.estimators import _antithetic

RHO, CUBIC, HORIZON, WINDOW, STD = 0.8, 0.3, 6, 2, 0.5
THETA = jnp.array([0.5, -0.3])
TASKS = mx.Tasks(
    sample=lambda key, data: 1 + jax.random.normal(key, THETA.shape),
    train=lambda key, data, task: task,
    test=lambda key, data, task: task,
)


class ToyState(NamedTuple):
    """``x_t [n]``, and ``t``."""

    x: jax.Array
    t: jax.Array


def toy_learner(cubic=CUBIC):
    def init(key, m, task):
        return ToyState(m / 2, jnp.int32(0))

    def step(key, m, state, task):
        x = state.x
        y = task + jnp.sin(1.0 * state.t)
        loss = jnp.sum(cubic * x**3 + (x - y) ** 2)
        return ToyState(RHO * x + m, state.t + 1), loss, {"x": x.mean()}

    def test(key, m, state, task):
        return jnp.sum((state.x - task) ** 2), {}

    return mx.Learner(init, step, test)


def toy(horizon=HORIZON, cubic=CUBIC):
    return mx.inner(toy_learner(cubic), TASKS, horizon)


def influence(t, window):
    """How x_t depends on the meta-parameters that each window is run with, ``[windows]``."""
    c = np.zeros(HORIZON // window)
    c[0] = RHO**t / 2
    for s in range(t):
        c[s // window] += RHO ** (t - 1 - s)
    return c


def smoothed_gradient(persistent, cubic=CUBIC, std=STD, theta=THETA):
    """In closed form: ``E x_t^2`` has the variance of noise that is one for all windows or,
    persistent, independent.
    """
    theta, total = np.asarray(theta, float), 0.0
    for t in range(HORIZON):
        c = influence(t, WINDOW)
        g = c.sum()
        variance = std**2 * ((c**2).sum() if persistent else g**2)
        total = (
            total
            + 2 * g * (g * theta - 1 - np.sin(t))
            + 3 * cubic * g * ((g * theta) ** 2 + variance)
        )
    return total / HORIZON


def estimates(estimator, num, take, after=0, meta_params=THETA):
    """``[num, n]`` independent means over ``take`` estimates in a row, those that come after the
    first ``after``.
    """

    def one(key):
        k_init, k_run = jax.random.split(key)

        def body(state, key):
            result, state = estimator.estimate(key, meta_params, state, ())
            return state, result.updates

        state = estimator.init(k_init, meta_params, ())
        return jax.lax.scan(body, state, jax.random.split(k_run, after + take))[1][
            after:
        ].mean(0)

    return np.asarray(
        jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(42), num)), float
    )


def deviates(samples, want, false_alarm=1e-4):
    """A z-test that the mean of ``samples [N, n]`` is ``want``, Bonferroni over n: right but for 1
    seed in 10,000.
    """
    z = (samples.mean(0) - want) / (samples.std(0, ddof=1) / len(samples) ** 0.5)
    return np.abs(z).max() > NormalDist().inv_cdf(1 - false_alarm / (2 * len(z)))


WINDOWS = HORIZON // WINDOW
UNBIASED = {
    "es": (lambda: mx.es(toy(), 2, STD), dict(take=1), False),
    "pes": (lambda: mx.pes(toy(), 2, STD, WINDOW), dict(take=WINDOWS), True),
    "pes, second episode": (
        lambda: mx.pes(toy(), 2, STD, WINDOW),
        dict(take=WINDOWS, after=WINDOWS),
        True,
    ),
    "pes, staggered": (
        lambda: mx.pes(toy(), WINDOWS, STD, WINDOW, stagger=True),
        dict(take=1, after=WINDOWS),
        True,
    ),
    "noise reuse": (
        lambda: mx.noise_reuse_es(toy(), WINDOWS, STD, WINDOW),
        dict(take=1, after=WINDOWS),
        False,
    ),
    "noise reuse, in step": (
        lambda: mx.noise_reuse_es(toy(), 2, STD, WINDOW, stagger=False),
        dict(take=WINDOWS, after=WINDOWS),
        False,
    ),
}


@pytest.mark.parametrize("case", UNBIASED)
@pytest.mark.slow
def test_unbiased_for_the_smoothed_gradient(case):
    estimator, how, persistent = UNBIASED[case]
    samples = estimates(estimator(), 1 << 14, **how)
    assert not deviates(samples, smoothed_gradient(persistent))
    # The test sees the smoothing, and the difference between the two kinds of it.
    assert deviates(samples, smoothed_gradient(persistent, std=0.0))
    assert deviates(samples, smoothed_gradient(not persistent))


@pytest.mark.slow
def test_truncated_bptt_shows_its_bias_and_pes_does_not():
    """On the quadratic toy, where smoothing changes nothing, so that all want the same gradient."""
    want = smoothed_gradient(False, cubic=0.0, std=0.0)
    np.testing.assert_allclose(want, smoothed_gradient(True, cubic=0.0, std=STD))
    inner, num = toy(cubic=0.0), 1 << 12
    assert not deviates(estimates(mx.bptt(inner, 2), num, 1), want)
    assert not deviates(estimates(mx.pes(inner, 2, STD, WINDOW), num, WINDOWS), want)
    assert not deviates(
        estimates(mx.noise_reuse_es(inner, 3, STD, WINDOW), num, 1, WINDOWS), want
    )
    assert deviates(estimates(mx.bptt(inner, 2, WINDOW), num, WINDOWS), want)
    assert deviates(estimates(mx.forward(inner, 2, WINDOW), num, WINDOWS), want)


@pytest.mark.slow
def test_whole_episodes_equal_a_loop(x64):
    """Each pair simulated by itself in NumPy; its noise and its task come from the keys alone."""
    theta = THETA.astype(float)
    inner = toy()
    estimator = mx.es(inner, 3, STD)
    state = estimator.init(jax.random.key(0), theta, ())
    seen = []
    for i in range(2):
        key = jax.random.key(i)
        result, state = estimator.estimate(key, theta, state, ())
        k_noise, k_start = jax.random.split(key)
        noise = STD * np.asarray(mx.gaussian().sample(k_noise, theta, 3))
        starts = [inner.init(k, theta, ()) for k in jax.random.split(k_start, 3)]
        tasks = np.stack([start.task for start in starts])
        seen.append((noise, tasks))

        moved = np.stack([theta + noise, theta - noise], 1)  # [pairs, 2, n]
        x = moved / 2
        losses = np.zeros((3, 2))
        for t in range(HORIZON):
            aims = tasks[:, None] + np.sin(t)
            losses += (CUBIC * x**3 + (x - aims) ** 2).sum(-1) / HORIZON
            x = RHO * x + moved
        slopes = (losses[:, 0] - losses[:, 1])[:, None] / (2 * STD**2)
        np.testing.assert_allclose(result.updates, (slopes * noise).mean(0), rtol=1e-9)
        np.testing.assert_allclose(result.loss, losses.mean(), rtol=1e-9)
        assert result.metrics["diverged"] == 0
    for before, after in zip(*seen, strict=True):
        assert not (before == after).any(), "a new estimate has new noise and new tasks"


@pytest.mark.parametrize("kind", ["pes", "noise_reuse_es"])
@pytest.mark.slow
def test_windows_equal_a_loop(x64, kind):
    """Each pair simulated by itself in NumPy over two episodes; its noise is read off the
    states.
    """
    theta, inner = THETA.astype(float), toy()
    estimator = {
        "pes": lambda: mx.pes(inner, 3, STD, WINDOW),
        "noise_reuse_es": lambda: mx.noise_reuse_es(
            inner, 3, STD, WINDOW, stagger=False
        ),
    }[kind]()
    length = WINDOW
    state, estimate = (
        estimator.init(jax.random.key(0), theta, ()),
        jax.jit(estimator.estimate),
    )
    for i in range(2 * HORIZON // length):
        result, new = estimate(jax.random.key(i), theta, state, ())
        first = i * length % HORIZON == 0
        if first:
            x, noise = None, STD * np.asarray(new.noise)
            tasks = np.asarray(new.episodes.task)
            assert not (np.asarray(state.episodes.task) == tasks).any(), (
                "a new episode has a new task"
            )
            assert not (STD * np.asarray(state.noise) == noise).any(), "and new noise"
        elif kind == "pes":
            noise = STD * np.asarray(new.noise - state.noise)
        np.testing.assert_array_equal(new.episodes.task, tasks)
        if kind == "noise_reuse_es":
            np.testing.assert_array_equal(STD * new.noise, noise)
        moved = np.stack([theta + noise, theta - noise], 1)  # [pairs, 2, n]
        x = moved / 2 if x is None else x
        losses = np.zeros((3, 2))
        for t in range(i * length % HORIZON, i * length % HORIZON + length):
            losses += (CUBIC * x**3 + (x - tasks[:, None] - np.sin(t)) ** 2).sum(
                -1
            ) / length
            x = RHO * x + moved
        want = ((losses[:, 0] - losses[:, 1])[:, None] * np.asarray(new.noise)).mean(
            0
        ) / (2 * STD)
        np.testing.assert_allclose(result.updates, want, rtol=1e-9)
        np.testing.assert_allclose(result.loss, losses.mean(), rtol=1e-9)
        np.testing.assert_allclose(new.episodes.learner.x, x, rtol=1e-9)
        assert result.metrics["diverged"] == 0
        state = new


@pytest.mark.slow
def test_one_window_is_plain_es():
    inner, results = toy(), []
    for estimator in (
        mx.es(inner, 4, STD),
        mx.pes(inner, 4, STD),
        mx.pes(inner, 4, STD, HORIZON, stagger=True),
        mx.noise_reuse_es(inner, 4, STD, HORIZON),
    ):
        state = estimator.init(jax.random.key(0), THETA, ())
        for i in range(2):
            result, state = estimator.estimate(jax.random.key(i), THETA, state, ())
        results.append(result)
    chex.assert_trees_all_equal(*results)


@pytest.mark.slow
def test_noise_reuse_starts_staggered():
    estimator = mx.noise_reuse_es(toy(), 6, STD, WINDOW)
    state = estimator.init(jax.random.key(0), THETA, ())
    for i in range(4):
        before = state.noise
        _, state = estimator.estimate(jax.random.key(i), THETA, state, ())
        assert sorted(state.episodes.t.tolist()) == [2, 2, 4, 4, 6, 6]
        renewed = (state.noise != before).all(1)
        assert renewed.tolist() == (state.episodes.t == WINDOW).tolist()


@pytest.mark.parametrize("kind", ["es", "pes", "noise_reuse_es"])
@pytest.mark.slow
def test_twins_share_all_randomness(kind):
    """Where the meta-parameters change nothing, twins that met the same keys and batches have the
    same loss.
    """

    def step(key, m, x, batch):
        return (
            x + jax.random.normal(key) + batch,
            x + batch + jax.random.normal(key),
            {},
        )

    learner = mx.Learner(
        lambda key, m, task: jax.random.normal(key) + task[0],
        step,
        lambda *args: (0.0, {}),
    )
    tasks = replace(
        TASKS, train=lambda key, data, task: jax.random.normal(key) + task[0]
    )
    loop = mx.inner(learner, tasks, HORIZON)
    estimator = {
        "es": lambda i: mx.es(i, 5, STD),
        "pes": lambda i: mx.pes(i, 5, STD, WINDOW),
        "noise_reuse_es": lambda i: mx.noise_reuse_es(i, 5, STD, WINDOW),
    }[kind](loop)
    state = estimator.init(jax.random.key(0), THETA, ())
    for i in range(3):
        result, state = estimator.estimate(jax.random.key(i), THETA, state, ())
        np.testing.assert_array_equal(result.updates, 0)
        if kind == "es":  # of whose episodes nothing is kept
            pairs = _antithetic.Pairs(loop, mx.gaussian(), STD)
            noise = mx.gaussian().sample(jax.random.key(9), THETA, 5)
            losses, _ = pairs.run_whole(jax.random.key(i), THETA, noise, ())
            np.testing.assert_array_equal(losses[:, 0], losses[:, 1])
            found = losses[:, 0]
        else:
            found = state.episodes.learner
        assert len(np.unique(found)) == 5, "other pairs meet other tasks"


@pytest.mark.slow
def test_a_pair_with_an_infinite_loss_is_left_out_and_starts_anew():
    """The learner's state stays finite: only the loss tells."""
    learner = toy_learner()

    def step(key, m, state, task):
        state, loss, metrics = learner.step(key, m, state, task)
        return state, jnp.where(m[0] > 0.9, jnp.inf, loss), metrics

    estimator = mx.pes(
        mx.inner(replace(learner, step=step), TASKS, HORIZON), 64, STD, WINDOW
    )
    plain = mx.pes(toy(), 64, STD, WINDOW)
    state = estimator.init(jax.random.key(0), THETA, ())
    result, after = estimator.estimate(jax.random.key(1), THETA, state, ())
    lost = STD * np.abs(after.noise[:, 0]) > 0.4
    assert 0 < lost.sum() < 64
    np.testing.assert_allclose(result.metrics["diverged"], lost.mean(), rtol=1e-6)
    np.testing.assert_array_equal(after.episodes.t, np.where(lost, HORIZON, WINDOW))
    # The others are those of a run in which nothing was lost.
    pairs = plain.estimate(jax.random.key(1), THETA, state, ())[1]
    np.testing.assert_array_equal(pairs.noise, after.noise)
    c = influence(0, WINDOW)[0], influence(1, WINDOW)[0]
    task = np.asarray(after.episodes.task)[~lost]
    noise = STD * np.asarray(after.noise)[~lost]

    def loss(m):
        xs = [c[0] * m, c[1] * m]
        return (
            sum(
                (CUBIC * x**3 + (x - task - np.sin(t)) ** 2).sum(-1)
                for t, x in enumerate(xs)
            )
            / 2
        )

    want = ((loss(THETA + noise) - loss(THETA - noise))[:, None] * noise).mean(0) / (
        2 * STD**2
    )
    np.testing.assert_allclose(result.updates, want, rtol=1e-3, atol=1e-4)
    _, then = estimator.estimate(jax.random.key(2), THETA, after, ())
    assert (
        np.asarray(then.episodes.task)[lost] != np.asarray(after.episodes.task)[lost]
    ).all()
    np.testing.assert_array_equal(np.asarray(then.episodes.task)[~lost], task)


def test_a_pair_with_one_nonfinite_twin_starts_anew():
    """In the second step, the twin on the side of a large second meta-parameter loses its state."""
    learner = toy_learner()

    def step(key, meta_params, state, task):
        new, loss, metrics = learner.step(key, meta_params, state, task)
        lost = meta_params[1] > THETA[1] + STD
        return new._replace(x=jnp.where(lost, jnp.inf, new.x)), loss, metrics

    estimator = mx.pes(mx.inner(replace(learner, step=step), TASKS, 4), 8, STD, 1)
    state = estimator.init(jax.random.key(0), THETA, ())
    result, after = estimator.estimate(jax.random.key(1), THETA, state, ())
    lost = np.abs(after.noise[:, 1]) > 1
    assert 0 < lost.sum() < 8
    assert after.episodes.t.tolist() == np.where(lost, 4, 1).tolist()
    assert result.metrics["diverged"] == 0
    chex.assert_tree_all_finite((result, after.noise))
    again = estimator.estimate(jax.random.key(2), THETA, after, ())[1]
    drawn = estimator.estimate(jax.random.key(2), THETA, state, ())[
        1
    ].noise  # all of them begin
    np.testing.assert_allclose(
        again.noise,
        drawn + np.where(lost[:, None], 0, after.noise),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.slow
def test_a_step_without_a_finite_pair_is_skipped():
    learner = replace(toy_learner(), step=lambda key, m, x, y: (x, m.sum() / 0.0, {}))
    trainer = mx.trainer(mx.es(mx.inner(learner, TASKS, 2), 3, STD), optax.sgd(1.0))
    state, metrics = trainer.step(trainer.init(jax.random.key(0), THETA))
    assert int(state.skipped) == 1
    assert float(metrics["diverged"]) == 1
    np.testing.assert_array_equal(state.meta_params, THETA)


# Guided evolution strategies.

GUIDES = np.array([[3.0, 1.0, 0.0, 0.0], [1.0, -2.0, 0.0, 1.0]])
THETA4 = jnp.array([0.5, -0.3, 0.2, 0.0])
TASKS4 = replace(
    TASKS, sample=lambda key, data: 1 + jax.random.normal(key, THETA4.shape)
)


def fixed_surrogate(guides=GUIDES):
    """Gives one guide after the other."""

    def estimate(key, meta_params, state, data):
        return mx.Estimate(
            jnp.asarray(guides, jnp.float32)[state % len(guides)], jnp.float32(7), {}
        ), state + 1

    return mx.Estimator(lambda key, meta_params, data: jnp.int32(0), estimate)


def quadratic4():
    return mx.inner(toy_learner(cubic=0.0), TASKS4, HORIZON)


@pytest.mark.parametrize(("rank", "alpha"), [(1, 0.5), (2, 0.25), (2, 1.0), (2, 0.0)])
def test_guided_es_is_the_covariance_times_the_gradient(rank, alpha):
    surrogate = fixed_surrogate()
    estimator = mx.guided_es(quadratic4(), 2, STD, surrogate, rank=rank, alpha=alpha)
    samples = estimates(estimator, 1 << 14, 1, after=1, meta_params=THETA4)
    span = GUIDES[1:] if rank == 1 else GUIDES  # the newest, or both
    projection = np.linalg.pinv(span) @ span
    covariance = alpha / 4 * np.eye(4) + (1 - alpha) / rank * projection
    gradient = smoothed_gradient(False, cubic=0.0, theta=THETA4)
    if alpha == 0:  # nothing leaves the subspace: test within it
        np.testing.assert_allclose(samples, samples @ projection, atol=1e-3)
        samples, covariance = samples @ span.T, span @ covariance
    assert not deviates(samples, covariance @ gradient)
    assert deviates(samples, 0.9 * (covariance @ gradient))
    if 0 < alpha < 1:
        assert deviates(samples, gradient / 4)


@pytest.mark.slow
def test_guided_es_follows_a_guide_whose_norm_overflows():
    estimator = mx.guided_es(
        quadratic4(),
        2,
        STD,
        fixed_surrogate(np.array([[0.0, 0.0, 1e30, 0.0]])),
        alpha=0.0,
    )
    result, state = estimator.estimate(
        jax.random.key(0), THETA4, estimator.init(jax.random.key(1), THETA4, ()), ()
    )
    np.testing.assert_array_equal(state.recent, [[0, 0, 1, 0]])
    np.testing.assert_allclose(result.updates[jnp.array([0, 1, 3])], 0, atol=1e-5)
    assert abs(result.updates[2]) > 0.1


@pytest.mark.slow
def test_guided_es_fills_missing_directions_at_random_and_passes_over_bad_ones():
    bad = fixed_surrogate(np.array([[np.nan] * 4, [0.0] * 4, [0.0, 0.0, 3.0, 0.0]]))
    estimator = mx.guided_es(quadratic4(), 2, STD, bad, rank=3)
    state = estimator.init(jax.random.key(0), THETA4, ())
    assert np.linalg.matrix_rank(state.recent) == 3
    for i, pushed in enumerate([False, False, True]):
        result, new = estimator.estimate(jax.random.key(i), THETA4, state, ())
        chex.assert_tree_all_finite(result)
        if pushed:
            np.testing.assert_array_equal(
                new.recent, np.stack([[0, 0, 1, 0], *state.recent[:2]])
            )
        else:
            np.testing.assert_array_equal(new.recent, state.recent)
        state = new
    assert result.metrics["surrogate_loss"] == 7


# The strategies of evosax.

REFUSED = {
    "SV_CMA_ES": "SV_CMA_ES has several means.*CMA_ES",
    "SV_Open_ES": "SV_Open_ES has several means.*Open_ES",
    "PersistentES": "PersistentES is for.*metajax.pes",
    "NoiseReuseES": "NoiseReuseES is for.*metajax.noise_reuse_es",
    "GuidedES": "GuidedES must be given a gradient.*metajax.guided_es",
} | {name: "keeps a population.*CMA_ES" for name in evosax.population_based_algorithms}
SERVED = sorted(evosax.distribution_based_algorithms.keys() - REFUSED.keys())


def make(name):
    extra = {
        "RandomSearch": {
            "sampling_fn": lambda key: jax.random.normal(key, THETA4.shape)
        },
        "SV_CMA_ES": {"num_populations": 2},
        "SV_Open_ES": {"num_populations": 2},
    }
    return evosax.algorithms[name](
        population_size=8, solution=THETA4, **extra.get(name, {})
    )


@pytest.mark.filterwarnings(
    "ignore:optax.global_norm is deprecated:DeprecationWarning"
)  # evosax's PGPE calls it
@pytest.mark.parametrize("name", SERVED)
@pytest.mark.slow
def test_each_strategy_is_its_own_loop(name):
    strategy, inner = make(name), mx.inner(toy_learner(), TASKS4, 2)
    trainer = mx.trainer(mx.ask_tell(inner, strategy, num_tasks=2), optax.sgd(1.0))
    state = trainer.init(jax.random.key(0), THETA4)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(trainer.step, state)[0], state
    )
    for i in range(2):
        k_ask, k_tasks, k_tell = jax.random.split(jax.random.fold_in(state.key, i), 3)
        population, native = strategy.ask(
            k_ask, state.estimator, strategy.default_params
        )
        tasks = [
            TASKS4.sample(jax.random.split(k, 3)[0], ())
            for k in jax.random.split(k_tasks, 2)
        ]
        losses = np.mean(
            [two_steps(np.asarray(population), np.asarray(task)) for task in tasks], 0
        )
        native, _ = strategy.tell(
            k_tell, population, jnp.asarray(losses), native, strategy.default_params
        )
        state, metrics = trainer.step(state)
        np.testing.assert_allclose(metrics["loss"], losses.mean(), rtol=1e-4)
        chex.assert_trees_all_close(
            state.meta_params, strategy.get_mean(native), rtol=1e-3, atol=1e-4
        )
        chex.assert_trees_all_close(state.estimator, native, rtol=1e-3, atol=1e-3)


def two_steps(m, task):
    x = m / 2
    first = (CUBIC * x**3 + (x - task) ** 2).sum(-1)
    x = RHO * x + m
    return (first + (CUBIC * x**3 + (x - task - np.sin(1)) ** 2).sum(-1)) / 2


@pytest.mark.parametrize("name", REFUSED)
def test_the_other_strategies_are_refused_with_a_reason(name):
    strategy = make(name)
    with pytest.raises(
        TypeError, match=f"strategy.*{type(strategy).__name__} .*"
    ) as info:
        mx.ask_tell(toy(), strategy, 2)
    assert info.match(REFUSED[name])


def test_every_strategy_of_evosax_is_accounted_for():
    assert set(SERVED) | set(REFUSED) == set(evosax.algorithms)


# Mixtures.


@pytest.mark.slow
def test_a_mixture_is_the_weighted_sum():
    parts = [mx.bptt(toy(2), 3), mx.pes(toy(), 2, STD, WINDOW), mx.es(toy(4), 2, STD)]
    weights = [0.5, 2.0, -1.0]
    mixed = mx.mix(parts, weights)
    state, key = mixed.init(jax.random.key(0), THETA, ()), jax.random.key(1)
    states = [
        p.init(k, THETA, ())
        for p, k in zip(parts, jax.random.split(jax.random.key(0), 3), strict=True)
    ]
    for _ in range(2):
        result, state = mixed.estimate(key, THETA, state, ())
        outs = [
            p.estimate(k, THETA, s, ())
            for p, k, s in zip(parts, jax.random.split(key, 3), states, strict=True)
        ]
        own, states = zip(*outs, strict=True)
        chex.assert_trees_all_equal(state, states)
        np.testing.assert_array_equal(
            result.updates,
            sum(w * r.updates for w, r in zip(weights, own, strict=True)),
        )
        np.testing.assert_array_equal(
            result.loss, sum(w * r.loss for w, r in zip(weights, own, strict=True))
        )
        assert sorted(result.metrics) == [
            "0/diverged",
            "0/loss",
            "0/x",
            "1/diverged",
            "1/loss",
            "1/x",
            "2/diverged",
            "2/loss",
            "2/x",
        ]
        np.testing.assert_array_equal(result.metrics["1/loss"], own[1].loss)
        key = jax.random.key(2)


@pytest.mark.slow
def test_equal_weights_are_a_mean():
    part = mx.bptt(toy(2), 3)
    one, _ = mx.mix([part]).estimate(
        jax.random.key(1), THETA, mx.mix([part]).init(jax.random.key(0), THETA, ()), ()
    )
    two = mx.mix([part, part])
    result, _ = two.estimate(
        jax.random.key(1), THETA, two.init(jax.random.key(0), THETA, ()), ()
    )
    keys = jax.random.split(jax.random.key(1), 2)
    own = [
        part.estimate(k, THETA, part.init(k, THETA, ()), ())[0].updates for k in keys
    ]
    np.testing.assert_allclose(result.updates, (own[0] + own[1]) / 2, rtol=1e-6)
    assert one.metrics["0/loss"] == one.loss


@pytest.mark.slow
def test_named_estimators_have_data_of_their_own():
    inner = mx.inner(toy_learner(), replace(TASKS, sample=lambda key, data: data), 2)
    part = mx.bptt(inner, 2)
    mixed = mx.mix({"b": part, "a": part}, {"a": 1.0, "b": 10.0})
    data = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([-3.0, 0.0])}
    trainer = mx.trainer(mixed, optax.sgd(1.0))
    state, metrics = jax.jit(trainer.step)(
        trainer.init(jax.random.key(0), THETA, data), data
    )
    own = {}
    for name in data:
        s = part.init(jax.random.key(0), THETA, data[name])
        own[name] = part.estimate(jax.random.key(1), THETA, s, data[name])[0]
        np.testing.assert_allclose(metrics[f"{name}/loss"], own[name].loss, rtol=1e-6)
    want = THETA - own["a"].updates - 10 * own["b"].updates
    np.testing.assert_allclose(state.meta_params, want, rtol=1e-5)


# Random horizons.


@pytest.mark.slow
def test_lengths_are_log_uniform_in_whole_windows():
    low, high, window, num = 3, 24, 4, 20000
    inner = toy((low, high))
    assert (inner.shortest, inner.horizon) == (low, high)
    estimator = mx.bptt(inner, num, window)

    @jax.jit
    def lengths(key):
        """How long each episode lasts, by following it to its end."""
        state = estimator.init(key, THETA, ())
        _, state = estimator.estimate(key, THETA, state, ())
        keys, out = jax.random.key_data(state.key), jnp.zeros(num, jnp.int32)
        for _ in range(high // window):
            t = state.t
            _, state = estimator.estimate(key, THETA, state, ())
            over = (state.t <= t) & (out == 0)
            out = jnp.where(over, t, out)
        return out, keys

    got, keys = lengths(jax.random.key(0))
    assert len(np.unique(keys, axis=0)) == num
    edges = np.array([low, *range(window, high + 1, window)])
    probability = np.diff(np.log(edges)) / np.log(high / low)
    counts = np.array(
        [(got == steps).sum() for steps in range(window, high + 1, window)]
    )
    assert counts.sum() == num, "each is a multiple of the window, at most the longest"
    z = (counts - num * probability) / np.sqrt(num * probability * (1 - probability))
    assert np.abs(z).max() < NormalDist().inv_cdf(1 - 1e-4 / (2 * len(z)))


@pytest.mark.parametrize("kind", ["bptt", "forward", "pes", "noise_reuse_es"])
@pytest.mark.slow
def test_random_horizons_that_leave_no_choice_change_nothing(kind):
    make = {
        "bptt": lambda i: mx.bptt(i, 4, WINDOW),
        "forward": lambda i: mx.forward(i, 4, WINDOW),
        "pes": lambda i: mx.pes(i, 4, STD, WINDOW),
        "noise_reuse_es": lambda i: mx.noise_reuse_es(i, 4, STD, WINDOW),
    }[kind]
    results = []
    for horizon in (HORIZON, (HORIZON, HORIZON), (1, HORIZON)):
        estimator = make(toy(horizon))
        state = estimator.init(jax.random.key(0), THETA, ())
        estimate, updates = jax.jit(estimator.estimate), []
        for i in range(8):
            result, state = estimate(jax.random.key(i), THETA, state, ())
            updates.append(result.updates)
        results.append(np.stack(updates))
    np.testing.assert_array_equal(results[0], results[1])
    assert np.isfinite(results[2]).all()
    assert (results[2] != results[0]).any()


@pytest.mark.slow
def test_whole_episodes_take_the_longest():
    estimates = []
    for horizon in (HORIZON, (1, HORIZON)):
        estimator = mx.es(toy(horizon), 4, STD)
        state = estimator.init(jax.random.key(0), THETA, ())
        estimate, _ = estimator.estimate(jax.random.key(1), THETA, state, ())
        estimates.append(estimate)
        loop = toy(horizon)
        curves = mx.evaluate(loop, jax.random.key(0), THETA, num_tasks=2)
        assert curves.loss.shape == (2, HORIZON)
    jax.tree.map(np.testing.assert_array_equal, *estimates)


HELDOUT = mx.inner(toy_learner(), TASKS, HORIZON, "heldout")
ES = mx.es(toy(), 2, STD)
BAD = {
    "es: std zero": (lambda: mx.es(toy(), 2, 0.0), ValueError, "std"),
    "es: std negative": (lambda: mx.es(toy(), 2, -1.0), ValueError, "std"),
    "es: std NaN": (lambda: mx.es(toy(), 2, float("nan")), ValueError, "std"),
    "es: std an array": (lambda: mx.es(toy(), 2, jnp.ones(2)), TypeError, "std"),
    "es: no tasks": (lambda: mx.es(toy(), 0, STD), ValueError, "num_tasks"),
    "es: inner an estimator": (lambda: mx.es(ES, 2, STD), TypeError, "inner"),
    "pes: std zero": (lambda: mx.pes(toy(), 2, 0, 2), ValueError, "std"),
    "pes: window does not divide": (
        lambda: mx.pes(toy(), 2, STD, 4),
        ValueError,
        "truncation.*take 3",
    ),
    "pes: window of none": (lambda: mx.pes(toy(), 2, STD, 0), ValueError, "truncation"),
    "pes: window and held-out loss": (
        lambda: mx.pes(HELDOUT, 2, STD, 2),
        ValueError,
        "truncation.*online",
    ),
    "noise_reuse_es: std a string": (
        lambda: mx.noise_reuse_es(toy(), 2, "1", 2),
        TypeError,
        "std",
    ),
    "noise_reuse_es: window a float": (
        lambda: mx.noise_reuse_es(toy(), 2, STD, 2.0),
        TypeError,
        "truncation",
    ),
    "guided_es: no surrogate": (
        lambda: mx.guided_es(toy(), 2, STD, None),
        TypeError,
        "surrogate",
    ),
    "guided_es: std zero": (lambda: mx.guided_es(toy(), 2, 0.0, ES), ValueError, "std"),
    "guided_es: rank zero": (
        lambda: mx.guided_es(toy(), 2, STD, ES, rank=0),
        ValueError,
        "rank",
    ),
    "guided_es: rank above the number of parameters": (
        lambda: mx.guided_es(toy(), 2, STD, ES, rank=3).init(
            jax.random.key(0), THETA, ()
        ),
        ValueError,
        "rank must be at most.*2, got 3",
    ),
    "guided_es: alpha above 1": (
        lambda: mx.guided_es(toy(), 2, STD, ES, alpha=1.5),
        ValueError,
        "alpha",
    ),
    "guided_es: alpha negative": (
        lambda: mx.guided_es(toy(), 2, STD, ES, alpha=-0.1),
        ValueError,
        "alpha",
    ),
    "guided_es: alpha NaN": (
        lambda: mx.guided_es(toy(), 2, STD, ES, alpha=float("nan")),
        ValueError,
        "alpha",
    ),
    "guided_es: alpha a bool": (
        lambda: mx.guided_es(toy(), 2, STD, ES, alpha=True),
        TypeError,
        "alpha",
    ),
    "mix: nothing": (lambda: mx.mix([]), TypeError, "estimators"),
    "mix: one estimator": (
        lambda: mx.mix(ES),
        TypeError,
        "estimators must be a sequence",
    ),
    "mix: an inner loop": (
        lambda: mx.mix([ES, toy()]),
        TypeError,
        "estimators.1. must be",
    ),
    "mix: weights of another length": (
        lambda: mx.mix([ES, ES], [1.0]),
        ValueError,
        r"weights must be one for each estimator, for \[0, 1\], got \[0\]",
    ),
    "mix: weights of other names": (
        lambda: mx.mix({"a": ES}, {"b": 1.0}),
        ValueError,
        "weights must be one for each",
    ),
    "mix: weights without names": (
        lambda: mx.mix({"a": ES}, [1.0]),
        TypeError,
        "weights must be a mapping",
    ),
    "mix: weights a number": (
        lambda: mx.mix([ES], 1.0),
        TypeError,
        "weights must be a sequence",
    ),
    "mix: weight NaN": (
        lambda: mx.mix([ES], [float("nan")]),
        ValueError,
        "weights.0. must be finite",
    ),
    "mix: data without the names": (
        lambda: mx.mix({"a": ES}).init(jax.random.key(0), THETA, {"image": 0}),
        ValueError,
        r"data.*\['a'\].*names \['image'\]",
    ),
    "mix: data not a mapping": (
        lambda: mx.mix({"a": ES}).init(jax.random.key(0), THETA, ()),
        ValueError,
        "got tuple",
    ),
    "inner: horizon in the wrong order": (
        lambda: toy((4, 2)),
        ValueError,
        "horizon.*swap",
    ),
    "inner: horizon of three": (
        lambda: toy((1, 2, 3)),
        ValueError,
        "horizon must have 2 numbers",
    ),
    "inner: horizon with zero": (
        lambda: toy((0, 2)),
        ValueError,
        "horizon must be at least 1",
    ),
    "inner: horizon of floats": (lambda: toy((1.0, 2)), TypeError, "horizon"),
    "inner: horizon a list": (lambda: toy([1, 2]), TypeError, "horizon"),
    "inner: random horizon and held-out loss": (
        lambda: mx.inner(toy_learner(), TASKS, (1, 2), "heldout"),
        ValueError,
        "horizon.*online",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=f"(?s){message}"):
        call()
