"""The record of a run: its metrics and validations, as arrays and as rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Rows = Sequence[dict[str, Any]]

_HISTORY = "history/"


class Record:
    """The metrics of each meta-step after ``start``, and the validations.

    Attributes:
      start: the meta-step at which the record begins.
      reported: the meta-step up to which callbacks have been given rows.
      validations: ``(meta-step, loss)`` of each.
    """

    def __init__(self, start: int):
        self.start = start
        self.reported = start
        self.validations: list[tuple[int, float]] = []
        self._num_steps = 0
        self._buffers: dict[str, np.ndarray] = {}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Record":
        """The record that `arrays` has put into a checkpoint."""
        record = cls(int(arrays["start"]))
        record.reported = int(arrays["reported"])
        steps = arrays["validation/step"].tolist()
        losses = arrays["validation/loss"].tolist()
        record.validations = list(zip(steps, losses, strict=True))

        names = [name for name in arrays if name.startswith(_HISTORY)]
        if names:
            record.append({name.removeprefix(_HISTORY): arrays[name] for name in names})
        return record

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, as it goes into a checkpoint."""
        validation = self.validation()
        arrays = {
            "start": np.array(self.start),
            "reported": np.array(self.reported),
            "validation/step": validation["step"],
            "validation/loss": validation["loss"],
        }
        for name, values in self.history().items():
            arrays[_HISTORY + name] = values
        return arrays

    def append(self, metrics: Mapping[str, np.ndarray]) -> None:
        """Adds the metrics of ``n`` meta-steps, each ``[n, ...]``."""
        if not self._buffers:
            self._buffers = {name: values[:0] for name, values in metrics.items()}
        if set(metrics) != set(self._buffers):
            raise ValueError(
                f"trainer reports the metrics {sorted(metrics)}, the history of the checkpoint has "
                f"{sorted(self._buffers)}; give another directory for checkpoints"
            )
        end = self._num_steps
        for name, values in metrics.items():
            end = self._num_steps + len(values)
            self._buffers[name] = _with_room(self._buffers[name], end)
            self._buffers[name][self._num_steps : end] = values
        self._num_steps = end

    def history(self, after: int | None = None) -> dict[str, np.ndarray]:
        """Each metric of the meta-steps after ``after``, by default of all, ``[steps, ...]``."""
        begin = 0 if after is None else after - self.start
        return {name: x[begin : self._num_steps] for name, x in self._buffers.items()}

    def validation(self) -> dict[str, np.ndarray]:
        """The steps and the losses of the validations, each ``[validations]``."""
        return {
            "step": np.array([step for step, _ in self.validations], np.int64),
            "loss": np.array([loss for _, loss in self.validations], np.float64),
        }

    def best_validation(self) -> float:
        """The lowest finite loss, infinity where there is none."""
        losses = self.validation()["loss"]
        return float(losses[np.isfinite(losses)].min(initial=np.inf))

    def rows(self, after: int) -> list[dict[str, Any]]:
        """A dict for each meta-step after ``after``: its number and its metrics.

        Once there are validations, each has ``validation`` too, None where there was none.
        """
        history = self.history(after)
        validations = dict(self.validations)
        rows = []
        for i in range(self.start + self._num_steps - after):
            row: dict[str, Any] = {"step": after + 1 + i}
            for name, values in history.items():
                row[name] = _number(values[i])
            if validations:
                row["validation"] = validations.get(row["step"])
            rows.append(row)
        return rows


def _with_room(buffer: np.ndarray, size: int) -> np.ndarray:
    """The same values; at least twice as much room where they had less than ``size``."""
    if size <= len(buffer):
        return buffer
    larger = np.zeros((max(size, 2 * len(buffer)), *buffer.shape[1:]), buffer.dtype)
    larger[: len(buffer)] = buffer
    return larger


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
