"""Optimizees against NumPy and closed forms; scaling and imitation."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import masks
import numpy as np
import optax
import pytest
from jax import lax
from systems import IMAGES, System

import metajax as mx
from metajax.tasks._paired import Paired


def batch(seed=0, shape=(4,), classes=3, size=5):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.random((size, *shape)).astype(np.float32),
        "label": rng.integers(0, classes, size).astype(np.int32),
    }


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_logistic_regression_has_the_gradient_of_the_closed_form(key):
    problem, data = mx.problems.logistic(4, 3, penalty=0.1), batch()
    start, _ = problem.init(key, ())
    assert all(not np.any(x) for x in jax.tree.leaves(start))
    params = [
        {"w": jnp.linspace(-1, 1, 12).reshape(4, 3), "b": jnp.array([0.1, 0.0, -0.2])}
    ]
    (loss, _), grads = jax.jit(
        jax.value_and_grad(lambda p: problem.loss(key, p, (), data), has_aux=True)
    )(params)
    w, b = (
        np.asarray(params[0]["w"], np.float64),
        np.asarray(params[0]["b"], np.float64),
    )
    p, target = softmax(data["image"] @ w + b), np.eye(3)[data["label"]]
    want = -np.log(p[np.arange(5), data["label"]]).mean() + 0.05 * (w**2).sum()
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(
        grads[0]["w"],
        data["image"].T @ (p - target) / 5 + 0.1 * w,
        rtol=1e-4,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        grads[0]["b"], (p - target).mean(0), rtol=1e-4, atol=1e-6
    )


def test_autoencoder(key):
    problem, data = mx.problems.autoencoder((4, 3, 2), jnp.tanh), batch(shape=(2, 2, 1))
    params, _ = problem.init(key, ())
    x = image = data["image"].reshape(5, 4).astype(np.float64)
    assert [layer["w"].shape for layer in params] == [(4, 3), (3, 2), (2, 3), (3, 4)]
    for k, layer in enumerate(params):
        x = x @ np.asarray(layer["w"], np.float64) + np.asarray(layer["b"])
        x = sigmoid(x) if k == 3 else np.tanh(x)
    loss, _ = problem.test(key, params, (), data)
    np.testing.assert_allclose(loss, ((x - image) ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        problem.predict(key, params, (), data["image"]), x, rtol=1e-5
    )


@pytest.mark.slow
def test_convnet_equals_lax(key):
    problem = mx.problems.convnet(3, (9, 8, 2), filters=(3, 4), hidden=5, kernel=3)
    data, (params, _) = batch(shape=(9, 8, 2)), problem.init(key, ())
    params = jax.tree.map(lambda x: 10 * x + 0.1, params)  # offsets that do something

    def logits(params, x):
        for layer in params["conv"]:
            x = lax.conv_general_dilated(
                x,
                layer["w"],
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5) + layer["b"]
            x = lax.reduce_window(
                jax.nn.relu(x), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
            )
        first, last = params["dense"]
        x = x.reshape(5, -1) @ first["w"]
        return (
            jax.nn.relu((x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5) + first["b"])
            @ last["w"]
            + last["b"]
        )

    @jax.jit
    def both(params):
        return problem.test(key, params, (), data), logits(params, data["image"])

    (loss, metrics), out = both(params)
    p = softmax(np.asarray(out, np.float64))
    np.testing.assert_allclose(
        loss, -np.log(p[np.arange(5), data["label"]]).mean(), rtol=1e-4
    )
    np.testing.assert_allclose(
        metrics["accuracy"], (p.argmax(-1) == data["label"]).mean()
    )
    # The optimizee of the paper: 16 filters of 5x5, two poolings to 8x8 and a third to 4x4.
    sizes, _ = jax.eval_shape(mx.problems.convnet().init, key, ())
    assert [x["w"].shape for x in sizes["conv"]] == [
        (5, 5, 3, 16),
        (5, 5, 16, 16),
        (5, 5, 16, 16),
    ]


@pytest.mark.slow
def test_character_gru_equals_a_loop(key):
    problem = mx.problems.character_gru(5, 3)
    params, _ = problem.init(key, ())
    params = jax.tree.map(lambda x: x + 0.1, params)
    text = np.random.default_rng(0).integers(0, 5, (2, 7))
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    losses, right = [], []
    for line in text:
        h = np.zeros(3)
        for now, then in pairwise(line):
            x, y = p["in"][now] @ p["x"] + p["b"], h @ p["h"]
            r, z = sigmoid(x[:3] + y[:3]), sigmoid(x[3:6] + y[3:6])
            h = (1 - z) * np.tanh(x[6:] + r * y[6:]) + z * h
            q = softmax(h @ p["out"]["w"] + p["out"]["b"])
            losses.append(-np.log(q[then]))
            right.append(q.argmax() == then)
    loss, metrics = problem.test(key, params, (), {"text": jnp.asarray(text)})
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(right), rtol=1e-6)


WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen
fourteen fifteen sixteen
seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred"""
VALUES = dict(zip(WORDS.split(), [*range(20), *range(20, 100, 10), 100], strict=True))


