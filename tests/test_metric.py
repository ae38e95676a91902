"""Prototypes and ridge heads against NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from masks import learner_ignores

import metajax as mx

WAYS, SIZE = 3, 4
RNG = np.random.default_rng(0)
NET = RNG.normal(size=(5, SIZE))


def init_embedding(key):
    return jnp.asarray(NET)


def embed(params, images):
    return jnp.tanh(images @ params)


EMBEDDING = init_embedding, embed


def sample(key, data):
    return {"image": jax.random.normal(key, (2, 9, 5))}


def part(i):
    labels = np.arange(9, dtype=np.int32) % WAYS
    return lambda key, data, task: {"image": task["image"][i], "label": labels}


TASKS = mx.Tasks(sample, part(0), part(1))
LABEL = np.arange(9) % WAYS


def cross_entropy(logits):
    logits = logits - logits.max(1, keepdims=True)
    return np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(9), LABEL])


def prototypes(net, task):
    x, q = np.tanh(task["image"] @ net)
    centres = [
        np.mean([x[i] for i in range(9) if LABEL[i] == k], 0) for k in range(WAYS)
    ]
    return np.array([[-sum((a - c) ** 2) for c in centres] for a in q])


def heads(meta_params, task):
    """Ridge regression as least squares over an extended system, by NumPy's solver."""
    x, q = (
        np.append(np.tanh(images @ meta_params["params"]), np.ones((9, 1)), 1)
        for images in task["image"]
    )
    root = np.exp(0.5 * meta_params["log_lam"])
    a, b = (
        np.vstack([x, root * np.eye(SIZE + 1)]),
        np.vstack([np.eye(WAYS)[LABEL], np.zeros((SIZE + 1, WAYS))]),
    )
    return meta_params["scale"] * q @ np.linalg.lstsq(a, b)[0]


