"""Products as a GPU computes them by default, and what that makes of meta-gradients.

``python -m benchmarks.rounding`` needs no GPU: it rounds, as TF32 does, what is multiplied.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from benchmarks.cases.maml import PLAIN, plain_imaml, plain_maml
from benchmarks.workloads import Workload, workload

_MANTISSA = 23
_TF32 = 10


def main() -> int:
    """How far meta-gradients are apart, relative to the second of each two."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--scale", choices=("smoke", "full"), default="full")
    smoke = parser.parse_args().scale == "smoke"
    for name, form in (("maml", plain_maml), ("imaml", plain_imaml)):
        work = workload(name, smoke)
        for what, distance in distances(work, partial(form, work)):
            print(f"{name}: {what} {distance:.2g}", flush=True)
    return 0


def distances(work: Workload, form: Callable) -> Iterator[tuple[str, float]]:
    """Of our meta-gradient and of another ``form`` of it, as they are and in TF32."""
    args = (work.params, *work.batches)
    ours, plain = _vector(work.ours, work.args), _vector(form, args)
    ours_tf32 = _vector(in_tf32(work.ours), work.args)
    plain_tf32 = _vector(in_tf32(form), args)
    yield f"ours | {PLAIN}", _distance(ours, plain)
    yield "ours in TF32 | ours", _distance(ours_tf32, ours)
    yield f"{PLAIN} in TF32 | itself", _distance(plain_tf32, plain)
    yield "both in TF32", _distance(ours_tf32, plain_tf32)

    # Nothing rounded but where the meta-gradient is taken.
    key, params, *others = work.args
    for bits in (10, 15):
        moved = jax.tree.map(partial(_nudged, 2.0 ** -(bits + 1)), params)
        near = _vector(work.ours, (key, moved, *others))
        yield f"ours at parameters moved by 2^-{bits + 1} | ours", _distance(near, ours)


def in_tf32(f: Callable) -> Callable:
    """The same function, whose products of float32 have operands of 10 bits of mantissa.

    All but those that ask for the highest precision; accumulated in float32.
    """

    def run(*args):
        program, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
        rewritten = _rewritten(program)
        outputs = core.jaxpr_as_fun(rewritten)(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return run


def precisions(f: Callable, *args: Any) -> Counter[str]:
    """The products in a program, those in its loops and branches once, by their precision."""
    return Counter(map(_precision, _products(jax.make_jaxpr(f)(*args).jaxpr)))


def to_tf32(x: Any) -> Any:
    """Float32 to the nearest of 10 bits of mantissa, ties away from zero.

    >>> float(to_tf32(jnp.float32(1 + 2**-10 + 2**-12))) == 1 + 2**-10
    True
    """
    if x.dtype != jnp.float32:
        return x
    dropped = _MANTISSA - _TF32
    bits = lax.bitcast_convert_type(x, jnp.uint32) + jnp.uint32(1 << (dropped - 1))
    rounded = bits & jnp.uint32(2**32 - 2**dropped)
    return jnp.where(jnp.isfinite(x), lax.bitcast_convert_type(rounded, jnp.float32), x)


def _precision(eqn: core.JaxprEqn) -> str:
    """That of the operand with less of it."""
    said = eqn.params["precision"]
    both = said if isinstance(said, tuple) else (said,)
    return "highest" if set(both) == {lax.Precision.HIGHEST} else "default"


def _is_product(eqn: core.JaxprEqn) -> bool:
    return eqn.primitive.name in ("dot_general", "conv_general_dilated")


def _products(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    for eqn in jaxpr.eqns:
        if _is_product(eqn):
            yield eqn
        for program in filter(_is_program, _leaves(eqn.params)):
            yield from _products(getattr(program, "jaxpr", program))


def _rewritten(program: Any) -> Any:
    if isinstance(program, core.ClosedJaxpr):
        return program.replace(jaxpr=_rewritten(program.jaxpr))
    return program.replace(eqns=[_rounding(eqn) for eqn in program.eqns])


def _rounding(eqn: core.JaxprEqn) -> core.JaxprEqn:
    """The operation, or one in its place that rounds first."""
    if not _is_product(eqn):
        leaves, structure = jax.tree.flatten(eqn.params, is_leaf=_is_program)
        new = [_rewritten(x) if _is_program(x) else x for x in leaves]
        return eqn.replace(params=jax.tree.unflatten(structure, new))
    if _precision(eqn) == "highest":
        return eqn

    def product(*operands):
        return eqn.primitive.bind(*map(to_tf32, operands), **eqn.params)

    avals: list[Any] = [x.aval for x in eqn.invars]
    inputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in avals]
    (call,) = jax.make_jaxpr(jax.jit(product))(*inputs).jaxpr.eqns
    return eqn.replace(primitive=call.primitive, params=call.params)


def _leaves(params: dict[str, Any]) -> list[Any]:
    return jax.tree.leaves(params, is_leaf=_is_program)


def _is_program(x: Any) -> bool:
    return isinstance(x, core.Jaxpr | core.ClosedJaxpr)


def _nudged(size: float, x: Any) -> Any:
    """Each number times a factor within ``1 - size`` and ``1 + size``."""
    key = jax.random.key(0)
    factor = jax.random.uniform(key, x.shape, x.dtype, 1 - size, 1 + size)
    return x * factor


def _vector(f: Callable, args: tuple) -> np.ndarray:
    leaves = jax.tree.leaves(jax.jit(f)(*args))
    return np.concatenate([np.ravel(x) for x in leaves]).astype(float)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


if __name__ == "__main__":
    sys.exit(main())
