"""Learners that take a piece of a stream at once: the same as one example after another, and as
loops in NumPy.
"""

from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from masks import learner_ignores
from systems import in_context

import metajax as mx
from metajax.learners._delta_rule import Writes, read_and_write

KEY = jax.random.key(0)
F, C, LENGTH = 4, 3, 14
SMALL = {"width": 6, "depth": 2, "heads": 2, "head_size": 3}
MAKE = {
    "gpicl": lambda: mx.gpicl(F, C, LENGTH, **SMALL),
    "gpicl_as_published": lambda: mx.gpicl(F, C, LENGTH, **SMALL, lag=False),
    "delta_rule": lambda: mx.delta_rule(F, C, **SMALL, chunk=5),
}
# Attention takes its softmax in float32, whatever it is given.
DIGITS = {"gpicl": 2e-6, "gpicl_as_published": 2e-6, "delta_rule": 1e-9}
TINY = {"width": 4, "depth": 1, "heads": 2, "head_size": 2}
LEARNERS = {
    "gpicl": in_context(mx.gpicl(4, 3, 16, **TINY)),
    "delta_rule": in_context(mx.delta_rule(4, 3, **TINY)),
}


def moved(learner):
    """Meta-parameters none of which is 0 or 1, so that all parts matter."""
    params = learner.meta(KEY)
    noise = optax.tree.random_like(jax.random.key(1), params)
    return optax.tree.add_scale(params, 0.5, noise)


def stream(seed, length):
    rng = np.random.default_rng(seed)
    images = 2 * rng.normal(size=(length, 2, 2))
    return {"image": images, "label": rng.integers(0, C, length)}


# The learners in NumPy: functions (x, label) -> loss, called example after example.


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def affine(p, x):
    return p["w"] @ x + p["b"]


def standard(x):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5)


def feed_forward(p, x):
    h = affine(p["up"], standard(x))
    gelu = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return x + affine(p["down"], gelu)


def layers_of(p):
    depth = len(p["layers"]["out"]["b"])
    return [jax.tree.map(lambda x, i=i: x[i], p["layers"]) for i in range(depth)]


def loss_of(p, x, label):
    return -np.log(softmax(affine(p["out"], standard(x)))[label])


def gpicl(p, lag=True):
    layers = layers_of(p)
    memories = [[] for _ in layers]
    last_image, last_label = np.zeros(F), np.zeros(C)

    def attend(query, memory, head):
        weights = softmax(
            np.array([query[head] @ key[head] / 3**0.5 for key, _ in memory])
        )
        return sum(
            w * value[head] for w, (_, value) in zip(weights, memory, strict=True)
        )

    def example(image, label):
        nonlocal last_image, last_label
        parts = [image, last_image, last_label] if lag else [image, last_label]
        x = affine(p["token"], np.concatenate(parts)) + p["position"][len(memories[0])]
        for layer, memory in zip(layers, memories, strict=True):
            query, key, value = affine(layer["ask"], standard(x))
            memory.append((key, value))
            found = np.concatenate([attend(query, memory, head) for head in range(2)])
            x = feed_forward(layer["forward"], x + affine(layer["out"], found))
        last_image, last_label = image, np.eye(C)[label]
        return loss_of(p, x, label)

    return example


def delta_rule(p):
    layers = layers_of(p)
    memories = np.zeros((2, 2, 3, 3))

    def unit(x):
        x = x * sigmoid(x)
        return x / np.sqrt(x @ x + 1e-6)

    def example(image, label):
        x = affine(p["image"], image)
        for layer, memory in zip(layers, memories, strict=True):
            h = standard(x)
            query, key = affine(layer["ask"], h)
            values = affine(
                layer["value"], np.concatenate([h, p["label"] @ np.eye(C)[label]])
            )
            rate, forgetting = affine(layer["gates"], h)
            found = []
            for head in range(2):
                found.append(standard(memory[head] @ unit(query[head])))
                k = unit(key[head])
                memory[head] *= 1 - sigmoid(forgetting[head])
                error = values[head] - memory[head] @ k
                memory[head] += sigmoid(rate[head]) * np.outer(error, k)
            x = feed_forward(
                layer["forward"], x + affine(layer["out"], np.concatenate(found))
            )
        return loss_of(p, x, label)

    return example


