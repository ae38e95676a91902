"""Integers, booleans and keys among parameters: kept as they are, and no obstacle to learning."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx

DATA = {
    "image": np.random.default_rng(0).random((24, 2, 2, 1), np.float32),
    "label": np.arange(24, dtype=np.int32) % 3,
}
TASKS = mx.tasks.minibatches(5, test_size=5)
KEPT = {
    "order": np.array([2, 0, 3, 1]),
    "used": np.array([True, True, False, True]),
    "noise": jax.random.key(5),
    "calls": np.int32(3),
}


def logits(w, kept, images):
    x = images.reshape(len(images), -1)[:, kept["order"]] * kept["used"]
    return (x + kept["calls"] * jax.random.normal(kept["noise"], (4,))) @ w


def init_weights(key):
    return jax.random.normal(key, (4, 3)) / 2


def with_kept():
    def init(key):
        return {"w": init_weights(key), **KEPT}

    return mx.problems.classifier(init, lambda p, x: logits(p["w"], p, x))


def without():
    return mx.problems.classifier(init_weights, lambda w, x: logits(w, KEPT, x))


def imaml(problem):
    solver = mx.implicit.descend(optax.sgd(0.1), 3)
    return mx.imaml(problem, solver, mx.implicit.cg(3), 1.0)


def taught(problem):
    return mx.imitate(lambda rate: optax.sgd(rate), optax.adam(0.1), problem)


def adam_rate(problem):
    return mx.l2l(lambda rate: optax.adam(rate), problem, second_order=True)


START = ("maml", "meta_sgd", "reptile", "imaml")
LEARNERS_OF = {
    "maml": lambda problem: mx.maml(problem, 0.1),
    "meta_sgd": lambda problem: mx.meta_sgd(problem, 0.1),
    "reptile": lambda problem: mx.reptile(problem, optax.adam(0.1)),
    "imaml": imaml,
    "l2l": adam_rate,
    "imitate": taught,
}


def meta_params_of(learner, name):
    return learner.meta(jax.random.key(1)) if name in START else jnp.float32(0.1)


def estimated(make, problem, name):
    learner = LEARNERS_OF[name](problem)
    meta_params = meta_params_of(learner, name)
    steps = 1 if name == "imaml" else 2
    estimator = make(mx.inner(learner, TASKS, steps, "heldout"))
    state = estimator.init(jax.random.key(2), meta_params, DATA)
    estimate, _ = jax.jit(estimator.estimate)(
        jax.random.key(3), meta_params, state, DATA
    )
    return estimate


@pytest.mark.parametrize("name", LEARNERS_OF)
@pytest.mark.parametrize(
    "make", [lambda loop: mx.bptt(loop, 2), lambda loop: mx.es(loop, 2, 0.01)]
)
@pytest.mark.slow
def test_estimates_are_those_of_the_floating_parameters_alone(make, name):
    got, want = (estimated(make, problem(), name) for problem in (with_kept, without))
    np.testing.assert_allclose(got.loss, want.loss, rtol=1e-6)
    pairs = zip(*map(jax.tree.leaves, (got.updates, want.updates)), strict=True)
    for x, y in pairs:
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_forward_mode_and_the_mean_gradient_leave_them_aside():
    got = estimated(lambda loop: mx.forward(loop, 2), with_kept(), "maml")
    want = estimated(lambda loop: mx.forward(loop, 2), without(), "maml")
    np.testing.assert_allclose(got.updates["w"], want.updates, rtol=1e-5)
    assert got.updates["order"] is None


@pytest.mark.slow
def test_a_run_learns_the_rest_and_is_kept_whole(tmp_path):
    learner = mx.maml(with_kept(), 0.1)
    loop = mx.inner(learner, TASKS, 2, "heldout")
    trainer = mx.trainer(mx.bptt(loop, 2), optax.adamw(1e-2), chunk=2)
    state = trainer.init(jax.random.key(0), learner.meta(jax.random.key(1)), DATA)
    store = mx.checkpoints(tmp_path / "run", every=2)

    def run(num_steps):
        return mx.fit(
            trainer, state, DATA, num_steps=num_steps, checkpoint=store, progress=None
        )

    run(2)
    result = run(4)
    assert result.history["loss"].shape == (4,)
    learned = result.best
    assert not np.array_equal(learned["w"], state.meta_params["w"])
    assert_same({name: learned[name] for name in KEPT}, KEPT)

    curves = mx.evaluate(loop, jax.random.key(2), learned, DATA, num_tasks=2)
    assert np.isfinite(curves.test_loss).all()
    for suffix in ("npz", "safetensors"):
        mx.save(tmp_path / f"a.{suffix}", learned)
        assert_same(mx.load(tmp_path / f"a.{suffix}", like=state.meta_params), learned)
        mx.save(tmp_path / f"state.{suffix}", result.state)
        again = mx.load(tmp_path / f"state.{suffix}", like=state)
        assert_same(again, result.state)


def test_a_key_takes_the_place_of_a_key_alone(tmp_path):
    path = tmp_path / "a.npz"
    keys = {"key": jax.random.split(jax.random.key(3), 2)}
    mx.save(path, keys)
    assert_same(mx.load(path, like=jax.eval_shape(lambda: keys)), keys)
    with pytest.raises(ValueError, match=r"key in .* has the shape \(2, 2\)"):
        mx.load(path, like={"key": jax.random.key(0)})
    with pytest.raises(ValueError, match=r"key in .* has the shape"):
        mx.load(path, like={"key": jax.random.split(jax.random.key(0, impl="rbg"), 2)})


def assert_same(got, want):
    def words(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if is_key else x

    jax.tree.map(
        np.testing.assert_array_equal, *(jax.tree.map(words, x) for x in (got, want))
    )


@pytest.mark.parametrize(
    ("meta_params", "message"),
    [
        ({"rate": 1}, r"meta_params\['rate'\] must be a floating-point array, got int"),
        ({"rate": 0.1, "name": "a"}, r"meta_params\['name'\] must be .* got str"),
        ({"a": jnp.zeros(2, complex)}, r"meta_params\['a'\] must be .* got complex"),
        (
            {"order": jnp.arange(3)},
            "must hold a floating-point array to learn, got .*int32",
        ),
        ((), "must hold a floating-point array to learn"),
    ],
)
def test_what_cannot_be_learned_is_said(meta_params, message):
    loop = mx.inner(mx.maml(without(), 0.1), TASKS, 1)
    trainer = mx.trainer(mx.bptt(loop, 2), optax.sgd(0.1))
    with pytest.raises(TypeError, match=message):
        trainer.init(jax.random.key(0), meta_params, DATA)
