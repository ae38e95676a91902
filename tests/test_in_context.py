"""Learners in context against loops in NumPy, their rules against what they are known to do, and
what all must keep.
"""

from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from masks import learner_ignores

import metajax as mx
from metajax._losses import cross_entropy_and_accuracy
from metajax.learners._external_memory import address
from metajax.learners._fast_weights import delta, oja
from metajax.learners._layers import init_lstm, lstm_start, lstm_step

KEY = jax.random.key(0)
F, C = 4, 3


def make():
    return {
        "meta_rnn": mx.meta_rnn(F, C, hidden=5),
        "hebbian": mx.hebbian(F, C, rate=0.2, plasticity=0.7),
        "fast_weight_memory": mx.fast_weight_memory(F, C, hidden=5, size=3),
        "external_memory": mx.external_memory(F, C, hidden=5, slots=4, width=3),
    }


NAMES = list(make())


# Each learner in NumPy: (params) -> a function (x, label) -> probabilities, called example after
# example.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def affine(p, x):
    return p["w"] @ x + p["b"]


class Feedback:
    """Keeps the error and the label of the last example."""

    def __init__(self):
        self.error, self.label = np.zeros(C), np.zeros(C)

    def take(self, logits, label):
        self.label = np.eye(C)[label]
        self.error = softmax(logits) - self.label
        return softmax(logits)


