"""Beside what published code makes of the same inputs, in float64: see ``about`` of the vectors."""

import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx
from metajax.estimators import _evolution

FOLDER = Path(__file__).with_name("vectors")


def arrays(x):
    """What was read, with lists of numbers as arrays."""
    if isinstance(x, dict):
        return {name: arrays(value) for name, value in x.items()}
    if not isinstance(x, list):
        return np.float64(x) if isinstance(x, float) else x
    return [arrays(value) for value in x] if isinstance(x[0], dict) else np.array(x)


def read(name):
    return arrays(json.loads((FOLDER / f"{name}.json").read_text()))


PUBLISHED = read("learned_optimization")
LSTMS = read("lstm_optimizers")
VSML = read("vsml")
FEW_SHOT = read("few_shot")


def turned(layer):
    """A layer whose weights are ours: a row for each output, or no axis for a single one."""
    w, b = layer["w"], layer["b"]
    return {"w": w.T, "b": b} if len(b) > 1 else {"w": w[:, 0], "b": b[0]}


# Learned optimizers


def updates_of(tx, params, grads):
    """What the optimizer makes of each gradient, and the parameters after each."""

    @jax.jit
    def step(params, state, grad):
        updates, state = tx.update(grad, state, params)
        return updates, optax.apply_updates(params, updates), state

    state = jax.jit(tx.init)(params)
    made = []
    for grad in grads:
        updates, params, state = step(params, state, grad)
        made.append((updates, params))
    return zip(*made, strict=True)


@pytest.mark.parametrize(
    "name", ["mlp", pytest.param("adafactor", marks=pytest.mark.slow)]
)
def test_learned_optimization(x64, name):
    """Leaves of none to three axes. Features of time are float32 here and there."""
    theirs = PUBLISHED[name]
    options = {name: theirs[name] for name in ("scale", "exp_scale")}
    network = list(map(turned, theirs["layers"]))
    if name == "mlp":
        opt = mx.optim.mlp(hidden=(5, 5), rms_decays=(), **options)
        meta_params = network
    else:
        opt = mx.optim.adafactor_mlp(hidden=(5, 5), **options)
        meta_params = {"decays": theirs["decays"], "network": network}
    params, grads = PUBLISHED["params"], PUBLISHED["gradients"]
    _, after = updates_of(opt.tx(meta_params), params, grads)
    for got, want in zip(after, theirs["after"], strict=True):
        chex.assert_trees_all_close(got, want, rtol=0, atol=1e-7)


@pytest.mark.parametrize("case", LSTMS["deepmind"], ids=lambda case: f"p={case['p']}")
def test_the_lstm_of_deepmind(x64, case):
    weights = case["weights"]
    opt = mx.optim.lstm(p=case["p"], scale=case["scale"], hidden=(4, 4))
    layers = [turned(weights[name]) for name in ("lstm_1", "lstm_2")]
    tx = opt.tx({"lstm": layers, "out": turned(weights["linear"])})
    grads = LSTMS["gradients"]
    updates, _ = updates_of(tx, np.zeros(grads[0].shape), grads)
    # They add the precision of the dtype to what the logarithm is taken of.
    np.testing.assert_allclose(updates, case["updates"], atol=1e-11)


def test_rnnprop(x64):
    weights = LSTMS["rnnprop"]["weights"]
    layers = list(map(turned, weights["cells"]))
    ends = {name: turned(weights[name]) for name in ("in", "out")}
    tx = mx.optim.rnnprop(hidden=(4, 4)).tx({"lstm": layers} | ends)
    grads = LSTMS["gradients"].reshape(5, -1)
    _, after = updates_of(tx, LSTMS["rnnprop"]["start"], grads)
    np.testing.assert_allclose(after, LSTMS["rnnprop"]["after"], rtol=1e-12)


# Evolution strategies


