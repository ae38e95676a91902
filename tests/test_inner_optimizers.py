"""Optimizers inside that look at more than the gradient: line searches, rates from the loss."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx

TASKS = mx.tasks.linear_regressions(3, shots=8, queries=8, condition=30.0, noise=0.1)
W = np.array([[0.5], [-1.0], [0.3]])
STEPS = 4


def linear_regression():
    return mx.problems.regressor(lambda key: jnp.asarray(W), lambda w, x: x @ w)


OPTIMIZERS = {
    "lbfgs": lambda: optax.lbfgs(),
    "lbfgs, backtracking": lambda: optax.lbfgs(
        linesearch=optax.scale_by_backtracking_linesearch(max_backtracking_steps=10)
    ),
    "polyak_sgd": lambda: optax.polyak_sgd(),
    "in a chain": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.polyak_sgd(0.5)
    ),
    "momo": lambda: optax.contrib.momo(0.3),
    "reduce_on_plateau": lambda: optax.chain(
        optax.sgd(0.5), optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
    ),
    "schedule_free_sgd": lambda: optax.contrib.schedule_free_sgd(0.1),
    "prodigy": lambda: optax.contrib.prodigy(),
}
MAKERS = {
    "finetune": lambda tx: mx.finetune(linear_regression(), tx),
    "adapt": lambda tx: mx.adapt(linear_regression(), lambda m: tx),
    "l2l": lambda tx: mx.l2l(lambda m: tx, linear_regression()),
}


def by_hand(tx, w, x, y):
    """A few steps with all that optax may ask for."""
    tx = optax.with_extra_args_support(tx)

    def value_fn(w):
        return jnp.mean((x @ w - y) ** 2)

    state = tx.init(w)
    losses = []
    for _ in range(STEPS):
        value, grad = jax.value_and_grad(value_fn)(w)
        updates, state = tx.update(
            grad, state, w, value=value, grad=grad, value_fn=value_fn
        )
        losses.append(value)
        w = optax.apply_updates(w, updates)
    return jnp.stack(losses), w


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("maker", ["finetune", "adapt", "l2l"])
@pytest.mark.slow
def test_they_do_what_they_do_in_optax(x64, name, maker):
    tx = OPTIMIZERS[name]()
    loop = mx.inner(MAKERS[maker](tx), TASKS, STEPS)
    curves = mx.evaluate(loop, jax.random.key(0), jnp.asarray(W), num_tasks=2)
    support = curves.state.task["support"]
    run = jax.jit(lambda x, y: by_hand(tx, jnp.asarray(W), x, y))
    for i in range(2):
        losses, w = run(support["x"][i], support["y"][i])
        np.testing.assert_allclose(curves.loss[i], losses, rtol=1e-8)
        np.testing.assert_allclose(
            curves.state.learner.params[i], w, rtol=1e-7, atol=1e-12
        )


@pytest.mark.slow
def test_a_line_search_reaches_the_least_squares(x64):
    loop = mx.inner(mx.finetune(linear_regression(), optax.lbfgs()), TASKS, 15)
    curves = mx.evaluate(loop, jax.random.key(0), jnp.asarray(W), num_tasks=3)
    for i in range(3):
        x, y = (np.asarray(curves.state.task["support"][name][i]) for name in "xy")
        want = np.linalg.lstsq(x, y)[0]
        np.testing.assert_allclose(curves.state.learner.params[i], want, rtol=1e-5)


def test_a_rate_from_the_loss_has_a_closed_form(x64):
    """Polyak's step for a lowest loss of 0: ``f / |g|^2``."""
    learner = mx.finetune(
        linear_regression(), optax.polyak_sgd(max_learning_rate=100.0)
    )
    loop = mx.inner(learner, TASKS, 1)
    curves = mx.evaluate(loop, jax.random.key(0), jnp.asarray(W), num_tasks=1)
    x, y = (np.asarray(curves.state.task["support"][name][0]) for name in "xy")
    error = x @ W - y
    gradient = 2 * x.T @ error / len(y)
    step = np.mean(error**2) / np.sum(gradient**2)
    np.testing.assert_allclose(
        curves.state.learner.params[0], W - step * gradient, rtol=1e-10
    )


