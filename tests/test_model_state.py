"""Models that keep a state and differ in training and in evaluation, against loops in NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import IMAGES

import metajax as mx

F, C, KEPT, DECAY, RATE = 4, 3, 0.8, 0.9, 0.3
TASKS = mx.tasks.minibatches(5, test_size=7)
WEIGHTS = np.random.default_rng(0).normal(size=(F, C))


def with_running_mean(dropout=True):
    """A running mean of the images is taken out; in training some values are dropped."""

    def init(key):
        return jnp.asarray(WEIGHTS), {"mean": jnp.full(F, 0.2), "batches": jnp.int32(0)}

    def apply(key, w, state, images, training):
        x = images.reshape(len(images), F).astype(w.dtype)
        if training:
            mean = DECAY * state["mean"] + (1 - DECAY) * x.mean(0)
            state = {"mean": mean, "batches": state["batches"] + 1}
            if dropout:
                x = x * jax.random.bernoulli(key, KEPT, x.shape)
        return (x - state["mean"]) @ w, state

    return mx.problems.supervised(init, apply, mx.problems.cross_entropy)


def softmax_and_loss(logits, label):
    """The probabilities and the mean cross-entropy."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return p, -np.log(p[np.arange(len(label)), label]).mean()


def loop_in_numpy(state, steps, dropout=True):
    """Gradient descent from an `mx.InnerState`, on the batches that it meets.

    Gives the losses, the weights and the running mean.
    """
    w = WEIGHTS.copy()
    mean = np.full(F, 0.2)
    losses = []
    for t in range(steps):
        k_data, k_step = jax.random.split(jax.random.fold_in(state.key, t))
        batch = TASKS.train(k_data, IMAGES, ())
        x = np.asarray(batch["image"], np.float64).reshape(5, F)
        label = np.asarray(batch["label"])
        mean = DECAY * mean + (1 - DECAY) * x.mean(0)
        if dropout:
            x = x * np.asarray(jax.random.bernoulli(k_step, KEPT, x.shape))
        p, loss = softmax_and_loss((x - mean) @ w, label)
        losses.append(loss)
        w = w - RATE * (x - mean).T @ (p - np.eye(C)[label]) / 5
    return losses, w, mean


# A learner that descends with the rate `RATE` from `WEIGHTS`, and its meta-parameters.
DESCENTS = {
    "l2l": (lambda p: mx.l2l(lambda m: optax.sgd(m["rate"]), p), {"rate": RATE}),
    "maml": (lambda p: mx.maml(p, RATE), WEIGHTS),
    "meta_sgd": (
        lambda p: mx.meta_sgd(p, RATE),
        {"params": WEIGHTS, "rates": RATE + 0 * WEIGHTS},
    ),
    "finetune": (lambda p: mx.finetune(p, optax.sgd(RATE)), WEIGHTS),
}


@pytest.mark.parametrize("name", DESCENTS)
@pytest.mark.slow
def test_the_state_follows_the_training_batches(x64, name):
    """The losses, the weights and the running mean, and the test loss that they give."""
    make, meta_params = DESCENTS[name]
    loop = mx.inner(make(with_running_mean()), TASKS, 4)
    meta_params = jax.tree.map(jnp.asarray, meta_params)
    curves = mx.evaluate(loop, jax.random.key(0), meta_params, IMAGES, num_tasks=3)
    for i in range(3):
        state = jax.tree.map(lambda x, i=i: x[i], curves.state)
        losses, w, mean = loop_in_numpy(state, 4)
        np.testing.assert_allclose(curves.loss[i], losses, rtol=1e-8)
        np.testing.assert_allclose(state.learner.params, w, rtol=1e-8)
        np.testing.assert_allclose(state.learner.model_state["mean"], mean, rtol=1e-8)
        assert state.learner.model_state["batches"] == 4
        # Of evaluation: the running mean, and nothing dropped.
        k_data, _ = jax.random.split(jax.random.fold_in(state.key, 2**31 - 1))
        batch = TASKS.test(k_data, IMAGES, ())
        x = np.asarray(batch["image"], np.float64).reshape(7, F)
        _, want = softmax_and_loss((x - mean) @ w, np.asarray(batch["label"]))
        np.testing.assert_allclose(curves.test_loss[i], want, rtol=1e-8)


def test_evaluation_does_not_depend_on_its_key(x64, key):
    learner = mx.maml(with_running_mean(), RATE)
    meta_params = learner.meta(key)
    batch = TASKS.test(key, IMAGES, ())
    state = learner.init(key, meta_params, ())
    state, _, _ = jax.jit(learner.step)(key, meta_params, state, batch)

    @jax.jit
    @jax.vmap
    def run(key):
        tested = learner.test(key, meta_params, state, batch)
        predicted = learner.predict(key, meta_params, state, batch["image"])
        _, trained, _ = learner.step(key, meta_params, state, batch)
        return tested, predicted, trained

    tested, predicted, trained = run(jax.random.split(key, 4))
    chex.assert_trees_all_equal(
        *(jax.tree.map(lambda x, i=i: x[i], tested) for i in range(4))
    )
    chex.assert_trees_all_equal(*predicted)

    x = np.asarray(batch["image"]).reshape(7, F)
    want = (x - np.asarray(state.model_state["mean"])) @ np.asarray(state.params)
    np.testing.assert_allclose(predicted[0], want, rtol=1e-10)
    assert len(np.unique(trained)) == 4, "while training drops some"


