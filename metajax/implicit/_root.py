"""Roots and fixed points that can be differentiated."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax
from jax import lax

from metajax import _checks
from metajax._arguments import NonNegative, PositiveInt, checked
from metajax.implicit._argmin import implicit, solved
from metajax.implicit._linear_solvers import LinearSolver
from metajax.implicit._solvers import Solver, repeat
from metajax.types import Array, PyTree

Map = Callable[..., PyTree]


@checked
def root(
    f: Map, solver: Solver, linear_solver: LinearSolver
) -> Callable[..., tuple[PyTree, dict[str, Array]]]:
    """A differentiable root, by the implicit function theorem: ``f(phi, *args) = 0``.

    As `argmin`, whose gradient is such an ``f``, but for any that gives a tree like ``phi`` and has
    an invertible Jacobian at the root. It need not be symmetric: the linear systems ``A x = b`` are
    solved as ``A^T A x = A^T b`` (in reverse mode with ``A`` and ``A^T`` exchanged), which squares
    the condition number.

    Args:
      f: ``(phi, *args) -> tree like phi``. What it closes over is differentiated too.
      solver: as for `argmin`; it minimises ``1/2 |f|^2``.
      linear_solver: as for `argmin`.

    Returns:
      ``solve(init, *args) -> (phi, metrics)``: a tree like ``init`` and a dict of scalars:
      ``inner_residual_norm``, the norm of ``f`` at ``phi``; ``inner_diverged``, 1 where it is
      larger there than at ``init`` or not finite, else 0; and those of the solver.

    The square root of 2, and its derivative ``1 / (2 sqrt(2))``:

    >>> import jax, metajax as mx
    >>> cg = mx.implicit.cg(1)
    >>> solve = mx.implicit.root(lambda x, a: x**2 - a, mx.implicit.newton(8, cg), cg)
    >>> [round(float(x), 3) for x in jax.value_and_grad(lambda a: solve(1.0, a)[0])(2.0)]
    [1.414, 0.354]
    """

    def run(init, *args):
        def value(phi):
            result = f(phi, *args)
            _checks.same_structure("what f returned", result, phi, "phi")
            return result

        def half_square(phi):
            return 0.5 * optax.tree.norm(value(phi), squared=True)

        find = partial(solver, half_square)
        return _root(value, find, linear_solver, init)

    return _compiled_once(run, f)


@checked
def fixed_point(
    f: Map, solver: Callable[..., Any], linear_solver: LinearSolver
) -> Callable[..., tuple[PyTree, dict[str, Array]]]:
    """A differentiable fixed point, by the implicit function theorem: ``phi = f(phi, *args)``.

    The linear systems are those of `root` with ``f(phi) - phi``.

    Args:
      f: ``(phi, *args) -> tree like phi``. What it closes over is differentiated too.
      solver: ``(f, init) -> (phi, metrics)``, where ``f`` takes the point alone, e.g. `iterate`.
      linear_solver: as for `argmin`.

    Returns:
      ``solve(init, *args) -> (phi, metrics)``, as of `root`; ``inner_residual_norm`` is the norm of
      ``f(phi) - phi``.

    Where ``x = cos(a x)``, and how it moves with ``a``:

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> solve = mx.implicit.fixed_point(
    ...     lambda x, a: jnp.cos(a * x), mx.implicit.iterate(50), mx.implicit.cg(1))
    >>> [round(float(x), 3) for x in jax.value_and_grad(lambda a: solve(1.0, a)[0])(1.0)]
    [0.739, -0.297]
    """

    def run(init, *args):
        def move(phi):
            result = f(phi, *args)
            _checks.same_structure("what f returned", result, phi, "phi")
            return result

        def step_left(phi):
            return optax.tree.sub(move(phi), phi)

        return _root(step_left, partial(solver, move), linear_solver, init)

    return _compiled_once(run, f)


@checked
def iterate(steps: PositiveInt, tolerance: NonNegative | None = None) -> Solver:
    """A solver for `fixed_point`: ``phi <- f(phi)``, which converges where ``f`` contracts.

    Args:
      steps: applications of ``f``, the most of them where there is a ``tolerance``.
      tolerance: the norm of ``f(phi) - phi`` at which it stops; the metric ``inner_steps`` says
        after how many.

    >>> import jax.numpy as jnp, metajax as mx
    >>> x, metrics = mx.implicit.iterate(100, tolerance=1e-3)(jnp.cos, jnp.float32(1.0))
    >>> round(float(x), 2), int(metrics["inner_steps"])
    (0.74, 16)
    """

    def solver(f, init):
        def step(phi):
            new = f(phi)
            return new, optax.tree.norm(optax.tree.sub(new, phi)), {}

        return repeat(step, init, steps, tolerance)

    return solver


def _compiled_once(run: Callable, f: Map) -> Callable:
    """For all calls; within another program it is a part of that."""
    compiled = jax.jit(run, inline=True)

    def solve(init, *args):
        _checks.floating("init", init)
        # With the arguments themselves: what a function checks of them, a trace does not show.
        jax.eval_shape(lambda phi: f(phi, *args), init)
        return compiled(init, *args)

    return solve


def _root(
    residual: Callable[[PyTree], PyTree],
    find: Callable[[PyTree], Any],
    linear_solver: LinearSolver,
    init: PyTree,
) -> tuple[PyTree, dict[str, Array]]:
    def solve_normal(matvec, b):
        """``A x = b`` for any invertible ``A``, by a solver for positive definite ones."""
        transpose = jax.linear_transpose(matvec, b)

        def normal(x):
            (product,) = transpose(matvec(x))
            return product

        (projected,) = transpose(b)
        return solved(linear_solver, normal, projected)

    def solve_tangent(jvp, b):
        return lax.custom_linear_solve(
            jvp, b, solve_normal, transpose_solve=solve_normal
        )

    return implicit(residual, find, solve_tangent, init, "inner_residual_norm")
