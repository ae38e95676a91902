"""The training loop: what it reports, and what it refuses to lose."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx


def quadratics(rate_cap=None):
    problem = mx.problems.quadratic()
    return mx.inner(mx.l2l(optax.sgd, problem, second_order=True), mx.tasks.quadratics(3), 5)


def test_fit_learns_a_learning_rate(key):
    inner = quadratics()
    trainer = mx.trainer(mx.bptt(inner, 8), optax.adam(1e-3))
    state, history, *_ = mx.fit(trainer, trainer.init(key, jnp.float32(1e-3)), num_steps=60, progress=False)
    assert history["loss"][-10:].mean() < 0.7 * history["loss"][:10].mean()
    assert float(state.meta_params) > 5e-3


def test_chunks_do_not_change_the_run(key):
    trainer = mx.trainer(mx.bptt(quadratics(), 4), optax.adam(1e-3))
    runs = []
    for chunk in (1, 4, 7):
        start = trainer.init(key, jnp.float32(1e-3))
        runs.append(mx.fit(trainer, start, num_steps=7, chunk=chunk, progress=False))
    for run in runs[1:]:
        chex.assert_trees_all_equal(_bits(run.state), _bits(runs[0].state))
        np.testing.assert_array_equal(run.history["loss"], runs[0].history["loss"])
    assert runs[0].history["loss"].shape == (7,)


def test_going_on_is_as_good_as_never_stopping(key):
    trainer = mx.trainer(mx.bptt(quadratics(), 4), optax.adam(1e-3))
    start = trainer.init(key, jnp.float32(1e-3))
    whole = mx.fit(trainer, start, num_steps=6, progress=False).state
    half = mx.fit(trainer, start, num_steps=3, progress=False).state  # the same start: its buffers are still alive
    chex.assert_trees_all_equal(_bits(mx.fit(trainer, half, num_steps=6, progress=False).state), _bits(whole))


def test_a_gradient_that_is_not_finite_changes_nothing(key):
    trainer = mx.trainer(mx.bptt(quadratics(), 4), optax.adam(1e-3))
    state = trainer.init(key, jnp.float32(1e-3))
    state, _ = trainer.step(state)
    bad = state._replace(meta_params=jnp.float32(1e30))  # every episode overflows
    after, metrics = trainer.step(bad)
    assert int(metrics["skipped"]) == 1
    chex.assert_trees_all_equal((after.meta_params, after.opt_state), (bad.meta_params, bad.opt_state))
    recovered, metrics = trainer.step(after._replace(meta_params=state.meta_params))
    assert int(metrics["skipped"]) == 0
    assert np.isfinite(recovered.meta_params)


def test_a_run_that_stays_non_finite_stops_and_says_where(key):
    trainer = mx.trainer(mx.bptt(quadratics(), 4), optax.adam(1e-3))
    state = trainer.init(key, jnp.float32(1e30))
    with pytest.raises(FloatingPointError, match=r"5 steps in a row, up to meta-step 5;.*learning rate"):
        mx.fit(trainer, state, num_steps=100, chunk=5, max_skipped=5, progress=False)


def test_progress_in_a_log_has_lines_and_no_carriage_returns(key, capsys):
    trainer = mx.trainer(mx.bptt(quadratics(), 4), optax.adam(1e-3))
    mx.fit(trainer, trainer.init(key, jnp.float32(1e-3)), num_steps=4, label="demo")
    err = capsys.readouterr().err
    assert "\r" not in err
    assert err.startswith("demo: 4/4 steps, loss ")
    assert "steps/s" in err


def _bits(tree):
    return jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree)
