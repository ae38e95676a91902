"""What every learner and every estimator must keep, in all combinations."""

import functools

import jax
import numpy as np
import optax
import pytest
from systems import HELDOUT, MEET_ALL, OF_EACH_KIND, RUN, estimators, learners

import metajax as mx
from metajax.testing import _estimator as of_estimators
from metajax.testing import _learner as of_learners
from metajax.types import no_predictions

SYSTEMS, MAKERS = learners(), estimators()


def together(learner, *rest, **kwargs):
    """One worker has all tests of a learner: they share what is compiled."""
    group = pytest.mark.xdist_group(learner)
    marks = [group, *kwargs.pop("marks", [pytest.mark.slow])]
    return pytest.param(learner, *rest, marks=marks, **kwargs)


PREDICTING = [
    together(name)
    for name in SYSTEMS
    if SYSTEMS[name].learner.predict is not no_predictions
]

PAIRS = [
    together(
        *(learner, estimator, meta_loss),
        id=f"{learner}-{estimator}-{meta_loss}",
        marks=[] if learner == "sgd_rate" else [pytest.mark.slow],
    )
    for learner in SYSTEMS
    for estimator in MAKERS
    for meta_loss in ("online", "heldout")
    if SYSTEMS[learner].learner.meta_loss in (None, meta_loss)
    if meta_loss == "online" or estimator in HELDOUT
    if learner in MEET_ALL or (estimator, meta_loss) in OF_EACH_KIND | RUN
]


@functools.cache
def started(name, meta_loss="online"):
    system = SYSTEMS[name]
    return system.inner(meta_loss), system.meta_params(), system.data


@pytest.mark.parametrize(("learner", "estimator", "meta_loss"), PAIRS)
def test_contract(learner, estimator, meta_loss, strict):
    inner, meta_params, data = started(learner, meta_loss)
    trainer = of_estimators.compiled(
        mx.trainer(MAKERS[estimator](inner, meta_params), optax.adam(1e-2))
    )
    of_estimators.fits_a_scan(trainer, meta_params, data)
    pair = (estimator, meta_loss)
    is_run = pair in OF_EACH_KIND or (learner in MEET_ALL and pair in RUN)
    if is_run or learner == "sgd_rate":
        of_estimators.steps_alike(trainer, meta_params, data)


@pytest.mark.parametrize("estimator", MAKERS)
@pytest.mark.slow
@pytest.mark.xdist_group("without jit")  # their operations, too, are compiled once
def test_what_estimators_keep(estimator):
    inner, meta_params, data = started("sgd_rate")
    trainer = of_estimators.compiled(
        mx.trainer(MAKERS[estimator](inner, meta_params), optax.sgd(1e-2))
    )
    of_estimators.scans_as_it_loops(trainer, meta_params, data)
    of_estimators.needs_no_jit(trainer, meta_params, data)


@pytest.mark.parametrize("learner", [together(name) for name in MEET_ALL])
def test_a_learner_needs_no_jit(learner):
    of_learners.needs_no_jit(*started(learner))


@pytest.mark.parametrize("check", ["unrolls_in_parts", "evaluates_as_a_loop"])
@pytest.mark.parametrize("learner", [together(name) for name in SYSTEMS])
def test_what_learners_keep(learner, check):
    getattr(of_learners, check)(*started(learner))


@pytest.mark.parametrize("learner", PREDICTING)
def test_predictions_are_as_good_as_the_test_says(learner, key):
    """With what `evaluate` gives, for all tasks at once: what was learned is ready to be used."""
    system = SYSTEMS[learner]
    inner, meta_params, data = started(learner)
    curves = mx.evaluate(inner, key, meta_params, data, num_tasks=3, steps=9)
    k_predict, k_test = jax.random.split(key)

    def draw(state):
        return system.tasks.test(state.key, data, state.task)

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
