"""What a run reports: the record of its metrics, files of rows, and TensorBoard."""

import csv
import io
import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Rows = Sequence[dict[str, Any]]


class Record:
    """The metrics of each meta-step after ``start``, the validations, and up to which step
    callbacks had been told.
    """

    def __init__(self, start: int, arrays: dict[str, np.ndarray] | None = None):
        arrays = arrays or {}
        self.start = int(arrays.get("start", start))
        self.validations = [
            (int(s), float(v))
            for s, v in zip(arrays.get("valid/step", ()), arrays.get("valid/loss", ()), strict=True)
        ]
        history = {name[8:]: x for name, x in arrays.items() if name.startswith("history/")}
        self._parts = [history] if history else []
        done = len(next(iter(history.values()))) if history else 0
        self.reported = int(arrays.get("reported", self.start + done))
        self.skipped = int(np.sum(history["skipped"] > 0)) if "skipped" in history else 0

    def append(self, metrics: dict[str, np.ndarray]) -> None:
        """Adds the metrics of some steps, each ``[n, ...]``."""
        if self._parts and set(metrics) != set(self._parts[0]):
            raise ValueError(
                f"trainer reports the metrics {sorted(metrics)}, the history of the checkpoint has "
                f"{sorted(self._parts[0])}; give another directory for checkpoints"
            )
        self._parts.append(metrics)
        self.skipped += int(np.sum(metrics["skipped"] > 0)) if "skipped" in metrics else 0

    def history(self) -> dict[str, np.ndarray]:
        """Each metric as one array ``[steps, ...]``."""
        if len(self._parts) > 1:
            self._parts = [
                {name: np.concatenate([p[name] for p in self._parts]) for name in self._parts[0]}
            ]
        return dict(self._parts[0]) if self._parts else {}

    def validation(self) -> dict[str, np.ndarray]:
        """The steps and the losses of the validations."""
        steps, losses = zip(*self.validations, strict=True) if self.validations else ((), ())
        return {"step": np.array(steps, np.int64), "loss": np.array(losses, np.float64)}

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, as it goes into a checkpoint."""
        valid = self.validation()
        history = {f"history/{name}": x for name, x in self.history().items()}
        told = {"start": np.array(self.start), "reported": np.array(self.reported)}
        return told | {"valid/step": valid["step"], "valid/loss": valid["loss"]} | history

    def rows(self, begin: int, end: int) -> list[dict[str, Any]]:
        """One dict for each meta-step from ``begin`` (left out) to ``end``: its number, metrics,
        any validation.
        """
        history, validations = self.history(), dict(self.validations)
        rows = []
        for step in range(begin + 1, end + 1):
            row = {"step": step} | {
                name: _number(x[step - self.start - 1]) for name, x in history.items()
            }
            rows.append(row | ({"validation": validations[step]} if step in validations else {}))
        return rows


class Log:
    """Rows in a CSV or JSONL file that agrees with the record, whatever an earlier run left in
    it.
    """

    def __init__(self, path: str | os.PathLike):
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"log must be a path, got {type(path).__name__}")
        self.path = Path(path)
        if self.path.suffix not in (".csv", ".jsonl"):
            raise ValueError(f"log must end in .csv or .jsonl, got {str(path)!r}")
        self._columns: list[str] = []
        self._written: int | None = None  # the step up to which the file is known to be right

    def write(self, record: Record, step: int, validated: bool) -> None:
        """Brings the file to ``step``; where that fails the run goes on, and the next call writes
        it anew.
        """
        if step == record.start:
            return
        try:
            if self._written is None:
                self._rewrite(record, step, validated)
            elif step > self._written:
                with self.path.open("a", newline="") as f:
                    f.write(self._text(record.rows(self._written, step)))
            self._written = step
        except OSError as e:
            self._written = None
            warnings.warn(
                f"log {self.path} could not be written: {e}; the run goes on",
                RuntimeWarning,
                stacklevel=3,
            )

    def _rewrite(self, record: Record, step: int, validated: bool) -> None:
        rows = record.rows(record.start, step)
        self._columns = ["step", *record.history()] + ["validation"] * bool(
            validated or record.validations
        )
        header = _csv(self._columns) if self.path.suffix == ".csv" else ""
        kept = self._kept(header, record.start) if record.start and self.path.exists() else []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(self.path.name + ".part")
        try:
            part.write_text(header + "".join(kept) + self._text(rows), newline="")
            os.replace(part, self.path)
        finally:
            part.unlink(missing_ok=True)

    def _kept(self, header: str, start: int) -> list[str]:
        """The whole lines of the file up to ``start``, the step at which this run's own history
        begins.
        """
        with self.path.open(newline="") as f:
            lines = f.readlines()
        if header and (not lines or lines.pop(0) != header):
            raise ValueError(
                f"log {self.path} has other columns than {header.strip()}; give another path"
            )
        kept = []
        for line in lines:
            try:
                step = int(line.split(",")[0] if header else json.loads(line)["step"])
            except (ValueError, KeyError):
                break  # half a line, from a run that was killed
            if step > start or not line.endswith("\n"):
                break
            kept.append(line)
        return kept

    def _text(self, rows: Rows) -> str:
        if self.path.suffix == ".csv":
            return "".join(
                _csv([_cell(row.get(name, "")) for name in self._columns]) for row in rows
            )
        return "".join(json.dumps(_valid_json(row)) + "\n" for row in rows)


def tensorboard(writer: Any) -> Callable[[Rows], None]:
    """A callback for `metajax.fit` that writes every scalar to TensorBoard.

    Args: writer: a directory, written through tensorboardX (``pip install
      'metajax[tensorboard]'``), or any object with ``add_scalar(name, value, step)``, such as the
      ``SummaryWriter`` of tensorboardX or PyTorch. In a directory, what an earlier run has written
      beyond the step at which this one goes on is hidden.

    Raises:
      ImportError: a directory is given and tensorboardX is not installed.
      TypeError: neither a path nor a writer.

    >>> import metajax as mx
    >>> class Printer:
    ...     def add_scalar(self, name, value, step): print(step, name, value)
    >>> write = mx.tensorboard(Printer())
    >>> write([{"step": 1, "loss": 2.5, "skipped": 0}])
    1 loss 2.5
    1 skipped 0
    """
    is_path = isinstance(writer, (str, os.PathLike))
    if not is_path and not callable(getattr(writer, "add_scalar", None)):
        raise TypeError(
            f"writer must be a directory or have add_scalar(name, value, step), got {type(writer).__name__}"
        )
    make: Callable[..., Any] | None = _summary_writer() if is_path else None
    opened = [] if is_path else [writer]

    def write(rows: Rows) -> None:
        for row in rows:
            if not opened and make is not None:
                # Files are named by the second and would overwrite each other; a thread writes,
                # after two minutes.
                suffix = f".{time.time_ns()}"
                opened.append(
                    make(
                        os.fspath(writer),
                        purge_step=row["step"],
                        filename_suffix=suffix,
                        flush_secs=1,
                    )
                )
            for name, value in row.items():
                if name != "step" and np.ndim(value) == 0:
                    opened[0].add_scalar(name, value, row["step"])
        if rows and hasattr(opened[0], "flush"):
            opened[0].flush()

    return write


def _summary_writer() -> Callable[..., Any]:
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise ImportError(
            "writing TensorBoard files needs tensorboardX: pip install 'metajax[tensorboard]'"
        ) from e
    return SummaryWriter


def _number(x: Any) -> Any:
    # The shortest decimal that reads back as the same float32, instead of the digits of its
    # float64.
    if np.ndim(x):
        return [_number(v) for v in x]
    return (
        float(str(x))
        if np.issubdtype(np.asarray(x).dtype, np.floating) or np.asarray(x).dtype.kind == "V"
        else x.item()
    )


def _csv(cells: Sequence[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def _cell(x: Any) -> Any:
    return json.dumps(_valid_json(x)) if isinstance(x, list) else x


def _valid_json(x: Any) -> Any:
    """NaN and infinity are no JSON numbers: they become null."""
    if isinstance(x, dict):
        return {name: _valid_json(v) for name, v in x.items()}
    if isinstance(x, list):
        return [_valid_json(v) for v in x]
    return None if isinstance(x, float) and not np.isfinite(x) else x
