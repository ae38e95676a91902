"""Other packages on the same meta-gradient: one process and one thread each.

They are compared before any is timed. What runs in a process is `benchmarks.contenders`.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Measured, agree, with_times
from benchmarks.table import Row, Setting, Target
from benchmarks.workloads import Workload

PACKAGES = {
    "torch.func": "torch",
    "higher": "higher",
    "TorchOpt": "torchopt",
    "jaxopt": "jaxopt",
}


def race(
    setting: Setting,
    work: Workload,
    rtol: float,
    target: Target,
) -> list[Row]:
    """A row for each peer; the fastest bears the target.

    A peer without figures has a note with the reason.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        processes = {}
        notes = {}
        reference = None
        for name in ("ours", *PACKAGES):
            process = _Process(work.kind, name, Path(folder), setting.smoke)
            stack.callback(process.close)
            try:
                gradient = process.first_gradient()
                if reference is None:
                    reference = gradient
                agree(name, gradient, reference, rtol)
                processes[name] = process
            except (RuntimeError, ValueError) as e:
                if name == "ours":
                    raise
                process.close()  # it would take its time from the others
                notes[name] = str(e)
        for _ in range(2 if setting.smoke else 15):
            for process in processes.values():
                process.step()

    rows = _rows(work, processes, target)
    for name, note in notes.items():
        rows.append(
            Row(
                work.kind,
                _what(work),
                against=name,
                note=note,
            )
        )
    return rows


def _rows(
    work: Workload, processes: dict[str, "_Process"], target: Target
) -> list[Row]:
    found = {name: process.result() for name, process in processes.items()}
    ours = found.pop("ours")
    rows = []
    for name in sorted(found, key=lambda name: found[name].seconds):
        theirs = found[name]
        row = Row(
            work.kind,
            _what(work),
            unit="ms",
            ours=1e3 * ours.seconds,
            other=1e3 * theirs.seconds,
            against=name,
            share=ours.share,
            targets=() if rows else (target,),
            detail={
                "ours": ours._asdict(),
                name: theirs._asdict(),
                "version": processes[name].version,
            },
        )
        rows.append(row)
    return rows


def _what(work: Workload) -> str:
    return f"{work.steps} steps, one thread"


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """What is started here has one core, whatever its thread pools count."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


class _Process:
    """A contender's process, seen from outside."""

    def __init__(
        self,
        kind: str,
        name: str,
        folder: Path,
        smoke: bool,
    ):
        self.path = folder / f"{name}.npz"
        self.errors = (folder / f"{name}.txt").open("w+")
        command = [
            sys.executable,
            "-m",
            "benchmarks.contenders",
            kind,
            name,
            str(folder),
        ]
        if smoke:
            command.append("smoke")
        with _one_core():
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                text=True,
                env={**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"},
                cwd=Path(__file__).parents[1],
            )
        self.seconds = []
        self.peak = 0
        self.version = ""
        self.limit_seconds = 0.0

    def first_gradient(self) -> list[np.ndarray]:
        answer = self._answer()
        self.version = answer["version"]
        self.limit_seconds = answer["limit_seconds"]
        with np.load(self.path) as file:
            return [file[name] for name in file]

    def step(self) -> None:
        print("go", file=self.process.stdin, flush=True)
        answer = self._answer()
        self.peak = answer["peak"]
        self.seconds.append(answer["seconds"])

    def result(self) -> Measured:
        nan = float("nan")
        cost = Measured(
            seconds=nan,
            spread=nan,
            rounds=0,
            peak_resident_bytes=self.peak,
            limit_seconds=self.limit_seconds,
        )
        return with_times(cost, self.seconds)

    def close(self) -> None:
        if not self.errors.closed:
            self.process.communicate()
            self.errors.close()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        if not line:
            self.process.wait()
            self.errors.seek(0)
            complaints = [text.strip() for text in self.errors if text.strip()]
            raise RuntimeError(
                complaints[-1] if complaints else "it died without a word"
            )
        return json.loads(line)
