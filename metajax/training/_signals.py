"""Signals that end a run, but not before it is saved."""

import signal
import socket
import sys
import threading
from types import FrameType
from typing import Any

from metajax.sharding import _hosts as hosts

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Notes SIGINT and SIGTERM instead of dying of them; a second Ctrl-C interrupts at once."""

    def __init__(self, enabled: bool, label: str):
        self.enabled = enabled
        self.label = label
        self.announcer: _Announcer | None = None
        self.received = 0
        self.previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Signals":
        # Python lets no other thread set handlers.
        if self.enabled and threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # What is ignored, as by a job in the background of a shell, stays ignored.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.previous[number] = signal.signal(number, self._note)
            if hosts.is_first():
                self.announcer = _Announcer(self.label)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}
        if self.announcer is not None:
            self.announcer.close()
            self.announcer = None

    def agreed(self) -> int:
        """The signal that one of the hosts has received, on all of them; 0 if there is none."""
        return hosts.maximum(self.received) if self.enabled else 0

    def leave(self, where: str) -> None:
        """Ends the program if a signal has asked for it."""
        number = self.agreed()
        if not number:
            return
        message = f"{self.label}: stopped by {signal.Signals(number).name} {hosts.agreed(where)}"
        if number == signal.SIGINT:
            raise KeyboardInterrupt(message)
        if hosts.is_first():
            print(message, file=sys.stderr, flush=True)
        raise SystemExit(128 + number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


class _Announcer:
    """Says at once that a signal has come, from a thread of its own.

    Python calls a handler between two of its own instructions, and the compiler, which can take
    minutes, is one. The number of the signal arrives in a socket before that.
    """

    def __init__(self, label: str):
        self.label = label
        self.receiver, self.sender = socket.socketpair()
        self.sender.setblocking(False)
        self.previous = signal.set_wakeup_fd(
            self.sender.fileno(), warn_on_full_buffer=False
        )
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        while number := self.receiver.recv(1):
            if number[0] in _SIGNALS:
                name = signal.Signals(number[0]).name
                print(
                    f"{self.label}: {name} received, stopping after the steps that are running, or "
                    f"after their compilation",
                    file=sys.stderr,
                    flush=True,
                )
                return

    def close(self) -> None:
        signal.set_wakeup_fd(self.previous)
        self.sender.close()
        self.thread.join()
        self.receiver.close()
