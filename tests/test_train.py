"""The training loop: what it reports, and what it refuses to lose."""

import gc
import json
import re
import sys
import types
import warnings
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from numpy.testing import assert_array_equal

import metajax as mx
from metajax.training._progress import Plateau


def quadratics(rate_cap=None):
    problem = mx.problems.quadratic()
    return mx.inner(
        mx.l2l(optax.sgd, problem, second_order=True), mx.tasks.quadratics(3), 5
    )


def test_fit_learns_a_learning_rate(key):
    inner = quadratics()
    trainer = mx.trainer(mx.bptt(inner, 8), optax.adam(1e-3))
    start = trainer.init(key, jnp.float32(1e-3))
    state, history, *_ = mx.fit(trainer, start, num_steps=60, progress=None)
    assert history["loss"][-10:].mean() < 0.7 * history["loss"][:10].mean()
    assert float(state.meta_params) > 5e-3


@pytest.mark.slow
def test_chunks_do_not_change_the_run(key):
    estimator = mx.bptt(quadratics(), 4)
    results = []
    for chunk in (1, 4, 7):
        trainer = mx.trainer(estimator, optax.adam(1e-3), chunk=chunk)
        start = trainer.init(key, jnp.float32(1e-3))
        results.append(mx.fit(trainer, start, num_steps=7, progress=None))
    for result in results[1:]:
        runs.same(result, results[0])
    assert results[0].history["loss"].shape == (7,)


def test_going_on_is_as_good_as_never_stopping(key):
    trainer = mx.trainer(mx.bptt(quadratics(), 4), optax.adam(1e-3))
    start = trainer.init(key, jnp.float32(1e-3))
    whole = mx.fit(trainer, start, num_steps=6, progress=None).state
    # The same start: its buffers are still alive.
    half = mx.fit(trainer, start, num_steps=3, progress=None).state
    runs.same(mx.fit(trainer, half, num_steps=6, progress=None).state, whole)


def test_a_call_of_run_takes_at_most_a_chunk_and_says_what_it_did():
    trainer = runs.counter(chunk=4)
    for n, taken in ((3, 3), (4, 4), (9, 4)):
        start = trainer.init(jax.random.key(0), jnp.float32(0))
        state, metrics = trainer.run(start, (), n)
        assert int(state.step) == taken
        assert metrics["loss"].shape == (4,)
        want = np.float32(1) / np.arange(1, taken + 1, dtype=np.float32)
        assert_array_equal(metrics["loss"][:taken], want)


def test_an_optimizer_that_looks_at_the_loss(key):
    # The loss never falls, so the rate is halved at every second step.
    estimator = mx.Estimator(
        lambda key, m, data: (),
        lambda key, m, state, data: (
            mx.Estimate(jnp.float32(1), jnp.float32(3), {}),
            state,
        ),
    )
    halve = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
    trainer = mx.trainer(estimator, optax.chain(optax.sgd(1.0), halve))
    result = mx.fit(
        trainer, trainer.init(key, jnp.float32(0)), num_steps=6, progress=None
    )
    scale = optax.tree.get(result.state.opt_state, "scale")
    assert float(scale) < 0.5
    assert_array_equal(result.history["skipped"], np.zeros(6))
    assert float(result.state.meta_params) > -6.0


@pytest.mark.slow
def test_a_trainer_that_is_gone_leaves_no_program_behind(key):
    def estimate(key, meta_params, state, data):
        return mx.Estimate(meta_params, jnp.float32(0), {}), state

    trainer = mx.trainer(
        mx.Estimator(lambda key, m, data: (), estimate), optax.sgd(0.1)
    )
    start = trainer.init(key, jnp.float32(1))
    mx.fit(trainer, start, num_steps=3, progress=None)
    alive = weakref.ref(estimate)
    del trainer, estimate
    gc.collect()
    assert alive() is None


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_changes_nothing(key):
    trainer = mx.trainer(mx.bptt(quadratics(), 4), optax.adam(1e-3))
    state = trainer.init(key, jnp.float32(1e-3))
    state, _ = trainer.step(state)
    bad = state._replace(meta_params=jnp.float32(1e30))  # every episode overflows
    after, metrics = trainer.step(bad)
    assert int(metrics["skipped"]) == 1
    chex.assert_trees_all_equal(
        (after.meta_params, after.opt_state), (bad.meta_params, bad.opt_state)
    )
    recovered, metrics = trainer.step(after._replace(meta_params=state.meta_params))
    assert int(metrics["skipped"]) == 0
    assert np.isfinite(recovered.meta_params)