@pytest.mark.parametrize("kind", ["es", "pes"])
def test_evolution_strategies_with_the_same_noise(x64, kind, monkeypatch):
    """A learned rate for each of two coordinates; three windows of an episode, or all of it."""
    toy = PUBLISHED["evolution"]
    std, window = toy["std"], toy["window"]
    windows, pairs, _ = toy["noise"].shape
    problem = mx.problems.stateless(
        lambda key, task: jnp.zeros(2),
        lambda key, x, batch: (jnp.sum(toy["curvature"] * (x - batch) ** 2) / 2, {}),
    )
    sgd = lambda rates: optax.stateless(lambda grads, _: -rates * grads)  # noqa: E731
    nothing = lambda key, data: ()  # noqa: E731
    target = lambda key, data, task: toy["targets"]  # noqa: E731
    tasks = mx.Tasks(nothing, target, target)
    loop = mx.inner(mx.l2l(sgd, problem), tasks, windows * window)

    begins = toy["noise"][:1] if kind == "pes" else ()  # of which only the shape counts
    drawn = iter([*begins, *toy["noise"]])
    same = mx.gaussian()._replace(sample=lambda *_: jnp.asarray(next(drawn)))
    monkeypatch.setattr(_evolution, "gaussian", lambda: same)
    if kind == "es":
        estimator, want = mx.es(loop, pairs, std), [toy["es"]]
    else:
        estimator, want = mx.pes(loop, pairs, std, window), toy["pes"]

    rates = jnp.asarray(toy["rates"])
    state = estimator.init(jax.random.key(0), rates, ())
    for i, theirs in enumerate(want):
        got, state = estimator.estimate(jax.random.key(i), rates, state, ())
        np.testing.assert_allclose(got.loss, theirs["loss"], rtol=1e-12)
        np.testing.assert_allclose(got.updates, theirs["gradient"], rtol=1e-11)


# VSML


@pytest.mark.parametrize("case", VSML["cases"], ids=["one", "two at once"])
def test_vsml_with_one_dense_layer(x64, case):
    steps, replicas, _ = case["images"].shape
    gates, start = VSML["weights"]["gates"], VSML["start"]
    parts = zip(
        ("forward", "backward", "hidden"), np.split(gates["w"], [3, 6]), strict=True
    )
    meta_params = VSML["weights"] | {"gates": dict(parts) | {"b": gates["b"]}}

    key = jax.random.key(0)
    learner = mx.vsml((4, 3), mx.cells.lstm(6, 3), batch_size=replicas)
    c = np.concatenate([start, np.zeros(start.shape)], -1)
    c = np.broadcast_to(c, (replicas, 1, *c.shape))
    state = learner.init(key, meta_params, ())._replace(cells=((c, np.zeros(c.shape)),))
    state = jax.tree.map(lambda x: jnp.asarray(x, float), state)

    @jax.jit
    def step(state, image, label):
        logits = learner.predict(key, meta_params, state, image)
        batch = {"image": image, "label": label}
        state, loss, _ = learner.step(key, meta_params, state, batch)
        # The error that they send down is that of the mean over the examples.
        return state._replace(feedback=state.feedback / replicas), loss, logits

    for t in range(steps):
        state, loss, logits = step(state, case["images"][t], case["labels"][t])
        np.testing.assert_allclose(loss, case["losses"][t], rtol=1e-12)
        if replicas == 1:
            np.testing.assert_allclose(logits, case["logits"][t], rtol=1e-12)


# Few shots


def meta_gradient(learner, meta_params, support, query, steps=1):
    """The query loss after ``steps`` on the support batch, and its gradient."""

    def loss(meta_params):
        key = jax.random.key(0)
        state = learner.init(key, meta_params, ())
        for _ in range(steps):
            state, _, _ = learner.step(key, meta_params, state, support)
        return learner.test(key, meta_params, state, query)[0]

    meta_params = jax.tree.map(jnp.asarray, meta_params)
    return jax.jit(jax.value_and_grad(loss))(meta_params)


ADAPTATION = FEW_SHOT["adaptation"]


def perceptron(params, x):
    h = jnp.tanh(x @ params["w0"] + params["b0"])
    return h @ params["w1"] + params["b1"]


def of_imaml(options):
    descent = mx.implicit.descend(optax.sgd(options["rate"]), options["steps"])
    cg = mx.implicit.cg(options["cg_steps"])
    return lambda problem: mx.imaml(problem, descent, cg, options["lam"])


FAMILY = {
    "maml": lambda problem: mx.maml(problem, 0.4),
    "fomaml": lambda problem: mx.fomaml(problem, 0.4),
    "anil": lambda problem: mx.anil(problem, 0.4, lambda name: name.endswith("1")),
    "meta_sgd": lambda problem: mx.meta_sgd(problem, 1.0),
    "imaml": of_imaml(ADAPTATION["imaml"]),
}


