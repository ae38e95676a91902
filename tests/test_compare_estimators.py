"""`compare_estimators` on a quadratic meta-loss whose gradient, whole and truncated, is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax as mx

DECAY = 0.8
HORIZON = 4
WINDOW = 2
WINDOWS = HORIZON // WINDOW
SHAPE = (4, 3)  # a matrix that noise of rank one is smaller than
START, POINT = np.random.default_rng(0).normal(size=(2, *SHAPE))


def leaky_sum():
    """``x <- DECAY x + theta``, with the loss ``|x|^2 / 2`` before each step."""

    def loss(state):
        return jnp.sum(state**2) / 2

    learner = mx.Learner(
        init=lambda key, m, task: jnp.asarray(START, jnp.float32),
        step=lambda key, m, state, batch: (DECAY * state + m, loss(state), {}),
        test=lambda key, m, state, batch: (loss(state), {}),
    )
    nothing = mx.Tasks(lambda key, data: (), *[lambda key, data, task: ()] * 2)
    return mx.inner(learner, nothing, HORIZON)


def gradient(window):
    """Of the mean loss; what was before a window is taken for constant."""
    state = START
    slope = 0.0
    total = np.zeros(SHAPE)
    for step in range(HORIZON):
        if step % window == 0:
            slope = 0.0
        total += state * slope
        state = DECAY * state + POINT
        slope = DECAY * slope + 1
    return total / HORIZON


LOOP = leaky_sum()
UNBIASED = {
    "bptt": mx.bptt(LOOP, 2),
    "forward": mx.forward(LOOP, 2),
    "forward_gradient": mx.forward_gradient(LOOP, 2),
    "es": mx.es(LOOP, 2, 0.1),
    "es, low rank": mx.es(LOOP, 2, 0.1, mx.low_rank()),
}
UNBIASED_BY_WINDOWS = {
    "rtrl": mx.rtrl(LOOP, 2, WINDOW),
    "uoro": mx.uoro(LOOP, 2, WINDOW),
    "pes": mx.pes(LOOP, 2, 0.1, WINDOW),
    "noise_reuse_es": mx.noise_reuse_es(LOOP, 2, 0.1, WINDOW, stagger=False),
}
TRUNCATED = {
    "bptt, truncated": mx.bptt(LOOP, 2, WINDOW),
    "forward, truncated": mx.forward(LOOP, 2, WINDOW),
    "forward_gradient, truncated": mx.forward_gradient(LOOP, 2, WINDOW),
}
EXACT = ("bptt", "forward", "rtrl", "bptt, truncated", "forward, truncated")


@pytest.fixture(scope="module")
def comparison():
    return mx.compare_estimators(
        UNBIASED | UNBIASED_BY_WINDOWS | TRUNCATED,
        LOOP,
        jax.random.key(0),
        jnp.asarray(POINT, jnp.float32),
        windows=dict.fromkeys(UNBIASED_BY_WINDOWS | TRUNCATED, WINDOWS),
        samples=2000,
    )


def test_the_reference_is_the_gradient_through_the_whole_episode(comparison):
    np.testing.assert_allclose(comparison.reference, gradient(HORIZON), rtol=1e-5)


@pytest.mark.parametrize("name", UNBIASED | UNBIASED_BY_WINDOWS)
def test_what_is_unbiased_has_no_bias(comparison, name):
    diagnosis = comparison.diagnoses[name]
    if name in EXACT:
        assert diagnosis.bias < 1e-5
    else:
        assert diagnosis.bias < 3 * diagnosis.bias_error < 0.3


@pytest.mark.parametrize("name", TRUNCATED)
def test_what_is_truncated_has_the_bias_of_what_it_leaves_out(comparison, name):
    exact = gradient(HORIZON)
    want = np.linalg.norm(gradient(WINDOW) - exact) / np.linalg.norm(exact)
    diagnosis = comparison.diagnoses[name]
    assert want > 0.3
    np.testing.assert_allclose(
        diagnosis.bias, want, rtol=1e-4, atol=3 * diagnosis.bias_error
    )


@pytest.mark.parametrize("name", UNBIASED | UNBIASED_BY_WINDOWS | TRUNCATED)
def test_what_is_exact_has_no_variance_and_the_rest_has(comparison, name):
    variance = comparison.diagnoses[name].variance
    assert variance < 1e-9 if name in EXACT else variance > 1e-3


def test_one_direction_has_the_variance_of_a_normal(comparison):
    """Of ``v v'g`` with d entries it is ``(d + 1) |g|^2``; here is the mean of two."""
    squared = np.sum(gradient(HORIZON) ** 2)
    want = (np.prod(SHAPE) + 1) * squared / 2
    variance = comparison.diagnoses["forward_gradient"].variance
    np.testing.assert_allclose(variance, want, rtol=0.2)


def test_the_table_has_a_row_for_each_in_order(comparison):
    _, *rows = str(comparison).splitlines()
    assert len(rows) == len(comparison.diagnoses)
    for row, (name, diagnosis) in zip(rows, comparison.diagnoses.items(), strict=True):
        assert row.startswith(f"{name} ")
        assert f" {diagnosis.bias:.3f} ± {diagnosis.bias_error:.3f} " in row


def test_another_reference_is_taken_as_it_is():
    reference = 2 * gradient(HORIZON).astype(np.float32)
    found = mx.compare_estimators(
        {"bptt": mx.bptt(LOOP, 2)},
        LOOP,
        jax.random.key(0),
        jnp.asarray(POINT, jnp.float32),
        reference=reference,
        samples=2,
    )
    np.testing.assert_allclose(found.diagnoses["bptt"].bias, 0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"estimators": {}}, TypeError, "estimators must be a dict"),
        ({"estimators": {"a": mx.bptt}}, TypeError, r"estimators\['a'\] must be"),
        ({"windows": {"b": 2}}, ValueError, r"windows\['b'\]: there is no such"),
        ({"windows": {"a": 0}}, ValueError, r"windows\['a'\] must be"),
        ({"samples": 1}, ValueError, "samples must be at least 2"),
    ],
)
def test_bad_input(arguments, error, message):
    estimators = arguments.pop("estimators", {"a": mx.bptt(LOOP, 2)})
    point = jnp.asarray(POINT, jnp.float32)
    with pytest.raises(error, match=message):
        mx.compare_estimators(
            estimators, LOOP, jax.random.key(0), point, **{"samples": 2} | arguments
        )