def number(words):
    return sum(
        VALUES[word]
        for word in words.replace("-", " ").replace("one hundred", "hundred").split()
    )


def test_sums_are_right_and_all_there():
    seen = []
    for split in ("train", "test"):
        data = mx.data.sums(split, limit=60)
        text = bytes(data["alphabet"][data["text"]]).decode()
        assert text.endswith(". ")
        for sentence in text[:-2].split(". "):
            left, total = sentence.split(" is ")
            a, b = map(number, left.split(" plus "))
            assert a + b == number(total)
            seen.append((a, b))
    assert sorted(seen) == [(a, b) for a in range(60) for b in range(60)]


def test_text_windows_are_in_the_text(key):
    data = {"text": np.arange(9, dtype=np.uint8)}
    tasks = mx.tasks.text(40, length=3, test_size=2)
    windows = np.asarray(tasks.train(key, data, ())["text"])
    assert windows.dtype == np.int32
    np.testing.assert_array_equal(windows, windows[:, :1] + np.arange(4))
    assert set(windows[:, 0].tolist()) == set(range(6)), (
        "each window can be drawn, the last one included"
    )
    assert tasks.test(key, data, ())["text"].shape == (2, 4)


@pytest.mark.slow
def test_random_mlp_is_the_network_that_a_task_has_drawn(key):
    activations = (jnp.tanh, jax.nn.relu)
    problem, tasks = mx.problems.random_mlp(
        mx.tasks.minibatches(5),
        64,
        10,
        widths=(2, 6),
        depths=(1, 3),
        activations=activations,
    )
    data, seen = mx.data.load("digits"), set()

    @jax.jit
    @jax.vmap
    def sample(key):
        network = tasks.sample(key, data)
        params, _ = problem.init(key, network)
        batch = tasks.train(key, data, network)
        value_and_grad = jax.value_and_grad(
            lambda p: problem.loss(key, p, (), batch)[0]
        )
        return network.own, params, batch, *value_and_grad(params)

    drawn = sample(jax.random.split(key, 40))
    for i in range(40):
        network, params, (batch, _), loss, grads = jax.tree.map(
            lambda x, i=i: np.asarray(x[i]), drawn
        )
        width, depth, activation = (
            int(network.width),
            int(network.depth),
            activations[int(network.activation)],
        )
        seen.add((width, depth, int(network.activation)))
        sizes = (64, *[width] * depth, 10)
        cut = [*params[:depth], params[-1]]
        cut = [
            {"w": p["w"][:m, :n], "b": p["b"][:n]}
            for p, m, n in zip(cut, sizes[:-1], sizes[1:], strict=True)
        ]
        same = mx.problems.mlp(sizes, activation)
        alone = jax.value_and_grad(same.loss, 1, has_aux=True)
        (want, _), want_grads = alone(key, cut, (), batch)
        np.testing.assert_allclose(loss, want, rtol=1e-5)
        # What lies beyond the network has no gradient, all else that of the network by itself.
        whole = sum(float((x**2).sum()) for x in jax.tree.leaves(grads))
        part = sum(float((x**2).sum()) for x in jax.tree.leaves(want_grads))
        np.testing.assert_allclose(whole, part, rtol=1e-4)
    assert {w for w, _, _ in seen} == {2, 3, 4, 5, 6}
    assert {d for _, d, _ in seen} == {1, 2, 3}
    assert {a for *_, a in seen} == {0, 1}


