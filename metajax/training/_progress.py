"""Progress of a run: where it is, its latest numbers, and whether they have moved."""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from metajax.sharding import _hosts as hosts
from metajax.training._display import make_display, waiting
from metajax.training._run import Run

_BLOCK = 50


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
        self._has_run: set[str] = set()
        self._display = None
        if label is not None and hosts.is_first():
            self._display = make_display(label, first_step, num_steps)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._display is not None:
            self._display.close()

    def say(self, text: str) -> None:
        """Shows a line of text, above the bar where there is one."""
        if self._display is not None:
            self._display.say(text)

    def first_time(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Around what is compiled when it is run for the first time, and may take minutes."""
        if self._display is None or what in self._has_run:
            return contextlib.nullcontext()
        self._has_run.add(what)
        return waiting(self._display.say, f"compiling and running {what}")

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