def test_a_run_that_stays_non_finite_stops_and_says_where(key):
    estimator = mx.bptt(quadratics(), 4)
    trainer = mx.trainer(estimator, optax.adam(1e-3), chunk=5, max_skipped=5)
    state = trainer.init(key, jnp.float32(1e30))
    message = r"5 steps in a row, up to meta-step 5;.*learning rate"
    with pytest.raises(FloatingPointError, match=message):
        mx.fit(trainer, state, num_steps=100, progress=None)


def test_a_short_run_of_which_no_step_was_finite_warns(key):
    trainer = mx.trainer(mx.bptt(quadratics(), 4), optax.adam(1e-3))
    state = trainer.init(key, jnp.float32(1e30))
    with pytest.warns(
        RuntimeWarning,
        match=r"the last 3 meta-steps, up to 3, were skipped: .* Lower the learning rate",
    ):
        result = mx.fit(trainer, state, num_steps=3, progress=None)
    assert np.isnan(result.history["loss"]).all()
    assert result.best == state.meta_params


@pytest.mark.slow
def test_a_state_of_another_trainer_is_refused(key):
    estimators = {
        "bptt": mx.bptt(quadratics(), 4),
        "fewer tasks": mx.bptt(quadratics(), 2),
        "pes": mx.pes(quadratics(), 4, std=0.1, truncation=5),
    }
    trainer = mx.trainer(estimators["bptt"], optax.adam(1e-3))
    state = trainer.init(key, jnp.float32(1e-3))
    for name in ("fewer tasks", "pes"):
        other = mx.trainer(estimators[name], optax.adam(1e-3))
        with pytest.raises(
            ValueError,
            match=r"state.estimator is not as the estimator of .* trainer.init\(key, state.m",
        ):
            mx.fit(other, state, num_steps=2, progress=None)
        mx.fit(
            other, other.init(key, state.meta_params), num_steps=1, progress=None
        )  # as it says
    with pytest.raises(
        ValueError, match=r"state.opt_state is not as the tx of this trainer"
    ):
        mx.trainer(estimators["bptt"], optax.sgd(1e-3)).step(state)


def test_progress_in_a_log_has_lines_and_no_carriage_returns(key, capsys):
    trainer = mx.trainer(mx.bptt(quadratics(), 4), optax.adam(1e-3))
    mx.fit(trainer, trainer.init(key, jnp.float32(1e-3)), num_steps=4, progress="demo")
    err = capsys.readouterr().err
    assert "\r" not in err
    assert err.splitlines()[-1].startswith("demo: 4/4 steps, loss ")
    assert "steps/s" in err


def test_the_total_is_a_total(key):
    trainer = runs.counter()
    start = trainer.init(key, jnp.float32(0))
    half = mx.fit(trainer, start, num_steps=20, progress=None)
    rest = mx.fit(trainer, half.state, num_steps=30, progress=None)
    assert int(rest.state.step) == 30
    assert_array_equal(
        rest.history["loss"], np.float32(1) / np.arange(21, 31, dtype=np.float32)
    )
    with pytest.raises(
        ValueError,
        match="num_steps is the total to train to, 20, but state is already at meta-step 20",
    ):
        mx.fit(trainer, half.state, num_steps=20, progress=None)


def test_a_run_stops_at_the_same_step_whatever_the_chunk(key):
    def metrics(step):
        return {"skipped": jnp.maximum(step - 12, 0)}

    for chunk in (1, 7, 100):
        trainer = runs.counter(metrics, chunk, max_skipped=5)
        start = trainer.init(key, jnp.float32(0))
        with pytest.raises(
            FloatingPointError, match="5 steps in a row, up to meta-step 17;"
        ):
            mx.fit(trainer, start, num_steps=50, progress=None)


def test_an_optimizer_state_that_overflows_is_skipped(key):
    # The second moment of Adam overflows at gradients above 1e19, and would then hold all later
    # updates at zero.
    estimator = mx.Estimator(
        lambda key, m, data: (),
        lambda key, m, state, data: (mx.Estimate(data, jnp.float32(0), {}), state),
    )
    trainer = mx.trainer(estimator, optax.adam(1e-3))
    state = trainer.init(key, jnp.float32(1), jnp.float32(1))
    after, metrics = trainer.step(state, jnp.float32(1e25))
    assert int(metrics["skipped"]) == 1
    chex.assert_trees_all_equal(after.opt_state, state.opt_state)
    # An optimizer that starts from infinity is not taken for one that has diverged.
    trainer = mx.trainer(estimator, optax.chain(optax.sgd(1e-3), _best_so_far()))
    after, metrics = trainer.step(
        trainer.init(key, jnp.float32(1), jnp.float32(1)), jnp.float32(1)
    )
    assert int(metrics["skipped"]) == 0


