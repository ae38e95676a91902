"""Checkpoints of a run on orbax: asynchronous, atomic, verified, and refused where they do not
fit.
"""

import contextlib
import datetime
import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax.sharding import _hosts as hosts
from metajax.types import PyTree

_FORMAT = 1


class Snapshot(NamedTuple):
    """What a checkpoint holds.

    Attributes: step: the meta-step it was made at. tree: a pytree of arrays, typed keys among them;
      its structure, shapes and dtypes must fit on loading. arrays: NumPy arrays of any shape by
      name, such as the history, which grows.
    """

    step: int
    tree: PyTree
    arrays: dict[str, np.ndarray]


class Checkpoints(NamedTuple):
    """Where the snapshots of a run are kept, made by `metajax.checkpoints`.

    Attributes: save: ``(Snapshot) -> None``, starts to write and returns; the snapshot is copied
      before it does. wait: ``() -> None``, returns when all is written, or raises what went wrong
      since the last call. restore: ``(like) -> Snapshot | None``, the newest that is whole, its
      tree like ``like``. close: ``() -> None``, gives up the directory and the threads; saving and
      restoring take them again. every: meta-steps between two snapshots. where: the directory, for
      messages.
    """

    save: Callable[[Snapshot], None]
    wait: Callable[[], None]
    restore: Callable[[PyTree], Snapshot | None]
    close: Callable[[], None]
    every: int
    where: str


