"""The record of a run: its metrics and validations, as arrays and as rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Rows = Sequence[dict[str, Any]]


class Record:
    """The metrics of each meta-step after ``start``, and the validations.

    Attributes:
      start: the meta-step at which the record begins.
      reported: the meta-step up to which callbacks have been given rows.
      validations: the loss by the meta-step.
    """

    def __init__(self, start: int):
        self.start = start
        self.reported = start
        self.validations: dict[int, float] = {}
        self._num_steps = 0
        self._buffers: Arrays = {}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Record":
        """The record that `arrays` has put into a checkpoint."""
        record = cls(int(arrays["start"]))
        record.reported = int(arrays["reported"])
        steps = arrays["validation/step"].tolist()
        losses = arrays["validation/loss"].tolist()
        record.validations = dict(zip(steps, losses, strict=True))

        history = {}
        for name, values in arrays.items():
            if name.startswith("history/"):
                history[name.removeprefix("history/")] = values
        if history:
            record.append(history)
        return record

    def arrays(self) -> Arrays:
        """All of it, as it goes into a checkpoint."""
        validation = self.validation()
        arrays = {
            "start": np.array(self.start),
            "reported": np.array(self.reported),
            "validation/step": validation["step"],
            "validation/loss": validation["loss"],
        }
        for name, values in self.history().items():
            arrays[f"history/{name}"] = values
        return arrays

    def append(self, metrics: Arrays) -> None:
        """Adds the metrics of ``n`` meta-steps, each ``[n, ...]``."""
        if self._buffers and set(metrics) != set(self._buffers):
            raise ValueError(
                f"trainer reports the metrics {sorted(metrics)}, the history of the checkpoint has "
                f"{sorted(self._buffers)}; give another directory for checkpoints"
            )
        for name, values in metrics.items():
            buffer = self._buffers.get(name, values[:0])
            self._buffers[name] = _put(values, buffer, self._num_steps)
        self._num_steps += len(metrics["loss"])

    def history(self, after: int | None = None) -> Arrays:
        """Each metric of the meta-steps after ``after``, by default of all, ``[steps, ...]``."""
        begin = 0 if after is None else after - self.start
        steps = slice(begin, self._num_steps)
        return {name: buffer[steps] for name, buffer in self._buffers.items()}

    def validation(self) -> Arrays:
        """The steps and the losses of the validations, each ``[validations]``."""
        steps = list(self.validations.keys())
        losses = list(self.validations.values())
        return {"step": np.array(steps, np.int64), "loss": np.array(losses, np.float64)}

    def best_validation(self) -> float:
        """The lowest finite loss, infinity where there is none."""
        losses = self.validation()["loss"]
        finite = losses[np.isfinite(losses)]
        return float(finite.min(initial=np.inf))

    def restart_validations(self, loss: float) -> None:
        """Keeps of the validations the best alone, whose loss is now ``loss``."""
        best = self.best_validation()
        step, *_ = [step for step, x in self.validations.items() if x == best]
        self.validations = {step: loss}

    def rows(self, after: int) -> list[dict[str, Any]]:
        """A dict for each meta-step after ``after``: its number and its metrics.

        Once there are validations, each has ``validation`` too, None where there was none.
        """
        history = self.history(after)
        last = self.start + self._num_steps
        rows = []
        for i, step in enumerate(range(after + 1, last + 1)):
            row: dict[str, Any] = {"step": step}
            for name, values in history.items():
                row[name] = _number(values[i])
            if self.validations:
                row["validation"] = self.validations.get(step)
            rows.append(row)
        return rows


def _put(values: np.ndarray, buffer: np.ndarray, at: int) -> np.ndarray:
    """The buffer with ``values`` at ``at``, where it ends; where it has no room, a larger one."""
    end = at + len(values)
    if end <= len(buffer):
        buffer[at:end] = values
        return buffer
    filled = buffer[:at]
    # As much again to spare: a long run shall not copy its history at every chunk.
    return np.concatenate([filled, values, np.zeros_like(filled)])


def _number(x: Any) -> Any:
    """A Python number, or nested lists of them."""
    if np.ndim(x):
        return [_number(element) for element in x]
    dtype = np.asarray(x).dtype
    is_bfloat16 = dtype.kind == "V"
    if np.issubdtype(dtype, np.floating) or is_bfloat16:
        # The shortest decimal that reads back as the same float32, not the digits of its float64.
        return float(str(x))
    return x.item()