def _best_so_far():
    return optax.GradientTransformation(
        lambda p: jnp.float32(jnp.inf), lambda u, s, p=None: (u, s)
    )


# Validation


def table(values):
    """A validation loss that is looked up by the step, which is what the counter's meta-parameter
    is.
    """
    values = jnp.asarray(values, jnp.float32)
    return lambda key, meta_params, data: values[jnp.int32(meta_params)]


def judged(key, values, every=1, num_steps=None, **options):
    trainer = runs.counter()
    validate = mx.validation(table(values), key, every=every, **options)
    num_steps = len(values) - 1 if num_steps is None else num_steps
    return mx.fit(
        trainer,
        trainer.init(key, jnp.float32(0)),
        num_steps=num_steps,
        validate=validate,
        progress=None,
    )


def test_the_best_is_kept(key):
    result = judged(key, [5, 4, 1, 2, 3, 0.5, 9], every=2)
    assert_array_equal(result.validation["step"], [0, 2, 4, 6])
    assert_array_equal(result.validation["loss"], [5, 1, 3, 9])
    assert float(result.best) == 2
    assert float(result.state.meta_params) == 6


def test_nan_is_never_the_best(key):
    result = judged(key, [np.nan, np.nan, 3, np.nan, 4])
    assert float(result.best) == 2
    with pytest.warns(RuntimeWarning, match="none of the 3 validations was finite"):
        result = judged(key, [np.nan, np.inf, np.nan])
    assert float(result.best) == 2, "the final ones, not the untrained start"


def resumed(key, folder, values, num_steps):
    """The counter, as far as it goes, validated by its step's entry in ``values``."""
    trainer = runs.counter()
    return mx.fit(
        trainer,
        trainer.init(key, jnp.float32(0)),
        num_steps=num_steps,
        validate=mx.validation(table(values), key, every=2),
        checkpoint=mx.checkpoints(folder, every=2),
        progress=None,
    )


def test_a_resumed_run_does_not_compare_losses_of_two_kinds(key, tmp_path):
    assert float(resumed(key, tmp_path, [9, 9, 1, 9, 2], 4).best) == 2
    with pytest.warns(
        RuntimeWarning, match="loss 50, the run that is resumed has 1 for"
    ):
        result = resumed(key, tmp_path, [0, 0, 50, 0, 49, 0, 55, 0, 56], 8)
    assert_array_equal(result.validation["step"], [2, 4, 6, 8])
    assert_array_equal(result.validation["loss"], [50, 49, 55, 56])
    assert float(result.best) == 4


def test_a_resumed_run_on_another_machine_keeps_its_record(key, tmp_path):
    values = np.array([9, 9, 1, 9, 2, 9, 3.0])
    resumed(key, tmp_path, values, 4)
    result = resumed(key, tmp_path, 1.001 * values, 6)
    assert_array_equal(result.validation["step"], [0, 2, 4, 6])
    assert float(result.best) == 2


def test_patience_counts_validations_without_a_new_best(key):
    values = [5, 4, 3, 3.5, 3.2, 3.1] + [0] * 5
    assert int(judged(key, values, patience=3).state.step) == 5
    assert int(judged(key, values, patience=4).state.step) == 10


def test_patience_cannot_end_a_run_on_its_initial_plateau(key):
    ln10, noise = np.log(10), np.random.default_rng(0).uniform(-0.03, 0.03, 61)
    plateau = ln10 + noise
    assert int(judged(key, plateau, patience=2).state.step) == 60, (
        "a guess is waited for"
    )
    departed = np.concatenate([plateau[:40], np.linspace(2, 1, 10), np.full(11, 1.5)])
    result = judged(key, departed, patience=3)
    assert int(result.state.step) == 49 + 3
    assert float(result.best) == 49
    assert int(judged(key, plateau, patience=2, min_delta=0.001).state.step) < 60, (
        "by this alone it goes on"
    )


