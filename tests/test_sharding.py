"""Several devices in a subprocess, several processes on this machine; the tests themselves stay on
one device.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from jax.sharding import Mesh

import metajax as mx

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parent / "docs" / "scaling.md"
QUADRATICS = mx.inner(
    mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), 4
)


def environment(devices):
    path = os.pathsep.join(
        [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    )
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"PYTHONPATH": path, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def found():
    command = [sys.executable, TESTS / "four_devices.py", DOCUMENT]
    done = subprocess.run(
        command, env=environment(4), capture_output=True, text=True, timeout=300
    )
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


@pytest.mark.parametrize("name", ["bptt", "truncated", "binomial", "forward", "pes"])
def test_a_gradient_is_reduced_once_outside_the_loops(found, name):
    """The gradient, the loss and the metrics together, and how many episodes are finite."""
    run = found["trained"][f"{name}, 4 devices"]
    assert len(run["collectives"]) == 1
    assert all(
        kind == "all-reduce" and in_entry for kind, _, in_entry in run["collectives"]
    )
    assert sum(elements for _, elements, _ in run["collectives"]) <= 6, (
        "scalars: the meta-parameter, the loss, how many are finite, metrics"
    )
    assert run["specs"] == ["P('tasks',)"], "the episodes stay split"


def test_a_population_exchanges_its_scores_only(found):
    run = found["trained"]["members, 4 devices"]
    assert run["collectives"] == [["all-gather", 8 * 3, True]], "of 3 tasks"
    assert run["specs"] == ["P()"], "one strategy, not one a device"


def test_fit_compiles_once(found):
    assert found["fit"]["first"] > 0
    assert found["fit"]["second"] == 0
    assert found["fit"]["step"] == 6


def test_evaluation_is_split(found):
    assert found["evaluate"]["difference"] < 1e-5
    assert found["evaluate"]["gathered"] < 1e-5
    assert found["evaluate"]["in turns"] < 1e-5
    assert found["evaluate"]["spec"] == "P('tasks',)"
    assert found["evaluate"]["collectives"] == []


def test_placing_and_gathering_change_nothing(found):
    assert found["there and back"] == {
        "equal": True,
        "one device": True,
        "same types": True,
    }


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
    "mesh: more than there are": (
        lambda: mx.sharding.mesh(1000),
        ValueError,
        "num_devices is 1000",
    ),
    "split: an estimator": (
        lambda: mx.sharding.split(mx.bptt(QUADRATICS, 2), mx.sharding.mesh()),
        TypeError,
        "inner",
    ),
    "split: a number of devices": (
        lambda: mx.sharding.split(QUADRATICS, 4),
        TypeError,
        "mesh",
    ),
    "split: another axis": (
        lambda: mx.sharding.split(QUADRATICS, Mesh(np.array(jax.devices()), ("data",))),
        ValueError,
        r"axis must be one of .*\['data'\], got 'tasks'",
    ),
    "split: twice": (
        lambda: mx.sharding.split(
            mx.sharding.split(QUADRATICS, mx.sharding.mesh()), mx.sharding.mesh()
        ),
        ValueError,
        "split already",
    ),
    "place: no mesh": (lambda: mx.sharding.place({}, None), TypeError, "mesh"),
    "place: another axis": (
        lambda: mx.sharding.place({}, mx.sharding.mesh(axis="data")),
        ValueError,
        "axis",
    ),
    "initialize: timeout zero": (
        lambda: mx.sharding.initialize(timeout=0),
        ValueError,
        "timeout",
    ),
    "initialize: no processes": (
        lambda: mx.sharding.initialize("a:1", 0, 0),
        ValueError,
        "num_processes",
    ),
    "initialize: process two of two": (
        lambda: mx.sharding.initialize("a:1", 2, 2),
        ValueError,
        "process_id",
    ),
    "initialize: no port": (
        lambda: mx.sharding.initialize("10.0.0.1", 2, 0),
        ValueError,
        "host:port",
    ),
    "initialize: too late": (
        lambda: mx.sharding.initialize("127.0.0.1:1", 2, 0),
        RuntimeError,
        "before",
    ),
}


@pytest.mark.parametrize("name", ONE_DEVICE)
def test_mistakes(name):
    call, error, message = ONE_DEVICE[name]
    jax.devices()
    with pytest.raises(error, match=message):
        call()


def test_a_run_goes_on_on_fewer_devices(found):
    assert found["fewer devices"]["trained"] == [4, 5, 6]
    assert found["fewer devices"]["devices"] == 2
    assert found["fewer devices"]["difference"] < 1e-5


class Processes:
    """Two processes of two devices each that run a script, by default that of the document."""

    def __init__(self, folder, num_steps, script=None):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{s.getsockname()[1]}"
        [text] = [
            b
            for b in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
            if "initialize(" in b
        ]
        folder.mkdir(exist_ok=True)
        (folder / "train.py").write_text(text)
        command = [
            sys.executable,
            script or folder / "train.py",
            folder / "run",
            str(num_steps),
        ]
        self.logs = [folder / f"out{i}-{num_steps}" for i in range(2)]
        self.processes = []
        for i, log in enumerate(self.logs):
            env = environment(2) | {
                "COORDINATOR": address,
                "NUM_PROCESSES": "2",
                "PROCESS_ID": str(i),
                "TIMEOUT": "8",
            }
            cache = {
                "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
            with log.open("w") as f:
                self.processes.append(
                    subprocess.Popen(
                        command, env=cache | env, stdout=f, stderr=subprocess.STDOUT
                    )
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for p in self.processes:
            p.kill()
            p.wait()

    def outputs(self):
        return [log.read_text() for log in self.logs]

    def wait_for(self, path):
        deadline = time.monotonic() + 120
        while not path.exists():
            assert all(p.poll() is None for p in self.processes), self.outputs()
            assert time.monotonic() < deadline, self.outputs()
            time.sleep(0.02)

    def exit_codes(self):
        return [p.wait(timeout=120) for p in self.processes]


def checkpoint(folder):
    """The newest, read back in this process of one device."""
    learner = mx.l2l(optax.sgd, mx.problems.quadratic(), second_order=True)
    loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=6)
    trainer = mx.trainer(mx.bptt(loop, num_tasks=8, truncation=3), optax.adam(1e-3))
    state = trainer.init(jax.random.key(0), jnp.float32(1e-3))
    store = mx.checkpoints(folder)
    found = store.restore({"state": state, "best": state.meta_params})
    store.close()
    return trainer, state, found


@pytest.mark.slow
def test_two_processes_stopped_and_killed_end_where_an_uninterrupted_run_does(tmp_path):
    folder = tmp_path / "interrupted"
    with Processes(folder, 10**6) as run:
        run.wait_for(folder / "run" / "40.npz")
        run.processes[1].kill()
        assert run.processes[0].wait(timeout=60) != 0, (
            "the survivor ends, and not as if all were well"
        )
        assert re.search("tasks have crashed|another task died", run.outputs()[0]), (
            run.outputs()[0]
        )
    killed = checkpoint(folder / "run")[2].step
    assert killed >= 40

    with Processes(folder, 10**5) as run:
        run.wait_for(folder / "run" / f"{killed + 20}.npz")
        run.processes[1].terminate()
        assert run.exit_codes() == [143, 143], (
            "all processes end by the signal that one has got"
        )
        first, second = run.outputs()
    stopped = checkpoint(folder / "run")[2].step
    assert f"resumed at meta-step {killed} of" in first
    assert (
        f"stopped by SIGTERM at meta-step {stopped} of 100000; saved at meta-step {stopped} in"
        in first
    )
    assert "meta-training" not in second, "only the first process reports"

    total = stopped + 10
    with Processes(folder, total) as run:
        assert run.exit_codes() == [0, 0], run.outputs()
    with Processes(tmp_path / "whole", total, TESTS / "two_processes.py") as run:
        assert run.exit_codes() == [0, 0], run.outputs()
        found = [json.loads(text.splitlines()[-1]) for text in run.outputs()]
    trainer, state, want = checkpoint(tmp_path / "whole" / "run")
    got = checkpoint(folder / "run")[2]
    assert got.step == want.step == total
    runs.same(got, want)
    for name in ("run.csv", "run.npz"):
        assert (folder / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes(), name
    assert len((folder / "run.csv").read_text().splitlines()) == total + 1

    # The same in this one process of one device.
    alone = mx.fit(trainer, state, num_steps=total, progress=None)
    np.testing.assert_allclose(
        want.arrays["history/loss"], alone.history["loss"], rtol=1e-4
    )
    np.testing.assert_allclose(
        want.tree["state"].meta_params, alone.state.meta_params, rtol=1e-4
    )
    check_that_they_agree(*found)


def check_that_they_agree(first, second):
    """What each of the two processes has found in two_processes.py."""
    assert first["agreed"] == second["agreed"] == [0, "from 0"]
    assert first["refused"] == ["ValueError", "no"]
    assert second["refused"] == ["RuntimeError", "on the first host: no"]
    assert first["largest"] == second["largest"] == 1
    for name in (
        "stopped early",
        "not finite",
        "another tag",
        "damaged",
        "a full disk",
    ):
        assert first[name] == second[name], name
    assert first["stopped early"] == [[0, 2, 4, 6], [3.0, 1.0, 2.0, 2.0]], (
        "the first one's losses"
    )
    assert "4 steps in a row, up to meta-step 6; " in first["not finite"]
    assert "saved at meta-step 6 in" in first["not finite"]
    assert "has the tag '', want 'another'" in first["another tag"]
    assert first["damaged"] == [2, 2.0]
    assert first["a full disk"] == [6, 4]
    assert first["reported"] == [1, 2, 3, 4, 5, 6]
    assert second["reported"] == []
    assert (first["warned"], second["warned"]) == (
        ["the checkpoint of step 4", "the checkpoint of meta-step 6"],
        [],
    )
