"""Signals that end a run, but not before it is saved."""

import signal
import sys
import threading
from types import FrameType
from typing import Any

from metajax.sharding import _hosts as hosts

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Notes SIGINT and SIGTERM instead of dying of them; a second Ctrl-C interrupts at once."""

    def __init__(self, enabled: bool):
        self.enabled = enabled
        self.received = 0
        self.previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Signals":
        # Python lets no other thread set handlers.
        if self.enabled and threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # What is ignored, as by a job in the background of a shell, stays ignored.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def agreed(self) -> int:
        """The signal that one of the hosts has received, on all of them; 0 if there is none."""
        return hosts.maximum(self.received) if self.enabled else 0

    def leave(self, label: str, where: str) -> None:
        """Ends the program if a signal has asked for it."""
        number = self.agreed()
        if not number:
            return
        message = (
            f"{label}: stopped by {signal.Signals(number).name} {hosts.agreed(where)}"
        )
        if number == signal.SIGINT:
            raise KeyboardInterrupt(message)
        if hosts.is_first():
            print(message, file=sys.stderr, flush=True)
        raise SystemExit(128 + number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