@pytest.mark.parametrize("name", ["lbfgs", "polyak_sgd", "momo"])
@pytest.mark.parametrize("estimator", [mx.bptt, mx.forward])
@pytest.mark.slow
def test_their_updates_are_constants_of_the_meta_gradient(x64, name, estimator):
    """Fine-tuning is ``theta`` plus a constant: the gradient of the query loss where it ends."""
    tx = OPTIMIZERS[name]()
    run = estimator(mx.inner(MAKERS["finetune"](tx), TASKS, STEPS, "heldout"), 2)
    meta_params = jnp.asarray(W)
    state = run.init(jax.random.key(0), meta_params, ())
    result, state = jax.jit(run.estimate)(jax.random.key(1), meta_params, state, ())

    wanted = []
    for i in range(2):
        task = jax.tree.map(lambda x, i=i: x[i], state.task)
        _, w = jax.jit(lambda x, y: by_hand(tx, meta_params, x, y))(
            *points(task["support"])
        )
        x, y = map(np.asarray, points(task["query"]))
        wanted.append(2 * x.T @ (x @ np.asarray(w) - y) / len(y))
    np.testing.assert_allclose(result.updates, np.mean(wanted, 0), rtol=1e-6)
    assert result.metrics["diverged"] == 0


def points(batch):
    return batch["x"], batch["y"]


@pytest.mark.parametrize("name", ["lbfgs", "polyak_sgd"])
@pytest.mark.slow
def test_evolution_strategies_meta_learn_what_surrounds_them(x64, name):
    """A factor on the updates: the estimate against the losses of the twins, each run alone."""

    def make_tx(factor):
        return optax.chain(OPTIMIZERS[name](), optax.scale(factor))

    std = 0.05
    loop = mx.inner(mx.l2l(make_tx, linear_regression()), TASKS, 2, "heldout")
    estimator = mx.es(loop, 3, std)
    factor = jnp.float64(0.7)
    state = estimator.init(jax.random.key(0), factor, ())
    result, state = jax.jit(estimator.estimate)(jax.random.key(1), factor, state, ())

    @jax.jit
    def loss_at(factor, episode):
        begin = loop.init(jax.random.key(0), factor, ())
        begin = begin._replace(key=episode.key, task=episode.task)
        return mx.unroll(loop, factor, begin, (), 2)[1]

    slopes = []
    for i in range(3):
        episode = jax.tree.map(lambda x, i=i: x[i], state.episodes)
        noise = state.noise[i]
        above, below = (
            loss_at(factor + noise, episode),
            loss_at(factor - noise, episode),
        )
        slopes.append((above - below) * noise / (2 * std**2))
    np.testing.assert_allclose(result.updates, np.mean(slopes), rtol=1e-6)
    assert result.metrics["diverged"] == 0
    assert abs(result.updates) > 1e-6


def test_meta_training_with_a_line_search_inside_moves_the_start():
    learner = mx.finetune(mx.problems.mlp((4, 3)), optax.lbfgs())
    tasks = mx.tasks.episodes(3, 1)
    data = mx.data.by_class(
        {"image": np.random.default_rng(0).random((12, 4)), "label": np.arange(12) % 3}
    )
    trainer = mx.trainer(
        mx.bptt(mx.inner(learner, tasks, 2, "heldout"), 2), optax.sgd(0.1)
    )
    first = trainer.init(jax.random.key(0), learner.meta(jax.random.key(1)), data)
    state, metrics = jax.jit(trainer.step)(first, data)
    chex.assert_tree_all_finite((state.meta_params, metrics))
    assert optax.tree.norm(optax.tree.sub(state.meta_params, first.meta_params)) > 1e-3
