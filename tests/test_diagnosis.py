"""`diagnose` on estimators whose bias, variance and direction are known by construction."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx

EXACT = {"a": jnp.array([3.0, 0.0]), "b": jnp.float32(4.0)}  # norm 5


def gaussian(offset, std):
    """An estimator that draws from a normal around ``EXACT + offset``."""

    def estimate(key, meta_params, state, data):
        keys = jax.random.split(key, 3)
        noisy = {
            "a": EXACT["a"] + offset + std * jax.random.normal(keys[0], (2,)),
            "b": EXACT["b"] + std * jax.random.normal(keys[1]),
        }
        return mx.Estimate(noisy, jnp.float32(0), {}), state

    return mx.Estimator(lambda key, meta_params, data: (), estimate)


def measure(estimator, **kwargs):
    return mx.diagnose(
        estimator, jax.random.key(0), EXACT, reference=EXACT, samples=2000, **kwargs
    )


def test_an_exact_estimator_has_no_bias_and_no_variance():
    d = measure(gaussian(0.0, 0.0))
    assert d.bias == pytest.approx(0, abs=1e-6)
    assert d.variance == pytest.approx(0, abs=1e-9)
    assert d.cosine == pytest.approx(1)
    assert d.norm == pytest.approx(5)


def test_noise_is_not_taken_for_bias():
    d = measure(gaussian(0.0, 2.0))
    assert d.variance == pytest.approx(
        3 * 4.0, rel=0.1
    )  # three coordinates of variance 4
    assert d.snr == pytest.approx(25 / 12, rel=0.15)
    assert d.bias < 3 * d.bias_error
    assert d.bias_error == pytest.approx(np.sqrt(12 / 2000) / 5, rel=0.1)


def test_a_bias_is_found():
    d = measure(gaussian(jnp.array([0.0, 1.0]), 0.5))
    assert d.bias == pytest.approx(1 / 5, rel=0.1)  # an offset of 1 against a norm of 5
    assert d.bias > 5 * d.bias_error


def test_an_estimator_that_gives_nan_has_no_bias_that_is_known():
    assert np.isnan(measure(gaussian(jnp.nan, 0.5)).bias)


def test_windows_are_averaged_into_one_sample():
    one, four = measure(gaussian(0.0, 2.0)), measure(gaussian(0.0, 2.0), windows=4)
    assert four.variance == pytest.approx(one.variance / 4, rel=0.15)


@pytest.mark.slow
def test_truncation_is_seen_as_bias_and_costs_are_measured():
    learner = mx.l2l(optax.sgd, mx.problems.quadratic(), second_order=True)
    inner = mx.inner(learner, mx.tasks.quadratics(2), 8)
    rate = jnp.float32(0.02)
    exact = mx.mean_gradient(mx.bptt(inner, 64), jax.random.key(9), rate, samples=256)
    full = mx.diagnose(
        mx.bptt(inner, 16),
        jax.random.key(1),
        rate,
        reference=exact,
        inner=inner,
        samples=256,
    )
    cut = mx.diagnose(
        mx.bptt(inner, 16, 1),
        jax.random.key(1),
        rate,
        reference=exact,
        samples=256,
        windows=8,
    )
    assert full.bias < 3 * full.bias_error
    assert cut.bias > 5 * cut.bias_error
    assert full.inner_steps > 1
    assert min(full.seconds, full.compile_seconds, full.temporary_bytes) > 0


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"samples": 1}, ValueError, "samples"),
        ({"windows": 0}, ValueError, "windows"),
        ({"reference": {"a": jnp.zeros(2)}}, ValueError, "reference"),
        (
            {"reference": jax.tree.map(jnp.zeros_like, EXACT)},
            ValueError,
            "reference is zero",
        ),
        ({"inner": 3}, TypeError, "inner"),
    ],
)
def test_bad_input(kwargs, error, message):
    with pytest.raises(error, match=message):
        mx.diagnose(gaussian(0.0, 1.0), jax.random.key(0), EXACT, **kwargs)
