"""The implicit function theorem: solutions that can be differentiated."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike

from metajax import _checks
from metajax._arguments import checked
from metajax._losses import at_least_float32
from metajax._trees import keys_as_numbers
from metajax.implicit._linear_solvers import LinearSolution, LinearSolver
from metajax.implicit._solvers import Objective, Solver
from metajax.types import Array, PyTree


@checked
def argmin(
    objective: Objective,
    solver: Solver,
    linear_solver: LinearSolver,
) -> Callable[..., tuple[PyTree, dict[str, Array]]]:
    """A differentiable argmin, by the implicit function theorem.

    At ``phi(args) = argmin_phi objective(phi, *args)`` the gradient vanishes, hence ``dphi =
    -A^{-1} d(grad)`` with ``A`` the Hessian in ``phi``, a product with which costs about two
    gradients. The solver itself is not differentiated: memory does not grow with its steps, and
    ``phi`` does not depend on where it starts. Forward mode, reverse mode and higher orders work,
    under `jax.jit`, `jax.vmap` and `jax.lax.scan`; outside of them a solve is compiled once, at its
    first call. What has fewer bits than float32 is solved for in float32 and rounded at the end.

    The derivative is that of the exact solution, taken at the one that was found. Its error is of
    the order of the gradient that is left (the metric ``inner_grad_norm``) plus the residual of the
    linear solve (see `inverse_hvp`).

    Args:
      objective: ``(phi, *args) -> scalar``, twice differentiable. What it closes over is
        differentiated too.
      solver: ``(objective, init) -> (phi, metrics)``, e.g. `descend` or `newton`.
      linear_solver: ``(matvec, b) -> LinearSolution``, e.g. `cg`, `neumann` or `direct`.

    Returns:
      ``solve(init, *args) -> (phi, metrics)``: a tree like ``init`` and a dict of scalars:
      ``inner_grad_norm``, the norm of the objective's gradient at ``phi``; ``inner_diverged``, 1
      where it is larger there than at ``init`` or not finite, else 0; and those of the solver.

    Ridge regression, differentiated with respect to its penalty:

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> x, y = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, 2.0, 4.0])
    >>> def objective(w, penalty):
    ...     return jnp.sum((x @ w - y) ** 2) + penalty * jnp.sum(w**2)
    >>> cg = mx.implicit.cg(2)
    >>> solve = mx.implicit.argmin(objective, mx.implicit.newton(1, cg), cg)
    >>> slope = jax.jacobian(lambda penalty: solve(jnp.zeros(2), penalty)[0])(0.1)
    >>> def closed_form(penalty):
    ...     return jnp.linalg.solve(x.T @ x + penalty * jnp.eye(2), x.T @ y)
    >>> bool(jnp.allclose(slope, jax.jacobian(closed_form)(0.1), rtol=1e-3))
    True
    """

    def solve_tangent(hvp, b):
        solve = partial(solved, linear_solver)
        return lax.custom_linear_solve(hvp, b, solve, symmetric=True)

    # Compiled once for all calls of this solve; within another program it is a part of that.
    @partial(jax.jit, inline=True)
    def solve_traced(init, *args):
        # Keys are used at each step of the solver and of the linear one, and that is as it must be.
        args, restore = keys_as_numbers(args)

        def value(phi):
            phi = optax.tree.cast_like(phi, init)
            return at_least_float32(objective(phi, *restore(args)))

        # The solution is the root of the gradient.
        phi, metrics = implicit(
            jax.grad(value),
            partial(solver, value),
            solve_tangent,
            at_least_float32(init),
            "inner_grad_norm",
        )
        return optax.tree.cast_like(phi, init), metrics

    def solve(init, *args):
        _checks.floating("init", init)
        init = jax.tree.map(_strongly_typed, init)

        def value(phi):
            result = objective(phi, *args)
            _checks.scalar("the value of objective", result)
            return result

        # With the arguments themselves: what an objective checks of them, a trace does not show.
        jax.eval_shape(value, init)
        return solve_traced(init, *args)

    return solve


def implicit(
    residual: Callable[[PyTree], PyTree],
    find: Callable[[PyTree], tuple[PyTree, dict[str, Array]]],
    solve_tangent: Callable[[Callable, PyTree], PyTree],
    init: PyTree,
    norm_name: str,
) -> tuple[PyTree, dict[str, Array]]:
    """The root of ``residual`` that ``find`` comes to from ``init``, and how close it came.

    Args:
      residual: ``phi -> tree like phi``. What it closes over is differentiated.
      find: ``init -> (phi, metrics)``, not differentiated.
      solve_tangent: ``(matvec, b) -> x``, solves ``A x = b`` for the Jacobian of ``residual``.
      init: where to start.
      norm_name: what the norm of the residual that is left is called among the metrics.
    """
    _checks.floating("init", init)
    init = jax.tree.map(_strongly_typed, init)

    def search(residual, init):
        result = find(init)
        _checks.returned("solver", result, "solution, metrics")
        phi, metrics = result
        _checks.same_structure("the solution of solver", phi, init, "init")

        begin = optax.tree.norm(residual(init))
        left = optax.tree.norm(residual(phi))
        # Rounding is no divergence, where the start was as good as a solution.
        rounding = jnp.finfo(left.dtype).eps ** 0.5
        came_closer = left <= begin + rounding  # false for NaN
        own = {norm_name: left, "inner_diverged": ~came_closer}
        metrics = jax.tree.map(lambda x: jnp.asarray(x, float), own | metrics)
        return phi, metrics

    return lax.custom_root(residual, init, search, solve_tangent, has_aux=True)


def solved(linear_solver: LinearSolver, matvec: Callable, b: PyTree) -> PyTree:
    solution = linear_solver(matvec, b)
    if not isinstance(solution, LinearSolution):
        got = type(solution).__name__
        raise TypeError(
            f"linear_solver must return a LinearSolution, as implicit.cg does, got {got}"
        )
    return solution.x


def _strongly_typed(x: Any) -> Array:
    # Gradients have no weak types, and a solution must be of the type of its gradient.
    return lax.convert_element_type(x, jnp.result_type(x))


@checked
def inverse_hvp(
    objective: Objective,
    linear_solver: LinearSolver,
) -> Callable[..., LinearSolution]:
    """The linear system that differentiating `argmin` comes down to, with what became of it.

    With ``phi`` from `argmin` and ``vector`` the gradient of an outer loss there, this is the very
    solve of reverse mode: its residual and whether the curvature was negative say how good the
    implicit gradient is.

    Args:
      objective: ``(phi, *args) -> scalar``.
      linear_solver: e.g. `cg`.

    Returns:
      ``(phi, vector, *args) -> LinearSolution``: the inverse Hessian at ``phi`` times ``vector``, a
      tree like ``phi``.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> solve = mx.implicit.inverse_hvp(lambda phi, a: jnp.sum(a * phi**2), mx.implicit.cg(2))
    >>> solution = solve(jnp.ones(2), jnp.array([2.0, 8.0]), jnp.array([1.0, 2.0]))
    >>> solution.x.round(3).tolist(), round(float(solution.residual), 3)
    ([1.0, 2.0], 0.0)
    >>> bool(solution.negative_curvature)
    False
    """

    @partial(jax.jit, inline=True)
    def solve(phi, vector, *args):
        def value(phi):
            return objective(phi, *args)

        _, hvp = jax.linearize(jax.grad(value), phi)
        return linear_solver(hvp, vector)

    return solve


@checked
def proximal(loss: Objective) -> Objective:
    """``loss(phi, *args) + 1/2 sum lam (phi - theta)^2``, the inner problem of iMAML.

    Its solution depends on ``theta`` through the second term alone, on ``lam`` too, and on no
    starting point (Rajeswaran et al. 2019).

    Args:
      loss: ``(phi, *args) -> scalar``.

    Returns:
      ``objective(phi, theta, lam, *args)``; ``theta`` is a tree like ``phi`` and ``lam > 0`` a
      scalar, a tree with a scalar a layer (any prefix of ``phi``), or a tree like ``phi`` with a
      value a parameter; traced, it can be learned.

    Raises:
      ValueError: a ``lam`` that is not above 0. One that is traced cannot be checked and makes the
        objective NaN: keep it above 0, e.g. as an exponential.

    With one observation ``y`` the solution is ``(y + lam theta) / (1 + lam)``:

    >>> import jax.numpy as jnp, metajax as mx
    >>> objective = mx.implicit.proximal(lambda phi, y: 0.5 * jnp.sum((phi - y) ** 2))
    >>> cg = mx.implicit.cg(1)
    >>> solve = mx.implicit.argmin(objective, mx.implicit.newton(1, cg), cg)
    >>> phi, metrics = solve(jnp.zeros(1), jnp.array([1.0]), 3.0, jnp.array([5.0]))
    >>> round(float(phi[0]), 3)
    2.0
    """

    def objective(phi, theta, lam, *args):
        _checks.positive("lam", lam)
        _checks.same_structure("theta", theta, phi, "phi")
        try:
            pulls = jax.tree.map(_pull, lam, phi, theta)
        except ValueError as e:
            raise ValueError(
                f"lam must be a number, or a tree that the parameters' begins with: {e}"
            ) from e
        return loss(phi, *args) + 0.5 * optax.tree.sum(pulls)

    return objective


def _pull(lam: ArrayLike, phi: PyTree, theta: PyTree) -> ArrayLike:
    """``sum lam (phi - theta)^2`` over all the leaves that one of ``lam`` stands for."""

    def of_leaf(p, t):
        p, t = at_least_float32((p, t))
        above_zero = jnp.where(jnp.asarray(lam) > 0, lam, jnp.nan)
        weights = jnp.broadcast_to(above_zero, p.shape)
        return jnp.sum(weights * (p - t) ** 2)

    pulls = jax.tree.map(of_leaf, phi, theta)
    return optax.tree.sum(pulls)
