"""A folder for one process at a time."""

import contextlib
import datetime
import errno
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from metajax.training._warnings import warn

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


def lock_folder(folder: Path) -> FileLock:
    """Locks a folder against all others; they are told who has it.

    The lock is the operating system's and ends with the process, however that ends.

    Raises:
      RuntimeError: another has locked it.
    """
    # A lock that is only a file would outlive a process that was killed.
    lock = FileLock(folder / ".lock", thread_local=False, fallback_to_soft=False)
    owner = folder / ".lock-owner"
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise RuntimeError(
            f"the checkpoints in {folder} are in use by another run, {_read(owner)}; give each run "
            f"a directory of its own, or end the other first"
        ) from None
    except OSError as e:
        # Where nothing can be written, no other run can write either.
        if e.errno not in _READ_ONLY:
            warn(
                f"two runs in {folder} would not be noticed: its file system has no locks, {e}"
            )
    _write(owner)
    return lock


def _read(owner: Path) -> str:
    try:
        return owner.read_text(errors="replace") or "an unknown process"
    except OSError:
        return "an unknown process"


def _write(owner: Path) -> None:
    now = datetime.datetime.now().isoformat(" ", "seconds")
    text = f"process {os.getpid()} on {socket.gethostname()} since {now}"
    # A full disk, or one that cannot be written to.
    with contextlib.suppress(OSError):
        owner.write_text(text)