def test_optimizers_do_not_see_the_state(x64, key):
    """Neither its numbers nor its integers, of which there is no gradient."""
    problem = with_running_mean()
    learner = mx.l2l(lambda m: optax.adamw(0.1, weight_decay=0.5), problem)
    state = learner.init(key, (), ())
    moments = state.opt_state[0]
    chex.assert_trees_all_equal_shapes(moments.mu, state.params)
    chex.assert_trees_all_equal_shapes(moments.nu, state.params)

    batch = TASKS.train(key, IMAGES, ())
    _, (_, wanted) = problem.loss(key, state.params, state.model_state, batch)
    new, _, _ = learner.step(key, (), state, batch)
    chex.assert_trees_all_equal(new.model_state, wanted)


def hidden_statistics():
    """Its running mean is of a hidden layer: it depends on the parameters."""

    def init(key):
        k_first, k_second = jax.random.split(key)
        params = {
            "first": jax.random.normal(k_first, (F, 5)) / 2,
            "second": jax.random.normal(k_second, (5, C)),
        }
        return params, jnp.zeros(5)

    def apply(key, params, mean, images, training):
        h = jnp.tanh(images.reshape(len(images), F) @ params["first"])
        if training:
            mean = 0.5 * mean + 0.5 * h.mean(0)
        return (h - mean) @ params["second"], mean

    return mx.problems.supervised(init, apply, mx.problems.cross_entropy)


@pytest.mark.parametrize("meta_loss", ["online", "heldout"])
@pytest.mark.slow
def test_the_meta_gradient_passes_through_the_state(x64, meta_loss):
    """Against finite differences: what a batch leaves in the state, later losses feel."""
    learner = mx.maml(hidden_statistics(), RATE)
    loop = mx.inner(learner, TASKS, 3, meta_loss)
    meta_params = learner.meta(jax.random.key(1))
    estimator = mx.bptt(loop, 2)
    begin = estimator.init(jax.random.key(2), meta_params, IMAGES)

    @jax.jit
    def estimate(meta_params):
        return estimator.estimate(jax.random.key(3), meta_params, begin, IMAGES)[0]

    forward, _ = mx.forward(loop, 2).estimate(
        jax.random.key(3), meta_params, begin, IMAGES
    )
    got = estimate(meta_params).updates
    chex.assert_trees_all_close(forward.updates, got, rtol=1e-8, atol=1e-12)
    for seed in range(3):
        direction = optax.tree.random_like(jax.random.key(seed), meta_params)
        above, below = (
            estimate(optax.tree.add_scale(meta_params, h, direction)).loss
            for h in (1e-5, -1e-5)
        )
        slope = optax.tree.vdot(got, direction)
        np.testing.assert_allclose(slope, (above - below) / 2e-5, rtol=1e-6)


@pytest.mark.slow
def test_the_state_of_imaml_is_that_of_the_solution(x64, key):
    """It begins with that of ``init`` and moves on once, with the parameters that were found."""
    problem = hidden_statistics()
    solver = mx.implicit.descend(optax.sgd(0.1), 20)
    learner = mx.imaml(problem, solver, mx.implicit.cg(5), 1.0)
    meta_params = learner.meta(key)
    batch = TASKS.train(key, IMAGES, ())
    state = learner.init(key, meta_params, ())
    new, _, _ = learner.step(key, meta_params, state, batch)

    x = np.asarray(batch["image"]).reshape(5, F)
    want = 0.5 * np.tanh(x @ np.asarray(new.params["first"])).mean(0)
    np.testing.assert_allclose(new.model_state, want, rtol=1e-8)
    assert optax.tree.norm(optax.tree.sub(new.params, meta_params)) > 0.1
    # The next solve begins with it.
    again, _, _ = learner.step(key, meta_params, new, batch)
    hidden = np.tanh(x @ np.asarray(again.params["first"])).mean(0)
    np.testing.assert_allclose(again.model_state, 0.5 * want + 0.5 * hidden, rtol=1e-8)


@pytest.mark.parametrize("name", ["bptt", "forward", "es"])
@pytest.mark.slow
def test_estimators_carry_the_state_along(x64, name):
    """After two windows of two batches each episode has the running mean of four."""
    learner = mx.l2l(lambda rate: optax.sgd(rate), with_running_mean())
    loop = mx.inner(learner, TASKS, 4)
    estimator = {
        "bptt": lambda: mx.bptt(loop, 2, truncation=2),
        "forward": lambda: mx.forward(loop, 2, truncation=2),
        "es": lambda: mx.pes(loop, 2, 1e-9, truncation=2),
    }[name]()
    state = estimator.init(jax.random.key(0), RATE, IMAGES)
    estimate = jax.jit(estimator.estimate)
    for i in range(2):
        _, state = estimate(jax.random.key(i), RATE, state, IMAGES)
    episodes = getattr(state, "episodes", state)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], episodes)
        _, w, mean = loop_in_numpy(one, 4)
        for got, want in (
            (one.learner.model_state["mean"], mean),
            (one.learner.params, w),
        ):
            twins = got if name == "es" else [got]
            for x in twins:
                np.testing.assert_allclose(x, want, rtol=1e-6)
