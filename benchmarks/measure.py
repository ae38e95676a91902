"""How long, how much memory, how much arithmetic; and how far that is from what the machine can do.

Programs are compared before they are timed, and timed in turns, so that whatever else the machine
does meets all alike.
"""

import contextlib
import math
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Limits(NamedTuple):
    """What the device does at best in this process, in float32."""

    flop_per_second: float
    bytes_per_second: float


class Program(NamedTuple):
    """A contender.

    Attributes:
      f: what is run.
      args: its arguments.
      view: what is compared of its result: numbers in a form that all contenders share.
      jit: False for a function of the host.
      moved_bytes: what has to be read and written at least; all arguments and results by default.
    """

    f: Callable[..., Any]
    args: tuple
    view: Callable[..., Any] = lambda result: result
    jit: bool = True
    moved_bytes: int | None = None


class Measured(NamedTuple):
    """What `contest` found about a program. Those of the host have no phase but the last.

    Attributes:
      seconds: median run time.
      spread: its interquartile range.
      rounds: how often it ran.
      trace: seconds from Python to jaxpr.
      lower: seconds from there to StableHLO.
      compile: seconds from there to the device's program.
      temporary_bytes: memory beside arguments and results.
      peak_resident_bytes: of the whole process while the program ran first; of the host, not of an
        accelerator.
      flop: by `flop_of`.
      moved_bytes: arguments and results, what any program for the purpose must read and write.
      xla_flop: by XLA's cost analysis, which counts the body of a loop once.
      xla_bytes: likewise.
      limit_seconds: the least time that the limits allow, for that arithmetic and that traffic.
      share: ``limit_seconds`` over ``seconds``.
    """

    seconds: float
    spread: float
    rounds: int
    trace: float = 0.0
    lower: float = 0.0
    compile: float = 0.0
    temporary_bytes: int = 0
    peak_resident_bytes: int = 0
    flop: float = 0.0
    moved_bytes: int = 0
    xla_flop: float = 0.0
    xla_bytes: float = 0.0
    limit_seconds: float = 0.0
    share: float | None = None


def contest(
    programs: Mapping[str, Program],
    limits: Limits,
    *,
    rtol: float = 1e-3,
    rounds: int | None = None,
) -> dict[str, Measured]:
    """Compiles all, holds what they compute against the first one's result, then times them.

    They take turns.

    Args:
      programs: by name.
      limits: from `machine_limits`.
      rtol: how far results may differ, see `agree`.
      rounds: how often each is timed; by default for about four seconds in all, but 5 to 100 times.

    Raises:
      ValueError: a contender computes something else.
    """
    runs = {}
    costs = {}
    for name, program in programs.items():
        runs[name], costs[name] = compiled(program, limits)

    views = {}
    total = 0.0
    for name, run in runs.items():
        reset_peak()
        seconds, result = timed(run)
        total += seconds
        costs[name] = costs[name]._replace(peak_resident_bytes=peak_resident())
        views[name] = jax.tree.map(np.asarray, programs[name].view(result))
        del result
    reference = next(iter(views.values()))
    for name, view in views.items():
        agree(name, view, reference, rtol)

    times = {name: [] for name in programs}
    for _ in range(rounds or int(np.clip(4 / total, 5, 100))):
        for name, run in runs.items():
            seconds, _ = timed(run)
            times[name].append(seconds)
    return {name: with_times(cost, times[name]) for name, cost in costs.items()}


