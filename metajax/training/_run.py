"""What changes during a run."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from metajax.training._record import Record
from metajax.training._source import Source
from metajax.types import PyTree, Trainer, TrainState

# One program, not one for each shape.
_copy = jax.jit(partial(jax.tree.map, jnp.copy))


class Run:
    """The state of a run, its record, and the best meta-parameters so far.

    Attributes:
      state: a copy, since `Trainer.run` takes its buffers over.
      step: the meta-step that it has reached.
      first_step: the meta-step at which this process took it up.
      record: the metrics and validations.
      resumed: whether it comes from a checkpoint.
      num_items: how many items of an iterable of data it had before that.
    """

    def __init__(
        self,
        state: TrainState,
        best: PyTree,
        record: Record,
        resumed: bool,
        num_items: int = 0,
    ):
        self.state, self._best = _copy((state, best))
        self.step = int(state.step)
        self.first_step = self.step
        self.record = record
        self.resumed = resumed
        self.num_items = num_items

    @classmethod
    def new(cls, state: TrainState) -> "Run":
        """A run that begins with ``state``."""
        record = Record(int(state.step))
        return cls(state, state.meta_params, record, resumed=False)

    @property
    def best(self) -> PyTree:
        """The meta-parameters of the lowest finite validation loss; without one, the latest."""
        is_known = np.isfinite(self.record.best_validation())
        return self._best if is_known else self.state.meta_params

    def advance(self, trainer: Trainer, source: Source, until: int) -> None:
        """Trains until the meta-step ``until``, or until too many of them are skipped."""
        data = source.take()
        state, buffers = trainer.run(self.state, data, until - self.step)
        self.num_items = source.num_taken
        taken = int(state.step) - self.step

        # First, as it refuses other metrics than before: nothing shall be saved that lacks them.
        self.record.append({name: np.array(x)[:taken] for name, x in buffers.items()})
        self.state = state
        self.step += taken

    def reset_skipped(self) -> None:
        """Makes the state ready to be tried again."""
        zero = jnp.zeros_like(self.state.skipped)
        self.state = self.state._replace(skipped=zero)

    def add_validation(self, loss: float) -> None:
        """Notes the loss of the present meta-parameters, and keeps them if they are the best."""
        if np.isfinite(loss) and loss < self.record.best_validation():
            self._best = _copy(self.state.meta_params)
        self.record.validations[self.step] = loss