LOOPS = {
    "gpicl": gpicl,
    "gpicl_as_published": partial(gpicl, lag=False),
    "delta_rule": delta_rule,
}


def one_by_one(learner):
    """The learner that takes a batch example after example."""

    def step(key, meta_params, state, batch):
        def one_example(state, example):
            single = jax.tree.map(lambda x: x[None], example)
            state, *loss_and_metrics = learner.step(key, meta_params, state, single)
            return state, loss_and_metrics

        state, (losses, metrics) = lax.scan(one_example, state, batch)
        return state, losses.mean(), jax.tree.map(jnp.mean, metrics)

    return replace(learner, step=step)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.slow
def test_equals_a_loop_in_numpy(name, x64):
    learner = MAKE[name]()
    params = moved(learner)
    batch = stream(0, LENGTH)
    example = LOOPS[name](jax.tree.map(np.asarray, params))
    pairs = zip(batch["image"], batch["label"], strict=True)
    want = [example(image.ravel(), label) for image, label in pairs]

    step = jax.jit(learner.step)
    state = learner.init(KEY, params, ())
    for first in (0, 7):
        piece = jax.tree.map(lambda x, i=first: x[i : i + 7], batch)
        before = state
        state, loss, _ = step(KEY, params, state, piece)
        np.testing.assert_allclose(
            loss, np.mean(want[first : first + 7]), rtol=DIGITS[name]
        )
    next_one = jax.tree.map(lambda x: x[7:8], batch)
    loss, _ = jax.jit(learner.test)(KEY, params, before, next_one)
    np.testing.assert_allclose(loss, want[7], rtol=DIGITS[name])


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("gpicl", mx.bptt),
        ("delta_rule", mx.bptt),
        ("delta_rule", partial(mx.es, std=0.1)),
    ],
    ids=["gpicl-bptt", "delta_rule-bptt", "delta_rule-es"],
)
@pytest.mark.slow
def test_estimates_with_whole_streams_are_those_of_steps(name, make, x64):
    learner = LEARNERS[name].learner
    tasks = mx.tasks.prototypes(3, (4,), batch_size=16)
    params = moved(learner)
    estimates = []
    for form in (learner, one_by_one(learner)):
        estimator = make(mx.inner(form, tasks, horizon=1), num_tasks=2)
        state = estimator.init(KEY, params, ())
        estimate, after = jax.jit(estimator.estimate)(KEY, params, state, ())
        memory = after.learner if make is mx.bptt else ()
        estimates.append((estimate, memory))
    chex.assert_trees_all_close(*estimates, rtol=1e-5, atol=DIGITS[name])


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.slow
def test_what_is_masked_leaves_no_trace(name, x64):
    learner = LEARNERS[name].learner
    rtol = {"gpicl": 1e-4, "delta_rule": 1e-9}[name]
    learner_ignores(learner, moved(learner), rtol=rtol)


@pytest.mark.slow
def test_the_context_of_gpicl_ends():
    learner = mx.gpicl(F, C, 4, **TINY)
    params = learner.meta(KEY)
    step, test = jax.jit(learner.step), jax.jit(learner.test)
    batch = stream(0, 4)
    state, loss, _ = step(KEY, params, learner.init(KEY, params, ()), batch)
    assert np.isfinite(loss)
    assert np.isfinite(test(KEY, params, state, batch)[0])  # in the place of the last
    state, loss, _ = step(KEY, params, state, batch)
    assert np.isnan(loss)
    assert np.isnan(test(KEY, params, state, batch)[0])
    with pytest.raises(ValueError, match="context is 4, but a batch has 5 examples"):
        step(KEY, params, state, stream(0, 5))


