"""Rows of figures, each with what it is held against: as text and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import Limits, Measured


class Setting(NamedTuple):
    """What a case is run with.

    Attributes:
      smoke: only whether it runs; the figures mean nothing.
      out: a folder for pictures.
      limits: of this machine.
      peers: compare with other packages too.
    """

    smoke: bool
    out: Path
    limits: Limits
    peers: bool = False

    @property
    def rounds(self) -> int | None:
        """How often things are timed: None leaves it to `measure.contest`."""
        return 2 if self.smoke else None


class Target(NamedTuple):
    """A bound on one field of a row: ``ours``, ``ratio`` or ``share``."""

    field: str
    sense: str
    bound: float

    def holds(self, value: float) -> bool:
        """Whether a value keeps to it."""
        return value >= self.bound if self.sense == ">=" else value <= self.bound

    def __str__(self) -> str:
        return f"{self.field} {self.sense} {self.bound:.3g}"


class Row(NamedTuple):
    """One comparison.

    All quantities are costs: the less the better, and a ratio above 1 says that ours is less.

    Attributes:
      case: name of the case.
      what: what is measured.
      unit: of ``ours`` and ``other``.
      ours: the figure of metajax.
      other: that of the alternative.
      against: what the alternative is.
      share: of the limit, reached by ours.
      targets: any of which will do.
      note: why there is no figure.
      detail: all that was measured, by contender.
    """

    case: str
    what: str
    unit: str = ""
    ours: float | None = None
    other: float | None = None
    against: str = ""
    share: float | None = None
    targets: tuple[Target, ...] = ()
    note: str = ""
    detail: Mapping[str, Any] = {}

    @property
    def ratio(self) -> float | None:
        """What the alternative costs over what ours costs."""
        return self.other / self.ours if self.ours and self.other is not None else None

    @property
    def met(self) -> bool | None:
        """Whether a target is met; None if there is none, or no figure to hold against it."""
        verdicts = []
        for target in self.targets:
            value = getattr(self, target.field)
            if value is not None:
                verdicts.append(target.holds(value))
        return any(verdicts) if verdicts else None

    def record(self) -> dict[str, Any]:
        """For JSON."""
        targets = [str(target) for target in self.targets]
        return {
            **self._asdict(),
            "targets": targets,
            "ratio": self.ratio,
            "met": self.met,
        }


def compared(
    case: str,
    what: str,
    found: Mapping[str, Measured],
    unit: str = "ms",
    field: str = "seconds",
    factor: float = 1e3,
    targets: Sequence[Target] = (),
) -> Row:
    """The row of a contest.

    The first contender is ours, the second, if there is one, the alternative.
    """
    (_, ours), *others = found.items()
    row = Row(
        case,
        what,
        unit,
        ours=factor * getattr(ours, field),
        share=ours.share if field == "seconds" else None,
        targets=tuple(targets),
        detail={name: measured._asdict() for name, measured in found.items()},
    )
    if not others:
        return row
    against, other = others[0]
    return row._replace(other=factor * getattr(other, field), against=against)


def memory(
    case: str,
    what: str,
    found: Mapping[str, Measured],
    targets: Sequence[Target] = (),
) -> Row:
    """The same contest by temporary memory."""
    return compared(case, what, found, "MiB", "temporary_bytes", 2**-20, targets)


def text(rows: Sequence[Row], verdicts: bool = True) -> str:
    """One table; ``verdicts`` says which targets are met."""
    table = [_HEAD, *(_cells(row, verdicts) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for cells in table:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def markdown(rows: Sequence[Row], verdicts: bool = True) -> str:
    """The same as a page includes it."""
    rule = ("---",) * len(_HEAD)
    table = [_HEAD, rule, *(_cells(row, verdicts) for row in rows)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in table)


def costs(title: str, columns: Mapping[str, Mapping[str, Measured]]) -> str:
    """Time and temporary memory of each contender, a row, under each heading, a column."""
    first = next(iter(columns.values()))
    lines = [[title, *columns], ["---"] * (1 + len(columns))]
    for name in first:
        lines.append(
            [name, *(_time_and_memory(found[name]) for found in columns.values())]
        )
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _time_and_memory(found: Measured) -> str:
    milliseconds = 1e3 * found.seconds
    megabytes = found.temporary_bytes / 2**20
    return f"{_two_digits(milliseconds)} ms, {_two_digits(megabytes)} MiB"


def _two_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


_HEAD = (
    "case",
    "what",
    "ours",
    "other",
    "against",
    "ratio",
    "target",
    "share of limit",
)
_VERDICTS = {True: ": met", False: ": MISSED", None: ""}


def _cells(row: Row, verdicts: bool) -> tuple[str, ...]:
    target = " or ".join(map(str, row.targets))
    if verdicts:
        target += _VERDICTS[row.met]
    return (
        row.case,
        row.what,
        _figure(row.ours, row.unit),
        row.note or _figure(row.other, row.unit),
        row.against,
        "" if row.ratio is None else f"{row.ratio:.2f}",
        target,
        "" if row.share is None else f"{row.share:.0%}",
    )


def _figure(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.3g} {unit}".strip()


def chart(rows: Sequence[Row], path: Path) -> None:
    """Bars of the ratios, with a line at 1 and a mark at each target."""
    from matplotlib.figure import Figure

    from metajax.plot import COLOURS

    bars = [(row, row.ratio) for row in rows if row.ratio is not None]
    figure = Figure(figsize=(8, 1 + 0.3 * len(bars)), layout="constrained")
    ax = figure.add_subplot()
    for place, (row, ratio) in enumerate(bars):
        ax.barh(place, ratio, color=COLOURS[2])
        ax.text(ratio, place, f" {ratio:.2g}", va="center", fontsize=7)
        for target in row.targets:
            if target.field == "ratio":
                ends = [place - 0.4, place + 0.4]
                ax.plot(
                    [target.bound] * 2,
                    ends,
                    color=COLOURS[4],
                    linewidth=2,
                )
    ax.axvline(1.0, color=COLOURS[0], linewidth=0.8)
    ax.set(
        yticks=range(len(bars)),
        xscale="log",
        xlabel="the alternative's cost over ours (orange: target)",
    )
    labels = [f"{row.case}, {row.what}\nagainst {row.against}" for row, _ in bars]
    ax.set_yticklabels(labels, fontsize=6)
    ax.set_ylim(len(bars) - 0.4, -0.6)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
