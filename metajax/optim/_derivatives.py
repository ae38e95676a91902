"""Derivatives at the points where roots, quotients and logarithms have none.

Adam divides a mean ``m`` by the root of a mean of squares ``v``. Where all gradients have been
zero, those of a weight behind a pixel that is always black, so are ``v`` and its differential, and
the chain rule gives ``dv / (2 sqrt(v)) = 0 / 0``. A root of squares is a norm, which has the
subgradient 0 there; with that the whole, ``g / (|g| + eps)``, gets its true derivative ``1 / eps``.
Other quotients by zero, and roots of what is below, are never used but stand in the branch of a
`jnp.where` that was not taken, as in clipping by a norm that is zero.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from metajax.types import Array

# Of primitives that may have no derivative at finite values: in which operand, and where.
_SINGULAR: dict[str, tuple[int, Callable[..., Array]]] = {
    "sqrt": (0, lambda x: x <= 0),
    "rsqrt": (0, lambda x: x <= 0),
    "log": (0, lambda x: x <= 0),
    "cbrt": (0, lambda x: x == 0),
    "div": (1, lambda x, y: y == 0),
    "pow": (0, lambda x, y: (x == 0) & (y < 1)),
}


def without_singularities(f: Callable) -> Callable:
    """The same function of trees of arrays, with a derivative of 0 along what has none."""

    def run(*args):
        closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
        # Nothing goes backwards through what loops until it is content, such as a line search.
        if _has(_is_open_loop, closed.jaxpr) or not _has(_is_singular, closed.jaxpr):
            return f(*args)
        operands = [*closed.consts, *map(jnp.asarray, jax.tree.leaves(args))]
        results = _with_safe_derivative(closed.jaxpr, operands)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return run


def _with_safe_derivative(jaxpr: Jaxpr, operands: list[Any]) -> list[Any]:
    """Its values, NaN and all, and the derivative of its safe twin; what has none pays nothing."""

    @jax.custom_jvp
    def values(operands):
        num_consts = len(jaxpr.constvars)
        return jax.core.eval_jaxpr(jaxpr, operands[:num_consts], *operands[num_consts:])

    @values.defjvp
    def with_tangents(primals, tangents):
        _, slopes = jax.jvp(partial(_evaluate, jaxpr), primals, tangents)
        return values(*primals), slopes

    return values(operands)


def _evaluate(jaxpr: Jaxpr, operands: list[Any]) -> list[Any]:
    """What it gives, but for NaN from what has no derivative."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], operands, strict=True))

    def read(variable):
        return variable.val if isinstance(variable, Literal) else values[variable]

    for eqn in jaxpr.eqns:
        results = _apply(eqn, [read(variable) for variable in eqn.invars])
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _apply(eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    """The results of one operation."""
    params = {name: _map_jaxprs(_rewritten, x) for name, x in eqn.params.items()}
    bound = eqn.primitive.get_bind_params(params)
    functions, params = (
        bound if isinstance(bound, tuple) else ([], bound)
    )  # before JAX 0.10

    def bind(*operands):
        results = eqn.primitive.bind(*functions, *operands, **params)
        return results if eqn.primitive.multiple_results else [results]

    if not _is_singular(eqn):
        return bind(*operands)
    where, is_singular = _SINGULAR[eqn.primitive.name]
    singular = is_singular(*operands)
    moved = list(operands)
    moved[where] = jnp.where(singular, 1, operands[where])
    [elsewhere] = bind(*moved)
    [there] = bind(*map(lax.stop_gradient, operands))
    # A NaN that is multiplied with something would spoil the derivative of that.
    there = jnp.where(jnp.isnan(there), lax.stop_gradient(elsewhere), there)
    return [jnp.where(singular, there, elsewhere)]


def _has(predicate: Callable[[JaxprEqn], bool], jaxpr: Jaxpr) -> bool:
    """Whether some operation in it is such."""
    found = []
    for eqn in jaxpr.eqns:
        found.append(predicate(eqn))
        for value in eqn.params.values():
            _map_jaxprs(
                lambda inside: found.append(_has(predicate, inside.jaxpr)), value
            )
    return any(found)


def _is_open_loop(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name == "while"


def _is_singular(eqn: JaxprEqn) -> bool:
    if eqn.primitive.name not in _SINGULAR:
        return False
    where, _ = _SINGULAR[eqn.primitive.name]
    is_constant = isinstance(eqn.invars[where], Literal)
    result: Any = eqn.outvars[0].aval
    return not is_constant and jnp.issubdtype(result.dtype, jnp.floating)


def _map_jaxprs(f: Callable, value: Any) -> Any:
    """``f`` of a program or of several; anything else as it is."""
    if isinstance(value, ClosedJaxpr):
        return f(value)
    if type(value) is tuple:  # not one with names
        return tuple(_map_jaxprs(f, x) for x in value)
    return value


def _rewritten(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The body of a loop, a branch or a call."""
    if not _has(_is_singular, closed.jaxpr):
        return closed

    def run(*args):
        return _evaluate(closed.jaxpr, [*closed.consts, *args])

    return jax.make_jaxpr(run)(*closed.in_avals)
