"""Programs compiled ahead of time, and what their text says they cost."""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import hlo
from benchmarks.measure import flop_of
from benchmarks.programs import Step
from benchmarks.targets import Target


class Cost(NamedTuple):
    """What a compiled program costs.

    Attributes:
      case: whose it is.
      what: it does.
      counts: of its text.
      least_bytes: arguments and results, what any program for the purpose must move.
      flop: floating-point operations, by `benchmarks.measure.flop_of`.
      temporary_bytes: memory beside arguments and results.
      compile: seconds from StableHLO to the device's program.
      launch_seconds: what launching the kernels takes at least; None where no host launches them.
      traffic_seconds: what they read and write takes at least.
      arithmetic_seconds: likewise.
      otherwise: options of the compiler without which it fails.
    """

    case: str
    what: str
    counts: hlo.Counts
    least_bytes: int
    flop: float
    temporary_bytes: int
    compile: float
    launch_seconds: float | None
    traffic_seconds: float
    arithmetic_seconds: float
    otherwise: Mapping[str, Any] = {}

    @property
    def moved_bytes(self) -> int:
        """Read and written by the kernels."""
        return self.counts.read_bytes + self.counts.written_bytes

    @property
    def binds(self) -> str:
        """What takes longest of launches, traffic and arithmetic."""
        times = {
            "launches": self.launch_seconds or 0.0,
            "traffic": self.traffic_seconds,
            "arithmetic": self.arithmetic_seconds,
        }
        return max(times, key=lambda name: times[name])

    def record(self) -> dict[str, Any]:
        """For JSON."""
        extra = {
            "counts": self.counts._asdict(),
            "launches": self.counts.launches,
            "binds": self.binds,
        }
        return {**self._asdict(), **extra}


def cost(case: str, step: Step, target: Target, device: Any) -> Cost:
    """Compiles a step for a device of the target that need not be here."""
    where = step.where or jax.sharding.SingleDeviceSharding(device)
    jitted = jax.jit(step.f, in_shardings=where, donate_argnums=step.donated)
    shapes = jax.eval_shape(lambda *args: args, *step.args)
    traced = jitted.trace(*shapes)
    lowered = traced.lower()
    begin = time.perf_counter()
    used = {}
    try:
        compiled = lowered.compile(compiler_options={**target.options})
    except jax.errors.JaxRuntimeError:
        if not target.otherwise:
            raise
        used = {**target.otherwise}
        compiled = lowered.compile(compiler_options={**target.options, **used})
    seconds = time.perf_counter() - begin

    text = compiled.as_text()
    memory = compiled.memory_analysis()
    assert text is not None, "compilers of accelerators give their text"
    assert memory is not None, "and their memory"
    counts = hlo.count(text)
    flop = flop_of(traced.jaxpr)
    moved = counts.read_bytes + counts.written_bytes
    launch = target.launch
    return Cost(
        case,
        step.what,
        counts,
        int(memory.argument_size_in_bytes + memory.output_size_in_bytes),
        flop,
        int(memory.temp_size_in_bytes),
        seconds,
        None if launch is None else launch * counts.launches,
        moved / target.limits.bytes_per_second,
        flop / target.limits.flop_per_second,
        used,
    )


_HEAD = (
    "case",
    "program",
    "kernels",
    "read and written",
    "arguments and results",
    "GFLOP",
    "temporary",
    "compiled in",
    "products by precision",
    "ms of launches",
    "ms of traffic",
    "ms of arithmetic",
)


def markdown(costs: Sequence[Cost], refused: Mapping[str, str] | None = None) -> str:
    """A table, a row a program; what takes longest is bold.

    Below it, programs that the compiler ``refused``, and what it said.
    """
    rows = [_HEAD, ("---",) * len(_HEAD), *map(_cells, costs)]
    table = "".join("| " + " | ".join(row) + " |\n" for row in rows)
    for what, said in (refused or {}).items():
        table += f"\nNot compiled: {what} (`{said}`)\n"
    return table


def _cells(cost: Cost) -> tuple[str, ...]:
    products = sorted(cost.counts.dots.items())
    remarks = [f"{name}={value}" for name, value in cost.otherwise.items()]
    if cost.counts.unknown_loops:
        remarks.append(
            f"{cost.counts.unknown_loops} loops of unknown length, once each"
        )
    more = f" ({'; '.join(remarks)})" if remarks else ""
    return (
        cost.case,
        cost.what,
        f"{cost.counts.launches:,}{more}",
        _size(cost.moved_bytes),
        _size(cost.least_bytes),
        _digits(cost.flop / 1e9),
        _size(cost.temporary_bytes),
        f"{cost.compile:.0f} s",
        ", ".join(f"{number:,} {precision}" for precision, number in products),
        _milliseconds(cost.launch_seconds, cost.binds == "launches"),
        _milliseconds(cost.traffic_seconds, cost.binds == "traffic"),
        _milliseconds(cost.arithmetic_seconds, cost.binds == "arithmetic"),
    )


def _milliseconds(seconds: float | None, is_longest: bool) -> str:
    if seconds is None:
        return ""
    text = _digits(1e3 * seconds)
    return f"**{text}**" if is_longest else text


def _size(num: float) -> str:
    return f"{_digits(num / 2**20)} MiB"


def _digits(value: float) -> str:
    """Three significant ones."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def chart(costs: Iterable[Cost], path: Path) -> None:
    """The least time of each program, by what bounds it."""
    from matplotlib.figure import Figure

    from metajax.plot import COLOURS

    costs = list(costs)
    bounds = {
        "launches": [cost.launch_seconds for cost in costs],
        "traffic": [cost.traffic_seconds for cost in costs],
        "arithmetic": [cost.arithmetic_seconds for cost in costs],
    }
    figure = Figure(figsize=(8, 1.2 + 0.35 * len(costs)), layout="constrained")
    ax = figure.add_subplot()
    for colour, (name, seconds) in zip(COLOURS[1:], bounds.items(), strict=False):
        known = [(1e3 * s, at) for at, s in enumerate(seconds) if s is not None]
        if known:
            ax.plot(*zip(*known, strict=True), "o", color=colour, label=name)
    ax.set(xscale="log", xlabel="at least, ms", yticks=range(len(costs)))
    ax.set_yticklabels([f"{cost.case}: {cost.what}" for cost in costs], fontsize=6)
    ax.set_ylim(len(costs) - 0.5, -0.5)
    ax.grid(axis="y", linewidth=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)
