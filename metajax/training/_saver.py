"""Saving a run through its checkpoints, and taking it up again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax._trees import all_finite
from metajax.training._checkpoints import Checkpoints
from metajax.training._record import Record
from metajax.training._run import Run
from metajax.training._snapshot import Snapshot
from metajax.training._warnings import warn
from metajax.types import TrainState

_FULL = "No space left on device"


class Saver:
    """Saves and restores runs; what goes wrong with a write costs that write, and a warning.

    Attributes:
      saved: the meta-step of the newest snapshot that is on the disk.
    """

    def __init__(self, checkpoint: Checkpoints | None):
        self.checkpoint = checkpoint
        self.where = "" if checkpoint is None else checkpoint.where
        self.saved: int | None = None
        self._tried: int | None = None
        self._pending: int | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.finish()
        if self.checkpoint is not None:
            self.checkpoint.close()

    def restore_run(self, state: TrainState) -> Run | None:
        """The run as it was saved; ``state`` says what it began with."""
        if self.checkpoint is None:
            return None
        like = {"state": state, "best": state.meta_params}
        snapshot = self.checkpoint.restore(like)
        if snapshot is None:
            return None
        key = np.array(jax.random.key_data(state.key))
        if not np.array_equal(snapshot.arrays["key"], key):
            raise ValueError(
                f"the checkpoints in {self.where} are of a run that began with another key; give "
                f"another directory for another seed"
            )
        self.saved = snapshot.step
        record = Record.from_arrays(snapshot.arrays)
        num_items = int(snapshot.arrays["items"])
        return Run(**snapshot.tree, record=record, resumed=True, num_items=num_items)

    def save_if_due(self, run: Run, ends: bool) -> None:
        """Saves every so many meta-steps, and at the end."""
        if self.checkpoint is not None and (
            ends or run.step % self.checkpoint.every == 0
        ):
            self.save(run)

    def save(self, run: Run) -> None:
        """Begins to write, unless there is nothing new or it is not finite."""
        if self.checkpoint is None or run.step in (run.first_step, self._tried):
            return
        # An error within a chunk has left nothing to save.
        leaves = jax.tree.leaves(run.state)
        if any(x.is_deleted() for x in leaves):
            return
        self.finish()
        # Not whether it worked, which only the first of several hosts knows.
        self._tried = run.step

        if not _is_sound(run.state):
            self._warn(
                run.step, "its meta-parameters or its optimizer's state are not finite"
            )
            return
        tree = {"state": run.state, "best": run.best}
        arrays = run.record.arrays()
        arrays["key"] = np.array(jax.random.key_data(run.state.key))
        arrays["items"] = np.array(run.num_items)
        try:
            self.checkpoint.save(Snapshot(run.step, tree, arrays))
            self._pending = run.step
        except Exception as e:
            self._warn(run.step, e)

    def finish(self) -> None:
        """Waits until what was begun is on the disk."""
        if self.checkpoint is None or self._pending is None:
            return
        try:
            self.checkpoint.wait()
            self.saved = self._pending
        except Exception as e:
            self._warn(self._pending, e)
        finally:
            self._pending = None

    @contextmanager
    def on_error(self, run: Run) -> Iterator[None]:
        """Saves the run when something else fails, such as a callback."""
        try:
            yield
        except Exception:
            # Of several hosts one may fail alone, and saving takes all of them.
            if jax.process_count() == 1:
                self.save(run)
            raise

    def status(self) -> str:
        """How to go on from here."""
        if self.saved is None:
            return "nothing was saved yet: run the same script again to start anew"
        where = f"saved at meta-step {self.saved} in {self.where}"
        return f"{where}: run the same script again to go on"

    def _warn(self, step: int, reason: str | Exception) -> None:
        reason = str(reason) or type(reason).__name__
        reason = _FULL if _FULL in reason else reason[:300]
        last = f"the last is of meta-step {self.saved}"
        if self.saved is None:
            last = "there is none yet"
        warn(
            f"the checkpoint of meta-step {step} was not written to {self.where}: {reason}. "
            f"The run goes on; {last}"
        )


def _is_sound(state: TrainState) -> bool:
    """Whether all is finite; an optimizer may hold infinity, as the lowest loss so far begins."""
    nans = jax.tree.map(_num_nans, state.opt_state)
    return bool(all_finite(state.meta_params)) and not any(jax.tree.leaves(nans))


def _num_nans(x: jax.Array) -> int:
    is_float = jnp.issubdtype(x.dtype, jnp.inexact)
    return int(jnp.isnan(x).sum()) if is_float else 0
