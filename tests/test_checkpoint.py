"""What ends a run, and how it goes on: the same bits as if nothing had happened."""

import contextlib
import errno
import json
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
import pytest
import runs
from filelock import FileLock, Timeout

import metajax as mx
from metajax.training import _snapshot
from metajax.training._trainer import chunked

TREE = {
    "key": jax.random.key(3),
    "keys": jax.random.split(jax.random.key(4, impl="rbg"), 2),
    "float": jnp.float32(0.1),
    "half": jnp.arange(3, dtype=jnp.bfloat16),
    "mask": jnp.array([True, False]),
    "count": jnp.int32(7),
    "none": jnp.zeros((0, 3)),
    "deep": [jnp.arange(6, dtype=jnp.uint8).reshape(2, 3), ()],
    "small": jnp.array([-8, 7], jnp.int4),
    "wide": np.array([0.1]),
    "a\\b [0]\n\0": jnp.float32(3),
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
            mx.Snapshot(
                step,
                TREE | {"float": jnp.float32(step)},
                {"loss": np.arange(float(step))},
            )
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
    assert [x.dtype for x in jax.tree.leaves(tree)] == [
        x.dtype for x in jax.tree.leaves(TREE)
    ]
    np.testing.assert_array_equal(arrays["loss"], [0.0, 1.0])
    assert mx.checkpoints(Path(store.where) / "nothing").restore(TREE) is None


def test_arrays_come_back_with_their_dtypes_and_shapes(tmp_path):
    arrays = {
        "half": np.arange(3, dtype=jnp.bfloat16),
        "wide": np.array(0.1),
        "transposed": np.arange(6).reshape(2, 3).T,
        "none": np.zeros((0, 2)),
        "a\\b/[0]": np.array([True]),
    }
    store = mx.checkpoints(tmp_path)
    store.save(mx.Snapshot(1, (), arrays))
    store.wait()
    again = store.restore(()).arrays
    store.close()
    runs.same(again, arrays)
    again["wide"] += 1  # it is the reader's own


NOT_RESTORABLE = {
    "objects": np.array([{}], object),
    "strings": np.array(["a"]),
    "dates": np.array(["2020"], "M8[Y]"),
    "records": np.zeros(2, [("a", float)]),
    "the other byte order": np.zeros(2, np.dtype(float).newbyteorder()),
}


@pytest.mark.parametrize("case", NOT_RESTORABLE)
def test_what_would_not_come_back_is_not_saved(case, tmp_path):
    store = mx.checkpoints(tmp_path)
    with pytest.raises(
        TypeError, match=r"x has the dtype .* which would not come back"
    ):
        store.save(mx.Snapshot(1, (), {"x": NOT_RESTORABLE[case]}))
    with pytest.raises(ValueError, match="step must be finite and at least 0"):
        store.save(mx.Snapshot(-1, (), {}))
    with pytest.raises(ValueError, match="two leaves of one path"):
        store.save(mx.Snapshot(1, {"a": {"b": 1.0}, "a/b": 2.0}, {}))
    store.close()
    assert _names(tmp_path) == []


@pytest.mark.parametrize("name", ["lr[0.1]", "a*?", "back\\slash", "ä b", "new/er"])
def test_a_folder_may_have_any_name(name, tmp_path):
    folder = tmp_path / name
    store = mx.checkpoints(folder, keep=1)
    for step in (1, 2):
        store.save(mx.Snapshot(step, jnp.float32(step), {}))
        store.wait()
    store.close()
    (folder / "3.npz.part").write_bytes(b"half")
    assert store.restore(jnp.float32(0)).step == 2
    store.close()
    assert _names(folder) == ["2.npz"]


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
    assert _names(tmp_path) == ["3.npz", "4.npz"]


@pytest.mark.slow
def test_damage_anywhere_is_harmless_or_noticed(store, tmp_path):
    # The newest checkpoint, cut off and with one bit flipped here and there: what loads is right,
    # or the one before.
    newest = Path(store.where) / "2.npz"
    original = newest.read_bytes()
    places = range(0, len(original), 7)
    damaged = [original[:i] for i in places] + [_flipped(original, i) for i in places]
    noticed = 0
    for data in damaged:
        newest.write_bytes(data)
        with _warnings() as caught:
            step, tree, _ = store.restore(TREE)
        store.close()
        runs.same(tree, TREE | {"float": jnp.float32(step)})
        aside = Path(store.where) / "damaged-2.npz"
        if step == 1:
            noticed += 1
            assert "step 2" in str(caught[0].message)
            assert "goes on from step 1" in str(caught[0].message)
            assert aside.read_bytes() == data
            aside.unlink()
        else:
            assert not caught
    # What zip files do not need to be read is most of the rest.
    assert noticed > 0.75 * len(damaged)


def _forged(file, change):
    """Changes the members of a file and writes it again, with a digest that fits."""
    with np.load(file) as opened:
        members = {name: opened[name] for name in opened.files if name != "sha256"}
    change(members)
    with file.open("wb") as opened:
        _snapshot.write(opened, members)


def _describe_otherwise(members, **fields):
    description = json.loads(members["description"].tobytes()) | fields
    description = {
        name: value for name, value in description.items() if value is not None
    }
    members["description"] = np.frombuffer(json.dumps(description).encode(), np.uint8)


FORGED = {
    "no description": lambda members: members.pop("description"),
    "no JSON": lambda members: members.update(description=np.zeros(3, np.uint8)),
    "a list": lambda members: members.update(
        description=np.frombuffer(b"[]", np.uint8)
    ),
    "no tag": lambda members: _describe_otherwise(members, tag=None),
    "no format": lambda members: _describe_otherwise(members, format=None),
    "a field more": lambda members: _describe_otherwise(members, code="print()"),
    "no tree": lambda members: _describe_otherwise(members, tree=3),
    "no dtypes": lambda members: _describe_otherwise(members, dtypes={}),
    "no array": lambda members: members.pop("tree/half"),
    "another shape": lambda members: members.update(
        {"tree/half": np.zeros(4, np.int16)}
    ),
    "objects": lambda members: _describe_otherwise(
        members, dtypes={"tree/half": "object"}
    ),
    "another step": lambda members: _describe_otherwise(members, step=7),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_file_is_a_damaged_file(case, store):
    _forged(Path(store.where) / "2.npz", FORGED[case])
    with pytest.warns(
        RuntimeWarning, match=r"step 2 in .* is damaged .*goes on from step 1"
    ):
        assert store.restore(TREE).step == 1
    assert _names(Path(store.where)) == ["1.npz", "damaged-2.npz"]


def test_a_digest_sees_what_the_file_format_does_not(store):
    file = Path(store.where) / "2.npz"
    with np.load(file) as opened:
        members = {name: opened[name] for name in opened.files}
    members["tree/count"] = members["tree/count"] + 1
    np.savez(file, **members)
    with pytest.warns(RuntimeWarning, match="its contents do not match their digest"):
        assert store.restore(TREE).step == 1


def test_a_file_under_the_name_of_another_step_is_damaged(store):
    folder = Path(store.where)
    shutil.copy(folder / "2.npz", folder / "30.npz")
    with pytest.warns(RuntimeWarning, match="it is the checkpoint of step 2"):
        assert store.restore(TREE).step == 2


def test_half_a_checkpoint_is_swept_away(store):
    folder = Path(store.where)
    (folder / "3.npz.part").write_bytes(b"half")
    (folder / "mine.part").write_bytes(b"not of a store")
    assert store.restore(TREE).step == 2
    assert _names(folder) == ["1.npz", "2.npz", "mine.part"]


def test_no_whole_checkpoint_is_an_error_and_nothing_is_lost(store):
    folder = Path(store.where)
    for step in (1, 2):
        file = folder / f"{step}.npz"
        file.write_bytes(file.read_bytes()[:100])
    message = (
        r"(?s)no checkpoint in .* is whole; move the folder away.*step 2: .*step 1: "
    )
    with pytest.raises(ValueError, match=message):
        store.restore(TREE)
    assert _names(folder) == ["1.npz", "2.npz"]


REFUSED = {
    "a shape": (
        TREE | {"half": jnp.zeros(4, jnp.bfloat16)},
        "",
        r"half: got bfloat16\[3\], want bfloat16\[4\]",
    ),
    "a dtype": (
        TREE | {"half": jnp.zeros(3)},
        "",
        r"half: got bfloat16\[3\], want float32\[3\]",
    ),
    "a key": (
        TREE | {"key": jnp.zeros(2, jnp.uint32)},
        "",
        r"key: got key<fry>\[\], want uint32\[2\]",
    ),
    "a leaf more": (
        TREE | {"new": jnp.zeros(3)},
        "",
        r"new: got nothing, want float32\[3\]",
    ),
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


def test_a_checkpoint_of_another_version_is_refused_and_left(store):
    _forged(
        Path(store.where) / "2.npz",
        lambda members: _describe_otherwise(members, format=3),
    )
    message = "step 2 in .* has the format 3, this version of metajax reads 2"
    with pytest.raises(ValueError, match=message):
        store.restore(TREE)
    assert _names(Path(store.where)) == ["1.npz", "2.npz"]


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
    assert len(log.read_text().splitlines()) == 25, (
        "the chunk before the error is there, and saved"
    )
    with log.open("a") as f:  # rows beyond the checkpoint, the last of them cut short
        f.write('{"step": 26, "loss": 99.0}\n{"step": 27, "lo')
    rows = []
    runs.same(
        runs.run(tmp_path, num_steps=40, callbacks=[rows.extend]).state.step,
        jnp.int32(40),
    )
    assert [row["step"] for row in rows] == list(range(22, 41)), (
        "those that the failed callback did not take, too"
    )
    log.unlink()  # a log that is lost is written anew
    runs.same(runs.run(tmp_path), result)
    assert log.read_bytes() == (folder / "log.jsonl").read_bytes()


@pytest.mark.slow
def test_a_finished_run_is_only_read(whole):
    result, folder = whole
    runs.same(runs.run(folder), result)
    with pytest.raises(
        ValueError,
        match="the checkpoint is already at meta-step 60; give a larger num_steps",
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

    with pytest.raises(
        SystemExit if number == signal.SIGTERM else KeyboardInterrupt
    ) as end:
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
@pytest.mark.slow
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
        trainer,
        trainer.init(key, jnp.float32(0)),
        num_steps=5,
        checkpoint=store,
        progress=None,
    )
    other = trainer.init(jax.random.key(1), jnp.float32(0))
    with pytest.raises(ValueError, match="began with another key"):
        mx.fit(trainer, other, num_steps=10, checkpoint=store, progress=None)


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
        mx.fit(trainer, state, num_steps=100, checkpoint=store, progress=None)


def test_a_resumed_run_reports_the_same_metrics_or_is_refused(tmp_path, key):
    store = mx.checkpoints(tmp_path, every=5)
    one, two = runs.counter(), runs.counter(lambda step: {"accuracy": 0.5 * step})
    mx.fit(
        one, one.init(key, jnp.float32(0)), num_steps=5, checkpoint=store, progress=None
    )
    with pytest.raises(
        ValueError,
        match=r"metrics \['accuracy', 'loss', 'skipped'\].* has \['loss', 'skipped'\]",
    ):
        mx.fit(
            two,
            two.init(key, jnp.float32(0)),
            num_steps=10,
            checkpoint=store,
            progress=None,
        )
    assert _names(tmp_path) == ["5.npz"], "nothing of the other is saved"


def test_a_state_beyond_the_last_checkpoint_is_saved_again(tmp_path, key):
    trainer, store = runs.counter(), mx.checkpoints(tmp_path, every=5)
    state = mx.fit(
        trainer, trainer.init(key, jnp.float32(0)), num_steps=10, progress=None
    ).state
    mx.fit(
        trainer,
        trainer.init(key, jnp.float32(0)),
        num_steps=5,
        checkpoint=store,
        progress=None,
    )
    mx.fit(trainer, state, num_steps=10, checkpoint=store, progress=None)
    assert _names(tmp_path) == ["10.npz", "5.npz"]


def test_what_is_not_finite_is_never_saved(tmp_path, key):
    healthy = runs.counter()

    def step(state, data):
        new, metrics = healthy.step(state, data)
        return new._replace(
            meta_params=jnp.where(new.step > 7, jnp.nan, new.meta_params)
        ), metrics

    # A trainer of one's own, which does not skip.
    trainer = mx.Trainer(healthy.init, step, chunked(step, 10, 10), 10, 10)
    store = mx.checkpoints(tmp_path, every=5)
    with _warnings() as caught:
        mx.fit(
            trainer,
            trainer.init(key, jnp.float32(0)),
            num_steps=15,
            checkpoint=store,
            progress=None,
        )
    assert [str(w.message).split(" was ")[0] for w in caught] == [
        "the checkpoint of meta-step 10",
        "the checkpoint of meta-step 15",
    ]
    assert "not finite. The run goes on; the last is of meta-step 5" in str(
        caught[0].message
    )
    assert _names(tmp_path) == ["5.npz"]


def test_a_run_that_stays_non_finite_saves_its_last_good_state(tmp_path, key):
    def skipping(step):
        return {
            "loss": jnp.where(step > 12, jnp.nan, 1.0),
            "skipped": jnp.maximum(step - 12, 0),
        }

    trainer = runs.counter(skipping, max_skipped=5)
    state = trainer.init(key, jnp.float32(0))
    store = mx.checkpoints(tmp_path, every=100)
    message = r"5 steps in a row, up to meta-step 17;.*saved at meta-step 17.*nan"
    with pytest.raises(FloatingPointError, match=message):
        mx.fit(trainer, state, num_steps=100, checkpoint=store, progress=None)
    _, tree, arrays = store.restore({"state": state, "best": state.meta_params})
    store.close()
    assert float(tree["state"].meta_params) == 12.0
    assert int(tree["state"].skipped) == 0
    assert arrays["history/skipped"].tolist() == [0] * 12 + [1, 2, 3, 4, 5]


# A full disk


def test_a_failed_save_costs_a_checkpoint_and_not_the_run(whole, tmp_path, monkeypatch):
    write = _snapshot.write

    def full(file, members):
        if 20 < int(Path(file.name).name.split(".")[0]) < 40:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        write(file, members)

    monkeypatch.setattr(_snapshot, "write", full)
    with _warnings() as caught:
        result = runs.run(tmp_path)
    steps = [21, 28, 35]
    assert [str(w.message).split(" was ")[0] for w in caught] == [
        f"the checkpoint of meta-step {s}" for s in steps
    ]
    assert all(
        "No space left on device. The run goes on; the last is of meta-step 14"
        in str(w.message)
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
            callbacks=[mx.log(folder / "log.csv"), heal],
            progress=None,
        )
    lines = (folder / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", *map(str, range(1, 31))]


def test_a_log_that_was_lost_is_written_anew_after_an_error(tmp_path, key):
    trainer = runs.counter()
    log = tmp_path / "log.csv"

    def lose(rows):
        if rows[-1]["step"] == 20:
            log.unlink()
            log.mkdir()
        if rows[-1]["step"] == 30:
            log.rmdir()
            log.touch()

    start = trainer.init(key, jnp.float32(0))
    callbacks = [mx.log(log), lose]
    with pytest.warns(RuntimeWarning, match="could not be written.*the run goes on"):
        mx.fit(trainer, start, num_steps=40, callbacks=callbacks, progress=None)
    lines = log.read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", *map(str, range(1, 41))]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_log_that_is_deleted_is_written_anew(tmp_path, suffix):
    path = tmp_path / "folder" / f"log.{suffix}"
    write = mx.log(path)
    write([{"step": 1, "loss": 0.5}])
    shutil.rmtree(path.parent)
    write([{"step": 2, "loss": 0.25}])
    lines = {
        "csv": ["step,loss", "1,0.5", "2,0.25"],
        "jsonl": ['{"step": 1, "loss": 0.5}', '{"step": 2, "loss": 0.25}'],
    }
    assert path.read_text().splitlines() == lines[suffix]


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
                while _names(disk / "checkpoints") != ["20.npz"]:
                    time.sleep(
                        0.001
                    )  # what is still being written, and what is removed for it
                with ballast.open("wb", buffering=0) as f, contextlib.suppress(OSError):
                    while True:
                        f.write(bytes(10_000))
                os.truncate(
                    ballast, ballast.stat().st_size - 100_000
                )  # room for half a checkpoint
            if (
                rows[-1]["step"] == 60
            ):  # that of step 50 waited for that of step 40 to fail
                ballast.unlink()

        with _warnings() as caught:
            result = mx.fit(
                trainer,
                state,
                num_steps=60,
                checkpoint=store,
                callbacks=[fill],
                progress=None,
            )
        assert int(result.state.step) == 60
        assert caught
        assert all(
            "No space left on device. The run goes on" in str(w.message) for w in caught
        )
        assert store.restore({"state": state, "best": state.meta_params}).step == 60, (
            "and once there is room it saves"
        )
        store.close()
        assert _names(disk / "checkpoints") == ["60.npz"]
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
        (tmp_path / "4.npz.part").touch()  # what the other is writing
        message = (
            rf"{tmp_path} are in use by another run, process {other.pid} on .* since 20"
            rf".*directory of its own"
        )
        with pytest.raises(RuntimeError, match=message):
            mx.fit(trainer, state, num_steps=10, checkpoint=store, progress=None)
        with pytest.raises(RuntimeError, match=message):
            store.save(mx.Snapshot(9, jnp.float32(9), {}))
        names = ["3.npz", "4.npz.part"]
        assert _names(tmp_path) == names, "nothing of the other is touched"
    finally:
        other.kill()
        other.communicate()
    assert store.restore(jnp.float32(0)).step == 3
    with pytest.raises(Timeout):  # this process has it now, as another can see
        _try_to_lock(tmp_path)
    second = mx.checkpoints(tmp_path, every=5)  # nor for two of this process
    with pytest.raises(
        RuntimeError, match=f"in use by another run, process {os.getpid()} on"
    ):
        second.restore(jnp.float32(0))
    second.close()
    with pytest.raises(Timeout):
        _try_to_lock(tmp_path)
    store.close()
    _try_to_lock(tmp_path)


def _try_to_lock(folder):
    code = (
        "import filelock, sys; filelock.FileLock(sys.argv[1]).acquire(blocking=False)"
    )
    command = [sys.executable, "-c", code, folder / ".lock"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        assert "Timeout" in done.stderr
        raise Timeout(str(folder))


@pytest.mark.parametrize(
    ("error", "warned"),
    [
        (OSError(errno.ENOSYS, "Function not implemented"), True),
        (OSError(errno.ENOLCK, "No locks available"), True),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (OSError(errno.EROFS, "Read-only file system"), False),
    ],
)
def test_a_folder_without_locks_is_used_with_a_warning(
    error, warned, store, monkeypatch
):
    def fail(self, **kwargs):
        raise error

    monkeypatch.setattr(FileLock, "acquire", fail)
    with _warnings() as caught:
        assert store.restore(TREE).step == 2
    messages = [str(warning.message) for warning in caught]
    assert [
        "two runs in" in message and "no locks" in message for message in messages
    ] == ([True] * warned)


# Killed from outside


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Starts a run in a process of its own and goes on once its first rows are there."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["metajax"])  # what takes them long is the import
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
        half += any(p.suffix == ".part" for p in (folder / "checkpoints").glob("*"))
        runs.same(runs.run(folder), result)
        assert (folder / "log.jsonl").read_bytes() == log
        if killed == 20:
            break
    print(
        f"{killed} of {i + 1} killed within {duration:.2f} s, {half} of them while writing"
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
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".lock"))


def _flipped(data, i):
    """The bytes, one bit of them otherwise."""
    return data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :]


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


def test_checkpoints_of_the_first_version_are_refused(tmp_path):
    (tmp_path / "40").mkdir()
    with pytest.raises(
        ValueError, match=r"made by metajax 0\.1\.0.*give another directory"
    ):
        mx.checkpoints(tmp_path).restore({})