def test_validations_do_not_depend_on_chunks(key):
    values = np.arange(31.0)[::-1]
    for chunk in (1, 4, 100):
        trainer = runs.counter(chunk=chunk)
        validate = mx.validation(table(values), key, every=7)
        start = trainer.init(key, jnp.float32(0))
        result = mx.fit(trainer, start, num_steps=30, validate=validate, progress=None)
        assert_array_equal(result.validation["loss"], values[::7])


# Logs


def reporting(step):
    return {
        "loss": jnp.where(step == 3, jnp.nan, 0.1 * step),
        "parts": jnp.stack([step, -step]),
    }


def test_a_log_has_a_row_a_step(key, tmp_path):
    trainer = runs.counter(reporting)
    validate = mx.validation(table(np.arange(6)), key, every=2)
    folder = tmp_path / "new"
    logs = [mx.log(folder / "log.csv"), mx.log(folder / "log.jsonl")]
    start = trainer.init(key, jnp.float32(0))
    mx.fit(
        trainer, start, num_steps=5, validate=validate, callbacks=logs, progress=None
    )
    assert (folder / "log.csv").read_text().splitlines() == [
        "step,loss,parts,skipped,validation",
        '1,0.1,"[1, -1]",0,',
        '2,0.2,"[2, -2]",0,2.0',
        '3,nan,"[3, -3]",0,',
        '4,0.4,"[4, -4]",0,4.0',
        '5,0.5,"[5, -5]",0,',
    ]
    rows = [
        json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()
    ]
    row = {"step": 3, "loss": None, "parts": [3, -3], "skipped": 0, "validation": None}
    assert rows[2] == row
    row = {"step": 4, "loss": 0.4, "parts": [4, -4], "skipped": 0, "validation": 4.0}
    assert rows[3] == row
    assert sorted(p.name for p in folder.iterdir()) == ["log.csv", "log.jsonl"]


def logged(trainer, state, num_steps, path):
    return mx.fit(
        trainer, state, num_steps=num_steps, callbacks=[mx.log(path)], progress=None
    )


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
def test_a_log_is_cut_back_where_a_state_goes_on(name, key, tmp_path):
    trainer = runs.counter()
    start = trainer.init(key, jnp.float32(0))
    whole = tmp_path / name
    resumed = tmp_path / f"resumed-{name}"
    logged(trainer, start, 30, whole)
    state = logged(trainer, start, 20, resumed).state
    logged(trainer, state, 27, resumed)
    with resumed.open("a") as file:
        file.write("2")  # half a line
    logged(trainer, state, 30, resumed)
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
def test_a_log_agrees_with_the_run_whatever_was_left_in_it(name, key, tmp_path):
    trainer = runs.counter()
    start = trainer.init(key, jnp.float32(0))
    whole = tmp_path / name
    logged(trainer, start, 30, whole)
    lines = whole.read_text().splitlines(keepends=True)
    leftovers = {
        "nothing": "",
        "lost lines": "".join(lines[:8]),
        "half a line": "".join(lines[:12])[:-3],
        "lines of the future": "".join(lines) * 2,
        "something else": "\0 no log\n",
    }
    for i, text in enumerate(leftovers.values()):
        store = mx.checkpoints(tmp_path / f"{i}-{name}", every=10)
        log = tmp_path / f"{i}.{name}"
        options = {"checkpoint": store, "callbacks": [mx.log(log)], "progress": None}
        mx.fit(trainer, start, num_steps=20, **options)
        log.write_text(text)
        mx.fit(trainer, start, num_steps=30, **options)
        assert log.read_bytes() == whole.read_bytes()


def test_a_log_of_other_columns_is_refused(key, tmp_path):
    one = runs.counter()
    two = runs.counter(lambda step: {"accuracy": 0.5 * step})
    log = tmp_path / "log.csv"
    state = logged(one, one.init(key, jnp.float32(0)), 5, log).state
    message = r"log .* has other columns than step,accuracy,loss,skipped"
    with pytest.raises(ValueError, match=message):
        logged(two, state, 10, log)
    logged(two, two.init(key, jnp.float32(0)), 10, log)  # a new run begins a new file
    assert log.read_text().startswith("step,accuracy,loss,skipped\n1,")