SYSTEMS = {
    "protonet": (mx.protonet(EMBEDDING, WAYS, SIZE), NET, prototypes),
    "ridge": (
        mx.ridge(EMBEDDING, WAYS, SIZE),
        {"params": NET, "log_lam": np.array(-0.4), "scale": np.array(1.7)},
        heads,
    ),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_loss_its_gradient_and_the_accuracy_by_hand(x64, name):
    learner, meta_params, logits = SYSTEMS[name]
    estimator = mx.bptt(mx.inner(learner, TASKS, 1, "heldout"), 1)
    given = jax.tree.map(jnp.asarray, meta_params)
    begin, key = jax.random.split(jax.random.key(0))
    result, state = jax.jit(
        lambda m: estimator.estimate(key, m, estimator.init(begin, m, ()), ())
    )(given)
    task = {"image": np.asarray(state.task["image"][0])}
    by_hand = logits(meta_params, task)
    np.testing.assert_allclose(result.loss, cross_entropy(by_hand), rtol=1e-10)
    np.testing.assert_allclose(
        result.metrics["test_accuracy"], np.mean(by_hand.argmax(1) == LABEL)
    )
    np.testing.assert_allclose(
        result.metrics["accuracy"], 1 / 3, err_msg="before anything is learned"
    )
    flat, unravel = jax.flatten_util.ravel_pytree(given)
    value = lambda x: cross_entropy(logits(jax.tree.map(np.asarray, unravel(x)), task))  # noqa: E731
    want = [
        (value(flat + h) - value(flat - h)) / 2e-5 for h in 1e-5 * np.eye(flat.size)
    ]
    np.testing.assert_allclose(
        jax.flatten_util.ravel_pytree(result.updates)[0], want, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.slow
def test_classes_have_no_order_and_before_the_first_step_no_preference(x64, name):
    learner, meta_params, _ = SYSTEMS[name]
    key = jax.random.key(0)
    images = jax.random.normal(key, (9, 5))
    run = jax.jit(lambda s, b: learner.step(key, meta_params, s, b))
    start = learner.init(key, meta_params, ())
    state, loss, _ = run(start, {"image": images, "label": LABEL})
    np.testing.assert_allclose(loss, np.log(WAYS), rtol=1e-12)
    relabelled, _, _ = run(start, {"image": images, "label": (LABEL + 1) % WAYS})
    query = jax.random.normal(jax.random.key(1), (9, 5))
    a = learner.test(key, meta_params, state, {"image": query, "label": LABEL})
    b = learner.test(
        key, meta_params, relabelled, {"image": query, "label": (LABEL + 1) % WAYS}
    )
    chex.assert_trees_all_close(a, b, rtol=1e-10)


def test_the_penalty_and_the_scale_begin_as_asked_for():
    learner = mx.ridge(EMBEDDING, WAYS, SIZE, lam=0.3, scale=5.0)
    meta_params = learner.meta(jax.random.key(0))
    np.testing.assert_array_equal(meta_params["params"], NET.astype(np.float32))
    np.testing.assert_allclose(np.exp(meta_params["log_lam"]), 0.3, rtol=1e-6)
    assert meta_params["scale"] == 5


@pytest.mark.parametrize("make", [mx.protonet, mx.ridge])
def test_what_is_masked_is_not_learned_from(x64, make):
    def embedding(w, images):
        return jnp.tanh(images @ w)

    net = lambda key: jax.random.normal(key, (4, SIZE)), embedding
    learner = make(net, WAYS, SIZE)
    learner_ignores(learner, learner.meta(jax.random.key(3)))


@pytest.mark.slow
def test_prototypes_may_be_learned_in_parts(x64):
    learner, meta_params, _ = SYSTEMS["protonet"]
    key = jax.random.key(0)
    images, start = jax.random.normal(key, (9, 5)), learner.init(key, meta_params, ())
    whole, _, _ = learner.step(
        key, meta_params, start, {"image": images, "label": LABEL}
    )
    parts = start
    for i in (slice(0, 2), slice(2, 9)):
        parts, _, _ = learner.step(
            key, meta_params, parts, {"image": images[i], "label": LABEL[i]}
        )
    chex.assert_trees_all_close(whole, parts, rtol=1e-12)


BATCH = {"image": jnp.ones((2, 5)), "label": jnp.zeros(2, int)}
SEVEN = mx.protonet(EMBEDDING, 3, 7)
RIDGE = mx.ridge(EMBEDDING, 3, 4)
BAD = {
    "protonet: no network": (
        lambda: mx.protonet(None, 3, 4),
        TypeError,
        "net must be a pair",
    ),
    "protonet: a network without its init": (
        lambda: mx.protonet(embed, 3, 4),
        TypeError,
        "net must be a pair .init, apply.",
    ),
    "protonet: no class": (lambda: mx.protonet(EMBEDDING, 0, 4), ValueError, "ways"),
    "protonet: size a float": (
        lambda: mx.protonet(EMBEDDING, 3, 4.0),
        TypeError,
        "size",
    ),
    "protonet: embeddings of another size": (
        lambda: SEVEN.step(
            jax.random.key(0), NET, SEVEN.init(jax.random.key(0), NET, ()), BATCH
        ),
        ValueError,
        r"net must give \[batch, size\] = \[2, 7\], got \[2, 4\]",
    ),
    "ridge: plain parameters": (
        lambda: RIDGE.step(
            jax.random.key(0), NET, RIDGE.init(jax.random.key(0), NET, ()), BATCH
        ),
        ValueError,
        r"metajax.ridge\(...\).meta\(key\)",
    ),
    "ridge: no class": (lambda: mx.ridge(EMBEDDING, 0, 4), ValueError, "ways"),
    "ridge: size zero": (lambda: mx.ridge(EMBEDDING, 3, 0), ValueError, "size"),
    "ridge: lam zero": (lambda: mx.ridge(EMBEDDING, 3, 4, lam=0.0), ValueError, "lam"),
    "ridge: scale negative": (
        lambda: mx.ridge(EMBEDDING, 3, 4, scale=-1.0),
        ValueError,
        "scale",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=f"(?s){message}"):
        call()
