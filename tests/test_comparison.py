import gc
import os
import weakref
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import metajax as mx
from benchmarks.experiments import _l2l


def test_the_search_finds_the_best_rate_and_reports_other_tasks(key):
    problem, tasks = mx.problems.quadratic(), mx.tasks.quadratics(4)
    rates = [0.001, 0.003, 0.01, 0.03, 0.1]
    result = mx.compare(
        {"SGD": optax.sgd},
        problem,
        tasks,
        key,
        steps=30,
        num_tasks=12,
        search=mx.RateSearch(rates),
    )
    # Every rate by itself, on the search tasks, in plain Python.
    inner = mx.inner(mx.l2l(optax.sgd, problem), tasks, 30)
    k_search, k_report = jax.random.split(key)
    by_hand = [
        float(mx.evaluate(inner, k_search, r, num_tasks=12).loss[:, -3:].mean())
        for r in rates
    ]
    assert result.rate["SGD"] == rates[int(np.nanargmin(by_hand))]
    want = mx.evaluate(inner, k_report, result.rate["SGD"], num_tasks=12).loss
    np.testing.assert_allclose(result.loss["SGD"], want, rtol=1e-5)
    np.testing.assert_allclose(result.final["SGD"], want[:, -3:].mean(1), rtol=1e-5)


def test_a_fixed_transformation_is_taken_as_it_is(key):
    problem, tasks = mx.problems.quadratic(), mx.tasks.quadratics(4)
    result = mx.compare(
        {"fixed": optax.sgd(0.01), "searched": optax.sgd},
        problem,
        tasks,
        key,
        steps=10,
        search=mx.RateSearch([0.001, 0.01, 0.1]),
    )
    assert result.rate["fixed"] is None
    assert result.rate["searched"] == 0.01
    np.testing.assert_allclose(result.loss["fixed"], result.loss["searched"], rtol=1e-5)
    lines = str(result).splitlines()
    assert lines[0].split()[:2] == ["optimizer", "rate"]
    assert len(lines) == 3


@pytest.mark.slow
def test_what_diverged_comes_last_and_is_no_best_baseline(key):
    settings = dict(steps=50, search=mx.RateSearch([0.001, 0.01, 0.1, 1.0, 10.0]))
    optimizers = {"diverges": optax.sgd(1e11), **mx.BASELINES}
    with pytest.warns(UserWarning, match="diverges diverged on 16 of 16 tasks"):
        result = mx.compare(
            optimizers, mx.problems.quadratic(), mx.tasks.quadratics(4), key, **settings
        )
    lines = str(result).splitlines()
    assert lines[-1].split()[:1] == ["diverges"]
    finals = {
        f"case, {b}: final": np.array(2.0 + i) for i, b in enumerate(mx.BASELINES)
    }
    results = [
        finals
        | {"case, SGD: final": np.array(np.nan), "case, ours: final": np.array(1.5)}
    ]
    assert (
        _l2l.against_baselines(results, "case", "ours", "source", None).measured == 0.5
    )


def test_a_rate_at_the_edge_is_warned_of(key):
    with pytest.warns(UserWarning, match="best rate of SGD, 0.001, is at the edge"):
        mx.compare(
            {"SGD": optax.sgd},
            mx.problems.quadratic(),
            mx.tasks.quadratics(4),
            key,
            steps=10,
            search=mx.RateSearch([1e-4, 1e-3, 3e-4]),
        )


@pytest.mark.parametrize(
    ("search", "error", "message"),
    [
        (
            mx.RateSearch(score=lambda curves: curves.test_loss),
            ValueError,
            "what score returns must be a floating-point scalar",
        ),
        (mx.RateSearch(0.1), ValueError, "rates must be a sequence"),
        (
            [0.1, 1.0],
            TypeError,
            r"search must be a metajax.RateSearch, e.g. .*got \[0.1, 1.0\]",
        ),
    ],
)
def test_bad_input(key, search, error, message):
    with pytest.raises(error, match=message):
        mx.compare(
            {"SGD": optax.sgd},
            mx.problems.quadratic(),
            mx.tasks.quadratics(4),
            key,
            steps=2,
            search=search,
        )