# The gated delta rule itself.


def draw_writes(length, num_keys=3, num_values=2):
    rng = np.random.default_rng(0)
    key = rng.normal(size=(length, num_keys))
    return Writes(
        query=rng.normal(size=(length, num_keys)),
        key=key / np.linalg.norm(key, axis=1, keepdims=True),
        value=rng.normal(size=(length, num_values)),
        rate=rng.uniform(size=length),
        log_kept=np.log(rng.uniform(0.1, 1, size=length)),
    )


def test_time_training(memory, writes):
    """A linear model that takes a gradient step on each example, its weights decayed before."""

    def loss(memory, key, value):
        return jnp.sum((memory @ key - value) ** 2) / 2

    found = []
    for query, key, value, rate, log_kept in zip(*writes, strict=True):
        found.append(memory @ query)
        memory = np.exp(log_kept) * memory
        memory = memory - rate * jax.grad(loss)(memory, key, value)
    return np.array(found), memory


test_time_training.__test__ = False


@pytest.mark.parametrize("chunk", [1, 4, 13, 64])
def test_chunks_of_writes_are_gradient_steps_one_after_another(chunk, x64):
    memory = np.random.default_rng(1).normal(size=(2, 3))
    writes = draw_writes(13)
    got = jax.jit(partial(read_and_write, chunk=chunk))(memory, writes)
    want = test_time_training(memory, writes)
    chex.assert_trees_all_close(got, want, rtol=1e-11, atol=1e-11)


def test_orthogonal_keys_with_a_rate_of_one_store_exactly():
    writes = draw_writes(8, num_keys=8)
    keys = np.linalg.qr(writes.key)[0]
    exact = writes._replace(key=keys, rate=np.ones(8), log_kept=np.zeros(8))
    _, memory = jax.jit(partial(read_and_write, chunk=4))(jnp.zeros((2, 8)), exact)
    np.testing.assert_allclose(keys @ memory.T, writes.value, atol=1e-5)


def test_keys_that_are_alike_cost_no_digits():
    # As in streams of a few images: powers of such a matrix have numbers that float32 cannot hold.
    length = 64
    drawn = draw_writes(length)
    key = drawn.key[:1] + 0.01 * drawn.key
    alike = drawn._replace(
        key=key / np.linalg.norm(key, axis=1, keepdims=True),
        rate=np.full(length, 0.99),
        log_kept=np.full(length, -1e-3),
    )
    got = jax.jit(partial(read_and_write, chunk=length))(jnp.zeros((2, 3)), alike)
    memory = np.zeros((2, 3))
    want = []
    for query, key, value, rate, log_kept in zip(*alike, strict=True):
        want.append(memory @ query)
        memory = np.exp(log_kept) * memory
        memory = memory + rate * np.outer(value - memory @ key, key)
    chex.assert_trees_all_close(got, (np.array(want), memory), rtol=1e-4, atol=1e-4)


def test_what_is_forgotten_at_once_has_finite_derivatives():
    writes = draw_writes(8)._replace(log_kept=np.full(8, -200.0))

    def total(writes):
        found, memory = read_and_write(jnp.zeros((2, 3)), writes, chunk=8)
        return found.sum() + memory.sum()

    grads = jax.jit(jax.grad(total))(jax.tree.map(jnp.asarray, writes))
    chex.assert_tree_all_finite(grads)


