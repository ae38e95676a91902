"""How far something is: a bar in terminals and notebooks, plain lines in a log."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10
_PATIENCE = 2  # seconds that nobody minds
_SECONDS_BETWEEN_SIGNS = 60


@contextlib.contextmanager
def waiting(say: Callable[[str], None], what: str) -> Iterator[None]:
    """Says what takes long, how long it has taken now and then, and in the end.

    From a thread of its own, as this one may be in the compiler.
    """
    begin = time.monotonic()
    done = threading.Event()

    def watch():
        if done.wait(_PATIENCE):
            return
        say(f"{what} ...")
        while not done.wait(_SECONDS_BETWEEN_SIGNS):
            say(f"{what} ... for {time.monotonic() - begin:.0f} s")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    seconds = time.monotonic() - begin
    if seconds > _PATIENCE:
        say(f"{what} took {seconds:.0f} s")


def make_display(
    label: str, first_step: int, num_steps: int, unit: str = "step"
) -> "Bar | Lines":
    """What suits where the output goes."""
    ipython = _ipython_of_notebook()
    if ipython is not None:
        return Bar(label, first_step, num_steps, unit, _NotebookOutput(ipython))
    if sys.stderr.isatty():
        return Bar(label, first_step, num_steps, unit, sys.stderr)
    return Lines(label, first_step, num_steps, unit)


class Bar:
    """A bar that moves, for terminals and notebooks."""

    def __init__(
        self, label: str, first_step: int, num_steps: int, unit: str, file: Any
    ):
        self.label = label
        self.bar = tqdm(
            total=num_steps,
            initial=first_step,
            desc=label,
            unit=unit,
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


class Lines:
    """A line now and then, without carriage returns, for files."""

    def __init__(self, label: str, first_step: int, num_steps: int, unit: str):
        self.label = label
        self.unit = unit
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
                f"{step}/{self.num_steps} {self.unit}s, {shown}, {rate:.3g} {self.unit}s/s, "
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
