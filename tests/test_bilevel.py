"""Single-loop bilevel optimization against closed forms, Hessians and sums over batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import normalised

import metajax as mx
from metajax.estimators._bilevel import _change, _Memory, _remember
from metajax.testing import _estimator as of_estimators

RNG = np.random.default_rng(0)
SIZE, NUM_META = 4, 3
HESSIANS = RNG.normal(size=(5, SIZE, SIZE))
HESSIANS = np.eye(SIZE) + 0.1 * HESSIANS @ HESSIANS.transpose(0, 2, 1)
PULLS = RNG.normal(size=(5, SIZE, NUM_META))
AIMS = RNG.normal(size=(7, SIZE))
LAM = RNG.normal(size=NUM_META)

# An outer loss 1/2 |z - c|^2, an inner one 1/2 z'A z - z'B lam.
BOWL = mx.problems.stateless(
    init=lambda key, task: jnp.zeros(SIZE),
    loss=lambda key, z, batch: (jnp.sum((z - batch["aim"]) ** 2) / 2, {}),
)


def pulled(lam, key, z, model_state, batch):
    return z @ batch["A"] @ z / 2 - z @ (batch["B"] @ lam)


def train_batch(data, i):
    return {
        "A": jnp.asarray(data["A"])[i],
        "B": jnp.asarray(data["B"])[i],
        "aim": jnp.zeros(SIZE),  # for the state of the model, which has none
    }


def test_batch(data, i):
    return {"aim": jnp.asarray(data["aim"])[i]}


test_batch.__test__ = False  # no test, whatever it is called

SUMS = {"A": HESSIANS, "B": PULLS, "aim": AIMS}
WHOLE = jax.tree.map(lambda x: x.mean(0, keepdims=True), SUMS)
# One batch each time, any of them.
DRAWN = mx.Tasks(
    sample=lambda key, data: (),
    train=lambda key, data, task: train_batch(
        data, jax.random.randint(key, (), 0, len(data["A"]))
    ),
    test=lambda key, data, task: test_batch(
        data, jax.random.randint(key, (), 0, len(data["aim"]))
    ),
)
RATE = 0.3


def soba(data, rate=RATE):
    return mx.soba(BOWL, pulled, DRAWN, optax.sgd(rate), rate)


def saba(data, rate=RATE):
    train = mx.Batches(train_batch, len(data["A"]))
    test = mx.Batches(test_batch, len(data["aim"]))
    return mx.saba(BOWL, pulled, train, test, optax.sgd(rate), rate)


def amigo(data, rate=RATE, steps=3):
    tx = optax.sgd(rate)
    return mx.amigo(
        BOWL, pulled, DRAWN, tx, rate, inner_steps=steps, adjoint_steps=steps
    )


ALL = {"soba": soba, "saba": saba, "amigo": amigo}


def closed_form(lam):
    """The gradient of the outer loss at the inner solution."""
    a, b, c = (x.mean(0) for x in (HESSIANS, PULLS, AIMS))
    z = np.linalg.solve(a, b @ lam)
    return b.T @ np.linalg.solve(a, z - c)


def settled(estimator, data, lam, num_steps):
    """The last estimate, when the meta-parameters stay where they are."""
    state = estimator.init(jax.random.key(0), lam, data)

    def step(state, key):
        estimate, state = estimator.estimate(key, lam, state, data)
        return state, estimate.updates

    keys = jax.random.split(jax.random.key(1), num_steps)
    _, updates = jax.jit(lambda state: jax.lax.scan(step, state, keys))(state)
    return np.asarray(updates[-1])


@pytest.mark.parametrize("name", ALL)
def test_it_settles_at_the_implicit_gradient(name, x64):
    got = settled(ALL[name](WHOLE), WHOLE, jnp.asarray(LAM), 300)
    np.testing.assert_allclose(got, closed_form(LAM), rtol=1e-9)


def test_many_steps_need_no_warm_start(x64):
    got = settled(amigo(WHOLE, steps=300), WHOLE, jnp.asarray(LAM), 1)
    np.testing.assert_allclose(got, closed_form(LAM), rtol=1e-9)


def test_of_a_finite_sum_only_saba_settles(x64):
    want = closed_form(LAM)
    errors = {}
    for name in ("soba", "saba"):
        got = settled(ALL[name](SUMS, 0.1), SUMS, jnp.asarray(LAM), 3000)
        errors[name] = np.abs(got - want).max()
    assert errors["saba"] < 1e-9
    assert errors["soba"] > 1e-2


def test_a_step_is_that_of_explicit_derivatives(x64, key):
    """On a problem that is not quadratic, in a state that is nowhere near a solution."""
    inputs, labels = RNG.normal(size=(6, 3)), np.array([0, 1, 0, 1, 1, 0])
    data = {"x": inputs, "y": labels}

    def loss(key, w, batch):
        logits = batch["x"] @ w
        values = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return values.mean(), {}

    problem = mx.problems.stateless(
        lambda key, task: jax.random.normal(key, (3, 2)), loss
    )

    def weighted(lam, key, w, model_state, batch):
        value, _ = loss(key, w, batch)
        return value + jnp.sum(jnp.exp(lam)[:, None] * w**4)

    tasks = mx.Tasks(
        lambda key, data: (),
        lambda key, data, task: jax.tree.map(lambda x: x[:4], data),
        lambda key, data, task: jax.tree.map(lambda x: x[4:], data),
    )
    estimator = mx.soba(problem, weighted, tasks, optax.sgd(0.2), 0.1)
    lam = jnp.array([0.1, -0.4, 0.3])
    state = estimator.init(key, lam, data)
    state = state._replace(adjoint=jnp.asarray(RNG.normal(size=(3, 2))))
    estimate, new = estimator.estimate(key, lam, state, data)

    train, test = (draw(key, data, ()) for draw in (tasks.train, tasks.test))
    w, v = state.params, state.adjoint

    def inner(lam, w):
        return weighted(lam, key, w.reshape(3, 2), (), train)

    def outer(w):
        return loss(key, w.reshape(3, 2), test)[0]

    flat, adjoint = w.ravel(), v.ravel()
    hessian = jax.hessian(inner, 1)(lam, flat)
    mixed = jax.jacobian(jax.grad(inner, 1), 0)(lam, flat)
    want_w = flat - 0.2 * jax.grad(inner, 1)(lam, flat)
    want_v = adjoint - 0.1 * (hessian @ adjoint - jax.grad(outer)(flat))
    np.testing.assert_allclose(new.params.ravel(), want_w, rtol=1e-12)
    np.testing.assert_allclose(new.adjoint.ravel(), want_v, rtol=1e-12)
    np.testing.assert_allclose(estimate.updates, -mixed.T @ adjoint, rtol=1e-12)
    np.testing.assert_allclose(estimate.loss, outer(flat), rtol=1e-12)


def test_what_is_remembered_leaves_no_bias(x64):
    """Over the batches, the mean of the estimates is the mean of the values, in any memory."""
    table, values = RNG.normal(size=(2, 5, SIZE))
    memory = _Memory(jnp.asarray(table), jnp.asarray(table.mean(0)))
    estimates = [memory.mean + _change(memory, i, values[i]) for i in range(5)]
    np.testing.assert_allclose(np.mean(estimates, 0), values.mean(0), rtol=1e-12)

    change = _change(memory, 2, values[2])
    table, mean = _remember(memory, 2, change, jnp.asarray(True))
    np.testing.assert_allclose(table[2], values[2], rtol=1e-12)
    np.testing.assert_allclose(mean, table.mean(0), rtol=1e-12)
    same = _remember(memory, 2, change * np.nan, jnp.asarray(False))
    jax.tree.map(np.testing.assert_array_equal, same, memory)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.slow
def test_training_comes_to_the_minimum(name, x64):
    """Of ``|B lam - c|``, since at the solution of the inner problem nothing else is left."""
    estimator = ALL[name](WHOLE)
    trainer = mx.trainer(estimator, optax.sgd(0.1), chunk=4000)
    state = trainer.init(jax.random.key(0), jnp.zeros(NUM_META), WHOLE)
    state, _ = trainer.run(state, WHOLE, 4000)
    a, b, c = (x.mean(0) for x in (HESSIANS, PULLS, AIMS))
    want, *_ = np.linalg.lstsq(np.linalg.solve(a, b), c, rcond=None)
    np.testing.assert_allclose(state.meta_params, want, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_contract(name, strict):
    data = jax.tree.map(np.float32, SUMS)
    trainer = mx.trainer(ALL[name](data), optax.adam(1e-2))
    trainer = of_estimators.compiled(trainer)
    lam = jnp.asarray(LAM, jnp.float32)
    of_estimators.fits_a_scan(trainer, lam, data)
    of_estimators.steps_alike(trainer, lam, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_loops_and_scans(name):
    data = jax.tree.map(np.float32, SUMS)
    trainer = mx.trainer(ALL[name](data), optax.sgd(1e-2))
    trainer = of_estimators.compiled(trainer)
    lam = jnp.asarray(LAM, jnp.float32)
    of_estimators.scans_as_it_loops(trainer, lam, data)
    of_estimators.needs_no_jit(trainer, lam, data)


def test_a_model_with_state_and_dropout(key):
    problem = normalised(with_dropout=True)
    images = {
        "image": RNG.normal(size=(32, 2, 2, 1)).astype(np.float32),
        "label": np.arange(32, dtype=np.int32) % 3,
    }

    def penalised(meta_params, key, w, model_state, batch):
        loss, _ = problem.loss(key, w, model_state, batch)
        return loss + jnp.exp(meta_params["log_strength"]) * jnp.sum(w**2)

    tasks = mx.tasks.minibatches(5, test_size=5)
    meta_params = {"log_strength": jnp.float32(-3), "table": jnp.arange(2)}
    trainer = mx.trainer(
        mx.soba(problem, penalised, tasks, optax.adam(0.01), 0.1), optax.adam(0.1)
    )
    state = trainer.init(key, meta_params, images)
    result = mx.fit(trainer, state, images, num_steps=30, progress=None)
    followed = result.state.estimator
    assert np.abs(followed.model_state["mean"]).max() > 0
    assert result.state.meta_params["log_strength"] != -3
    np.testing.assert_array_equal(result.state.meta_params["table"], np.arange(2))
    assert result.history["adjoint_residual"][-1] < np.inf


@pytest.mark.parametrize("name", ALL)
def test_what_is_not_finite_is_left_out(name, key):
    data = jax.tree.map(np.float32, WHOLE)
    lam = jnp.asarray(LAM, jnp.float32)
    estimator = ALL[name](data)
    state = estimator.init(key, lam, data)
    _, state = estimator.estimate(key, lam, state, data)
    broken = data | {"aim": np.full_like(data["aim"], np.nan)}
    estimate, after = jax.jit(estimator.estimate)(key, lam, state, broken)
    assert float(estimate.metrics["diverged"]) == 1
    np.testing.assert_array_equal(estimate.updates, np.zeros(NUM_META))
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_an_objective_must_be_a_scalar(key):
    estimator = mx.soba(BOWL, lambda *args: jnp.zeros(2), DRAWN, optax.sgd(0.1), 0.1)
    trainer = mx.trainer(estimator, optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"what objective returned must be a .*scalar"):
        trainer.init(key, jnp.zeros(3), SUMS)


def test_there_must_be_batches():
    some, none = mx.Batches(train_batch, 5), mx.Batches(test_batch, 0)
    with pytest.raises(ValueError, match=r"test.num must be at least 1, got 0"):
        mx.saba(BOWL, pulled, some, none, optax.sgd(0.1), 0.1)