def test_divergence_everywhere_is_an_error(key):
    with pytest.raises(ValueError, match="diverged at every rate"):
        mx.compare(
            {"SGD": optax.sgd},
            mx.problems.quadratic(),
            mx.tasks.quadratics(4),
            key,
            steps=50,
            search=mx.RateSearch([1e10, 1e11]),
        )


@pytest.mark.slow
def test_the_search_minimises_the_score_it_is_given(key):
    problem, tasks = mx.problems.mlp((4, 3)), mx.tasks.prototypes(3, (4,))
    rates = [
        0.1,
        0.3,
        1.0,
        3.0,
    ]  # 0.3 has the best final loss, 1.0 makes the fewest errors on the way

    def search(score):
        return mx.compare(
            {"SGD": optax.sgd},
            problem,
            tasks,
            key,
            steps=40,
            search=mx.RateSearch(rates, score),
        )

    result = search(lambda curves: -curves.metrics["accuracy"].mean())
    inner = mx.inner(mx.l2l(optax.sgd, problem), tasks, 40)
    k_search, k_report = jax.random.split(key)
    by_hand = [
        float(mx.evaluate(inner, k_search, r, num_tasks=16).metrics["accuracy"].mean())
        for r in rates
    ]
    assert result.rate["SGD"] == rates[int(np.argmax(by_hand))] == 1.0
    want = mx.evaluate(inner, k_report, result.rate["SGD"], num_tasks=16).metrics[
        "accuracy"
    ]
    np.testing.assert_array_equal(result.metrics["SGD"]["accuracy"], want)
    with pytest.raises(TypeError, match="score must be a function"):
        search("accuracy")


def test_a_program_serves_all_meta_parameters_and_goes_with_its_loop(key):
    """Programs that stayed for ever would fill the memory of a run that makes many loops."""
    loop = mx.inner(
        mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(2), 2
    )
    mx.evaluate(loop, key, 0.1, num_tasks=2)
    [program] = loop.step.programs.values()
    mx.evaluate(loop, key, 0.2, num_tasks=2)
    assert [program] == list(loop.step.programs.values())

    alive = weakref.ref(loop.step), weakref.ref(program)
    del loop, program
    gc.collect()
    assert [x() for x in alive] == [None, None]


class Stepper:
    def step(self, meta_params, state, data):
        return LOOP.step(meta_params, state, data)


LOOP = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(2), 2)


def test_a_loop_whose_step_is_a_method_can_be_evaluated(key):
    by_method = replace(LOOP, step=Stepper().step)
    want = mx.evaluate(LOOP, key, 0.1, num_tasks=2)
    got = mx.evaluate(by_method, key, 0.1, num_tasks=2)
    np.testing.assert_array_equal(got.loss, want.loss)


@pytest.fixture
def usual_garbage_collection():
    ours = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    gc.freeze()  # what other tests have left is not this one's
    yield
    gc.unfreeze()
    gc.set_threshold(*ours)


@pytest.mark.slow
@pytest.mark.long
def test_thirty_trainers_and_loops_take_the_memory_of_one(
    key, usual_garbage_collection
):
    def train_and_evaluate():
        learner = mx.l2l(optax.sgd, mx.problems.mlp((64, 10)))
        loop = mx.inner(learner, mx.tasks.minibatches(4), 2)
        trainer = mx.trainer(mx.bptt(loop, 2), optax.adam(1e-3))
        state = trainer.init(key, np.float32(0.1), DIGITS)
        result = mx.fit(trainer, state, DIGITS, num_steps=2, progress=None)
        mx.evaluate(loop, key, result.best, DIGITS, num_tasks=2)

    for _ in range(10):
        train_and_evaluate()
    gc.collect()
    before = resident()
    for _ in range(30):
        train_and_evaluate()
    gc.collect()
    assert resident() < before + 30 * 1e6, "less than a megabyte each"


DIGITS = mx.data.load("digits")


def resident():
    """Bytes of this process in memory."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("/proc/self/statm tells the memory, and is there on Linux alone")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
