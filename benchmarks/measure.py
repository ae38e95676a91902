"""How long, how much memory, how much arithmetic; and how far that is from what the machine can do.

Programs are compared before they are timed, and timed in turns, so that whatever else the machine
does meets all alike.
"""

import contextlib
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
    """What the device does at best in this process: ``flop_per_second`` and ``bytes_per_second``,
    in float32.
    """

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
      trace: seconds from Python to jaxpr; ``lower``: to StableHLO; ``compile``: to the device's
        program.
      temporary_bytes: memory beside arguments and results.
      peak_resident_bytes: of the whole process while the program ran first; of the host, not of an
        accelerator.
      flop: by `flop_of`.
      moved_bytes: arguments and results, what any program for the purpose must read and write.
      xla_flop: by XLA's cost analysis, which counts the body of a loop once; ``xla_bytes``
        likewise.
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
    """Compiles all, holds what they compute against the first one's result, then times them in
    turns.

    Args:
      programs: by name.
      limits: from `machine_limits`.
      rtol: how far results may differ, see `agree`.
      rounds: how often each is timed; by default for about four seconds in all, but 5 to 100 times.

    Raises:
      ValueError: a contender computes something else.
    """
    ready = {name: compiled(program, limits) for name, program in programs.items()}
    seen, first = {}, {}
    for name, (run, cost) in ready.items():
        reset_peak()
        first[name], result = timed(run)
        ready[name] = run, cost._replace(peak_resident_bytes=peak_resident())
        seen[name] = jax.tree.map(np.asarray, programs[name].view(result))
        del result
    reference = next(iter(seen))
    for name in seen:
        agree(name, seen[name], seen[reference], rtol)
    rounds = rounds or int(np.clip(4 / sum(first.values()), 5, 100))
    seconds = {name: [] for name in programs}
    for _ in range(rounds):
        for name, (run, _) in ready.items():
            seconds[name].append(timed(run)[0])
    return {name: with_times(cost, seconds[name]) for name, (_, cost) in ready.items()}


def with_times(cost: Measured, seconds: list[float]) -> Measured:
    """``cost`` with the median and spread of ``seconds``, and the share of the limit that they come
    to.
    """
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    share = cost.limit_seconds / median if cost.limit_seconds else None
    return cost._replace(
        seconds=float(median), spread=float(high - low), rounds=len(seconds), share=share
    )


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until the result is there, and the result."""
    begin = time.perf_counter()
    result = jax.block_until_ready(run())
    return time.perf_counter() - begin, result


def compiled(program: Program, limits: Limits) -> tuple[Callable[[], Any], Measured]:
    """A function of nothing that runs the program, and what it costs but for the time."""
    nothing = Measured(float("nan"), float("nan"), 0)
    if not program.jit:
        return lambda: program.f(*program.args), nothing
    args = jax.device_put(program.args)
    clock = [time.perf_counter()]

    def lap(x):
        clock.append(time.perf_counter())
        return x

    traced = lap(jax.jit(program.f).trace(*args))
    lowered = lap(traced.lower())
    run = lap(lowered.compile())
    memory, cost = run.memory_analysis(), run.cost_analysis() or {}
    flop = flop_of(traced.jaxpr)
    moved = program.moved_bytes
    if moved is None:
        moved = 0 if memory is None else memory.argument_size_in_bytes + memory.output_size_in_bytes
    measured = nothing._replace(
        **dict(zip(("trace", "lower", "compile"), np.diff(clock).tolist(), strict=True)),
        temporary_bytes=0 if memory is None else int(memory.temp_size_in_bytes),
        flop=flop,
        moved_bytes=int(moved),
        xla_flop=float(cost.get("flops", 0.0)),
        xla_bytes=float(cost.get("bytes accessed", 0.0)),
        limit_seconds=max(flop / limits.flop_per_second, moved / limits.bytes_per_second),
    )
    return lambda: run(*args), measured


def machine_limits(size: int | None = None, megabytes: int = 256) -> Limits:
    """Times a product of two float32 matrices ``[size, size]`` and a copy, the best of six each.

    The copy turns the sign, so that the compiler can neither leave it out nor hand it to one
    thread.
    """
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    matrix, vector = jnp.ones((size, size)), jnp.ones(megabytes * 2**18)

    def best(f, *args):
        run = jax.jit(f).lower(*args).compile()
        return min(timed(lambda: run(*args))[0] for _ in range(6))

    return Limits(
        2 * size**3 / best(jnp.matmul, matrix, matrix),
        2 * vector.nbytes / best(jnp.negative, vector),
    )


_ARITHMETIC = set(
    "add add_any sub mul div max min neg abs sign square integer_pow pow sqrt rsqrt exp log log1p expm1 "  # noqa: SIM905
    "tanh logistic erf sin cos".split()
)


def flop_of(jaxpr: Any) -> float:
    """Floating-point operations of a jaxpr: two a multiply-add, one a value of any other
    arithmetic.

    Loops count as often as they run, which XLA's analysis leaves out; one whose length is not known
    counts once. What the compiler may remove since nobody reads it is counted.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.ones((2, 3))
    >>> flop_of(jax.make_jaxpr(lambda x: x @ x.T)(x)), flop_of(jax.make_jaxpr(jnp.tanh)(x))
    (24.0, 6.0)
    """
    return float(sum(_flop(eqn) for eqn in jaxpr.eqns))


def _flop(eqn) -> float:
    name, params = eqn.primitive.name, eqn.params
    shapes, size = [v.aval.shape for v in eqn.invars], sum(v.aval.size for v in eqn.outvars)
    if name == "dot_general":
        return 2 * size * float(np.prod([shapes[0][i] for i in params["dimension_numbers"][0][0]]))
    if name == "conv_general_dilated":
        return (
            2
            * size
            * float(np.prod(shapes[1]))
            / shapes[1][params["dimension_numbers"].rhs_spec[0]]
        )
    if name == "custom_linear_solve":
        return flop_of(params["jaxprs"].solve)
    inside = [
        x for value in params.values() for x in (value if isinstance(value, tuple) else (value,))
    ]
    inside = [flop_of(x) for x in inside if hasattr(x, "eqns")]
    if name == "cond":
        return max(inside)
    if inside:
        return sum(inside) * params.get("length", 1)
    if not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        return 0.0
    if name.startswith("reduce_"):
        return float(eqn.invars[0].aval.size)
    return float(size) if name in _ARITHMETIC else 0.0


def agree(name: str, got: Any, want: Any, rtol: float) -> float:
    """The largest relative distance between leaves, or says that ``name`` computes something else.

    A leaf much smaller than the whole (such as the gradient of a bias before normalisation, which
    is rounding) is held against a hundredth of the whole.

    Raises:
      ValueError: other shapes, or a distance above ``rtol``.
    """
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=False))
    shapes = [[np.shape(x) for x in jax.tree.leaves(tree)] for tree in (got, want)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name} computes something else: shapes {shapes[0]}, not {shapes[1]}")
    pairs = [(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in pairs]
    norm = np.sqrt(sum(np.sum(y**2) for _, y in pairs))
    errors = [np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-2 * norm, 1e-30) for x, y in pairs]
    if not np.max(errors) <= rtol:  # a NaN is no agreement
        raise ValueError(
            f"{name} computes something else: relative distance {np.max(errors):.2g} > {rtol:.2g}"
        )
    return float(np.max(errors))


def peak_resident() -> int:
    """The most memory in bytes that this process has had in use since `reset_peak`, or ever where
    that cannot be.
    """
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def reset_peak() -> None:
    """Begins anew with the highest memory in use, where the system knows how (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