@pytest.mark.slow
def test_random_mlp_starts_as_an_mlp(key):
    problem, tasks = mx.problems.random_mlp(
        mx.tasks.minibatches(5), 64, 10, widths=(16, 16), depths=(2, 2)
    )
    params, _ = jax.jit(problem.init)(key, tasks.sample(key, mx.data.load("digits")))
    mlp, _ = mx.problems.mlp((64, 16, 16, 10)).init(key, ())
    for got, want in zip(params, mlp, strict=True):
        np.testing.assert_allclose(got["w"], want["w"], rtol=1e-6)
    wide, _ = mx.problems.random_mlp(mx.tasks.minibatches(5), 64, 10, widths=(4, 400))
    network = mx.problems.Network(jnp.int32(25), jnp.int32(2), jnp.int32(0))
    params, _ = wide.init(key, Paired((), network))
    np.testing.assert_allclose(
        [layer["w"].std() for layer in params], [1 / 8, 1 / 5, 1 / 5], rtol=0.05
    )


def test_random_scaling_is_gradient_descent_with_a_rate_a_parameter(key):
    problem, tasks = mx.problems.random_scaling(
        mx.problems.quadratic(), mx.tasks.quadratics(3), spread=1.0
    )
    task = tasks.sample(key, ())
    scale = np.asarray(task.own, np.float64)
    assert np.exp(-1) < scale.min() < scale.max() < np.exp(1)
    w, y = (np.asarray(task.task[k], np.float64) for k in ("W", "y"))
    inner = mx.inner(mx.l2l(optax.sgd, problem), tasks, 3)
    state = inner.init(key, 0.01, ())._replace(task=task)
    params, _ = problem.init(key, task)
    unscaled, _ = mx.problems.quadratic().init(key, task.task)
    np.testing.assert_allclose(params * scale, unscaled, rtol=1e-5)
    state = state._replace(learner=state.learner._replace(params=params))
    x, step = np.asarray(params, np.float64) * scale, jax.jit(inner.step)
    for _ in range(3):
        state, (loss, _) = step(0.01, state, ())
        np.testing.assert_allclose(loss, ((w @ x - y) ** 2).sum(), rtol=1e-4)
        x = x - 0.01 * scale**2 * (2 * w.T @ (w @ x - y))
    loss, _ = inner.test(0.01, state, ())
    np.testing.assert_allclose(loss, ((w @ x - y) ** 2).sum(), rtol=1e-4)


def test_scales_are_uniform_in_the_logarithm(key):
    _, tasks = mx.problems.random_scaling(
        mx.problems.mlp((40, 50)), mx.tasks.minibatches(5)
    )
    scale = tasks.sample(key, IMAGES).own
    logs = np.log(np.concatenate([np.ravel(x) for x in jax.tree.leaves(scale)]))
    assert np.abs(logs).max() <= 3
    np.testing.assert_allclose(
        np.quantile(logs, [0.1, 0.5, 0.9]), [-2.4, 0.0, 2.4], atol=0.15
    )
    again = tasks.train(key, IMAGES, tasks.sample(key, IMAGES))[1]
    jax.tree.map(np.testing.assert_array_equal, again, scale)


@pytest.mark.parametrize(("level", "num_factors"), [("tensor", 4), ("global", 1)])
def test_what_shares_a_factor(level, num_factors, x64, key):
    """The first loss is the same; gradients are the old ones, times the factors."""
    problem = mx.problems.mlp((4, 5, 3))
    spread = np.log(1e3)
    scaled, tasks = mx.problems.random_scaling(
        problem, mx.tasks.minibatches(5), spread, level
    )
    task = tasks.sample(key, IMAGES)
    params, model_state = scaled.init(key, task)
    old, _ = problem.init(key, task.task)
    flat = [np.unique(np.round(np.log(x), 5)) for x in jax.tree.leaves(task.own)]
    assert len(set(np.concatenate(flat))) == num_factors
    assert np.abs(np.concatenate(flat)).max() <= spread

    batch, scale = tasks.train(key, IMAGES, task)
    jax.tree.map(np.testing.assert_array_equal, scale, task.own)
    value_and_grad = jax.value_and_grad(problem.loss, 1, has_aux=True)
    scaled_value_and_grad = jax.value_and_grad(scaled.loss, 1, has_aux=True)
    (loss, _), grads = value_and_grad(key, old, model_state, batch)
    (first, _), got = scaled_value_and_grad(key, params, model_state, (batch, scale))
    np.testing.assert_allclose(first, loss, rtol=1e-6)
    for c, g, x in zip(*map(jax.tree.leaves, (task.own, grads, got)), strict=True):
        np.testing.assert_allclose(x, c * g, rtol=1e-5, atol=1e-7 * c)


