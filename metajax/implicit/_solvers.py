"""Solvers, which minimise an objective: any optax transformation, and Newton's method."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from metajax._arguments import NonNegative, PositiveInt, checked
from metajax.implicit._linear_solvers import LinearSolver
from metajax.implicit._vectors import dot
from metajax.types import Array, PyTree

Objective = Callable[..., Array]
Solver = Callable[[Objective, PyTree], tuple[PyTree, dict[str, Array]]]


@checked
def descend(
    tx: optax.GradientTransformation,
    steps: PositiveInt,
    tolerance: NonNegative | None = None,
) -> Solver:
    """A solver: ``steps`` updates of any optax transformation, also of one that searches a line.

    Gradient descent is ``descend(optax.sgd(rate), steps)``, L-BFGS ``descend(optax.lbfgs(),
    steps)``.

    Args:
      tx: its learning rate included.
      steps: updates, the most of them where there is a ``tolerance``.
      tolerance: the norm of the gradient at which it stops; the metric ``inner_steps`` says after
        how many updates. Under `jax.vmap` all go on until the last has stopped, and those that have
        stay where they are.

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

        def step(carry):
            params, state = carry
            value, grad = value_and_grad(params)
            # What a line search asks for; other transformations leave it aside.
            extra = {"value": value, "grad": grad, "value_fn": objective}
            updates, state = tx.update(grad, state, params, **extra)
            params = optax.apply_updates(params, updates)
            return (params, state), optax.tree.norm(grad), {}

        start = (init, tx.init(init))
        (solution, _), metrics = repeat(step, start, steps, tolerance)
        return solution, metrics

    return solver


@checked
def newton(
    steps: PositiveInt,
    linear_solver: LinearSolver,
    tolerance: NonNegative | None = None,
) -> Solver:
    """A solver: Newton's method without a Hessian (Martens 2010).

    Each step has the linear solver solve ``H d = g`` and goes back along ``d``, from the full step
    by halves, until the objective has fallen by 1e-4 of what its slope promises (Armijo). Where
    ``d`` does not descend, the gradient takes its place. Converges quadratically to a minimum with
    a positive definite Hessian, once near it and given an accurate linear solver.

    Args:
      steps: Newton steps, the most of them where there is a ``tolerance``.
      linear_solver: e.g. ``cg(10)``; its damping makes the steps shorter.
      tolerance: the norm of the gradient at which it stops, as for `descend`.

    Returns:
      A solver with the metrics ``inner_negative_curvature``, the share of its steps that met
      negative curvature, and ``inner_residual``, the mean relative residual of its linear solves.

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

        def step(x):
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
            metrics = {
                "inner_negative_curvature": solution.negative_curvature,
                "inner_residual": solution.residual,
            }
            return x - length * direction, optax.tree.norm(grad), metrics

        x, metrics = repeat(step, start, steps, tolerance)
        return unravel(x), metrics

    return solver


def repeat(
    step: Callable[[PyTree], tuple[PyTree, Array, dict[str, Array]]],
    start: PyTree,
    steps: int,
    tolerance: float | None,
) -> tuple[PyTree, dict[str, Array]]:
    """Takes all steps, or those until the gradient is within the tolerance; their mean metrics.

    ``step`` is ``x -> (new x, norm of the gradient at x, metrics)``.
    """
    if tolerance is None:

        def always(x, _):
            new, _, metrics = step(x)
            return new, metrics

        end, metrics = lax.scan(always, start, None, length=steps)
        return end, jax.tree.map(lambda x: x.mean(dtype=float), metrics)

    def goes_on(carry):
        count, has_stopped, _, _ = carry
        return (count < steps) & ~has_stopped

    def advance(carry):
        count, _, old, totals = carry
        new, norm, metrics = step(old)
        stops = ~(norm > tolerance)  # where it is NaN, too
        added = jax.tree.map(jnp.add, totals, metrics)
        new, totals = optax.tree.where(stops, (old, totals), (new, added))
        return count + jnp.where(stops, 0, 1), stops, new, totals

    _, _, metrics = jax.eval_shape(step, start)
    zeros = jax.tree.map(lambda x: jnp.zeros((), float), metrics)
    begin = (jnp.int32(0), jnp.bool_(False), start, zeros)
    count, _, end, totals = lax.while_loop(goes_on, advance, begin)
    means = jax.tree.map(lambda x: x / jnp.maximum(count, 1), totals)
    return end, means | {"inner_steps": count}


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
