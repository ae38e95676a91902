"""The queue of long runs: what it reads, what it says, and that nothing is lost when it dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import queue

ROOT = Path(__file__).parents[1]


def written(folder, text):
    path = folder / "queue.toml"
    path.write_text(text)
    return path


def finish(run, out, seconds=None):
    folder = run.folder(out)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"seconds": seconds}))


def test_each_seed_is_a_run(tmp_path):
    path = written(
        tmp_path,
        '[[run]]\nexperiment = "l2l-mnist"\nseeds = [0, 2]\nhours = 3\n'
        '[[run]]\nexperiment = "imaml-omniglot"\nscale = "full"\ndevices = 2\n',
    )
    assert queue.read(path) == [
        queue.Run("l2l-mnist", "small", 0, 1, 3),
        queue.Run("l2l-mnist", "small", 2, 1, 3),
        queue.Run("imaml-omniglot", "full", 0, 2, 1.0),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('experiment = "l2l"', "run 1: experiment 'l2l' is none of"),
        ('experiment = "l2l-mnist"\nscale = "large"', "scale 'large' is none of"),
        ('experiment = "l2l-mnist"\nseed = 3', "'seed' is none of"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        queue.read(written(tmp_path, f"[[run]]\n{text}\n"))


def test_the_queue_of_the_project_can_be_read():
    assert queue.read(ROOT / "benchmarks" / "queue.toml")


def test_the_status_says_what_remains_and_for_how_long(tmp_path):
    runs = [queue.Run("l2l-mnist", "small", seed, hours=9) for seed in range(4)]
    runs.append(queue.Run("l2l-cifar", "small", 0, hours=5))
    finish(runs[0], tmp_path, 3600)
    finish(runs[1], tmp_path, 3 * 3600)
    runs[2].folder(tmp_path).mkdir()
    lines = queue.status(runs, tmp_path).splitlines()
    assert [line.split()[0] for line in lines[:5]] == [
        "done",
        "done",
        "begun",
        "to",
        "to",
    ]
    assert lines[-1] == "3 of 5 remain, about 9.0 process hours"  # 2 + 2 + 5


def test_what_fails_is_told_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    """In place of experiments: one that dies, and one that works."""

    def command(run, out, seeds, more):
        result = run.folder(out) / "result.json"
        works = f"p = __import__('pathlib').Path({str(result)!r}); "
        works += "p.parent.mkdir(); p.write_text('{\"seconds\": 1}')"
        fails = "raise SystemExit('no data')"
        return [sys.executable, "-c", fails if run.seed == 0 else works]

    monkeypatch.setattr(queue, "_command", command)
    monkeypatch.setattr(queue, "_PERIOD", 0.01)
    runs = [queue.Run("l2l-mnist", "small", seed) for seed in range(3)]
    assert queue.work(runs, tmp_path, 2) == 1
    assert [run.is_done(tmp_path) for run in runs] == [False, True, True]
    assert "l2l-mnist small, seed 0: no data" in capsys.readouterr().out
    assert queue.work(runs, tmp_path, 1) == 1, "only what is not done is tried again"


def start(path, out, log):
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks", "queue", path, "--out", out],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def wait_for(log, text, process):
    end = time.monotonic() + 120
    while text not in log.read_text():
        assert time.monotonic() < end, log.read_text()
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)


@pytest.mark.slow
def test_a_queue_that_is_stopped_stops_its_runs_and_goes_on(tmp_path):
    path = written(
        tmp_path, '[[run]]\nexperiment = "l2l-quadratics"\nscale = "smoke"\n'
    )
    log = tmp_path / "log"
    process = start(path, tmp_path, log)
    wait_for(log, "begun, process", process)
    run = int(log.read_text().split("begun, process ")[1].split(",")[0])
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(run, 0)
    assert "stopping: what is at work saves first" in log.read_text()

    assert start(path, tmp_path, log).wait(300) == 0
    assert "l2l-quadratics smoke, seed 0: done" in log.read_text()
    assert "1 of 1 remain" in log.read_text()
    report = json.loads((tmp_path / "l2l-quadratics.json").read_text())
    assert report["seeds"] == [0]