def test_global_factors_differ_between_tasks(key):
    """And are spread evenly over the logarithm, from 1e-3 to 1e3."""
    _, tasks = mx.problems.random_scaling(
        mx.problems.mlp((4, 3)), mx.tasks.minibatches(5), np.log(1e3), "global"
    )
    keys = jax.random.split(key, 2000)
    own = jax.vmap(lambda k: tasks.sample(k, IMAGES).own)(keys)
    w, b = (np.log10(x) for x in jax.tree.leaves(own))
    np.testing.assert_array_equal(w, b)
    np.testing.assert_allclose(
        np.quantile(w, [0, 0.1, 0.5, 0.9, 1]), [-3, -2.4, 0, 2.4, 3], atol=0.2
    )


STUDENT = mx.imitate(
    mx.optim.lstm(hidden=(2,)), optax.adam(0.1), mx.problems.quadratic()
)
LEARNERS = {"imitate": System(STUDENT, mx.tasks.quadratics(2))}


def test_imitation_of_a_rate_has_a_closed_form(key):
    learner = mx.imitate(optax.sgd, optax.sgd(0.01), mx.problems.quadratic())
    inner = mx.inner(learner, mx.tasks.quadratics(3), 4)
    state = inner.init(key, 0.03, ())
    w, y = (np.asarray(state.task[k], np.float64) for k in ("W", "y"))
    x, step = np.asarray(state.learner.params, np.float64), jax.jit(inner.step)
    slope = jax.jit(jax.grad(lambda rate, state: inner.step(rate, state, ())[1][0]))
    for _ in range(3):
        g = 2 * w.T @ (w @ x - y)
        np.testing.assert_allclose(
            slope(jnp.float32(0.03), state), 2 * 0.02 * (g**2).mean(), rtol=1e-3
        )
        state, (loss, metrics) = step(jnp.float32(0.03), state, ())
        np.testing.assert_allclose(loss, 0.02**2 * (g**2).mean(), rtol=1e-3)
        np.testing.assert_allclose(
            metrics["objective"], ((w @ x - y) ** 2).sum(), rtol=1e-3
        )
        x = x - 0.01 * g  # the teacher's path
        np.testing.assert_allclose(state.learner.params, x, rtol=1e-3)
    g = 2 * w.T @ (w @ x - y)
    loss, _ = inner.test(0.03, state, ())
    np.testing.assert_allclose(loss, 0.02**2 * (g**2).mean(), rtol=1e-3)


def test_imitation_brings_a_learned_schedule_to_the_rate_of_its_teacher(key):
    opt = mx.optim.piecewise_schedule(optax.scale_by_adam(), knots=(1,), rate=0.02)
    learner = mx.imitate(
        opt,
        optax.chain(optax.scale_by_adam(), optax.scale(0.1)),
        mx.problems.quadratic(),
    )
    trainer = mx.trainer(
        mx.bptt(mx.inner(learner, mx.tasks.quadratics(2), 3), 2), optax.adam(0.1)
    )
    state = trainer.init(key, learner.meta(key), ())
    state = jax.jit(
        lambda s: lax.scan(
            lambda s, _: (trainer.step(s, ())[0], None), s, None, length=150
        )[0]
    )(state)
    np.testing.assert_allclose(np.exp(state.meta_params), [0.1], rtol=0.05)


def with_a_state():
    def init(key):
        return jax.random.normal(key, (4, 3)), {"seen": jnp.int32(0)}

    def apply(key, w, state, images, training):
        outputs = images @ w
        return outputs, {"seen": state["seen"] + 1} if training else state

    return mx.problems.supervised(init, apply, mx.problems.cross_entropy)


