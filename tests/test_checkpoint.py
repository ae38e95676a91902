"""What ends a run, and how it goes on: the same bits as if nothing had happened."""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import runs

import metajax as mx

TREE = {
    "key": jax.random.key(3),
    "keys": jax.random.split(jax.random.key(4, impl="rbg"), 2),
    "float": jnp.float32(0.1),
    "half": jnp.arange(3, dtype=jnp.bfloat16),
    "mask": jnp.array([True, False]),
    "count": jnp.int32(7),
    "none": jnp.zeros((0, 3)),
    "deep": [jnp.arange(6, dtype=jnp.uint8).reshape(2, 3), ()],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing has stopped, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return runs.run(folder), folder


@pytest.fixture
def store(tmp_path):
    """Two checkpoints of `TREE`, at steps 1 and 2."""
    store = mx.checkpoints(tmp_path / "store", every=1)
    for step in (1, 2):
        store.save(
            mx.Snapshot(step, TREE | {"float": jnp.float32(step)}, {"loss": np.arange(float(step))})
        )
        store.wait()
    store.close()
    yield store
    store.close()


def test_what_is_saved_comes_back_bit_for_bit(store):
    step, tree, arrays = store.restore(TREE)
    assert step == 2
    runs.same(tree, TREE | {"float": jnp.float32(2)})
    assert jax.tree.structure(tree) == jax.tree.structure(TREE)
    assert [x.dtype for x in jax.tree.leaves(tree)] == [x.dtype for x in jax.tree.leaves(TREE)]
    np.testing.assert_array_equal(arrays["loss"], [0.0, 1.0])
    assert mx.checkpoints(Path(store.where) / "nothing").restore(TREE) is None


def test_a_saved_tree_may_be_donated_at_once(tmp_path):
    store = mx.checkpoints(tmp_path)
    f = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(100_000)
    store.save(mx.Snapshot(1, x, {}))
    for _ in range(20):
        x = f(x)
    store.wait()
    np.testing.assert_array_equal(store.restore(x).tree, np.zeros(100_000))
    store.close()


def test_a_committed_array_comes_back_to_its_place(tmp_path):
    store = mx.checkpoints(tmp_path)
    x = jax.device_put(jnp.arange(4.0), jax.devices()[0])
    store.save(mx.Snapshot(1, x, {}))
    store.wait()
    again = store.restore(x).tree
    assert again.committed
    assert again.sharding == x.sharding
    assert not store.restore(jnp.arange(4.0)).tree.committed
    store.close()


def test_the_last_are_kept(tmp_path):
    store = mx.checkpoints(tmp_path, keep=2)
    for step in range(5):
        store.save(mx.Snapshot(step, jnp.float32(step), {}))
    store.wait()
    store.close()
    assert _names(tmp_path) == ["3", "4"]


@pytest.mark.slow
def test_damage_anywhere_is_harmless_or_noticed(store, tmp_path):
    # Every file of the newest checkpoint, cut in half and with one bit flipped: what loads is
    # right, or the previous.
    noticed = 0
    original = tmp_path / "original"
    shutil.copytree(store.where, original)
    files = [
        p.relative_to(original)
        for p in sorted((original / "2").rglob("*"))
        if p.is_file() and p.stat().st_size
    ]
    for file in files:
        for damage in (_cut, _flip):
            shutil.rmtree(store.where)
            shutil.copytree(original, store.where)
            damage(Path(store.where) / file)
            with _warnings() as caught:
                step, tree, _ = store.restore(TREE)
            store.close()
            runs.same(tree, TREE | {"float": jnp.float32(step)})
            if step == 1:
                noticed += 1
                assert "step 2" in str(caught[0].message)
                assert "goes on from step 1" in str(caught[0].message)
                assert (Path(store.where) / "damaged-2").is_dir()
            else:
                assert not caught
    assert noticed >= 6, f"of {len(files)} files, each damaged twice"


@pytest.mark.parametrize(
    ("item", "message"), [("data", "its data do not match"), ("meta", "its description does not")]
)
def test_a_digest_sees_what_the_file_format_does_not(item, message, store, monkeypatch):
    restore = ocp.CheckpointManager.restore

    def changed(self, step, args):
        found = restore(self, step, args=args)
        if step == 2 and item in found and item == "data":
            found.data["bytes"] = found.data["bytes"].copy()
            found.data["bytes"][-1] ^= 1
        if step == 2 and item in found and item == "meta":
            found.meta["body"]["tag"] = "another"
        return found

    monkeypatch.setattr(ocp.CheckpointManager, "restore", changed)
    with pytest.warns(RuntimeWarning, match=message):
        assert store.restore(TREE).step == 1


def test_half_a_checkpoint_is_swept_away(store):
    left = Path(store.where) / "3.orbax-checkpoint-tmp" / "arrays"
    left.mkdir(parents=True)
    assert store.restore(TREE).step == 2
    assert not left.parent.exists()


def test_no_whole_checkpoint_is_an_error_and_nothing_is_lost(store):
    for step in (1, 2):
        _cut(Path(store.where) / str(step) / "meta" / "metadata")
    with pytest.raises(
        ValueError,
        match=r"(?s)no checkpoint in .* is whole; move the folder away.*step 2: .*step 1: ",
    ):
        store.restore(TREE)
    assert _names(Path(store.where)) == ["1", "2"]


REFUSED = {
    "a shape": (
        TREE | {"half": jnp.zeros(4, jnp.bfloat16)},
        "",
        r"half: got bfloat16\[3\], want bfloat16\[4\]",
    ),
    "a dtype": (TREE | {"half": jnp.zeros(3)}, "", r"half: got bfloat16\[3\], want float32\[3\]"),
    "a key": (
        TREE | {"key": jnp.zeros(2, jnp.uint32)},
        "",
        r"key: got key<fry>\[\], want uint32\[2\]",
    ),
    "a leaf more": (TREE | {"new": jnp.zeros(3)}, "", r"new: got nothing, want float32\[3\]"),
    "a leaf less": (
        {k: v for k, v in TREE.items() if k != "mask"},
        "",
        r"mask: got bool\[2\], want nothing",
    ),
    "a tag": (TREE, "v2", "has the tag '', want 'v2'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_checkpoint_of_something_else_is_refused(case, store):
    like, tag, message = REFUSED[case]
    other = mx.checkpoints(store.where, tag=tag)
    with pytest.raises(ValueError, match=f"(?s)step 2 in .*{message}"):
        other.restore(like)
    other.close()
    assert store.restore(TREE).step == 2, "and left as it was"


def test_loading_unpickles_nothing(store):
    unpickled = []
    watching = True
    sys.addaudithook(
        lambda event, args: (
            unpickled.append(args) if watching and event.startswith("pickle") else None
        )
    )
    assert store.restore(TREE).step == 2
    watching = False
    assert not unpickled


# Runs


@pytest.mark.slow
def test_going_on_after_an_error_and_with_another_total(whole, tmp_path):
    result, folder = whole

    def fail(rows):
        if rows[-1]["step"] >= 23:
            raise OSError("the callback lost its server")

    with pytest.raises(OSError, match="server"):
        runs.run(tmp_path, callbacks=[fail])
    log = tmp_path / "log.jsonl"
    assert len(log.read_text().splitlines()) == 25, "the chunk before the error is there, and saved"
    with log.open("a") as f:  # rows beyond the checkpoint, the last of them cut short
        f.write('{"step": 26, "loss": 99.0}\n{"step": 27, "lo')
    rows = []
    runs.same(runs.run(tmp_path, num_steps=40, callbacks=[rows.extend]).state.step, jnp.int32(40))
    assert [row["step"] for row in rows] == list(range(22, 41)), (
        "those that the failed callback did not take, too"
    )
    log.unlink()  # a log that is lost is written anew
    runs.same(runs.run(tmp_path), result)
    assert log.read_bytes() == (folder / "log.jsonl").read_bytes()


def test_a_finished_run_is_only_read(whole):
    result, folder = whole
    runs.same(runs.run(folder), result)
    with pytest.raises(
        ValueError, match="the checkpoint is already at meta-step 60; give a larger num_steps"
    ):
        runs.run(folder, num_steps=50)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_a_signal_saves_and_ends(number, whole, tmp_path, capsys):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def send(rows):
        if rows[-1]["step"] == 15:
            signal.raise_signal(number)

    with pytest.raises(SystemExit if number == signal.SIGTERM else KeyboardInterrupt) as end:
        runs.run(tmp_path, callbacks=[send])
    message = capsys.readouterr().err if number == signal.SIGTERM else str(end.value)
    assert (
        f"stopped by {number.name} at meta-step 15 of 60; saved at meta-step 15 in {tmp_path}"
        in message
    )
    assert "run the same script again to go on" in message
    if number == signal.SIGTERM:
        assert end.value.code == 143
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    runs.same(runs.run(tmp_path), whole[0])


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_is_immediate_and_harmless(whole, tmp_path):
    def send(rows):
        if rows[-1]["step"] == 15:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as end:
        runs.run(tmp_path, callbacks=[send])
    assert str(end.value) == ""
    runs.same(runs.run(tmp_path), whole[0])


def test_fit_works_outside_the_main_thread(whole, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(runs.run(tmp_path)))
    thread.start()
    thread.join()
    runs.same(results[0], whole[0])


def test_another_seed_is_refused(tmp_path, key):
    trainer = runs.counter()
    store = mx.checkpoints(tmp_path, every=5)
    mx.fit(
        trainer, trainer.init(key, jnp.float32(0)), num_steps=5, checkpoint=store, progress=False
    )
    other = trainer.init(jax.random.key(1), jnp.float32(0))
    with pytest.raises(ValueError, match="began with another key"):
        mx.fit(trainer, other, num_steps=10, checkpoint=store, progress=False)


def test_another_optimizer_is_refused(whole):
    _, folder = whole
    inner, _, _ = runs.make()
    trainer = mx.trainer(mx.bptt(inner, 2, 2, stagger=True), optax.sgd(1e-3))
    state = trainer.init(jax.random.key(0), jnp.float32(1e-3))
    store = mx.checkpoints(folder / "checkpoints", tag="test")
    with pytest.raises(
        ValueError,
        match=r"(?s)of another run.*state/opt_state/1/0/count: got int32\[\], want nothing",
    ):
        mx.fit(trainer, state, num_steps=100, checkpoint=store, progress=False)


def test_a_resumed_run_reports_the_same_metrics_or_is_refused(tmp_path, key):
    store = mx.checkpoints(tmp_path, every=5)
    one, two = runs.counter(), runs.counter(lambda step: {"accuracy": 0.5 * step})
    mx.fit(one, one.init(key, jnp.float32(0)), num_steps=5, checkpoint=store, progress=False)
    with pytest.raises(
        ValueError, match=r"metrics \['accuracy', 'loss', 'skipped'\].* has \['loss', 'skipped'\]"
    ):
        mx.fit(two, two.init(key, jnp.float32(0)), num_steps=10, checkpoint=store, progress=False)
    assert _names(tmp_path) == ["5"], "nothing of the other is saved"


def test_a_state_beyond_the_last_checkpoint_is_saved_again(tmp_path, key):
    trainer, store = runs.counter(), mx.checkpoints(tmp_path, every=5)
    state = mx.fit(trainer, trainer.init(key, jnp.float32(0)), num_steps=10, progress=False).state
    mx.fit(
        trainer, trainer.init(key, jnp.float32(0)), num_steps=5, checkpoint=store, progress=False
    )
    mx.fit(trainer, state, num_steps=10, checkpoint=store, progress=False)
    assert sorted(_names(tmp_path), key=int) == ["5", "10"]


def test_what_is_not_finite_is_never_saved(tmp_path, key):
    healthy = runs.counter()

    def step(state, data):
        new, metrics = healthy.step(state, data)
        return new._replace(meta_params=jnp.where(new.step > 7, jnp.nan, new.meta_params)), metrics

    trainer = mx.Trainer(healthy.init, step)  # a trainer of one's own, which does not skip
    store = mx.checkpoints(tmp_path, every=5)
    with _warnings() as caught:
        mx.fit(
            trainer,
            trainer.init(key, jnp.float32(0)),
            num_steps=15,
            checkpoint=store,
            progress=False,
        )
    assert [str(w.message).split(" was ")[0] for w in caught] == [
        "the checkpoint of meta-step 10",
        "the checkpoint of meta-step 15",
    ]
    assert "not finite. The run goes on; the last is of meta-step 5" in str(caught[0].message)
    assert _names(tmp_path) == ["5"]


def test_a_run_that_stays_non_finite_saves_its_last_good_state(tmp_path, key):
    def skipping(step):
        return {"loss": jnp.where(step > 12, jnp.nan, 1.0), "skipped": jnp.maximum(step - 12, 0)}

    trainer = runs.counter(skipping)
    state = trainer.init(key, jnp.float32(0))
    store = mx.checkpoints(tmp_path, every=100)
    with pytest.raises(
        FloatingPointError,
        match=r"5 steps in a row, up to meta-step 17;.*saved at meta-step 17.*nan",
    ):
        mx.fit(trainer, state, num_steps=100, checkpoint=store, max_skipped=5, progress=False)
    _, tree, arrays = store.restore({"state": state, "best": state.meta_params})
    store.close()
    assert float(tree["state"].meta_params) == 12.0
    assert int(tree["state"].skipped) == 0
    assert arrays["history/skipped"].tolist() == [0] * 12 + [1, 2, 3, 4, 5]


# A full disk


def test_a_failed_save_costs_a_checkpoint_and_not_the_run(whole, tmp_path, monkeypatch):
    save = ocp.CheckpointManager.save

    def full(self, step, **kwargs):
        if 20 < step < 40:
            raise OSError(28, "No space left on device")
        return save(self, step, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with _warnings() as caught:
        result = runs.run(tmp_path)
    steps = [21, 28, 35]
    assert [str(w.message).split(" was ")[0] for w in caught] == [
        f"the checkpoint of meta-step {s}" for s in steps
    ]
    assert all(
        "No space left on device. The run goes on; the last is of meta-step 14" in str(w.message)
        for w in caught
    )
    runs.same(result, whole[0])
    runs.same(runs.run(tmp_path), whole[0])


def test_a_log_that_cannot_be_written_is_made_up_later(tmp_path, key):
    trainer = runs.counter()
    folder = tmp_path / "logs"

    def heal(rows):
        if rows[-1]["step"] == 20:
            folder.unlink()

    folder.write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match="could not be written.*the run goes on"):
        mx.fit(
            trainer,
            trainer.init(key, jnp.float32(0)),
            num_steps=30,
            log=folder / "log.csv",
            callbacks=[heal],
            progress=False,
        )
    assert [line.split(",")[0] for line in (folder / "log.csv").read_text().splitlines()] == [
        "step",
        *map(str, range(1, 31)),
    ]


def test_a_disk_that_is_really_full(tmp_path, key):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if (
        not hasattr(os, "geteuid")
        or os.geteuid()
        or subprocess.run(mount, capture_output=True).returncode
    ):
        pytest.skip(
            "needs root, to mount a small disk; without it a simulated full disk is tested above"
        )
    try:
        trainer = runs.counter()
        noise = jnp.asarray(
            np.random.default_rng(0).normal(size=(50, 1000)), jnp.float32
        )  # 0.2 MB that do not shrink
        state = trainer.init(key, jnp.float32(0))._replace(estimator=noise)
        store = mx.checkpoints(disk / "checkpoints", every=10, keep=1)
        ballast = disk / "ballast"

        def fill(rows):
            if rows[-1]["step"] == 30:
                while _names(disk / "checkpoints") != ["20"]:
                    time.sleep(0.001)  # what is still being written, and what is removed for it
                with ballast.open("wb", buffering=0) as f, contextlib.suppress(OSError):
                    while True:
                        f.write(bytes(10_000))
                os.truncate(ballast, ballast.stat().st_size - 100_000)  # room for half a checkpoint
            if rows[-1]["step"] == 50:
                ballast.unlink()

        with _warnings() as caught:
            result = mx.fit(
                trainer,
                state,
                num_steps=60,
                checkpoint=store,
                callbacks=[fill],
                chunk=10,
                progress=False,
            )
        assert int(result.state.step) == 60
        assert caught
        assert all("No space left on device. The run goes on" in str(w.message) for w in caught)
        assert store.restore({"state": state, "best": state.meta_params}).step == 60, (
            "and once there is room it saves"
        )
        store.close()
        assert _names(disk / "checkpoints") == ["60"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# Two runs in one folder

HOLD = """
import sys, time, jax.numpy as jnp, metajax as mx
store = mx.checkpoints(sys.argv[1])
store.save(mx.Snapshot(3, jnp.float32(3), {}))
store.wait()
print("held", flush=True)
time.sleep(600)
"""


def test_a_folder_is_for_one_run_at_a_time(tmp_path, key):
    trainer = runs.counter()
    state = trainer.init(key, jnp.float32(0))
    store = mx.checkpoints(tmp_path, every=5)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        (tmp_path / "4.orbax-checkpoint-tmp").mkdir()  # what the other is writing
        message = rf"{tmp_path} are in use by another run, process {other.pid} on .* since 20.*directory of its own"
        with pytest.raises(RuntimeError, match=message):
            mx.fit(trainer, state, num_steps=10, checkpoint=store, progress=False)
        with pytest.raises(RuntimeError, match=message):
            store.save(mx.Snapshot(9, jnp.float32(9), {}))
        assert _names(tmp_path) == ["3", "4.orbax-checkpoint-tmp"], (
            "nothing of the other is touched"
        )
    finally:
        other.kill()
        other.communicate()
    assert store.restore(jnp.float32(0)).step == 3
    with pytest.raises(BlockingIOError):  # this process has it now, as another can see
        _try_to_lock(tmp_path)
    second = mx.checkpoints(tmp_path, every=5)  # nor for two of this process
    with pytest.raises(RuntimeError, match="in use by another run"):
        second.restore(jnp.float32(0))
    second.close()
    with pytest.raises(BlockingIOError):
        _try_to_lock(tmp_path)
    store.close()
    _try_to_lock(tmp_path)


def _try_to_lock(folder):
    code = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    done = subprocess.run(
        [sys.executable, "-c", code, folder / ".lock"], capture_output=True, text=True
    )
    if done.returncode:
        raise BlockingIOError(done.stderr)


# Killed from outside


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Starts a run in a process of its own and goes on once its first rows are there."""
    context = multiprocessing.get_context("spawn")
    cache = str(tmp_path_factory.mktemp("cache"))

    @contextlib.contextmanager
    def launch(folder):
        folder.mkdir(exist_ok=True)
        child = context.Process(target=runs.process, args=(folder, cache))
        child.start()
        try:
            _wait_for(folder / "started", child)
            yield child
        finally:
            child.kill()
            child.join()

    return launch


def _wait_for(path, child):
    while not path.exists():
        assert child.is_alive()
        time.sleep(0.001)


@pytest.mark.slow
def test_killed_at_any_moment(launch, whole, tmp_path):
    result, folder = whole
    log = (folder / "log.jsonl").read_bytes()
    for name in ("compiling", "whole"):  # the first fills the compilation cache
        with launch(tmp_path / name) as child:
            begin = time.monotonic()
            _wait_for(tmp_path / name / "ended", child)
            duration = time.monotonic() - begin
    assert (tmp_path / "whole" / "log.jsonl").read_bytes() == log
    moments = random.Random(0)
    killed, half = 0, 0
    for i in range(40):
        folder = tmp_path / str(i)
        with launch(folder) as child:
            time.sleep(moments.uniform(0, duration))
        if (folder / "ended").exists():
            continue  # this one was faster than the one that was timed
        killed += 1
        half += any("tmp" in p.name for p in folder.glob("checkpoints/*"))
        runs.same(runs.run(folder), result)
        assert (folder / "log.jsonl").read_bytes() == log
        if killed == 20:
            break
    print(
        f"{killed} of {i + 1} killed within {duration:.2f} s, {half} of them while a checkpoint was written"
    )
    assert killed == 20
    assert half >= 1


@pytest.mark.slow
def test_terminated_from_outside(launch, whole, tmp_path):
    with launch(tmp_path) as child:
        child.terminate()
        child.join(120)
        assert child.exitcode == 143
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) < 60
    runs.same(runs.run(tmp_path), whole[0])


def _names(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != ".lock")


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _warnings():
    import warnings

    stack = contextlib.ExitStack()
    caught = stack.enter_context(warnings.catch_warnings(record=True))
    warnings.simplefilter("always")

    @contextlib.contextmanager
    def collect():
        with stack:
            yield caught

    return collect()