def test_a_log_is_written_when_there_is_a_row_and_stays_where_it_was_named(
    key, tmp_path, monkeypatch
):
    (tmp_path / "log.csv").write_text("old")
    monkeypatch.chdir(tmp_path)
    log = mx.log("log.csv")
    monkeypatch.chdir("/")
    log.resume([])
    assert (tmp_path / "log.csv").read_text() == "old"
    log([{"step": 1, "loss": 0.5}])
    log(
        [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    )  # again, after an error of another
    assert (tmp_path / "log.csv").read_text() == "step,loss\n1,0.5\n2,0.25\n"


def test_callbacks_get_every_row_once(key):
    trainer, rows = runs.counter(), []
    start = trainer.init(key, jnp.float32(0))
    mx.fit(trainer, start, num_steps=25, callbacks=[rows.extend], progress=None)
    assert [row["step"] for row in rows] == list(range(1, 26))
    assert rows[3] == {"step": 4, "loss": 0.25, "skipped": 0}


class Steps:
    """A callback that notes the steps of what it is told."""

    def __init__(self):
        self.resumed = []
        self.called = []

    def resume(self, rows):
        self.resumed.append([row["step"] for row in rows])

    def __call__(self, rows):
        self.called.append([row["step"] for row in rows])


def test_callbacks_are_told_what_the_run_has_already(key, tmp_path):
    trainer, store = runs.counter(chunk=3), mx.checkpoints(tmp_path)
    start = trainer.init(key, jnp.float32(0))
    first, second = Steps(), Steps()
    mx.fit(
        trainer, start, num_steps=4, checkpoint=store, callbacks=[first], progress=None
    )
    mx.fit(
        trainer, start, num_steps=6, checkpoint=store, callbacks=[second], progress=None
    )
    assert (first.resumed, first.called) == ([[]], [[1, 2, 3], [4]])
    assert (second.resumed, second.called) == ([[1, 2, 3, 4]], [[5, 6]])


def test_tensorboard(key, tmp_path, monkeypatch):
    made, suffixes, events = [], [], []

    class SummaryWriter:
        def __init__(self, logdir, purge_step, filename_suffix, flush_secs):
            made.append((logdir, purge_step))
            suffixes.append(filename_suffix)

        def add_scalar(self, name, value, step):
            events.append((name, value, step))

        def flush(self):
            events.append("flush")

    monkeypatch.setitem(
        sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter)
    )
    trainer = runs.counter(reporting)
    start = trainer.init(key, jnp.float32(0))
    validate = mx.validation(table(np.arange(5)), key, every=4)

    def run(state, num_steps, **options):
        callbacks = [mx.tensorboard(tmp_path)]
        return mx.fit(
            trainer, state, num_steps=num_steps, callbacks=callbacks, **options
        )

    half = run(start, 2, progress=None).state
    run(half, 4, progress=None, validate=validate)
    assert made == [(str(tmp_path), 1), (str(tmp_path), 3)]
    assert len(set(suffixes)) == 2, "files of their own, though opened within a second"
    assert events[:5] == [
        ("loss", 0.1, 1),
        ("skipped", 0, 1),
        ("loss", 0.2, 2),
        ("skipped", 0, 2),
        "flush",
    ]
    assert [event for event in events if event[0] == "validation"] == [
        ("validation", 4.0, 4)
    ]
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'metajax\[tensorboard\]'"):
        mx.tensorboard(tmp_path)


# Progress


def test_plateaus():
    noise = np.random.default_rng(0).normal(size=1000)
    assert Plateau(np.full(400, 2.3)).length() == 400
    assert Plateau(2.3 + 0.1 * noise).length() >= 400, "noise is no movement"
    assert Plateau(np.linspace(2.3, 0.1, 1000)).length() <= 50
    moved = np.concatenate(
        [np.full(300, 2.3), np.linspace(2.3, 1, 200), np.full(250, 1)]
    )
    assert Plateau(moved).length() == 250
    assert Plateau(np.full(400, np.nan)).length() == 0
    assert Plateau([]).length() == 0
    parts = Plateau()
    for part in np.array_split(moved, 17):
        parts.add(part)
    assert parts.length() == Plateau(moved).length()
    assert (
        Plateau(np.full(400, 2.3))
        .note()
        .startswith("plateau, 400 steps from the start")
    )
    assert Plateau(moved).note() == "plateau, 250 steps"
    assert Plateau(np.full(150, 2.3)).note() == ""


