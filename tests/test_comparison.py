import gc
import weakref

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


def test_a_program_goes_with_its_place_in_the_cache(key):
    """Programs that stayed for ever would fill the memory of a run that makes many loops."""
    from metajax.evaluation._evaluate import _compiled

    def evaluated():
        loop = mx.inner(
            mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(2), 2
        )
        mx.evaluate(loop, key, 0.1, num_tasks=2)
        misses = _compiled.cache_info().misses
        mx.evaluate(loop, key, 0.2, num_tasks=2)
        assert _compiled.cache_info().misses == misses, (
            "one program serves all meta-parameters"
        )
        return weakref.ref(loop.step)

    step = evaluated()
    assert step() is not None
    _compiled.cache_clear()
    gc.collect()
    assert step() is None
