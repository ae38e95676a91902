"""The store of a run's snapshots: files that appear whole, are verified, and belong to one run."""

import concurrent.futures
import contextlib
import operator
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
from filelock import FileLock

from metajax._arguments import NonNegative, PositiveInt, check, checked
from metajax.sharding import _hosts as hosts
from metajax.training import _snapshot
from metajax.training._lock import lock_folder
from metajax.training._snapshot import Arrays, Snapshot
from metajax.training._warnings import warn
from metajax.types import PyTree

_NAME = re.compile(r"(0|[1-9][0-9]*)\.npz")
_UNFINISHED_NAME = re.compile(r"[0-9]+\.npz\.part")


class Checkpoints(NamedTuple):
    """Where the snapshots of a run are kept, made by `metajax.checkpoints`.

    Attributes:
      save: ``(Snapshot) -> None``, starts to write and returns; the snapshot is copied before it
        does.
      wait: ``() -> None``, returns when all is written, or raises what went wrong since the last
        call.
      restore: ``(like) -> Snapshot | None``, the newest that is whole, its tree like ``like``.
      close: ``() -> None``, gives up the directory and the thread; saving and restoring take them
        again.
      every: meta-steps between two snapshots.
      where: the directory, for messages.
    """

    save: Callable[[Snapshot], None]
    wait: Callable[[], None]
    restore: Callable[[PyTree], Snapshot | None]
    close: Callable[[], None]
    every: int
    where: str


@checked
def checkpoints(
    directory: str | os.PathLike,
    every: PositiveInt = 100,
    keep: PositiveInt = 3,
    tag: str = "",
) -> Checkpoints:
    """Keeps the last ``keep`` snapshots of a run in ``directory``, a folder for this run alone.

    A snapshot is one file, ``STEP.npz``. It is written in the background and appears whole or not
    at all. It carries the SHA-256 of what is in it, verified on loading: where the newest is
    damaged, the one before it is used and a warning says so; the damaged one is set aside as
    ``damaged-STEP.npz``. Loading runs no code from the file.

    From the first save or restore until ``close``, which `fit` calls at its end, the directory is
    locked against other processes. The lock is the operating system's and ends with the process,
    however that ends.

    On several hosts all call each function, with the same arguments. Only the first touches the
    directory, and what it restores it tells the others. Each array is saved whole and comes back
    placed as ``like`` is: on other numbers of devices and hosts, too.

    Args:
      directory: on a local or mounted file system; made if it is not there.
      every: meta-steps between two snapshots.
      keep: how many are kept.
      tag: the version of what is learned; a checkpoint of another tag is refused.

    Raises:
      ValueError: on loading, a checkpoint with another tag or another tree, whose message names
        each difference, or a directory in which no checkpoint is whole.
      RuntimeError: on saving and loading, another process has locked the directory; the message
        says which.

    >>> import jax, metajax as mx, tempfile
    >>> store = mx.checkpoints(tempfile.mkdtemp(), every=10, tag="v1")
    >>> tree = {"key": jax.random.key(3), "rate": jax.numpy.float32(0.5)}
    >>> store.save(mx.Snapshot(10, tree, {"loss": jax.numpy.arange(10.0)}))
    >>> store.wait()
    >>> step, same, arrays = store.restore(tree)
    >>> step, float(same["rate"]), arrays["loss"].shape
    (10, 0.5, (10,))
    >>> store.close()
    """
    folder = Path(directory).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"directory must be a folder, but {folder} is a file; give a folder for this run alone"
        )
    store = _Store(folder, keep, tag)
    return Checkpoints(
        store.save, store.wait, store.restore, store.close, every, str(folder)
    )


