"""What every learner and every estimator must keep, in all combinations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import (
    HELDOUT,
    RUN,
    RUN_WITH_ALL,
    TRACED_WITH_ALL,
    estimators,
    learners,
)

import metajax as mx
from metajax.types import no_predictions

SYSTEMS, MAKERS = learners(), estimators()
PREDICTING = [
    name for name in SYSTEMS if SYSTEMS[name].learner.predict is not no_predictions
]

PAIRS = [
    pytest.param(
        *(learner, estimator, meta_loss),
        id=f"{learner}-{estimator}-{meta_loss}",
        marks=[] if learner == "sgd_rate" else pytest.mark.slow,
    )
    for learner in SYSTEMS
    for estimator in MAKERS
    for meta_loss in ("online", "heldout")
    if meta_loss == "online" or estimator in HELDOUT
    if learner in RUN or (estimator, meta_loss) in RUN_WITH_ALL | TRACED_WITH_ALL
]


def started(name, meta_loss="online"):
    system = SYSTEMS[name]
    return system.inner(meta_loss), system.meta_params(), system.data


@pytest.mark.parametrize(("learner", "estimator", "meta_loss"), PAIRS)
def test_contract(learner, estimator, meta_loss, key, strict):
    inner, meta_params, data = started(learner, meta_loss)
    trainer = mx.trainer(MAKERS[estimator](inner, meta_params), optax.adam(1e-2))

    # The state is a fit carry of a scan, weak types included; nothing is compiled for that.
    first = jax.eval_shape(jax.jit(trainer.init), key, meta_params, data)
    scanned, metrics = jax.eval_shape(
        jax.jit(
            lambda s, data: jax.lax.scan(
                lambda s, _: trainer.step(s, data), s, None, length=3
            )
        ),
        first,
        data,
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(scanned, first)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        scanned.meta_params, jax.eval_shape(lambda: meta_params)
    )
    assert metrics["loss"].shape == (3,)
    if learner not in RUN and (estimator, meta_loss) not in RUN_WITH_ALL:
        return

    traces = []

    @jax.jit
    def step(state, data):
        traces.append(None)
        return trainer.step(state, data)

    again = jax.random.clone(key)
    state = first = jax.jit(trainer.init)(again, meta_params, data)
    for _ in range(3):
        state, metrics = step(state, data)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, first)
        chex.assert_tree_all_finite((state.meta_params, metrics))
    assert len(traces) == 1, "the second step was traced again"
    assert int(state.step) == 3
    assert int(state.skipped) == 0
    assert (
        float(
            optax.tree.norm(
                jax.tree.map(jnp.subtract, state.meta_params, first.meta_params)
            )
        )
        > 0
    )


@pytest.mark.parametrize("estimator", MAKERS)
@pytest.mark.slow
def test_scan_equals_a_loop(estimator, key):
    inner, meta_params, data = started("sgd_rate")
    trainer = mx.trainer(MAKERS[estimator](inner, meta_params), optax.sgd(1e-2))
    state = start = trainer.init(key, meta_params, data)
    step = jax.jit(trainer.step)
    for _ in range(3):
        state, _ = step(state, data)
    scanned, _ = jax.jit(
        lambda s: jax.lax.scan(lambda s, _: trainer.step(s, data), s, None, length=3)
    )(start)
    chex.assert_trees_all_close(scanned.meta_params, state.meta_params, rtol=1e-5)


@pytest.mark.parametrize("estimator", MAKERS)
@pytest.mark.slow
def test_an_estimator_needs_no_jit(estimator, key):
    inner, meta_params, data = started("sgd_rate")
    trainer = mx.trainer(MAKERS[estimator](inner, meta_params), optax.sgd(1e-2))
    state = trainer.init(key, meta_params, data)
    with jax.disable_jit():
        plain, _ = trainer.step(state, data)
    chex.assert_trees_all_close(
        plain.meta_params, jax.jit(trainer.step)(state, data)[0].meta_params, rtol=1e-4
    )


@pytest.mark.parametrize("learner", RUN)
@pytest.mark.slow
def test_a_learner_needs_no_jit(learner, key):
    inner, meta_params, data = started(learner)
    state = inner.init(key, meta_params, data)
    with jax.disable_jit():
        plain, (loss, _) = inner.step(meta_params, state, data)
    compiled, (same, _) = jax.jit(inner.step)(meta_params, state, data)
    chex.assert_trees_all_close(
        (plain.learner, loss), (compiled.learner, same), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("learner", SYSTEMS)
@pytest.mark.slow
def test_one_unroll_equals_several(learner, key):
    inner, meta_params, data = started(learner)
    start = jax.jit(inner.init)(key, meta_params, data)
    run = jax.jit(
        lambda s, n: mx.unroll(inner, meta_params, s, data, n)[0], static_argnums=1
    )
    whole, parts = run(start, 12), start
    for _ in range(4):
        parts = run(parts, 3)
    chex.assert_trees_all_equal(jax.tree.map(_bits, whole), jax.tree.map(_bits, parts))


@pytest.mark.parametrize("learner", SYSTEMS)
@pytest.mark.slow
def test_evaluate_beyond_the_horizon(learner, key):
    inner, meta_params, data = started(learner)
    curves = mx.evaluate(inner, key, meta_params, data, num_tasks=3, steps=9)
    assert curves.loss.shape == (3, 9)
    assert curves.test_loss.shape == (3,)
    assert len(np.unique(curves.loss.mean(1))) == 3, "tasks must differ"
    # A brute-force loop over the steps of the first task.
    k = jax.random.split(key, 3)[0]
    step = jax.jit(inner.step)
    state, losses = jax.jit(inner.init)(k, meta_params, data), []
    for _ in range(9):
        state, (loss, _) = step(meta_params, state, data)
        losses.append(float(loss))
    np.testing.assert_allclose(losses, curves.loss[0], rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("learner", SYSTEMS)
@pytest.mark.slow
def test_evaluating_does_not_adapt(learner, key):
    inner, meta_params, data = started(learner, "heldout")
    state, test = jax.jit(inner.init)(key, meta_params, data), jax.jit(inner.test)
    chex.assert_trees_all_equal(
        test(meta_params, state, data), test(meta_params, state, data)
    )


@pytest.mark.parametrize("learner", PREDICTING)
@pytest.mark.slow
def test_predictions_are_as_good_as_the_test_says(learner, key):
    """With what `evaluate` gives, for all tasks at once: what was learned is ready to be used."""
    system, meta_params = SYSTEMS[learner], SYSTEMS[learner].meta_params()
    curves = mx.evaluate(system.inner(), key, meta_params, system.data, num_tasks=3)
    k_predict, k_test = jax.random.split(key)

    def draw(state):
        return system.tasks.test(state.key, system.data, state.task)

    def over_tasks(f, k, batches):
        run = jax.jit(jax.vmap(f, (None, None, 0, 0)))
        return jax.device_get(run(k, meta_params, curves.state.learner, batches))

    batches = jax.device_get(jax.vmap(draw)(curves.state))
    tested, metrics = over_tasks(system.learner.test, k_test, batches)
    if "label" in batches:
        logits = over_tasks(system.learner.predict, k_predict, batches["image"])
        hits = logits.argmax(-1) == batches["label"]
        np.testing.assert_allclose(metrics["accuracy"], hits.mean(1), rtol=1e-6)
        np.testing.assert_allclose(
            tested, cross_entropy(logits, batches["label"]), rtol=1e-5
        )
    else:  # quadratics; of what imitates, they are the objective
        outputs = over_tasks(system.learner.predict, k_predict, batches["W"])
        squares = np.sum((outputs - batches["y"]) ** 2, 1)
        np.testing.assert_allclose(metrics.get("objective", tested), squares, rtol=1e-5)


def cross_entropy(logits, labels):
    """Of ``[tasks, B, C]`` and ``[tasks, B]``, a mean for each task."""
    shifted = logits - logits.max(-1, keepdims=True)
    chosen = np.take_along_axis(shifted, labels[..., None], -1)[..., 0]
    return np.mean(np.log(np.exp(shifted).sum(-1)) - chosen, -1)


def _bits(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
