"""Solvers, which minimise an objective: any optax transformation, and Newton's method."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from metajax._arguments import PositiveInt, checked
from metajax.implicit._linear_solvers import LinearSolver
from metajax.implicit._vectors import dot
from metajax.types import Array, PyTree

Objective = Callable[..., Array]
Solver = Callable[[Objective, PyTree], tuple[PyTree, dict[str, Array]]]


@checked
def descend(tx: optax.GradientTransformation, steps: PositiveInt) -> Solver:
    """A solver: ``steps`` updates of any optax transformation, also of one that searches a line.

    Gradient descent is ``descend(optax.sgd(rate), steps)``, L-BFGS ``descend(optax.lbfgs(),
    steps)``.

    >>> import jax.numpy as jnp, metajax as mx, optax
    >>> solver = mx.implicit.descend(optax.lbfgs(), 10)
    >>> def objective(x):
    ...     return jnp.sum((x - jnp.array([1.0, 2.0])) ** 4 + x**2)
    >>> phi, metrics = solver(objective, jnp.zeros(2))
    >>> [round(float(x), 2) for x in phi]
    [0.41, 1.16]
    """
    tx = optax.with_extra_args_support(tx)

    def solver(objective, init):
        value_and_grad = jax.value_and_grad(objective)

        def step(carry, _):
            params, state = carry
            value, grad = value_and_grad(params)
            # What a line search asks for; other transformations leave it aside.
            extra = {"value": value, "grad": grad, "value_fn": objective}
            updates, state = tx.update(grad, state, params, **extra)
            params = optax.apply_updates(params, updates)
            return (params, state), None

        start = (init, tx.init(init))
        (solution, _), _ = lax.scan(step, start, None, length=steps)
        return solution, {}

    return solver


@checked
def newton(steps: PositiveInt, linear_solver: LinearSolver) -> Solver:
    """A solver: Newton's method without a Hessian (Martens 2010).

    Each step has the linear solver solve ``H d = g`` and goes back along ``d``, from the full step
    by halves, until the objective has fallen by 1e-4 of what its slope promises (Armijo). Where
    ``d`` does not descend, the gradient takes its place. Converges quadratically to a minimum with
    a positive definite Hessian, once near it and given an accurate linear solver.

    Args:
      steps: Newton steps.
      linear_solver: e.g. ``cg(10)``; its damping makes the steps shorter.

    Returns:
      A solver with the metric ``inner_negative_curvature``, the share of its steps that met
      negative curvature.

    >>> import jax.numpy as jnp, metajax as mx
    >>> solver = mx.implicit.newton(6, mx.implicit.cg(2))
    >>> def objective(x):
    ...     return jnp.sum(jnp.cosh(x - jnp.array([1.0, -2.0])))
    >>> phi, metrics = solver(objective, jnp.zeros(2))
    >>> phi.round(3).tolist(), float(metrics["inner_negative_curvature"])
    ([1.0, -2.0], 0.0)
    """

    def solver(objective, init):
        start, unravel = ravel_pytree(init)

        def value_at(x):
            return objective(unravel(x))

        value_and_grad = jax.value_and_grad(value_at)

        def step(x, _):
            # One pass gives the value, the gradient and products with the Hessian.
            (value, grad), tangents = jax.linearize(value_and_grad, x)

            def hvp(v):
                _, product = tangents(v)
                return product

            solution = linear_solver(hvp, grad)
            descends = dot(solution.x, grad) > 0
            direction = jnp.where(descends, solution.x, grad)
            slope = dot(direction, grad)
            length = _backtrack(value_at, x, direction, value, slope)
            return x - length * direction, solution.negative_curvature

        x, negative_curvature = lax.scan(step, start, None, length=steps)
        share = negative_curvature.mean(dtype=x.dtype)
        return unravel(x), {"inner_negative_curvature": share}

    return solver


def _backtrack(
    f: Callable,
    x: Array,
    direction: Array,
    value: Array,
    slope: Array,
) -> Array:
    """The first of 1, 1/2, 1/4, ... with ``f(x - t direction)`` low enough, 0 if there is none."""
    # Near a minimum a full step lowers f by less than f is rounded to; without slack none would be
    # taken there.
    eps = jnp.finfo(x.dtype).eps
    slack = 10 * eps * jnp.abs(value)
    shortest = 2.0**-30

    def too_long(t):
        # "Not low enough" rather than "too high", so that NaN is too high as well.
        enough = value - 1e-4 * t * slope + slack
        low_enough = f(x - t * direction) <= enough
        return (t >= shortest) & ~low_enough

    full = jnp.ones_like(slope)
    t = lax.while_loop(too_long, lambda t: t / 2, full)
    return jnp.where(t >= shortest, t, 0)