def checkpoints(
    directory: str | os.PathLike, every: int = 100, keep: int = 3, tag: str = ""
) -> Checkpoints:
    """Keeps the last ``keep`` snapshots of a run in ``directory``, a folder for this run alone.

    A snapshot is written in the background by orbax and appears whole or not at all. It carries the
    SHA-256 of what is in it, verified on loading: where the newest is damaged, the one before it is
    used and a warning says so; the damaged one is set aside as ``damaged-STEP``. Loading runs no
    code from the file: the item ``data`` is one array of bytes, and the item ``meta`` says in JSON
    which arrays follow each other there.

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

    Raises: TypeError, ValueError: bad arguments, here; on loading, a checkpoint with another tag or
      another tree, whose message names each difference, or a directory in which no checkpoint is
      whole. RuntimeError: on saving and loading, another process has locked the directory; the
      message says which.

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
    if not isinstance(directory, (str, os.PathLike)):
        raise TypeError(f"directory must be a path, got {type(directory).__name__}")
    path = Path(directory).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"directory must be a folder, but {path} is a file; give a folder for this run alone"
        )
    _checks.positive_int(every=every, keep=keep)
    if not isinstance(tag, str):
        raise TypeError(
            f"tag must be a string such as 'v1', got {tag!r} of type {type(tag).__name__}"
        )
    opened: list[Any] = []  # an orbax CheckpointManager
    locks: list[int] = []

    def lock():
        if not locks:
            path.mkdir(parents=True, exist_ok=True)
            locks.extend(_lock(path))

    def manager():
        if not opened:
            _sweep(path)
            logging.getLogger("absl").addFilter(_reported_by_us)
            ocp = _orbax()
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=False,
                # Folders made in the background leave threads that wait for five minutes when a
                # write fails.
                async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
                # Of several hosts only the first saves: it waits for no other.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=0, active_processes={0}
                ),
            )
            opened.append(ocp.CheckpointManager(path, options=options))
        return opened[0]

    def shut():
        if opened:
            try:
                opened.pop().close()
            finally:
                logging.getLogger("absl").removeFilter(_reported_by_us)

    def close():
        try:
            shut()
        finally:
            while locks:
                os.close(locks.pop())

    def recover():
        # After a failed write orbax has lost count of what it keeps, and what was half written
        # takes up room.
        try:
            shut()
        except Exception:
            opened.clear()
        _sweep(path)

    def save(snapshot):
        snapshot = snapshot._replace(tree=jax.tree.map(hosts.gathered, snapshot.tree))
        if not hosts.is_first():
            return
        lock()
        data, meta = _pack(snapshot, tag)
        ocp = _orbax()
        try:
            # One array: a failure among many leaves the others behind, each with a traceback of its
            # own.
            items = ocp.args.Composite(
                data=ocp.args.StandardSave({"bytes": data}), meta=ocp.args.JsonSave(meta)
            )
            manager().save(snapshot.step, args=items, force=True)
        except Exception:
            recover()
            raise

    def wait():
        if opened:
            try:
                manager().wait_until_finished()
            except Exception:
                recover()
                raise

    def find():
        """The newest that is whole: its step, what it says of itself, and its bytes; and the
        damaged ones.
        """
        lock()
        wait()
        shut()  # scan the directory afresh
        damaged = []
        for step in sorted(manager().all_steps(), reverse=True):
            try:
                meta, data = _read(manager(), step)
            except Exception as e:
                damaged.append([step, f"{type(e).__name__}: {e}".splitlines()[0][:200]])
                continue
            return [step, meta, damaged], data
        return [None, None, damaged], b""

    def restore(like):
        (step, meta, damaged), data = hosts.run_on_first(find)
        if step is None and damaged:
            reasons = "\n".join(f"  step {bad}: {why}" for bad, why in damaged)
            raise ValueError(
                f"no checkpoint in {path} is whole; move the folder away to start anew:\n{reasons}"
            )
        if step is None:
            return None
        snapshot = _unpack(data, meta, like, tag, f"the checkpoint of step {step} in {path}")
        if damaged and hosts.is_first():
            shut()
            for bad, why in damaged:
                _set_aside(path, bad)
                warnings.warn(
                    f"the checkpoint of step {bad} in {path} is damaged ({why}); it was set aside as "
                    f"damaged-{bad}, and the run goes on from step {step}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return snapshot

    return Checkpoints(save, wait, restore, close, every, str(path))


def _pack(snapshot: Snapshot, tag: str) -> tuple[np.ndarray, dict[str, Any]]:
    """All bytes one after another, and the JSON that says what they are."""
    tree = _named(snapshot.tree)
    arrays = {f"arrays/{name}": np.asarray(x) for name, x in snapshot.arrays.items()}
    arrays |= {
        f"tree/{name}": np.asarray(jax.random.key_data(x) if _is_key(x) else x)
        for name, x in tree.items()
    }
    data = (
        b"".join(x.tobytes() for x in arrays.values()) or b"\0"
    )  # orbax refuses arrays of no size
    body = {
        "format": _FORMAT,
        "tag": tag,
        "step": snapshot.step,
        "tree": {name: _kind(x) for name, x in tree.items()},
        "layout": [[name, x.dtype.name, list(x.shape)] for name, x in arrays.items()],
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    return np.frombuffer(data, np.uint8), {"body": body, "sha256": _digest(body)}


def _orbax() -> Any:
    import orbax.checkpoint  # a fifth of the time that importing metajax took

    return orbax.checkpoint


def _read(manager: Any, step: int) -> tuple[dict[str, Any], bytes]:
    """The JSON and the bytes of a step, verified."""
    ocp = _orbax()
    # One of them after the other: a reader that is left behind by the failure of another would be
    # heard of.
    meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    body = meta["body"]
    if _digest(body) != meta["sha256"]:
        raise ValueError("its description does not match its digest")
    data = manager.restore(step, args=ocp.args.Composite(data=ocp.args.StandardRestore()))["data"][
        "bytes"
    ].tobytes()
    if hashlib.sha256(data).hexdigest() != body["sha256"]:
        raise ValueError("its data do not match their digest")
    return body, data


def _unpack(data: bytes, meta: dict[str, Any], like: PyTree, tag: str, what: str) -> Snapshot:
    if meta["format"] != _FORMAT:
        raise ValueError(
            f"{what} has the format {meta['format']}, this version of metajax reads {_FORMAT}"
        )
    if meta["tag"] != tag:
        raise ValueError(
            f"{what} has the tag {meta['tag']!r}, want {tag!r}; give another directory, or the same tag"
        )
    leaves = _named(like)
    want = {name: _kind(x) for name, x in leaves.items()}
    wrong = [
        f"  {name}: got {meta['tree'].get(name, 'nothing')}, want {want.get(name, 'nothing')}"
        for name in sorted(want.keys() | meta["tree"].keys())
        if meta["tree"].get(name) != want.get(name)
    ]
    if wrong:
        more = f"\n  and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(
            f"{what} is of another run: give another directory, or train what it was made for\n"
            + "\n".join(wrong[:8])
            + more
        )
    arrays, at = {}, 0
    for name, dtype, shape in meta["layout"]:
        count = math.prod(shape)
        arrays[name] = (
            np.frombuffer(data, jnp.dtype(dtype), count, at).reshape(shape)
            if count
            else np.zeros(shape, dtype)
        )
        at += arrays[name].nbytes
    tree = jax.tree.unflatten(
        jax.tree.structure(like), [_place(arrays[f"tree/{name}"], x) for name, x in leaves.items()]
    )
    return Snapshot(
        meta["step"],
        tree,
        {name[7:]: np.array(x) for name, x in arrays.items() if name.startswith("arrays/")},
    )


def _place(x: np.ndarray, like: Any) -> jax.Array:
    """An array where ``like`` is, a typed key if that is one."""
    y = (
        jax.random.wrap_key_data(jnp.array(x), impl=jax.random.key_impl(like))
        if _is_key(like)
        else jnp.array(x)
    )
    return hosts.put(y, like.sharding) if getattr(like, "committed", False) else y


def _named(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
    if len(named) != len(leaves):
        raise ValueError("the tree of a snapshot has two leaves of one path; rename one")
    return named


def _kind(x: Any) -> str:
    x = x if hasattr(x, "dtype") else np.asarray(x)
    return f"{x.dtype}{list(x.shape)}"


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _lock(path: Path) -> list[int]:
    """Locks the directory against all other stores; the file descriptor that holds the lock, if
    there are locks.
    """
    try:
        file = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # a file system that cannot be written to
        return []
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        who = os.read(file, 200).decode(errors="replace")
        os.close(file)
        raise RuntimeError(
            f"the checkpoints in {path} are in use by another run, {who or 'an unknown process'}; give each run a "
            f"directory of its own, or end the other first"
        ) from None
    except OSError as e:
        warnings.warn(
            f"two runs in {path} would not be noticed: its file system has no locks, {e}",
            stacklevel=4,
        )
    now = datetime.datetime.now().isoformat(" ", "seconds")
    with contextlib.suppress(OSError):  # a full disk
        os.pwrite(
            file,
            f"process {os.getpid()} on {socket.gethostname()} since {now}".ljust(100).encode(),
            0,
        )
    return [file]


def _sweep(path: Path) -> None:
    """Removes what a killed or failed write has left."""
    for left in path.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(left, ignore_errors=True)


def _set_aside(path: Path, step: int) -> None:
    target = path / f"damaged-{step}"
    shutil.rmtree(target, ignore_errors=True)
    (path / str(step)).rename(target)


def _reported_by_us(record: logging.LogRecord) -> bool:
    # A full disk makes orbax log hundreds of lines of tracebacks; the exception it raises says it
    # all.
    return not (record.levelno >= logging.WARNING and "orbax" in record.pathname)