@pytest.mark.parametrize("name", FAMILY)
def test_adaptation(x64, name):
    """Of learn2learn, and iMAML of its authors: five steps, and four of conjugate gradients."""
    theirs, start, task = ADAPTATION[name], ADAPTATION["start"], ADAPTATION["task"]
    support = {"image": task["x"], "label": task["y"]}
    query = {"image": task["x_query"], "label": task["y_query"]}
    learner = FAMILY[name](mx.problems.classifier(lambda key: start, perceptron))
    meta_params, want = start, theirs["gradient"]
    if name == "meta_sgd":
        meta_params = {"params": start, "rates": theirs["rates"]}
        want = {"params": want, "rates": theirs["gradient_of_rates"]}

    steps = 1 if name == "imaml" else theirs["steps"]
    loss, got = meta_gradient(learner, meta_params, support, query, steps)
    np.testing.assert_allclose(loss, theirs["loss"], rtol=1e-12)
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["maml", "fomaml"])
def test_the_maml_of_its_authors(x64, name):
    """Regression, a mean over two tasks."""
    theirs = FEW_SHOT["finn"]
    start = theirs["start"]

    def loss(key, params, batch):
        h = batch["x"]
        for i in "12":
            h = jax.nn.relu(h @ params[f"w{i}"] + params[f"b{i}"])
        error = h @ params["w3"] + params["b3"] - batch["y"]
        return jnp.mean(error**2), {}

    problem = mx.problems.stateless(lambda key, task: start, loss)
    learner = getattr(mx, name)(problem, theirs["rate"])
    parts = [theirs[name] for name in ("inputa", "labela", "inputb", "labelb")]
    found = []
    for x, y, x_query, y_query in zip(*parts, strict=True):
        batches = {"x": x, "y": y}, {"x": x_query, "y": y_query}
        found.append(meta_gradient(learner, start, *batches, theirs["steps"]))
    loss, got = jax.tree.map(lambda *x: np.mean(x, 0), *found)
    np.testing.assert_allclose(loss, theirs[name]["loss"], rtol=1e-12)
    want = theirs[name]["gradient"]
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-13)


METRIC = FEW_SHOT["metric"]


def episode():
    ways = np.arange(METRIC["ways"], dtype=np.int32)
    support, query = (np.repeat(ways, METRIC[name]) for name in ("shots", "queries"))
    return (
        {"image": METRIC["support"], "label": support},
        {"image": METRIC["query"], "label": query},
    )


def embedding(w):
    return lambda key: w, lambda w, images: jnp.tanh(images @ w)


def test_protonet(x64):
    """Loss and gradient of its authors, logits of learn2learn."""
    theirs = METRIC["protonet"]
    w = theirs["embedding"]
    support, query = episode()
    learner = mx.protonet(embedding(w), METRIC["ways"], w.shape[1])
    loss, got = meta_gradient(learner, w, support, query)
    np.testing.assert_allclose(loss, theirs["loss"], rtol=1e-12)
    np.testing.assert_allclose(got, theirs["gradient"], rtol=1e-10)

    key = jax.random.key(0)
    state, _, _ = learner.step(key, w, learner.init(key, w, ()), support)
    logits = learner.predict(key, w, state, query["image"])
    np.testing.assert_allclose(logits, theirs["logits"], rtol=1e-12)


@pytest.mark.parametrize("theirs", METRIC["r2d2"], ids=["few features", "many"])
def test_ridge(x64, theirs):
    """Of the authors of R2-D2, whose penalty is ours over the number of images."""
    w = theirs["embedding"]
    support, query = episode()
    lam = len(support["label"]) * theirs["lam"]
    meta_params = {"params": w, "log_lam": np.log(lam), "scale": theirs["scale"]}
    learner = mx.ridge(embedding(w), METRIC["ways"], w.shape[1])
    loss, got = meta_gradient(learner, meta_params, support, query)
    np.testing.assert_allclose(loss, theirs["loss"], rtol=1e-12)
    want = {
        "params": theirs["gradient"],
        "log_lam": theirs["lam"] * theirs["gradient_of_lam"],
        "scale": theirs["gradient_of_scale"],
    }
    chex.assert_trees_all_close(got, want, rtol=1e-10)
