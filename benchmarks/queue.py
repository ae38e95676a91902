"""A list of long runs, worked off in the background.

Each run is one seed of an experiment, in a process of its own at the lowest priority, from its
checkpoints. The queue may be stopped or killed at any moment: the same command goes on.
"""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import reproduce

_PERIOD = 1.0  # seconds between two looks at the processes
_SAYS_EVERY = 300.0  # seconds between two lines about each
_NAMES = {"experiment", "scale", "seeds", "devices", "hours"}


class Run(NamedTuple):
    """One seed of an experiment.

    Attributes:
      experiment: its name.
      scale: one of `benchmarks.reproduce.SCALES`.
      seed: a number.
      devices: CPU devices to simulate.
      hours: about how long it takes, where no other seed has been timed.
    """

    experiment: str
    scale: str
    seed: int
    devices: int = 1
    hours: float = 1.0

    def __str__(self) -> str:
        return f"{self.experiment} {self.scale}, seed {self.seed}"

    def folder(self, out: Path) -> Path:
        """Where its checkpoints and its result are."""
        return reproduce.seed_folder(out, self.experiment, self.scale, self.seed)

    def is_done(self, out: Path) -> bool:
        """Whether its result is there."""
        return (self.folder(out) / "result.json").exists()


class Process(NamedTuple):
    """A run at work, and its output."""

    run: Run
    process: subprocess.Popen
    log: Path


def read(path: Path) -> list[Run]:
    """The runs of a TOML file, each ``[[run]]`` of which names an experiment and its seeds.

    Raises:
      ValueError: an unknown experiment, scale or entry, with the names that there are.
    """
    runs = []
    for i, entry in enumerate(tomllib.loads(path.read_text()).get("run", [])):
        where = f"{path}, run {i + 1}"
        if unknown := entry.keys() - _NAMES:
            raise ValueError(f"{where}: {unknown.pop()!r} is none of {sorted(_NAMES)}")
        experiment = entry.get("experiment")
        if experiment not in reproduce.names():
            raise ValueError(
                f"{where}: experiment {experiment!r} is none of {reproduce.names()}"
            )
        scale = entry.get("scale", "small")
        if scale not in reproduce.SCALES:
            raise ValueError(f"{where}: scale {scale!r} is none of {reproduce.SCALES}")
        for seed in entry.get("seeds", [0]):
            run = Run(experiment, scale, seed)
            devices = entry.get("devices", run.devices)
            hours = entry.get("hours", run.hours)
            runs.append(run._replace(devices=devices, hours=hours))
    return runs


def status(runs: Sequence[Run], out: Path) -> str:
    """What is done, what remains, and for about how long."""
    lines = []
    hours = 0.0
    for run in runs:
        state = "to do"
        if run.is_done(out):
            state = "done"
        elif run.folder(out).exists():
            state = "begun"
        expected = 0.0 if state == "done" else _expected_hours(run, runs, out)
        hours += expected
        left = "" if state == "done" else f", about {expected:.1f} h in all"
        lines.append(f"{state:<6} {run}{left}")
    num_left = sum(not run.is_done(out) for run in runs)
    lines.append(f"{num_left} of {len(runs)} remain, about {hours:.1f} process hours")
    return "\n".join(lines)


def _expected_hours(run: Run, runs: Sequence[Run], out: Path) -> float:
    """As long as other seeds have taken, or what the file says."""
    measured = []
    for other in runs:
        if other[:2] == run[:2] and other.is_done(out):
            stored = json.loads((other.folder(out) / "result.json").read_text())
            if stored["seconds"] is not None:  # None of a run that was interrupted
                measured.append(stored["seconds"] / 3600)
    return sum(measured) / len(measured) if measured else run.hours


def work(runs: Sequence[Run], out: Path, num_processes: int) -> int:
    """Runs what is not done, ``num_processes`` at a time, and returns how many failed.

    SIGTERM and Ctrl-C stop the processes, which save, and then the queue.
    """
    waiting = [run for run in runs if not run.is_done(out)]
    at_work: list[Process] = []
    num_failed = 0
    said = time.monotonic()

    with _Signals() as signals:
        while at_work or (waiting and not signals.came):
            while waiting and len(at_work) < num_processes and not signals.came:
                at_work.append(_start(waiting.pop(0), out))
            if signals.are_new():
                _say("stopping: what is at work saves first")
                for process in at_work:
                    process.process.terminate()

            for process in [p for p in at_work if p.process.poll() is not None]:
                at_work.remove(process)
                is_done = _report_end(process, out)
                num_failed += not is_done and not signals.came
                if is_done:
                    _gather(process.run, runs, out)

            if time.monotonic() - said > _SAYS_EVERY:
                said = time.monotonic()
                for process in at_work:
                    _say(f"{process.run}: {_last_line(process.log)}")
            time.sleep(_PERIOD)
    return num_failed


class _Signals:
    """SIGTERM and Ctrl-C, while a queue works.

    Attributes:
      came: whether one has come.
    """

    def __init__(self):
        self.came = False
        self._told = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def are_new(self) -> bool:
        """Whether one has come since this was last asked."""
        is_new = self.came and not self._told
        self._told = self.came
        return is_new

    def _note(self, *args: Any) -> None:
        self.came = True


def _start(run: Run, out: Path) -> Process:
    folder = run.folder(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    with log.open("a") as file:
        process = subprocess.Popen(
            _command(run, out, [run.seed], ["--devices", str(run.devices)]),
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C is for the queue, which passes it on once
        )
    os.setpriority(os.PRIO_PROCESS, process.pid, 19)
    _say(f"{run}: begun, process {process.pid}, output in {log}")
    return Process(run, process, log)


def _command(run: Run, out: Path, seeds: Sequence[int], more: list[str]) -> list[str]:
    command = [sys.executable, "-m", "benchmarks", "reproduce", run.experiment]
    command += ["--scale", run.scale, "--out", str(out), "--resume"]
    return [*command, "--first", str(seeds[0]), "--seeds", str(len(seeds)), *more]


def _report_end(process: Process, out: Path) -> bool:
    """Says how a run has ended, and returns whether it is done."""
    is_done = process.run.is_done(out)
    how = "done" if is_done else _last_line(process.log)
    _say(f"{process.run}: {how}")
    return is_done


def _gather(run: Run, runs: Sequence[Run], out: Path) -> None:
    """The claims of all seeds together, once the last is done."""
    siblings = [other for other in runs if other[:2] == run[:2]]
    seeds = sorted({other.seed for other in siblings})
    consecutive = seeds == list(range(seeds[0], seeds[-1] + 1))
    if consecutive and all(other.is_done(out) for other in siblings):
        subprocess.run(_command(run, out, seeds, []), check=False)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "nothing yet")


def _say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)