def points(seed, size):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(size, 4)), "y": rng.normal(size=(size, 2))}


def lines(seed, size):
    return {"text": np.random.default_rng(seed).integers(0, 5, (size, 7))}


LINEAR = lambda key: jax.random.normal(key, (4, 2)), lambda w, x: x @ w
MASKABLE = {
    "mlp": (lambda: mx.problems.mlp((4, 5, 3)), masks.images),
    "logistic": (lambda: mx.problems.logistic(4, 3, penalty=0.1), masks.images),
    "supervised": (with_a_state, masks.images),
    "regressor": (lambda: mx.problems.regressor(*LINEAR), points),
    "autoencoder": (lambda: mx.problems.autoencoder((4, 2)), masks.images),
    "character_gru": (lambda: mx.problems.character_gru(5, 3), lines),
}


@pytest.mark.parametrize("name", MASKABLE)
@pytest.mark.parametrize("mode", ["loss", "test"])
def test_what_is_masked_does_not_count(x64, name, mode, key):
    """The loss, its metrics and its gradient, of which nothing becomes NaN."""
    make, draw = MASKABLE[name]
    problem = make()
    params, model_state = problem.init(key, ())
    mask = np.array([False, True, True, False, True])

    def run(params, batch):
        return getattr(problem, mode)(key, params, model_state, batch)

    masks.same(run, params, (draw(0, 5), mask))


def test_what_is_masked_does_not_count_in_families(x64, key):
    """The same of problems whose batches are pairs."""
    mask = np.array([True, False, True])
    scaled, _ = mx.problems.random_scaling(
        mx.problems.mlp((4, 3)), mx.tasks.minibatches(3)
    )
    family, _ = mx.problems.random_mlp(mx.tasks.minibatches(3), 4, 3, widths=(4, 4))
    network = mx.problems.Network(jnp.int32(4), jnp.int32(1), jnp.int32(0))
    ones = jax.tree.map(jnp.ones_like, mx.problems.mlp((4, 3)).init(key, ())[0])
    for problem, own in ((scaled, ones), (family, network)):
        params, model_state = problem.init(key, Paired((), own))

        def run(params, batch, problem=problem, own=own, state=model_state):
            return problem.loss(key, params, state, (batch, own))

        masks.same(run, params, (masks.images(0, 3), mask))


def test_objectives_by_themselves_take_a_mask(key):
    """Also of what was not looked at before: NaN, and labels that are no class."""
    mask = np.array([True, False, True])
    logits = np.array([[2.0, 0.0], [np.nan, 1.0], [0.0, 1.0]])
    batch = {"label": np.array([0, -1, 0]), "mask": mask}
    loss, metrics = mx.problems.cross_entropy(jnp.asarray(logits), batch)
    want = np.mean([np.log1p(np.exp(-2)), np.log1p(np.exp(1))])
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    assert metrics["accuracy"] == 0.5
    with pytest.raises(ValueError, match=r"label must be in 0..1, got \[-1\]"):
        mx.problems.cross_entropy(jnp.asarray(logits), batch | {"mask": ~mask})

    predictions = jnp.array([[1.0, 2.0], [jnp.nan, 0.0], [3.0, 4.0]])
    loss, _ = mx.problems.squared_error(
        predictions, {"y": jnp.ones((3, 2)), "mask": mask}
    )
    np.testing.assert_allclose(loss, (0 + 1 + 4 + 9) / 4)


@pytest.mark.slow
def test_a_batch_of_which_nothing_counts_has_no_loss_and_no_gradient(key):
    problem = mx.problems.mlp((4, 3))
    params, model_state = problem.init(key, ())
    batch = masks.spoil(masks.images(0, 3), np.zeros(3, bool))
    value_and_grad = jax.value_and_grad(problem.loss, 1, has_aux=True)
    (loss, _), grads = value_and_grad(key, params, model_state, batch)
    assert loss == 0
    assert optax.tree.norm(grads) == 0


def random_mlp(**settings):
    return mx.problems.random_mlp(mx.tasks.minibatches(5), 64, 10, **settings)


