"""Optimizers inside that look at more than the gradient: line searches, rates from the loss."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from optax import contrib

import metajax as mx
from metajax.optim._derivatives import without_singularities

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
    key = jax.random.key(1)
    result, _ = jax.jit(estimator.estimate)(key, factor, state, ())
    k_noise, k_start = jax.random.split(key)
    noises = std * mx.gaussian().sample(k_noise, factor, 3)
    keys = jax.random.split(k_start, 3)

    @jax.jit
    def loss_at(factor, key):
        begin = loop.init(key, factor, ())
        return mx.unroll(loop, factor, begin, (), 2)[1]

    slopes = []
    for i in range(3):
        noise = noises[i]
        above = loss_at(factor + noise, keys[i])
        below = loss_at(factor - noise, keys[i])
        slopes.append((above - below) * noise / (2 * std**2))
    np.testing.assert_allclose(result.updates, np.mean(slopes), rtol=1e-6)
    assert result.metrics["diverged"] == 0
    assert abs(result.updates) > 1e-6


@pytest.mark.slow
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


# Their updates have derivatives, also where gradients are exactly zero.

DIFFERENTIABLE = {
    "adabelief": lambda: optax.adabelief(0.1),
    "adadelta": lambda: optax.adadelta(0.1),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2),
    "adagrad": lambda: optax.adagrad(0.1),
    "adam, clipped": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(0.1)
    ),
    "adamax": lambda: optax.adamax(0.1),
    "adamw": lambda: optax.adamw(optax.cosine_decay_schedule(0.1, 10)),
    "amsgrad": lambda: optax.amsgrad(0.1),
    "lamb": lambda: optax.lamb(0.1),
    "lars": lambda: optax.lars(0.1),
    "lion": lambda: optax.lion(0.1),
    "momentum": lambda: optax.sgd(0.1, 0.9, nesterov=True),
    "muon": lambda: contrib.muon(0.1),
    "nadam": lambda: optax.nadam(0.1),
    "novograd": lambda: optax.novograd(0.1),
    "prodigy": lambda: contrib.prodigy(),
    "radam": lambda: optax.radam(0.1),
    "rmsprop": lambda: optax.rmsprop(0.1),
    "rmsprop, eps outside": lambda: optax.rmsprop(0.1, eps_in_sqrt=False),
    "rmsprop, centered": lambda: optax.rmsprop(0.1, centered=True),
    "rprop": lambda: optax.rprop(0.1),
    "yogi": lambda: optax.yogi(0.1),
}
START = {
    "w": np.array([[0.5, 0.2], [-1.0, 0.7], [0.3, -0.4]]),
    "unused": np.array([0.3, 0.0]),
}
POINTS = np.random.default_rng(0).normal(size=(2, 8, 3))
DEAD = np.array([0.0, 1.0, 1.0])  # all values of the first input are 0


def with_dead_weights():
    """Two outputs of three inputs; the weights of the first are never needed."""
    return mx.problems.regressor(lambda key: START, lambda p, x: (x * DEAD) @ p["w"])


def batch(points):
    return {"x": points, "y": np.sin(points[:, :2])}


FIXED = mx.Tasks(
    lambda key, data: (),
    train=lambda key, data, task: batch(POINTS[0]),
    test=lambda key, data, task: batch(POINTS[1]),
)


def slopes(learner, meta_params, size=1e-6):
    """The gradient, and along a random direction its slope and that of finite differences."""
    loop = mx.inner(learner, FIXED, 3, "heldout")

    def loss(meta_params):
        begin = loop.init(jax.random.key(0), meta_params, ())
        return mx.unroll(loop, meta_params, begin, (), 3)[1]

    @jax.jit
    def run(meta_params, direction):
        gradient = jax.grad(loss)(meta_params)
        ends = jnp.array([size, -size])
        moved = jax.vmap(lambda s: optax.tree.add_scale(meta_params, s, direction))
        above, below = lax.map(loss, moved(ends))
        return (
            gradient,
            optax.tree.vdot(gradient, direction),
            (above - below) / (2 * size),
        )

    meta_params = jax.tree.map(jnp.asarray, meta_params)
    return run(meta_params, optax.tree.random_like(jax.random.key(1), meta_params))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.slow
def test_their_updates_have_derivatives_where_gradients_are_zero(x64, name):
    tx = DIFFERENTIABLE[name]()

    def make_tx(m):
        return optax.chain(tx, optax.scale(m["factor"]))

    learner = mx.adapt(with_dead_weights(), make_tx, start=lambda m: m["start"])
    gradient, slope, want = slopes(learner, {"start": START, "factor": 0.9})
    chex.assert_tree_all_finite(gradient)
    np.testing.assert_allclose(slope, want, rtol=1e-5, atol=1e-8)
    assert abs(want) > 1e-4


def test_the_constants_of_adam_are_learned_where_gradients_are_zero(x64):
    def make_tx(m):
        return optax.adam(m["rate"], b1=m["b1"], b2=m["b2"], eps=m["eps"])

    learner = mx.l2l(make_tx, with_dead_weights(), second_order=True)
    meta_params = {"rate": 0.1, "b1": 0.9, "b2": 0.99, "eps": 1e-3}
    gradient, slope, want = slopes(learner, meta_params)
    np.testing.assert_allclose(slope, want, rtol=1e-6)
    assert all(abs(x) > 1e-5 for x in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_an_update_at_zero_has_its_true_derivative(x64):
    """Adam's first is ``-rate g / (|g| + eps)``: smooth, with a root that is not."""
    tx = mx.optim.differentiable(optax.adam(0.1, eps=0.01))

    def update(g):
        return tx.update(g, tx.init(g))[0]

    for derivative in (jax.grad, jax.jacfwd):
        assert derivative(update)(0.0) == pytest.approx(-0.1 / 0.01, rel=1e-12)
    assert update(0.3) == pytest.approx(-0.1 * 0.3 / 0.31)


@pytest.mark.slow
def test_values_and_other_derivatives_stay():
    """Infinity and NaN too: what is used and not finite shall be seen."""
    x = jnp.array([0.0, -0.0, -1.0, 1e-30, 2.0, jnp.inf, jnp.nan])

    def f(x):
        roots = jnp.sqrt(x), lax.rsqrt(x), jnp.cbrt(x), x**-0.5
        return (*roots, 1 / x, x / x, jnp.log(x))

    safe = without_singularities(f)
    jax.tree.map(np.testing.assert_array_equal, safe(x), f(x))
    jacobians = [jax.vmap(jax.jacfwd(g))(x[3:5]) for g in (safe, f)]
    chex.assert_trees_all_equal(*jacobians)
    at_zero = jax.vmap(jax.jacfwd(safe))(x[:2])
    assert all((slope == 0).all() for slope in at_zero)


@pytest.mark.slow
def test_loops_branches_and_calls_have_derivatives_too():
    def f(x):
        looped = lax.fori_loop(0, 2, lambda i, y: y + jnp.sqrt(x), x)
        branch = lax.cond(x < 1, jnp.sqrt, jnp.sin, x)
        return looped + branch + jax.jit(jnp.linalg.norm)(x * jnp.ones(2))

    assert not jnp.isfinite(jax.grad(f)(0.0))
    assert jax.grad(without_singularities(f))(0.0) == 1.0
    assert jax.grad(without_singularities(f))(0.5) == pytest.approx(jax.grad(f)(0.5))
