"""Progress of a run: a bar in terminals and notebooks, plain lines in a log."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from metajax.sharding import _hosts as hosts
from metajax.training._run import Run

_BLOCK = 50
_SECONDS_BETWEEN_LINES = 10


class Plateau:
    """How long a series has not moved.

    The series is cut into blocks of 50. It has not moved since the first of the latest blocks whose
    means are all within 2 % of the latest mean, or within two of its standard errors where noise
    makes those wider.
    """

    def __init__(self, values: ArrayLike = ()):
        self._pending = np.zeros(0)
        self._means: list[float] = []
        self._band = 0.0
        self.add(values)

    def add(self, values: ArrayLike) -> None:
        """Goes on with the series."""
        new = np.asarray(values, np.float64).reshape(-1)
        self._pending = np.concatenate([self._pending, new])
        while len(self._pending) >= _BLOCK:
            self._add_block(self._pending[:_BLOCK])
            self._pending = self._pending[_BLOCK:]

    def length(self) -> int:
        """Steps without movement, a multiple of 50."""
        if not self._means:
            return 0
        means = np.array(self._means)
        is_near = np.abs(means - means[-1]) <= self._band
        elsewhere = np.flatnonzero(~is_near)
        begin = elsewhere[-1] + 1 if elsewhere.size else 0
        return _BLOCK * int(len(means) - begin)

    def note(self) -> str:
        """What to say of it, nothing below 200 steps."""
        length = self.length()
        if length < 200:
            return ""
        if length == _BLOCK * len(self._means):
            return (
                f"plateau, {length} steps from the start: learning to learn often waits"
            )
        return f"plateau, {length} steps"

    def _add_block(self, block: np.ndarray) -> None:
        block = block[np.isfinite(block)]
        if not block.size:
            self._means.append(math.nan)
            self._band = 0.0
            return
        mean = float(block.mean())
        standard_error = float(block.std() / block.size**0.5)
        self._means.append(mean)
        self._band = max(0.02 * abs(mean), 2 * standard_error)


class Progress:
    """A context manager that shows how far a run is.

    Args:
      label: what it is called; None shows nothing.
      first_step: the meta-step at which this process begins.
      num_steps: the meta-step at which the run ends.
    """

    def __init__(self, label: str | None, first_step: int, num_steps: int):
        self._shown_step = first_step
        self._plateau = Plateau()
        self._display = None
        if label is not None and hosts.is_first():
            self._display = _display(label, first_step, num_steps)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._display is not None:
            self._display.close()

    def say(self, text: str) -> None:
        """Shows a line of text, above the bar where there is one."""
        if self._display is not None:
            self._display.say(text)

    def show(self, run: Run) -> None:
        """Shows where the run is, and its latest numbers."""
        if self._display is None:
            return
        if run.step == run.first_step:
            # What the run had before this process took it up.
            earlier = run.record.history()
            self._plateau.add(earlier.get("loss", ()))
        if run.step > self._shown_step:
            latest = run.record.history(self._shown_step)
            self._plateau.add(latest["loss"])
            self._display.show(run.step, _numbers(run, latest), self._plateau.note())
            self._shown_step = run.step


def _numbers(run: Run, latest: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What is shown of a run and of the latest of its metrics, by name."""
    losses = latest["loss"]
    losses = losses[np.isfinite(losses)]
    numbers: dict[str, float] = {"loss": math.nan}
    if losses.size:
        numbers["loss"] = float(losses.mean())
    if run.record.validations:
        best = run.record.best_validation()
        numbers["best"] = best if math.isfinite(best) else math.nan
    skipped = run.record.history().get("skipped", 0)
    num_skipped = int(np.count_nonzero(skipped))
    if num_skipped:
        numbers["skipped"] = num_skipped
    for name in ("diverged", "inner_diverged"):
        share = latest.get(name, np.zeros(1)).mean()
        if share:
            numbers[name] = share
    return {name: f"{number:.4g}" for name, number in numbers.items()}


def _display(label: str, first_step: int, num_steps: int) -> "_Bar | _Lines":
    ipython = _ipython_of_notebook()
    if ipython is not None:
        return _Bar(label, first_step, num_steps, _NotebookOutput(ipython))
    if sys.stderr.isatty():
        return _Bar(label, first_step, num_steps, sys.stderr)
    return _Lines(label, first_step, num_steps)


class _Bar:
    """A bar that moves, for terminals and notebooks."""

    def __init__(self, label: str, first_step: int, num_steps: int, file: Any):
        self.label = label
        self.bar = tqdm(
            total=num_steps,
            initial=first_step,
            desc=label,
            unit="step",
            file=file,
        )

    def say(self, text: str) -> None:
        self.bar.write(f"{self.label}: {text}", file=sys.stderr)

    def show(self, step: int, numbers: dict[str, str], note: str) -> None:
        texts = [f"{name}={number}" for name, number in numbers.items()]
        if note:
            texts.append(note)
        self.bar.set_postfix_str(", ".join(texts), refresh=False)
        self.bar.update(step - self.bar.n)

    def close(self) -> None:
        self.bar.close()


class _Lines:
    """A line now and then, without carriage returns, for files."""

    def __init__(self, label: str, first_step: int, num_steps: int):
        self.label = label
        self.num_steps = num_steps
        self.begin = time.monotonic()
        self.begin_step = first_step
        self.last_line = self.begin
        self.is_compiled = False

    def say(self, text: str) -> None:
        print(f"{self.label}: {text}", file=sys.stderr, flush=True)

    def show(self, step: int, numbers: dict[str, str], note: str) -> None:
        now = time.monotonic()
        is_due = now - self.last_line >= _SECONDS_BETWEEN_LINES
        if is_due or step >= self.num_steps:
            self.last_line = now
            seconds = max(now - self.begin, 1e-9)
            rate = (step - self.begin_step) / seconds
            seconds_left = (self.num_steps - step) / max(rate, 1e-9)
            shown = " ".join(f"{name} {number}" for name, number in numbers.items())
            end = f" ({note})" if note else ""
            self.say(
                f"{step}/{self.num_steps} steps, {shown}, {rate:.3g} steps/s, "
                f"{seconds_left:.0f} s left{end}"
            )
        # The first steps have waited for the compiler: the rate is that of the others.
        if not self.is_compiled and step < self.num_steps:
            self.is_compiled = True
            self.begin = now
            self.begin_step = step

    def close(self) -> None:
        pass


class _NotebookOutput:
    """For tqdm a file; in a notebook one output, which is replaced by each line that is written.

    It needs no widgets, and a saved notebook keeps the last line.
    """

    # For tqdm to draw blocks.
    encoding = "utf-8"

    def __init__(self, ipython: Any):
        self.handle = ipython.display.display(
            {"text/plain": ""}, raw=True, display_id=True
        )

    def write(self, text: str) -> None:
        if text.strip():
            self.handle.update({"text/plain": text.strip()}, raw=True)

    def flush(self) -> None:
        pass


def _ipython_of_notebook() -> Any:
    """The module IPython where this runs in a notebook, else None."""
    module: Any = sys.modules.get("IPython")
    if module is None or not hasattr(module.get_ipython(), "kernel"):
        return None
    return module