def test_progress_speaks_of_plateaus_skips_and_the_best(key, capsys):
    def metrics(step):
        return {"loss": jnp.float32(2.3), "skipped": jnp.int32(step % 100 == 99)}

    trainer = runs.counter(metrics, chunk=50)
    validate = mx.validation(table(np.arange(301)), key, every=100)
    mx.fit(trainer, trainer.init(key, jnp.float32(0)), num_steps=300, validate=validate)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("meta-training: 300/300 steps, loss 2.3 best 0 skipped 3, ")
    assert line.endswith(
        " (plateau, 300 steps from the start: learning to learn often waits)"
    )


def test_progress_says_where_it_resumed(key, capsys, tmp_path):
    trainer, store = runs.counter(), mx.checkpoints(tmp_path, every=5)
    start = trainer.init(key, jnp.float32(0))
    mx.fit(trainer, start, num_steps=10, checkpoint=store, progress=None)
    mx.fit(trainer, start, num_steps=20, checkpoint=store)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"meta-training: resumed at meta-step 10 of 20 from {tmp_path}"
    assert lines[1].startswith("meta-training: 20/20 steps, loss ")


def test_progress_in_a_notebook_is_one_output_that_is_replaced(
    key, tmp_path, monkeypatch, capsys
):
    shown = []

    def display(data, raw, display_id):
        assert (data, raw, display_id) == ({"text/plain": ""}, True, True)
        return types.SimpleNamespace(
            update=lambda data, raw: shown.append(data["text/plain"])
        )

    shell = types.SimpleNamespace(kernel=None)
    ipython = types.SimpleNamespace(
        get_ipython=lambda: shell, display=types.SimpleNamespace(display=display)
    )
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    trainer, store = runs.counter(), mx.checkpoints(tmp_path, every=5)
    start = trainer.init(key, jnp.float32(0))
    mx.fit(trainer, start, num_steps=10, checkpoint=store)
    assert re.fullmatch(
        r"meta-training: 100%\|█+\| 10/10 \[.*step/s, loss=\S+\]", shown[-1]
    )
    assert capsys.readouterr().err == ""
    mx.fit(trainer, start, num_steps=20, checkpoint=store)
    assert "20/20" in shown[-1]
    assert not any(c in line for line in shown for c in "\r\n")
    assert (
        capsys.readouterr().err
        == f"meta-training: resumed at meta-step 10 of 20 from {tmp_path}\n"
    )
    count = len(shown)
    mx.fit(trainer, start, num_steps=10, progress=None)
    assert len(shown) == count
    del shell.kernel  # IPython in a terminal, or a script that has imported it
    mx.fit(trainer, start, num_steps=10)
    assert capsys.readouterr().err.startswith("meta-training: 10/10 steps, loss ")


# Bad input

COUNTER = runs.counter()
START = COUNTER.init(jax.random.key(0), jnp.float32(0))
LOSS = table([1.0, 1.0])


# It does not return its state.
ESTIMATOR = mx.Estimator(
    lambda key, m, data: (),
    lambda key, m, state, data: mx.Estimate(m, jnp.float32(0), {}),
)
STATELESS = mx.trainer(ESTIMATOR, optax.sgd(1.0))


def fit(**options):
    return mx.fit(COUNTER, START, num_steps=1, **options)


