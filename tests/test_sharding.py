"""Several devices in a subprocess, several processes on this machine; the tests themselves stay on one device."""

import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import metajax as mx

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parent / "docs" / "scaling.md"
QUADRATICS = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), 4)


def environment(devices):
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    flags = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {"PYTHONPATH": path, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def found():
    command = [sys.executable, TESTS / "four_devices.py", DOCUMENT]
    done = subprocess.run(command, env=environment(4), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_training_on_four_devices_is_training_on_one(found):
    for name, run in found["trained"].items():
        assert run["difference"] < 1e-5, name


def test_the_work_is_split(found):
    """Of the arrays of all episodes, only shares are in the program of a device."""
    for name, run in found["trained"].items():
        assert run["share"], name
        assert not run["whole"], name


@pytest.mark.parametrize(("name", "reductions"), [("bptt", 1), ("truncated", 1), ("forward", 1), ("pes", 2)])
def test_a_gradient_is_reduced_once_outside_the_loops(found, name, reductions):
    """The gradient, the loss and the metrics together; before them, for `pes`, how many pairs are finite."""
    run = found["trained"][f"{name}, 4 devices"]
    assert len(run["collectives"]) == reductions
    assert all(kind == "all-reduce" and in_entry for kind, _, in_entry in run["collectives"])
    assert sum(elements for _, elements, _ in run["collectives"]) <= 4, "one meta-parameter, the loss, metrics"
    assert run["specs"] == ["P('tasks',)"], "the episodes stay split"


def test_a_population_exchanges_its_scores_only(found):
    run = found["trained"]["members, 4 devices"]
    assert run["collectives"] == [["all-gather", 8, True]]
    assert run["specs"] == ["P()"], "one strategy, not one a device"


def test_fit_compiles_once(found):
    assert found["fit"]["first"] > 0
    assert found["fit"]["second"] == 0
    assert found["fit"]["step"] == 6


def test_evaluation_is_split(found):
    assert found["evaluate"]["difference"] < 1e-5
    assert found["evaluate"]["gathered"] < 1e-5
    assert found["evaluate"]["spec"] == "P('tasks',)"
    assert found["evaluate"]["collectives"] == []


def test_placing_and_gathering_change_nothing(found):
    assert found["there and back"] == {"equal": True, "one device": True, "same types": True}


def test_the_document_runs(found):
    assert found["document"] == {"blocks": 4, "sharding": "P('tasks',)"}


MISTAKES = {
    "tasks": r"6 episodes cannot .* 4 devices .*num_tasks .* multiple of 4, e.g. 4",
    "evaluate": r"6 episodes cannot",
    "members": r"6 episodes cannot .*population",
    "place": r"6 episodes cannot",
    "devices": r"num_devices is 5 and there are 4; take fewer",
    "explicit": r"mesh must have axes of the type Auto.*AxisType.Auto",
    "another mesh": r"another mesh, \{'tasks': 2\}.*sharding.place",
    "another mesh, eagerly": r"another mesh, \{'tasks': 2\}.*sharding.place",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_with_several_devices(found, name):
    kind, message = found["mistakes"][name]
    assert kind == "ValueError"
    assert re.search(MISTAKES[name], message), message


ONE_DEVICE = {
    "mesh: no devices": (lambda: mx.sharding.mesh(0), ValueError, "num_devices"),
    "mesh: more than there are": (lambda: mx.sharding.mesh(1000), ValueError, "num_devices is 1000"),
    "split: an estimator": (lambda: mx.sharding.split(mx.bptt(QUADRATICS, 2), mx.sharding.mesh()), TypeError, "inner"),
    "split: a number of devices": (lambda: mx.sharding.split(QUADRATICS, 4), TypeError, "mesh"),
    "split: another axis": (
        lambda: mx.sharding.split(QUADRATICS, Mesh(np.array(jax.devices()), ("data",))),
        ValueError,
        r"axis must be one of .*\['data'\], got 'tasks'",
    ),
    "split: twice": (
        lambda: mx.sharding.split(mx.sharding.split(QUADRATICS, mx.sharding.mesh()), mx.sharding.mesh()),
        ValueError,
        "split already",
    ),
    "place: no mesh": (lambda: mx.sharding.place({}, None), TypeError, "mesh"),
    "place: another axis": (lambda: mx.sharding.place({}, mx.sharding.mesh(axis="data")), ValueError, "axis"),
    "initialize: timeout zero": (lambda: mx.sharding.initialize(timeout=0), ValueError, "timeout"),
    "initialize: no processes": (lambda: mx.sharding.initialize("a:1", 0, 0), ValueError, "num_processes"),
    "initialize: process two of two": (lambda: mx.sharding.initialize("a:1", 2, 2), ValueError, "process_id"),
    "initialize: no port": (lambda: mx.sharding.initialize("10.0.0.1", 2, 0), ValueError, "host:port"),
    "initialize: too late": (lambda: mx.sharding.initialize("127.0.0.1:1", 2, 0), RuntimeError, "before"),
}


@pytest.mark.parametrize("name", ONE_DEVICE)
def test_mistakes(name):
    call, error, message = ONE_DEVICE[name]
    jax.devices()
    with pytest.raises(error, match=message):
        call()


class Processes:
    """Two processes of two devices each that run the script of the document."""

    def __init__(self, folder, num_steps):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{s.getsockname()[1]}"
        command = [sys.executable, script(folder), folder / "run.npz", str(num_steps)]
        self.logs = [folder / f"log{i}-{num_steps}" for i in range(2)]
        self.processes = []
        for i, log in enumerate(self.logs):
            env = environment(2) | {"COORDINATOR": address, "NUM_PROCESSES": "2", "PROCESS_ID": str(i), "TIMEOUT": "5"}
            with log.open("w") as f:
                self.processes.append(subprocess.Popen(command, env=env, stdout=f, stderr=subprocess.STDOUT))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for p in self.processes:
            p.kill()
            p.wait()


def script(folder):
    [text] = [b for b in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL) if "initialize(" in b]
    (folder / "train.py").write_text(text)
    return folder / "train.py"


@pytest.mark.slow
def test_two_processes_one_dies_and_the_run_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    with Processes(tmp_path, 10**6) as run:
        deadline = time.monotonic() + 120
        while "saved 10" not in run.logs[0].read_text():
            assert all(p.poll() is None for p in run.processes), run.logs[0].read_text() + run.logs[1].read_text()
            assert time.monotonic() < deadline, "the processes did not start"
            time.sleep(0.1)
        run.processes[1].send_signal(signal.SIGKILL)
        assert run.processes[0].wait(timeout=60) != 0, "the survivor ends, and not as if all were well"
        assert "another task died" in run.logs[0].read_text()

    done = int(np.load(path)["step"])
    assert done >= 10
    with Processes(tmp_path, done + 10) as run:
        codes = [p.wait(timeout=120) for p in run.processes]
        assert codes == [0, 0], run.logs[0].read_text() + run.logs[1].read_text()
        said = [re.findall(r"saved (\d+)", log.read_text()) for log in run.logs]
        assert said == [[str(done + 5), str(done + 10)], []], "it went on, and only the first process wrote"
    several = dict(np.load(path))

    # The same script, uninterrupted, in this one process of one device.
    path.unlink()
    monkeypatch.setattr(sys, "argv", ["train.py", str(path), str(done + 10)])
    runpy.run_path(str(script(tmp_path)))
    alone = dict(np.load(path))
    assert alone.keys() == several.keys()
    for name, value in alone.items():
        np.testing.assert_allclose(several[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