class _Store:
    """A folder of snapshots, the lock on it, and the thread that writes them."""

    def __init__(self, folder: Path, keep: int, tag: str):
        self.folder = folder
        self.keep = keep
        self.tag = tag
        self.lock: FileLock | None = None
        self.thread: concurrent.futures.ThreadPoolExecutor | None = None
        self.writes: list[concurrent.futures.Future[None]] = []

    def save(self, snapshot: Snapshot) -> None:
        whole_tree = jax.tree.map(hosts.gathered, snapshot.tree)
        if not hosts.is_first():
            return
        self._open()
        step = operator.index(snapshot.step)
        check(NonNegative, step=step)
        whole = Snapshot(step, whole_tree, snapshot.arrays)
        members = _snapshot.pack(whole, self.tag)

        # One at a time, so that no more than two are in memory.
        concurrent.futures.wait(self.writes)
        if self.thread is None:
            self.thread = concurrent.futures.ThreadPoolExecutor(
                1, "metajax-checkpoints"
            )
        write = self.thread.submit(self._write, step, members)
        self.writes.append(write)

    def wait(self) -> None:
        concurrent.futures.wait(self.writes)
        writes = self.writes
        self.writes = []
        for write in writes:
            write.result()

    def restore(self, like: PyTree) -> Snapshot | None:
        (step, damaged), data = hosts.run_on_first(self._newest)
        if step is None:
            if damaged:
                raise ValueError(_none_is_whole(self.folder, damaged))
            return None
        try:
            description, arrays = _snapshot.read(data)
            snapshot = _snapshot.unpack(description, arrays, like, self.tag)
        except _snapshot.RefusedError as e:
            raise ValueError(
                f"the checkpoint of step {step} in {self.folder} {e}"
            ) from None
        if hosts.is_first():
            for damaged_step, reason in damaged:
                self._set_aside(damaged_step, reason, step)
        return snapshot

    def close(self) -> None:
        try:
            self.wait()
        finally:
            if self.thread is not None:
                self.thread.shutdown()
                self.thread = None
            if self.lock is not None:
                self.lock.release()
                self.lock = None

    def _open(self) -> None:
        """Takes the folder, and sweeps away what a killed write has left in it."""
        if self.lock is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = lock_folder(self.folder)
        for path in self.folder.iterdir():
            if _UNFINISHED_NAME.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _path(self, step: int) -> Path:
        return self.folder / f"{step}.npz"

    def _steps(self) -> list[int]:
        steps = []
        for path in self.folder.iterdir():
            if match := _NAME.fullmatch(path.name):
                steps.append(int(match[1]))
        return sorted(steps)

    def _write(self, step: int, members: Arrays) -> None:
        """Writes one file beside its place, moves it there, and removes the oldest."""
        unfinished = self.folder / f"{step}.npz.part"
        try:
            with unfinished.open("wb") as file:
                _snapshot.write(file, members)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, self._path(step))
        finally:
            unfinished.unlink(missing_ok=True)

        older = [other for other in reversed(self._steps()) if other < step]
        for other in older[self.keep - 1 :]:
            # One too many costs space, and no more.
            with contextlib.suppress(OSError):
                self._path(other).unlink()

    def _refuse_folders(self) -> None:
        """Says that the checkpoints are of metajax 0.1.0, which made a folder of each."""
        if any(
            path.is_dir() and path.name.isdecimal() for path in self.folder.iterdir()
        ):
            raise ValueError(
                f"the checkpoints in {self.folder} were made by metajax 0.1.0: finish their run "
                f"with that, or give another directory"
            )

    def _newest(self) -> tuple[tuple[int | None, list[tuple[int, str]]], bytes]:
        """The step of the newest file that is whole, the damaged ones before it, and its bytes."""
        self._open()
        self.wait()
        self._refuse_folders()
        damaged = []
        for step in reversed(self._steps()):
            try:
                data = self._path(step).read_bytes()
                description, _ = _snapshot.read(data)
                if description.step != step:
                    raise ValueError(f"it is the checkpoint of step {description.step}")
            except _snapshot.RefusedError:
                return (step, damaged), data
            except Exception as e:
                reason = f"{type(e).__name__}: {e}".splitlines()[0]
                damaged.append((step, reason[:200]))
                continue
            return (step, damaged), data
        return (None, damaged), b""

    def _set_aside(self, damaged_step: int, reason: str, step: int) -> None:
        name = f"damaged-{damaged_step}.npz"
        os.replace(self._path(damaged_step), self.folder / name)
        warn(
            f"the checkpoint of step {damaged_step} in {self.folder} is damaged ({reason}); it was "
            f"set aside as {name}, and the run goes on from step {step}"
        )


def _none_is_whole(folder: Path, damaged: list[tuple[int, str]]) -> str:
    reasons = "\n".join(f"  step {step}: {reason}" for step, reason in damaged)
    return f"no checkpoint in {folder} is whole; move the folder away to start anew:\n{reasons}"