CASES = {
    "validate: a function": (
        lambda: fit(validate=LOSS),
        TypeError,
        "validate must be a metajax.Validation",
    ),
    "validate: a loss that is no scalar": (
        lambda: fit(
            validate=mx.validation(lambda k, m, d: jnp.ones(3), jax.random.key(0))
        ),
        ValueError,
        "the loss returned by validate.loss",
    ),
    "checkpoint: a path": (
        lambda: fit(checkpoint="runs/1"),
        TypeError,
        "checkpoint must be a metajax.Checkpoints",
    ),
    "log: another suffix": (
        lambda: mx.log("log.txt"),
        ValueError,
        "path must end in .csv or .jsonl",
    ),
    "log: no path": (
        lambda: mx.log(3),
        TypeError,
        "path must be a path, got 3",
    ),
    "progress: a bool": (
        lambda: fit(progress=False),
        TypeError,
        "progress must be a string, got False of type bool; it may also be None",
    ),
    "callbacks: one function": (
        lambda: fit(callbacks=print),
        TypeError,
        "callbacks must be a tuple or a list",
    ),
    "callbacks: no function": (
        lambda: fit(callbacks=[1]),
        TypeError,
        r"callbacks\[0\] must be a function",
    ),
    "max_skipped: none": (
        lambda: mx.trainer(ESTIMATOR, optax.sgd(1.0), max_skipped=0),
        ValueError,
        "max_skipped must be at least 1",
    ),
    "chunk: none": (
        lambda: mx.trainer(ESTIMATOR, optax.sgd(1.0), chunk=0),
        ValueError,
        "chunk must be at least 1",
    ),
    "state: NaN": (
        lambda: mx.fit(
            COUNTER, START._replace(meta_params=jnp.float32(np.nan)), num_steps=1
        ),
        ValueError,
        "state.meta_params holds 1 NaN",
    ),
    "estimator: no state": (
        lambda: mx.fit(
            STATELESS, STATELESS.init(jax.random.key(0), jnp.float32(0)), num_steps=1
        ),
        TypeError,
        r"estimator.estimate must return \(estimate, state\), got Estimate of 3",
    ),
    "validation: no function": (
        lambda: mx.validation(3, jax.random.key(0)),
        TypeError,
        "loss must be a function",
    ),
    "validation: a seed": (
        lambda: mx.validation(LOSS, 0),
        TypeError,
        "key must be a typed key",
    ),
    "validation: never": (
        lambda: mx.validation(LOSS, jax.random.key(0), every=0),
        ValueError,
        "every",
    ),
    "validation: no patience": (
        lambda: mx.validation(LOSS, jax.random.key(0), patience=0),
        ValueError,
        "patience",
    ),
    "validation: no min_delta": (
        lambda: mx.validation(LOSS, jax.random.key(0), min_delta=0),
        ValueError,
        "min_delta",
    ),
    "validation: NaN in the data": (
        lambda: mx.validation(LOSS, jax.random.key(0), {"x": jnp.array([np.nan])}),
        ValueError,
        r"data\['x'\] holds 1 NaN",
    ),
    "checkpoints: no path": (
        lambda: mx.checkpoints(3),
        TypeError,
        "directory must be a path",
    ),
    "checkpoints: a file": (
        lambda: mx.checkpoints(__file__),
        ValueError,
        "directory must be a folder",
    ),
    "checkpoints: never": (
        lambda: mx.checkpoints("never", every=0),
        ValueError,
        "every",
    ),
    "checkpoints: none kept": (
        lambda: mx.checkpoints("never", keep=0),
        ValueError,
        "keep",
    ),
    "checkpoints: a number for a tag": (
        lambda: mx.checkpoints("never", tag=2),
        TypeError,
        "tag must be a string",
    ),
    "tensorboard: no writer": (
        lambda: mx.tensorboard(print),
        TypeError,
        "writer must be a directory or have",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=f"(?s){message}"):
        call()


LSTM = mx.l2l(mx.optim.lstm(hidden=(2,)), mx.problems.quadratic())


@pytest.mark.parametrize(
    ("horizon", "meta_loss", "truncation", "is_seen"),
    [
        (1, "online", None, False),
        (2, "online", 1, False),
        (2, "online", 2, True),
        (1, "heldout", None, True),
    ],
)
def test_a_meta_gradient_of_nothing_is_told_once(
    key, horizon, meta_loss, truncation, is_seen
):
    loop = mx.inner(LSTM, mx.tasks.quadratics(2), horizon, meta_loss)
    trainer = mx.trainer(mx.bptt(loop, 2, truncation), optax.sgd(0.1), chunk=2)
    state = trainer.init(key, LSTM.meta(key))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = mx.fit(trainer, state, num_steps=4, progress=None)
    assert (result.history["update_norm"] != 0).all() == is_seen
    told = [str(warning.message) for warning in caught]
    assert len(told) == (not is_seen)
    assert all("exactly 0" in text and "meta_loss='heldout'" in text for text in told)


def test_warnings_are_about_the_callers_line(key):
    """And not about one of the package's."""

    def step(key, meta_params, state, batch):
        return state, jnp.nan * meta_params, {}

    learner = mx.Learner(lambda key, m, task: (), step, lambda *args: (0.0, {}))
    loop = mx.inner(learner, mx.tasks.quadratics(2), 1)
    trainer = mx.trainer(mx.bptt(loop, 2), optax.sgd(0.1), chunk=2)
    state = trainer.init(key, jnp.float32(1))
    with pytest.warns(RuntimeWarning, match="were skipped") as caught:
        mx.fit(trainer, state, num_steps=2, progress=None)
    assert [warning.filename for warning in caught] == [__file__]