def with_times(cost: Measured, seconds: list[float]) -> Measured:
    """``cost`` with the median and spread of ``seconds``, and the share of the limit."""
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    share = cost.limit_seconds / median if cost.limit_seconds else None
    return cost._replace(
        seconds=float(median),
        spread=float(high - low),
        rounds=len(seconds),
        share=share,
    )


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until the result is there, and the result."""
    begin = time.perf_counter()
    result = jax.block_until_ready(run())
    return time.perf_counter() - begin, result


def compiled(program: Program, limits: Limits) -> tuple[Callable[[], Any], Measured]:
    """A function of nothing that runs the program, and what it costs but for the time."""
    nothing = Measured(
        seconds=float("nan"),
        spread=float("nan"),
        rounds=0,
    )
    if not program.jit:
        return lambda: program.f(*program.args), nothing

    args = jax.device_put(program.args)
    trace, traced = timed(lambda: jax.jit(program.f).trace(*args))
    lower, lowered = timed(traced.lower)
    compile, run = timed(lowered.compile)

    temporary = 0
    moved = program.moved_bytes or 0
    memory = run.memory_analysis()
    if memory is not None:
        temporary = int(memory.temp_size_in_bytes)
        if program.moved_bytes is None:
            moved = int(memory.argument_size_in_bytes + memory.output_size_in_bytes)
    flop = flop_of(traced.jaxpr)
    by_xla = run.cost_analysis() or {}
    measured = nothing._replace(
        trace=trace,
        lower=lower,
        compile=compile,
        temporary_bytes=temporary,
        flop=flop,
        moved_bytes=moved,
        xla_flop=float(by_xla.get("flops", 0.0)),
        xla_bytes=float(by_xla.get("bytes accessed", 0.0)),
        limit_seconds=max(
            flop / limits.flop_per_second, moved / limits.bytes_per_second
        ),
    )
    return lambda: run(*args), measured


def machine_limits(size: int | None = None, megabytes: int = 256) -> Limits:
    """Times a product of two float32 matrices ``[size, size]`` and a copy, the best of six each.

    The copy turns the sign, so that the compiler can neither leave it out nor hand it to one
    thread.
    """
    if size is None:
        size = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size))
    vector = jnp.ones(megabytes * 2**18)

    def least_seconds(f, *args):
        run = jax.jit(f).lower(*args).compile()
        return min(timed(lambda: run(*args))[0] for _ in range(6))

    return Limits(
        flop_per_second=2 * size**3 / least_seconds(jnp.matmul, matrix, matrix),
        bytes_per_second=2 * vector.nbytes / least_seconds(jnp.negative, vector),
    )


def flop_of(jaxpr: Any) -> float:
    """Floating-point operations of a jaxpr: two a multiply-add, else one a value.

    Loops count as often as they run, which XLA's analysis leaves out; one whose length is not known
    counts once. What the compiler may remove since nobody reads it is counted.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.ones((2, 3))
    >>> flop_of(jax.make_jaxpr(lambda x: x @ x.T)(x)), flop_of(jax.make_jaxpr(jnp.tanh)(x))
    (24.0, 6.0)
    """
    return float(sum(_flop_of_equation(equation) for equation in jaxpr.eqns))


_ELEMENTWISE = {
    *(
        "add",
        "add_any",
        "sub",
        "mul",
        "div",
        "max",
        "min",
        "neg",
        "abs",
        "sign",
        "square",
    ),
    *(
        "integer_pow",
        "pow",
        "sqrt",
        "rsqrt",
        "exp",
        "log",
        "log1p",
        "expm1",
        "tanh",
        "logistic",
    ),
    *("erf", "sin", "cos"),
}


def _flop_of_equation(equation: Any) -> float:
    name = equation.primitive.name
    params = equation.params
    shapes = [x.aval.shape for x in equation.invars]
    size = sum(x.aval.size for x in equation.outvars)
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * size * math.prod(shapes[0][axis] for axis in contracted)
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid) * flop_of(params["jaxpr"])
    if name == "conv_general_dilated":
        kernel = shapes[1]
        output_axis = params["dimension_numbers"].rhs_spec[0]
        return 2 * size * math.prod(kernel) / kernel[output_axis]
    if name == "custom_linear_solve":
        return flop_of(params["jaxprs"].solve)

    inside = [flop_of(jaxpr) for jaxpr in _jaxprs(params)]
    if name == "cond":
        return max(inside)
    if inside:
        return sum(inside) * params.get("length", 1)

    if not jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.floating):
        return 0.0
    if name.startswith("reduce_"):
        return float(equation.invars[0].aval.size)
    return float(size) if name in _ELEMENTWISE else 0.0


def _jaxprs(params: dict[str, Any]) -> list[Any]:
    """Those among the parameters of an equation."""
    values = []
    for value in params.values():
        values += value if isinstance(value, tuple) else [value]
    return [value for value in values if hasattr(value, "eqns")]


def agree(
    name: str,
    got: Any,
    want: Any,
    rtol: float,
) -> float:
    """The largest relative distance between leaves, or says that ``name`` computes something else.

    A leaf much smaller than the whole (such as the gradient of a bias before normalisation, which
    is rounding) is held against a hundredth of the whole.

    Raises:
      ValueError: other shapes, or a distance above ``rtol``.
    """
    ours = [np.asarray(x, np.float64) for x in jax.tree.leaves(got)]
    reference = [np.asarray(x, np.float64) for x in jax.tree.leaves(want)]
    shapes = [x.shape for x in ours]
    wanted = [x.shape for x in reference]
    if shapes != wanted:
        raise ValueError(
            f"{name} computes something else: shapes {shapes}, not {wanted}"
        )

    norms = [np.linalg.norm(x) for x in reference]
    floor = max(1e-2 * np.linalg.norm(norms), 1e-30)
    distances = []
    for x, y, norm in zip(ours, reference, norms, strict=True):
        distances.append(np.linalg.norm(x - y) / max(norm, floor))
    worst = float(np.max(distances))
    if not worst <= rtol:  # a NaN is no agreement
        raise ValueError(
            f"{name} computes something else: relative distance {worst:.2g} > {rtol:.2g}"
        )
    return worst


def peak_resident() -> int:
    """The most memory in bytes that this process has had in use since `reset_peak`.

    Where that cannot be known, it is since the process began.
    """
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return 1024 * int(found[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak() -> None:
    """Begins anew with the highest memory in use, where the system knows how (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