class LSTM:
    def __init__(self, p):
        self.p = p
        self.h = self.c = np.zeros(len(p["b"]) // 4)

    def __call__(self, x):
        i, g, f, o = np.split(affine(self.p, np.concatenate([x, self.h])), 4)
        self.c = sigmoid(f + 1) * self.c + sigmoid(i) * np.tanh(g)
        self.h = sigmoid(o) * np.tanh(self.c)
        return self.h


def meta_rnn(p):
    cell, last = LSTM(p["lstm"]), Feedback()

    def example(x, label):
        z = np.concatenate([x, last.error, last.label])
        cell(z)
        return last.take(affine(p["out"], cell(z)), label)

    return example


def hebbian(p):
    trace = np.zeros((C, F + 2 * C))
    eta = sigmoid(p["rate"])

    def layer(z):
        out = p["slow"]["b"].copy()
        for j in range(C):
            for i in range(len(z)):
                out[j] += (
                    p["slow"]["w"][j, i] + p["plasticity"][j, i] * trace[j, i]
                ) * z[i]
        return softmax(out)

    def example(x, label):
        target = np.eye(C)[label]
        guess = layer(np.concatenate([x, np.zeros(2 * C)]))
        z = np.concatenate([x, guess - target, target])
        y = layer(z)
        for j in range(C):
            for i in range(len(z)):
                trace[j, i] += eta * y[j] * (z[i] - y[j] * trace[j, i])
        return guess

    return example


def fast_weight_memory(p):
    cell, last, fast = LSTM(p["lstm"]), Feedback(), np.zeros((3, 9))

    def example(x, label):
        nonlocal fast
        h = cell(np.concatenate([x, last.error, last.label]))
        heads = affine(p["heads"], h)
        k1, k2, v, q1, q2 = np.tanh(heads[:15]).reshape(5, 3)
        old = fast @ np.kron(k1, k2)
        fast = fast + sigmoid(heads[15]) * np.outer(v - old, np.kron(k1, k2))
        fast = fast / max(1, np.linalg.norm(fast))
        n = fast @ np.kron(q1, q2)
        n = (n - n.mean()) / np.sqrt(n.var() + 1e-5)
        return last.take(affine(p["out"], h + affine(p["read"], n)), label)

    return example


def external_memory(p):
    cell, last, memory, found = LSTM(p["lstm"]), Feedback(), p["memory"], np.zeros(3)

    def where(key, strength):
        cosine = [m @ key / np.sqrt(m @ m * (key @ key) + 1e-6) for m in memory]
        return softmax((1 + np.log1p(np.exp(strength))) * np.array(cosine))

    def example(x, label):
        nonlocal memory, found
        h = cell(np.concatenate([x, last.error, last.label, found]))
        heads = affine(p["heads"], h)
        key, query, erase, add = heads[:12].reshape(4, 3)
        w = where(np.tanh(key), heads[12])
        memory = np.stack(
            [
                m * (1 - wi * sigmoid(erase)) + wi * np.tanh(add)
                for m, wi in zip(memory, w, strict=True)
            ]
        )
        found = sum(
            wi * m
            for wi, m in zip(where(np.tanh(query), heads[13]), memory, strict=True)
        )
        return last.take(affine(p["out"], np.concatenate([h, found])), label)

    return example


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_equals_a_loop_in_numpy(name, x64):
    net = make()[name]
    params = jax.tree.map(
        lambda x: 2 * x, net.meta(KEY)
    )  # larger than at the start, so that all parts matter
    rng = np.random.default_rng(0)
    images, labels = 2 * rng.normal(size=(12, 2, 2)), rng.integers(0, C, 12)
    example = globals()[name](jax.tree.map(np.asarray, params))
    want = [
        -np.log(example(x.ravel(), y)[y]) for x, y in zip(images, labels, strict=True)
    ]
    batches = {"image": images[:, None], "label": labels[:, None]}
    run = jax.jit(
        lambda s: jax.lax.scan(
            lambda s, b: net.step(KEY, params, s, b)[:2], s, batches
        )[1]
    )
    np.testing.assert_allclose(run(net.init(KEY, params, ())), want, rtol=1e-9)


@pytest.mark.slow
def test_the_lstm_is_that_of_flax():
    p, x = init_lstm(KEY, 3, 5), jax.random.normal(KEY, (4, 3))
    names = dict(zip("igfo", jnp.split(p["w"], 4), strict=True))
    bias = dict(zip("igfo", jnp.split(p["b"] + jnp.arange(20.0) / 10, 4), strict=True))
    p = {"w": p["w"], "b": p["b"] + jnp.arange(20.0) / 10}
    bias["f"] = bias["f"] + 1
    theirs = {f"i{k}": {"kernel": w[:, :3].T} for k, w in names.items()}
    theirs |= {
        f"h{k}": {"kernel": w[:, 3:].T, "bias": bias[k]} for k, w in names.items()
    }
    cell, state = nn.OptimizedLSTMCell(5), lstm_start(p)
    carry = cell.initialize_carry(KEY, (3,))
    for t in range(4):
        state, h = lstm_step(p, state, x[t])
        carry, want = cell.apply({"params": theirs}, carry, x[t])
        np.testing.assert_allclose(h, want, rtol=1e-5, atol=1e-6)


def test_oja_finds_the_principal_component():
    rng = np.random.default_rng(0)
    spread = np.linalg.qr(rng.normal(size=(4, 4)))[0] * [
        3.0,
        1.0,
        0.5,
        0.2,
    ]  # columns: axes of the inputs
    inputs = jnp.asarray(rng.normal(size=(4000, 4)) @ spread.T, jnp.float32)
    fast, _ = jax.lax.scan(
        lambda w, x: (oja(w, x, w @ x, 0.003), None), jnp.full((2, 4), 0.1), inputs
    )
    first = np.linalg.eigh(np.cov(inputs.T))[1][:, -1]
    for w in np.asarray(fast):  # every neuron finds it, with norm 1
        np.testing.assert_allclose(w * np.sign(w @ first), first, atol=0.05)


def test_the_delta_rule_stores_exactly_at_orthogonal_keys():
    rng = np.random.default_rng(0)
    keys, values = np.linalg.qr(rng.normal(size=(5, 5)))[0], rng.normal(size=(5, 2))
    fast = jnp.zeros((2, 5))
    for k, v in zip(keys, values, strict=True):
        fast = delta(fast, k, v, 1.0)
    np.testing.assert_allclose(keys @ fast.T, values, atol=1e-5)
    again = delta(
        fast, keys[2], values[0], 0.25
    )  # a quarter of the way to another value, and no other is touched
    values[2] += 0.25 * (values[0] - values[2])
    np.testing.assert_allclose(keys @ again.T, values, atol=1e-5)


@pytest.mark.slow
def test_addressing_by_content():
    rng = np.random.default_rng(0)
    memory, key = rng.normal(size=(6, 3)), rng.normal(size=3)
    cosine = memory @ key / np.linalg.norm(memory, axis=1) / np.linalg.norm(key)
    np.testing.assert_allclose(
        address(memory, key, 2.0), softmax(2 * cosine), rtol=1e-4
    )
    np.testing.assert_allclose(
        address(memory, memory[4] / 3, 1e3), np.eye(6)[4], atol=1e-4
    )  # length does not count
    np.testing.assert_allclose(address(jnp.zeros((6, 3)), key, 2.0), 1 / 6, rtol=1e-5)
    assert jnp.isfinite(
        jax.grad(lambda m: address(m, key, 2.0)[0])(jnp.zeros((6, 3)))
    ).all()


class Started(NamedTuple):
    """A learner, its parameters, its state after some examples, and its compiled step on one
    example.
    """

    learner: mx.Learner
    params: Any
    state: Any
    step: Any


@cache
def started(name):
    net = make()[name]
    params = net.meta(KEY)
    step = jax.jit(
        lambda state, image, label: net.step(
            KEY, params, state, {"image": image, "label": label}
        )
    )
    state = net.init(KEY, params, ())
    for image, label in zip(2 * IMAGES, LABELS, strict=True):
        state, _, _ = step(state, image[None], label[None])
    return Started(net, params, state, step)


IMAGES, LABELS = (
    jax.random.normal(jax.random.key(9), (4, 2, 2)),
    jnp.array([2, 0, 1, 1]),
)
BATCH = {"image": IMAGES, "label": LABELS}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_it_predicts_before_it_sees_the_label(name):
    _, _, state, step = started(name)
    states, losses, metrics = zip(
        *[step(state, IMAGES[:1], jnp.array([c])) for c in range(C)], strict=True
    )
    # Were the label known, the probabilities of the labels would not be of one distribution.
    np.testing.assert_allclose(np.exp(-np.array(losses)).sum(), 1, rtol=1e-5)
    correct = [float(m["accuracy"]) for m in metrics]
    assert sorted(correct) == [0, 0, 1]
    assert int(np.argmin(losses)) == correct.index(1)
    assert not all(
        bool((x == y).all())
        for x, y in zip(*map(jax.tree.leaves, states[:2]), strict=True)
    ), "it learns"


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_a_piece_of_the_stream(name):
    learner, params, state, step = started(name)
    whole, loss, metrics = jax.jit(learner.step)(KEY, params, state, BATCH)
    losses, hits = [], []
    for image, label in zip(IMAGES, LABELS, strict=True):
        state, one, metric = step(state, image[None], label[None])
        losses.append(one)
        hits.append(metric["accuracy"])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
        whole,
        state,
    )
    np.testing.assert_allclose(
        [loss, metrics["accuracy"]], [np.mean(losses), np.mean(hits)], rtol=1e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_test_batch_is_predicted_from_one_state(name):
    learner, params, state, step = started(name)
    each = [
        step(state, image[None], label[None])[1]
        for image, label in zip(IMAGES, LABELS, strict=True)
    ]
    loss, _ = jax.jit(learner.test)(KEY, params, state, BATCH)
    np.testing.assert_allclose(loss, np.mean(each), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_what_is_masked_leaves_no_trace(name, x64):
    learner = make()[name]
    learner_ignores(learner, learner.meta(jax.random.key(3)))


@pytest.mark.parametrize("label", [C, -1])
def test_a_label_out_of_range_does_not_go_unseen(label):
    learner, params, state, step = started("hebbian")
    labels = jnp.array([label])
    assert jnp.isnan(step(state, IMAGES[:1], labels)[1])
    assert jnp.isnan(jax.jit(cross_entropy_and_accuracy)(jnp.zeros((1, C)), labels)[0])
    with pytest.raises(ValueError, match=rf"label must be in 0..2, got \[{label}\]"):
        learner.test(KEY, params, state, {"image": IMAGES[:1], "label": labels})
    with pytest.raises(
        ValueError, match="label must be in"
    ):  # known while it is compiled
        jax.jit(lambda logits: cross_entropy_and_accuracy(logits, labels))(
            jnp.zeros((1, C))
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_learns_to_learn(name):
    # Two classes that mean something else in each task: without learning in context no loss is
    # below ln 2.
    net = {
        "meta_rnn": lambda: mx.meta_rnn(4, 2, hidden=16, ticks=1),
        "hebbian": lambda: mx.hebbian(4, 2),
        "fast_weight_memory": lambda: mx.fast_weight_memory(4, 2, hidden=16, size=4),
        "external_memory": lambda: mx.external_memory(
            4, 2, hidden=16, slots=4, width=4
        ),
    }[name]()
    loop = mx.inner(net, mx.tasks.prototypes(2, (4,)), horizon=20)
    outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01))
    trainer = mx.trainer(mx.bptt(loop, 16), outer, chunk=400)
    state = trainer.init(KEY, net.meta(jax.random.key(1)), ())
    result = mx.fit(trainer, state, (), num_steps=400, progress=None)
    curves = mx.evaluate(
        loop, jax.random.key(2), result.state.meta_params, num_tasks=64, steps=30
    )
    assert abs(float(curves.loss[:, 0].mean()) - np.log(2)) < 0.1, (
        "the first example can only be guessed"
    )
    assert float(curves.loss[:, -10:].mean()) < 0.45
    assert float(curves.metrics["accuracy"][:, -10:].mean()) > 0.8
    assert float(curves.test_loss.mean()) < 0.45


RNN = mx.meta_rnn(F, C, hidden=2)
PARAMS = RNN.meta(KEY)
STATE = RNN.init(KEY, PARAMS, ())
CASES = {
    "meta_rnn: no inputs": (lambda: mx.meta_rnn(0, 3), ValueError, "num_inputs"),
    "meta_rnn: classes a float": (
        lambda: mx.meta_rnn(4, 3.0),
        TypeError,
        "num_classes",
    ),
    "meta_rnn: hidden zero": (
        lambda: mx.meta_rnn(4, 3, hidden=0),
        ValueError,
        "hidden",
    ),
    "meta_rnn: no ticks": (lambda: mx.meta_rnn(4, 3, ticks=0), ValueError, "ticks"),
    "meta_rnn: images of another size": (
        lambda: RNN.step(
            KEY,
            PARAMS,
            STATE,
            {"image": jnp.ones((1, 3, 3)), "label": jnp.zeros(1, int)},
        ),
        ValueError,
        "made for 4 inputs.*9 values",
    ),
    "hebbian: rate 1": (lambda: mx.hebbian(4, 3, rate=1.0), ValueError, "rate"),
    "hebbian: rate negative": (lambda: mx.hebbian(4, 3, rate=-1.0), ValueError, "rate"),
    "hebbian: plasticity NaN": (
        lambda: mx.hebbian(4, 3, plasticity=float("nan")),
        ValueError,
        "plasticity",
    ),
    "fast_weight_memory: size zero": (
        lambda: mx.fast_weight_memory(4, 3, size=0),
        ValueError,
        "size",
    ),
    "external_memory: no slots": (
        lambda: mx.external_memory(4, 3, slots=0),
        ValueError,
        "slots",
    ),
    "in_context: no function": (
        lambda: mx.in_context(None, None, None, None, (4, 3)),
        TypeError,
        "meta must be a function",
    ),
    "in_context: sizes an int": (
        lambda: mx.in_context(id, id, id, id, 4),
        TypeError,
        "sizes",
    ),
    "in_context: logits of another shape": (
        lambda: mx.in_context(
            id, id, lambda p, s, x: (jnp.zeros(2), s), id, (4, 3)
        ).test(KEY, (), (), {"image": jnp.ones((1, 4)), "label": jnp.zeros(1, int)}),
        ValueError,
        r"logits \[3\], got \[2\]",
    ),
    "evaluate: NaN in the images": (
        lambda: mx.evaluate(
            mx.inner(RNN, mx.tasks.classification(3), 4),
            KEY,
            PARAMS,
            mx.data.by_class(
                {"image": np.full((3, 4), np.nan, np.float32), "label": np.arange(3)}
            ),
        ),
        ValueError,
        r"data\['image'\] holds 12 NaN",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=f"(?s){message}"):
        call()
