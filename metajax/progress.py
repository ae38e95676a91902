"""Progress of long work: a bar in terminals and notebooks, plain lines in a log."""

import sys
import time

from tqdm.auto import tqdm


class Progress:
    """A context manager with ``update(n, **numbers)``; lines without carriage returns where stderr is a file."""

    def __init__(self, total: int, label: str, show: bool = True, every: float = 10.0):
        self.total, self.label, self.every, self.done = total, label, every, 0
        interactive = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.bar = tqdm(total=total, desc=label, unit="step", leave=True) if show and interactive else None
        self.lines = show and not interactive
        self.start = self.last = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, n: int, **numbers: float) -> None:
        """Adds ``n`` finished steps and shows the latest numbers."""
        self.done += n
        shown = {name: f"{value:.4g}" for name, value in numbers.items()}
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(n)
        now = time.monotonic()
        if self.lines and (now - self.last >= self.every or self.done >= self.total):
            self.last = now
            rate = self.done / max(now - self.start, 1e-9)
            left = (self.total - self.done) / rate
            text = " ".join(f"{name} {value}" for name, value in shown.items())
            print(
                f"{self.label}: {self.done}/{self.total} steps, {text}, {rate:.3g} steps/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