@pytest.mark.parametrize("name", ["gpicl", "delta_rule"])
@pytest.mark.slow
def test_it_learns_to_learn(name):
    # Two classes that mean something else in each task: without learning in context no loss is
    # below ln 2.
    make = {"gpicl": partial(mx.gpicl, context=30), "delta_rule": mx.delta_rule}[name]
    learner = make(num_inputs=4, num_classes=2, width=16, depth=1, heads=2, head_size=8)
    streams = mx.inner(learner, mx.tasks.prototypes(2, (4,), batch_size=30), horizon=1)
    outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.005))
    trainer = mx.trainer(mx.bptt(streams, 16), outer, chunk=250)
    state = trainer.init(KEY, learner.meta(jax.random.key(1)), ())
    result = mx.fit(trainer, state, (), num_steps=250, progress=None)

    loop = mx.inner(learner, mx.tasks.prototypes(2, (4,)), horizon=30)
    params = result.state.meta_params
    curves = mx.evaluate(loop, jax.random.key(2), params, num_tasks=64)
    # The first example can only be guessed.
    assert abs(float(curves.loss[:, 0].mean()) - np.log(2)) < 0.1
    assert float(curves.loss[:, -10:].mean()) < 0.45
    assert float(curves.metrics["accuracy"][:, -10:].mean()) > 0.8
    assert float(curves.test_loss.mean()) < 0.45


# Tasks of which there are so many.

ENDLESS = mx.tasks.project(mx.tasks.prototypes(3, (2, 2), batch_size=5), 4)


def draws(tasks, num_draws):
    keys = jax.random.split(jax.random.key(3), num_draws)
    draw = jax.jit(jax.vmap(lambda key: tasks.sample(key, ())))
    return jax.device_get(draw(keys))


def distinct(drawn):
    """The different tasks, as bytes."""
    return {x.tobytes() for x in np.concatenate([drawn.own, drawn.own], 1)}


@pytest.mark.parametrize("number", [1, 8])
def test_there_are_so_many_tasks(number):
    drawn = draws(mx.tasks.finite(ENDLESS, number), 200)
    assert len(distinct(drawn)) == number
    # All of a task is the same each time.
    wholes = {
        (x.tobytes(), y.tobytes())
        for x, y in zip(drawn.own, drawn.task["prototype"], strict=True)
    }
    assert len(wholes) == number
    others = draws(mx.tasks.finite(ENDLESS, number, seed=1), 200)
    assert not distinct(drawn) & distinct(others)


def test_tasks_are_those_of_their_numbers_and_examples_are_drawn_anew():
    tasks = mx.tasks.finite(ENDLESS, 2)
    drawn = draws(tasks, 50)
    for number in range(2):
        key = jax.random.fold_in(jax.random.key(0), number)
        want = np.asarray(jax.jit(ENDLESS.sample)(key, ()).own)
        assert np.isclose(drawn.own, want).all((1, 2)).any()
    task = jax.tree.map(lambda x: x[0], drawn)
    one, other = (tasks.train(jax.random.key(i), (), task)["image"] for i in (0, 1))
    assert not np.isclose(one, other).any()


def test_one_task_comes_more_often_and_what_goes_around_it_does_not():
    inner = mx.tasks.prototypes(3, (2, 2), batch_size=5)
    tasks = mx.tasks.project(mx.tasks.biased(inner, 0.3, seed=4), 4)
    drawn = draws(tasks, 400)
    usual = np.asarray(inner.sample(jax.random.key(4), ())["prototype"])
    is_usual = np.isclose(drawn.task["prototype"], usual).all((1, 2, 3))
    assert abs(is_usual.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)
    assert len({x.tobytes() for x in drawn.task["prototype"]}) == 1 + (~is_usual).sum()
    assert len({x.tobytes() for x in drawn.own}) == 400


@pytest.mark.parametrize(("probability", "number"), [(0, 200), (1, 1)])
def test_a_bias_of_none_and_of_all(probability, number):
    drawn = draws(mx.tasks.biased(ENDLESS, probability), 200)
    assert len({x.tobytes() for x in drawn.own}) == number


def test_a_million_tasks():
    drawn = draws(mx.tasks.finite(ENDLESS, 2**20), 200)
    assert len(distinct(drawn)) > 190
