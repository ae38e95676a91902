"""Progress of long work: a bar in terminals and notebooks, plain lines in a log."""

import sys
import time
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

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
        self._pending = np.concatenate([self._pending, np.asarray(values, np.float64).reshape(-1)])
        while len(self._pending) >= _BLOCK:
            block, self._pending = self._pending[:_BLOCK], self._pending[_BLOCK:]
            block = block[np.isfinite(block)]
            self._means.append(float(block.mean()) if block.size else float("nan"))
            error = float(block.std() / block.size**0.5) if block.size else 0.0
            self._band = max(0.02 * abs(self._means[-1]), 2 * error)

    def length(self) -> int:
        """Steps without movement, a multiple of 50."""
        if not self._means:
            return 0
        means = np.array(self._means)
        moved = np.flatnonzero(~(np.abs(means - means[-1]) <= self._band))
        return _BLOCK * (len(means) - 1 - int(moved[-1]) if moved.size else len(means))

    def note(self) -> str:
        """What to say of it, nothing below 200 steps."""
        n = self.length()
        start = (
            " from the start: learning to learn often waits"
            if n == _BLOCK * len(self._means)
            else ""
        )
        return f"plateau, {n} steps{start}" if n >= 200 else ""


def _notebook() -> Any:
    """The module IPython where this runs in a notebook, else None."""
    module: Any = sys.modules.get("IPython")
    return module if module is not None and hasattr(module.get_ipython(), "kernel") else None


class _Output:
    """For tqdm a file; in a notebook one output, which is replaced by each line that is written.

    It needs no widgets, and a saved notebook keeps the last line.
    """

    encoding = "utf-8"  # for tqdm to draw blocks

    def __init__(self, ipython: Any):
        self.handle = ipython.display.display({"text/plain": ""}, raw=True, display_id=True)

    def write(self, text: str) -> None:
        if text.strip():
            self.handle.update({"text/plain": text.strip()}, raw=True)

    def flush(self) -> None:
        pass


class Progress:
    """A context manager with ``update`` and ``say``; lines without carriage returns where stderr is
    a file.
    """

    def __init__(self, total: int, label: str, show: bool = True, initial: int = 0):
        self.total, self.label, self.done = total, label, initial
        notebook = _notebook() if show else None
        file = sys.stderr if notebook is None else _Output(notebook)
        interactive = notebook is not None or sys.stderr.isatty()
        self.bar = (
            tqdm(total=total, initial=initial, desc=label, unit="step", file=file)
            if show and interactive
            else None
        )
        self.lines = show and not interactive
        self.last = time.monotonic()
        self.begin = (self.last, initial)
        self.warm = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        if self.bar is not None:
            self.bar.close()

    def say(self, text: str) -> None:
        """Shows a line of text, above the bar where there is one."""
        if self.bar is not None:
            self.bar.write(f"{self.label}: {text}", file=sys.stderr)
        elif self.lines:
            print(f"{self.label}: {text}", file=sys.stderr, flush=True)

    def update(self, n: int, note: str = "", **numbers: float) -> None:
        """Adds ``n`` finished steps and shows the latest numbers."""
        self.done += n
        shown = {name: f"{value:.4g}" for name, value in numbers.items()}
        if self.bar is not None:
            text = ", ".join(
                [*(f"{name}={value}" for name, value in shown.items()), *([note] if note else [])]
            )
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(n)
        now = time.monotonic()
        if self.lines and (now - self.last >= 10 or self.done >= self.total):
            self.last = now
            since, at = self.begin
            rate = (self.done - at) / max(now - since, 1e-9)
            left = (self.total - self.done) / max(rate, 1e-9)
            text = " ".join(f"{name} {value}" for name, value in shown.items())
            self.say(
                f"{self.done}/{self.total} steps, {text}, {rate:.3g} steps/s, {left:.0f} s left"
                + (f" ({note})" if note else "")
            )
        if not self.warm and self.done < self.total:  # the first update has waited for the compiler
            self.warm, self.begin = True, (now, self.done)
