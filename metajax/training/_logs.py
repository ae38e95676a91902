"""Callbacks that write the rows of a run: CSV and JSONL files, TensorBoard."""

import csv
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metajax._arguments import checked
from metajax.training._record import Rows
from metajax.training._warnings import warn


@checked
def log(path: str | os.PathLike) -> "Log":
    """A callback for `metajax.fit` that writes a CSV or JSONL file with a row a meta-step.

    The file agrees with the run, whatever an earlier run left in it: one that resumes cuts it back
    to where it resumes and adds what is missing. What lies before the beginning of the run's own
    history, as it was trained on from the state of another run, is kept. Where the file cannot be
    written, a warning says so, and the next rows come with those that are missing.

    Args:
      path: ends in ``.csv`` or ``.jsonl``; its folder is made if it is not there.

    Raises:
      ValueError: from `metajax.fit`, rows are to be kept and the file has other columns.

    >>> import metajax as mx, tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "metrics.csv"
    >>> write = mx.log(path)
    >>> write([{"step": 1, "loss": 2.5, "skipped": 0}])
    >>> path.read_text().splitlines()
    ['step,loss,skipped', '1,2.5,0']
    """
    return Log(path)


class Log:
    """A file of rows, which is made to agree with the run once, and then added to.

    It keeps what it has written, as much memory as the file takes: should the file be lost or
    broken, it is written anew.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).expanduser().absolute()
        if self.path.suffix not in (".csv", ".jsonl"):
            raise ValueError(f"path must end in .csv or .jsonl, got {str(path)!r}")
        self._is_csv = self.path.suffix == ".csv"
        self._forget()

    def resume(self, rows: Rows) -> None:
        """Brings the file to agree with ``rows``, all that the run has so far."""
        self._forget()
        self(rows)

    def __call__(self, rows: Rows) -> None:
        """Adds those of ``rows`` that are new; where that fails, the next call makes up for it."""
        # After an error of another callback a run gives some of its rows again.
        rows = [row for row in rows if row["step"] > self._last_step]
        if not rows:
            return
        if not self._texts:
            self._columns = list(rows[0])
            self._first_step = rows[0]["step"]
        self._last_step = rows[-1]["step"]
        self._texts.append(self._format(rows))
        try:
            if self._agrees and self.path.exists():
                self._append()
            else:
                self._rewrite()
            self._agrees = True
        except OSError as e:
            # There may be half a line now.
            self._agrees = False
            warn(f"log {self.path} could not be written: {e}; the run goes on")

    def _forget(self) -> None:
        self._agrees = False
        self._columns: list[str] = []
        self._first_step = 1
        self._last_step = 0
        self._earlier: str | None = None
        self._texts: list[str] = []

    def _append(self) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            file.write(self._texts[-1])

    def _rewrite(self) -> None:
        header = _csv_line(self._columns) if self._is_csv else ""
        if self._earlier is None:
            self._earlier = self._read_earlier(header)
        text = header + self._earlier + "".join(self._texts)

        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(self.path.name + ".part")
        try:
            unfinished.write_text(text, newline="", encoding="utf-8")
            os.replace(unfinished, self.path)
        finally:
            unfinished.unlink(missing_ok=True)

    def _read_earlier(self, header: str) -> str:
        """The lines of the file from before the run's own history."""
        if self._first_step == 1 or not self.path.exists():
            return ""
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            lines = file.readlines()
        if header and (not lines or lines.pop(0) != header):
            raise ValueError(
                f"log {self.path} has other columns than {header.strip()}; give another path"
            )
        earlier = []
        for line in lines:
            step = self._step_of(line)
            if step is None or step >= self._first_step:
                break
            earlier.append(line)
        return "".join(earlier)

    def _step_of(self, line: str) -> int | None:
        """The step of a line; None if it is half a line, from a run that was killed."""
        if not line.endswith("\n"):
            return None
        try:
            if self._is_csv:
                return int(line.split(",")[0])
            return int(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError):
            return None

    def _format(self, rows: Rows) -> str:
        lines = []
        for row in rows:
            if self._is_csv:
                cells = [_csv_cell(row.get(name)) for name in self._columns]
                lines.append(_csv_line(cells))
            else:
                lines.append(json.dumps(_valid_json(row)) + "\n")
        return "".join(lines)


def tensorboard(writer: Any) -> Callable[[Rows], None]:
    """A callback for `metajax.fit` that writes every scalar to TensorBoard.

    Args:
      writer: a directory, written through tensorboardX (``pip install 'metajax[tensorboard]'``), or
        any object with ``add_scalar(name, value, step)``, such as the ``SummaryWriter`` of
        tensorboardX or PyTorch. In a directory, what an earlier run has written beyond the step at
        which this one goes on is hidden.

    Raises:
      ImportError: a directory is given and tensorboardX is not installed.

    >>> import metajax as mx
    >>> class Printer:
    ...     def add_scalar(self, name, value, step): print(step, name, value)
    >>> write = mx.tensorboard(Printer())
    >>> write([{"step": 1, "loss": 2.5, "skipped": 0}])
    1 loss 2.5
    1 skipped 0
    """
    if isinstance(writer, (str, os.PathLike)):
        return _TensorBoard(_opener(os.fspath(writer)))
    if not callable(getattr(writer, "add_scalar", None)):
        raise TypeError(
            f"writer must be a directory or have add_scalar(name, value, step), got "
            f"{type(writer).__name__}"
        )
    return _TensorBoard(lambda first_step: writer)


class _TensorBoard:
    """Writes rows through a writer, which is opened when there is a first row."""

    def __init__(self, open_writer: Callable[[int], Any]):
        self._open_writer = open_writer
        self._writer: Any = None

    def __call__(self, rows: Rows) -> None:
        if not rows:
            return
        if self._writer is None:
            self._writer = self._open_writer(rows[0]["step"])
        for row in rows:
            for name, value in row.items():
                is_scalar = value is not None and np.ndim(value) == 0
                if is_scalar and name != "step":
                    self._writer.add_scalar(name, value, row["step"])
        if hasattr(self._writer, "flush"):
            self._writer.flush()


def _opener(directory: str) -> Callable[[int], Any]:
    """``(first_step) -> writer`` into a directory."""
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise ImportError(
            "writing TensorBoard files needs tensorboardX: pip install 'metajax[tensorboard]'"
        ) from e

    def open_writer(first_step: int) -> Any:
        # Files are named by the second and would overwrite each other.
        suffix = f".{time.time_ns()}"
        # By default a thread writes only after two minutes.
        return SummaryWriter(
            directory, purge_step=first_step, filename_suffix=suffix, flush_secs=1
        )

    return open_writer


def _csv_line(cells: Sequence[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def _csv_cell(x: Any) -> Any:
    return json.dumps(_valid_json(x)) if isinstance(x, list) else x


def _valid_json(x: Any) -> Any:
    """NaN and infinity are no JSON numbers: they become null."""
    if isinstance(x, dict):
        return {name: _valid_json(value) for name, value in x.items()}
    if isinstance(x, list):
        return [_valid_json(element) for element in x]
    if isinstance(x, float) and not np.isfinite(x):
        return None
    return x