QUADRATIC, QUADRATICS = mx.problems.quadratic(), mx.tasks.quadratics(2)
BAD = {
    "logistic: penalty": (
        lambda: mx.problems.logistic(4, 3, penalty=-1.0),
        ValueError,
        "penalty",
    ),
    "autoencoder: one size": (
        lambda: mx.problems.autoencoder((4,)),
        ValueError,
        "sizes",
    ),
    "convnet: shape": (
        lambda: mx.problems.convnet(10, (4, 4, 3)),
        ValueError,
        "shape must be at least",
    ),
    "convnet: filters": (
        lambda: mx.problems.convnet(filters=(0,)),
        ValueError,
        "filters",
    ),
    "gru: symbols": (lambda: mx.problems.character_gru(0), ValueError, "symbols"),
    "sums: split": (lambda: mx.data.sums("validation"), ValueError, "split"),
    "sums: limit": (lambda: mx.data.sums(limit=101), ValueError, "limit"),
    "text: length": (lambda: mx.tasks.text(5, 0), ValueError, "length"),
    "text: too short": (
        lambda: mx.tasks.text(5, 9).train(
            jax.random.key(0), {"text": np.zeros(9, int)}, ()
        ),
        ValueError,
        "length is 9",
    ),
    "text: floats": (
        lambda: mx.tasks.text(5, 2).train(jax.random.key(0), {"text": np.zeros(9)}, ()),
        TypeError,
        "integer",
    ),
    "text: images": (
        lambda: mx.tasks.text(5, 2).train(jax.random.key(0), IMAGES, ()),
        TypeError,
        "text",
    ),
    "random_mlp: tasks": (
        lambda: mx.problems.random_mlp(QUADRATIC, 64, 10),
        TypeError,
        "tasks",
    ),
    "random_mlp: widths": (lambda: random_mlp(widths=(8, 4)), ValueError, "swap"),
    "random_mlp: depths": (
        lambda: random_mlp(depths=2),
        TypeError,
        "depths must be a tuple",
    ),
    "random_mlp: no hidden layer": (
        lambda: random_mlp(depths=(0, 1)),
        ValueError,
        "depths",
    ),
    "random_mlp: activations": (
        lambda: random_mlp(activations=()),
        ValueError,
        "activations is empty",
    ),
    "scaling: tasks": (
        lambda: mx.problems.random_scaling(QUADRATIC, QUADRATIC),
        TypeError,
        "tasks",
    ),
    "scaling: spread": (
        lambda: mx.problems.random_scaling(QUADRATIC, QUADRATICS, 0.0),
        ValueError,
        "spread",
    ),
    "scaling: level": (
        lambda: mx.problems.random_scaling(QUADRATIC, QUADRATICS, level="leaf"),
        ValueError,
        "level must be 'parameter' or 'tensor' or 'global', got 'leaf'",
    ),
    "quadratic: no task": (
        lambda: QUADRATIC.init(jax.random.key(0), ()),
        ValueError,
        "tasks.quadratics",
    ),
    "imitate: teacher": (
        lambda: mx.imitate(optax.sgd, optax.adam, QUADRATIC),
        TypeError,
        "teacher",
    ),
    "imitate: problem": (
        lambda: mx.imitate(optax.sgd, optax.adam(0.1), QUADRATICS),
        TypeError,
        "problem",
    ),
    "convnet: image": (
        lambda: mx.problems.convnet(3, (8, 8, 1), (2,)).test(
            jax.random.key(0),
            *mx.problems.convnet(3, (8, 8, 1), (2,)).init(jax.random.key(0), ()),
            batch(shape=(4, 4, 1)),
        ),
        ValueError,
        "an image is",
    ),
}


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_an_error_and_nan_where_it_is_traced(label):
    problem, key = mx.problems.logistic(4, 3), jax.random.key(0)
    args = (
        key,
        *problem.init(key, ()),
        {"image": jnp.ones((1, 4)), "label": np.array([label])},
    )
    for f in (problem.loss, problem.test):
        with pytest.raises(
            ValueError, match=rf"label must be in 0..2, got \[{label}\]"
        ):
            f(*args)
        assert np.isnan(jax.jit(f)(*args)[0])


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_inputs(call, error, message):
    with pytest.raises(error, match=message):
        call()
