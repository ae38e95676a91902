"""Runs on an iterable of data, one item a chunk, and what is said while one waits."""

import hashlib
import itertools
import os
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx
from metajax.training import _display

KEY = jax.random.key(0)


def adding(chunk=2):
    """A trainer whose loss at each meta-step is the number that it is given."""

    def estimate(key, meta_params, state, data):
        return mx.Estimate(jnp.ones_like(meta_params), data["x"][0], {}), state

    estimator = mx.Estimator(lambda key, meta_params, data: (), estimate)
    return mx.trainer(estimator, optax.sgd(0.1), chunk=chunk)


def numbers():
    for i in itertools.count():
        yield {"x": np.full(3, i, np.float32)}


TRAINER = adding()
START = TRAINER.init(KEY, jnp.float32(0), next(numbers()))


def losses(data, num_steps, **options):
    result = mx.fit(TRAINER, START, data, num_steps=num_steps, progress=None, **options)
    return result.history["loss"].tolist()


def test_each_chunk_is_given_the_next_item(tmp_path):
    assert losses(numbers(), 7) == [0, 0, 1, 1, 2, 2, 3]
    # A chunk ends where something is due.
    store = mx.checkpoints(tmp_path, every=3)
    assert losses(numbers(), 6, checkpoint=store) == [0, 0, 1, 2, 3, 3]


def test_a_run_that_is_taken_up_again_goes_on_with_the_next_item(tmp_path):
    want = losses(numbers(), 9)
    assert (
        losses(numbers(), 4, checkpoint=mx.checkpoints(tmp_path, every=2)) == want[:4]
    )
    assert losses(numbers(), 9, checkpoint=mx.checkpoints(tmp_path, every=2)) == want


def test_loaders_lists_and_arrays():
    class Loader:
        def __iter__(self):
            return numbers()

    assert losses(Loader(), 3) == [0, 0, 1]
    assert losses({"x": np.ones(3, np.float32)}, 3) == [1, 1, 1]


def test_items_that_are_not_what_they_should_be(tmp_path):
    with pytest.raises(ValueError, match=r"data ended after 2 items, one a chunk"):
        losses(itertools.islice(numbers(), 2), 5)

    bad = [next(numbers()), {"x": np.full(3, np.nan, np.float32)}]
    with pytest.raises(ValueError, match=r"data\[1\]\['x'\] holds 3 NaN"):
        losses(iter(bad), 4)

    longer = [next(numbers()), {"x": np.zeros(4, np.float32)}]
    with pytest.raises(
        ValueError, match=r"data\[1\]\['x'\] must be like the item before"
    ):
        losses(iter(longer), 4)

    with pytest.raises(
        TypeError, match=r"generator, which is an iterable; only metajax.fit"
    ):
        TRAINER.init(KEY, jnp.float32(0), numbers())


def test_what_is_no_iterable_yet():
    with pytest.raises(TypeError, match=r"data must be .*give what it returns"):
        losses(numbers, 4)
    with pytest.raises(TypeError, match=r"data must be .*give what it returns"):
        losses(itertools.cycle, 4)
    tasks = mx.tasks.minibatches(2)
    with pytest.raises(TypeError, match=r"of several, one a chunk, .*fit iter\(data\)"):
        tasks.train(KEY, [{"image": np.ones((2, 3)), "label": np.zeros(2, int)}], ())


# Waiting.


def test_what_takes_long_is_said_and_how_long(monkeypatch, capsys):
    monkeypatch.setattr(_display, "_PATIENCE", 0.05)
    monkeypatch.setattr(_display, "_SECONDS_BETWEEN_SIGNS", 0.1)
    trainer = adding()
    mx.fit(
        trainer, trainer.init(KEY, jnp.float32(0), next(numbers())), slow(), num_steps=4
    )
    lines = capsys.readouterr().err.splitlines()
    what = "meta-training: compiling and running the first meta-steps"
    assert lines[0] == f"{what} ..."
    assert lines[1] == f"{what} ... for 0 s"
    assert [line for line in lines if " took " in line] == [f"{what} took 1 s"]


def slow():
    for item in numbers():
        time.sleep(0.6)
        yield item


def test_a_comparison_says_how_far_it_is(capsys):
    search = mx.RateSearch([1e-5, 0.01, 10.0])
    mx.compare(
        {"SGD": optax.sgd, "fixed": optax.sgd(0.01)},
        mx.problems.quadratic(),
        mx.tasks.quadratics(2),
        KEY,
        steps=2,
        num_tasks=2,
        search=search,
    )
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("comparison: 5/5 runs, optimizer fixed, ")
    assert " runs/s" in last


def test_a_signal_is_answered_while_nothing_else_can_be(tmp_path, monkeypatch):
    """As while the compiler is at work: a call that Python does not interrupt."""
    answers = []

    class Output:
        def write(self, text):
            answers.append((time.monotonic(), text))

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stderr", Output())
    ends = []

    def busy():
        yield next(numbers())
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        begin = time.monotonic()
        while time.monotonic() < begin + 0.2 or not ends:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)
            ends.append(time.monotonic())
        yield next(numbers())

    store = mx.checkpoints(tmp_path)
    before = signal.set_wakeup_fd(-1)
    with pytest.raises(SystemExit):
        mx.fit(TRAINER, START, busy(), num_steps=100, checkpoint=store, progress=None)
    moment, text = answers[0]
    assert text.startswith("meta-training: SIGTERM received, stopping after")
    assert moment < ends[0]
    assert signal.set_wakeup_fd(before) == -1
