"""Implicit differentiation: the solution of an inner problem as a differentiable function of what
defines it.

Three things are joined, each a plain function: an objective, a solver that minimises it, and a
linear solver for the systems that the implicit function theorem leads to.

- A *solver* is ``(objective, init) -> (solution, metrics)`` with ``objective(solution)`` a scalar.
  It is never differentiated, so that it may loop, branch and search lines as it likes.
- A *linear solver* is ``(matvec, b) -> LinearSolution`` for a symmetric ``matvec`` over trees like
``b``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from metajax import _checks
from metajax.types import Array, PyTree


class LinearSolution(NamedTuple):
    """What a linear solver returns.

    Attributes: x: an approximate solution of ``A x = b``, a tree like ``b``. residual: ``|b - A x|
      / |b|``, a scalar, 0 where ``b`` is; with damping, ``A`` has it in it. That of `cg` is the one
      that it carries along, which in float32 falls below the true one after many steps on an
      ill-conditioned ``A``. negative_curvature: a bool, whether a direction with ``p^T A p <= 0``
      was met: ``A`` is then not positive definite and the point that it belongs to is no strict
      minimum.
    """

    x: PyTree
    residual: Array
    negative_curvature: Array


def argmin(
    objective: Callable[..., Any], solver: Callable[..., Any], linear_solver: Callable[..., Any]
) -> Callable:
    """A differentiable argmin, by the implicit function theorem.

    At ``phi(args) = argmin_phi objective(phi, *args)`` the gradient vanishes, hence ``dphi =
    -A^{-1} d(grad)`` with ``A`` the Hessian in ``phi``, a product with which costs about two
    gradients. The solver itself is not differentiated: memory does not grow with its steps, and
    ``phi`` does not depend on where it starts. Forward mode, reverse mode and higher orders work,
    under `jax.jit`, `jax.vmap` and `jax.lax.scan`.

    The derivative is that of the exact solution, taken at the one that was found: its error is of
    the order of the gradient that is left (the metric ``inner_grad_norm``) plus the residual of the
    linear solve (see `inverse_hvp`).

    Args: objective: ``(phi, *args) -> scalar``, twice differentiable. What it closes over is
      differentiated too. solver: ``(objective, init) -> (phi, metrics)``, e.g. `descend` or
      `newton`. linear_solver: ``(matvec, b) -> LinearSolution``, e.g. `cg`, `neumann` or `direct`.

    Returns: ``solve(init, *args) -> (phi, metrics)``: a tree like ``init`` and a dict of scalars,
      ``inner_grad_norm`` (the norm of the objective's gradient at ``phi``) and those of the solver.

    Raises: TypeError, ValueError: an argument that is no function, an ``init`` that is not
      floating-point, an objective that is no scalar, or a solver whose solution is no tree like
      ``init``.

    Ridge regression, differentiated with respect to its penalty:

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> x, y = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, 2.0, 4.0])
    >>> def objective(w, penalty):
    ...     return jnp.sum((x @ w - y) ** 2) + penalty * jnp.sum(w**2)
    >>> solve = mx.implicit.argmin(objective, mx.implicit.newton(1, mx.implicit.cg(2)), mx.implicit.cg(2))
    >>> slope = jax.jacobian(lambda penalty: solve(jnp.zeros(2), penalty)[0])(0.1)
    >>> exact = jax.jacobian(lambda penalty: jnp.linalg.solve(x.T @ x + penalty * jnp.eye(2), x.T @ y))(0.1)
    >>> bool(jnp.allclose(slope, exact, rtol=1e-3))
    True
    """
    _checks.function(objective=objective, solver=solver, linear_solver=linear_solver)

    def solve(init: PyTree, *args: Any) -> tuple[PyTree, dict[str, Array]]:
        _checks.floating("init", init)
        # Gradients have no weak types, and a solution must be of the type of its gradient.
        init = jax.tree.map(lambda x: lax.convert_element_type(x, jnp.result_type(x)), init)

        def value(phi):
            result = objective(phi, *args)
            _checks.scalar("the value of objective", result)
            return result

        def minimise(grad, init):
            found = solver(value, init)
            _checks.returned("solver", found, "solution, metrics")
            phi, metrics = found
            _checks.same_structure("the solution of solver", phi, init, "init")
            metrics = {"inner_grad_norm": optax.tree.norm(grad(phi))} | metrics
            return phi, {name: jnp.asarray(x, float) for name, x in metrics.items()}

        def linear(hvp, b):
            solution = linear_solver(hvp, b)
            if not isinstance(solution, LinearSolution):
                kind = type(solution).__name__
                raise TypeError(
                    f"linear_solver must return a LinearSolution, as implicit.cg does, got {kind}"
                )
            return solution.x

        def tangent_solve(hvp, b):
            return lax.custom_linear_solve(hvp, b, linear, symmetric=True)

        return lax.custom_root(jax.grad(value), init, minimise, tangent_solve, has_aux=True)

    return solve


def inverse_hvp(objective: Callable[..., Any], linear_solver: Callable[..., Any]) -> Callable:
    """The linear system that differentiating `argmin` comes down to, with what became of it.

    With ``phi`` from `argmin` and ``vector`` the gradient of an outer loss there, this is the very
    solve of reverse mode: its residual and whether the curvature was negative say how good the
    implicit gradient is.

    Args:
      objective: ``(phi, *args) -> scalar``.
      linear_solver: e.g. `cg`.

    Returns: ``(phi, vector, *args) -> LinearSolution``: the inverse Hessian at ``phi`` times
      ``vector``, a tree like ``phi``.

    Raises:
      TypeError: an argument that is no function.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> solve = mx.implicit.inverse_hvp(lambda phi, a: jnp.sum(a * phi**2), mx.implicit.cg(2))
    >>> solution = solve(jnp.ones(2), jnp.array([2.0, 8.0]), jnp.array([1.0, 2.0]))
    >>> [round(float(x), 3) for x in solution.x], round(float(solution.residual), 3), bool(solution.negative_curvature)
    ([1.0, 2.0], 0.0, False)
    """
    _checks.function(objective=objective, linear_solver=linear_solver)

    def solve(phi: PyTree, vector: PyTree, *args: Any) -> LinearSolution:
        _, hvp = jax.linearize(jax.grad(lambda phi: objective(phi, *args)), phi)
        return linear_solver(hvp, vector)

    return solve


def proximal(loss: Callable[..., Any]) -> Callable:
    """``loss(phi, *args) + 1/2 sum lam (phi - theta)^2``, the inner problem of iMAML (Rajeswaran et
    al. 2019).

    Its solution depends on ``theta`` through the second term alone, on ``lam`` too, and on no
    starting point.

    Args:
      loss: ``(phi, *args) -> scalar``.

    Returns: ``objective(phi, theta, lam, *args)``; ``theta`` is a tree like ``phi`` and ``lam > 0``
      a scalar, a tree with a scalar a layer (any prefix of ``phi``), or a tree like ``phi`` with a
      value a parameter; traced, it can be learned. A value that is traced cannot be checked: keep
      it above 0, e.g. as an exponential.

    Raises:
      ValueError: a ``lam`` that is not traced and not above 0.

    >>> import jax.numpy as jnp, metajax as mx
    >>> objective = mx.implicit.proximal(lambda phi, y: 0.5 * jnp.sum((phi - y) ** 2))
    >>> solve = mx.implicit.argmin(objective, mx.implicit.newton(1, mx.implicit.cg(1)), mx.implicit.cg(1))
    >>> phi, metrics = solve(jnp.zeros(1), jnp.array([1.0]), 3.0, jnp.array([5.0]))  # (y + 3 theta) / (1 + 3)
    >>> round(float(phi[0]), 3)
    2.0
    """
    _checks.function(loss=loss)

    def objective(phi: PyTree, theta: PyTree, lam: PyTree, *args: Any) -> Array:
        _checks.positive("lam", lam)
        _checks.same_structure("theta", theta, phi, "phi")

        def pull(lam, phi, theta):  # of all the leaves that one of lam stands for
            square = jax.tree.map(
                lambda p, t: jnp.sum(jnp.broadcast_to(lam, p.shape) * (p - t) ** 2), phi, theta
            )
            return sum(jax.tree.leaves(square))

        return loss(phi, *args) + 0.5 * sum(jax.tree.leaves(jax.tree.map(pull, lam, phi, theta)))

    return objective


# Solvers


def descend(tx: optax.GradientTransformation, steps: int) -> Callable:
    """A solver: ``steps`` updates of any optax transformation, those that search a line included.

    Gradient descent is ``descend(optax.sgd(rate), steps)``, L-BFGS ``descend(optax.lbfgs(),
    steps)``.

    Raises:
      TypeError, ValueError: something else than a transformation, or no step.

    >>> import jax.numpy as jnp, metajax as mx, optax
    >>> solver = mx.implicit.descend(optax.lbfgs(), 10)
    >>> phi, metrics = solver(lambda x: jnp.sum((x - jnp.array([1.0, 2.0])) ** 4 + x**2), jnp.zeros(2))
    >>> [round(float(x), 2) for x in phi]
    [0.41, 1.16]
    """
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(
            f"tx must be an optax.GradientTransformation, e.g. optax.sgd(0.1), got {type(tx).__name__}"
        )
    _checks.positive_int(steps=steps)
    tx = optax.with_extra_args_support(tx)

    def solver(objective, init):
        def body(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(objective)(params)
            updates, state = tx.update(
                grads, state, params, value=value, grad=grads, value_fn=objective
            )
            return (optax.apply_updates(params, updates), state), None

        return lax.scan(body, (init, tx.init(init)), None, length=steps)[0][0], {}

    return solver


def newton(steps: int, linear_solver: Callable[..., Any]) -> Callable:
    """A solver: Newton's method without a Hessian (Martens 2010), its directions from a linear
    solver.

    Each step solves ``H d = g`` and goes back along ``d``, from the full step by halves, until the
    objective has fallen by 1e-4 of what its slope promises (Armijo). Where ``d`` does not descend,
    the gradient takes its place. Converges quadratically to a minimum with a positive definite
    Hessian, once near it and given an accurate linear solver.

    Args:
      steps: Newton steps.
      linear_solver: e.g. ``cg(10)``; its damping makes the steps shorter.

    Returns: A solver with the metric ``inner_negative_curvature``, the share of its steps that met
      negative curvature.

    Raises:
      TypeError, ValueError: no step, or a linear solver that is no function.

    >>> import jax.numpy as jnp, metajax as mx
    >>> solver = mx.implicit.newton(6, mx.implicit.cg(2))
    >>> phi, metrics = solver(lambda x: jnp.sum(jnp.cosh(x - jnp.array([1.0, -2.0]))), jnp.zeros(2))
    >>> phi.round(3).tolist(), float(metrics["inner_negative_curvature"])
    ([1.0, -2.0], 0.0)
    """
    _checks.positive_int(steps=steps)
    _checks.function(linear_solver=linear_solver)

    def solver(objective, init):
        x, unravel = ravel_pytree(init)

        def f(x):
            return objective(unravel(x))

        def body(x, _):
            (value, g), tangent = jax.linearize(jax.value_and_grad(f), x)
            solution = linear_solver(lambda v: tangent(v)[1], g)
            d = jnp.where(_dot(solution.x, g) > 0, solution.x, g)
            return x - _backtrack(f, x, d, value, _dot(d, g)) * d, solution.negative_curvature

        x, negative = lax.scan(body, x, None, length=steps)
        return unravel(x), {"inner_negative_curvature": negative.mean(dtype=x.dtype)}

    return solver


def _backtrack(f: Callable, x: Array, d: Array, value: Array, slope: Array) -> Array:
    """The first of 1, 1/2, 1/4, ... with ``f(x - t d)`` low enough, or 0 if there is none."""
    # Near a minimum a full step lowers f by less than f is rounded to; without slack none would be
    # taken there.
    slack = 10 * jnp.finfo(x.dtype).eps * jnp.abs(value)
    least = 2.0**-30

    def too_long(t):
        return (t >= least) & ~(f(x - t * d) <= value - 1e-4 * t * slope + slack)

    t = lax.while_loop(too_long, lambda t: t / 2, jnp.ones_like(slope))
    return jnp.where(t >= least, t, 0)


# Linear solvers


def cg(steps: int, damping: float = 0.0) -> Callable:
    """A linear solver: conjugate gradients (Hestenes & Stiefel 1952) on ``A + damping I``, a fixed
    number of steps.

    Exact after as many steps as ``A`` has distinct eigenvalues, up to rounding; it stops to move
    once the residual is at the precision of the numbers. Where it meets ``p^T A p <= 0`` it stops
    too, and gives back its iterate with the least residual, zero among them.

    Args:
      steps: products with ``A``.
      damping: added to its diagonal, at least 0.

    Raises:
      TypeError, ValueError: no step, or a damping below 0.

    >>> import jax.numpy as jnp, metajax as mx
    >>> matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    >>> solution = mx.implicit.cg(2)(lambda v: matrix @ v, jnp.array([3.0, 4.0]))
    >>> solution.x.round(3).tolist(), bool(solution.residual < 1e-6)
    ([1.0, 1.0], True)
    """
    _checks.positive_int(steps=steps)
    _checks.at_least_zero(damping=damping)

    def solve(matvec, b):
        operator, b, restore = _operator(matvec, b, damping)
        enough = jnp.finfo(b.dtype).eps ** 2 * _dot(b, b)

        def body(carry, _):
            x, r, p, rr, best, least, negative = carry
            q = operator(p)
            curvature = _dot(p, q)
            # As comparisons with NaN are false, what is not a number goes on and comes out, instead
            # of being frozen.
            done = rr <= enough
            negative |= ~done & (curvature <= 0)
            moves = ~(done | negative)
            a = jnp.where(moves, rr / jnp.where(moves, curvature, 1), 0)
            x, r = x + a * p, r - a * q
            new = _dot(r, r)
            p = jnp.where(moves, r + new / jnp.where(moves, rr, 1) * p, p)
            better = new < least
            best, least = jnp.where(better, x, best), jnp.where(better, new, least)
            return (x, r, p, new, best, least, negative), None

        bb = _dot(b, b)
        carry = (jnp.zeros_like(b), b, b, bb, jnp.zeros_like(b), bb, jnp.zeros_like(bb, bool))
        (x, _, _, rr, best, least, negative), _ = lax.scan(body, carry, None, length=steps)
        x, rr = jnp.where(negative, best, x), jnp.where(negative, least, rr)
        return LinearSolution(restore(x), _relative(rr, bb), negative)

    return solve


def neumann(steps: int, rate: float, damping: float = 0.0) -> Callable:
    """A linear solver: the first ``steps`` terms of ``rate * sum_k (I - rate A)^k b`` (Lorraine et
    al. 2020).

    The same as so many steps of gradient descent on ``1/2 x^T A x - b^T x``; converges if ``0 < A <
    2 / rate``. For a `proximal` objective with one ``lam``, the rate ``1 / lam`` gives the series
    of ``(I + H / lam)^{-1}``.

    Args:
      steps: terms, and products with ``A``.
      rate: above 0.
      damping: added to the diagonal of ``A``, at least 0.

    Raises:
      TypeError, ValueError: no step, a rate that is not above 0, or a damping below 0.

    >>> import jax.numpy as jnp, metajax as mx
    >>> matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    >>> solution = mx.implicit.neumann(60, rate=0.4)(lambda v: matrix @ v, jnp.array([3.0, 4.0]))
    >>> solution.x.round(3).tolist()
    [1.0, 1.0]
    """
    _checks.positive_int(steps=steps)
    _checks.positive_float(rate=rate)
    _checks.at_least_zero(damping=damping)

    def solve(matvec, b):
        operator, b, restore = _operator(matvec, b, damping)

        def body(carry, _):
            x, r, best, least, negative = carry
            q = operator(r)
            negative |= (_dot(r, q) <= 0) & (_dot(r, r) > 0)
            x, r = x + rate * r, r - rate * q
            rr = _dot(r, r)
            better = rr < least
            return (x, r, jnp.where(better, x, best), jnp.where(better, rr, least), negative), None

        bb = _dot(b, b)
        carry = (jnp.zeros_like(b), b, jnp.zeros_like(b), bb, jnp.zeros_like(bb, bool))
        (x, r, best, least, negative), _ = lax.scan(body, carry, None, length=steps)
        x, rr = jnp.where(negative, best, x), jnp.where(negative, least, _dot(r, r))
        return LinearSolution(restore(x), _relative(rr, bb), negative)

    return solve


def direct(damping: float = 0.0) -> Callable:
    """A linear solver for small problems: the matrix of ``A + damping I`` and its eigenvalues,
    exact if it is regular.

    An indefinite matrix is reported and solved all the same. Takes memory of the square and time of
    the cube of the number of unknowns.

    Raises:
      TypeError, ValueError: a damping below 0.

    >>> import jax.numpy as jnp, metajax as mx
    >>> matrix = jnp.array([[1.0, 2.0], [2.0, 1.0]])
    >>> solution = mx.implicit.direct()(lambda v: matrix @ v, jnp.array([3.0, 3.0]))
    >>> solution.x.round(3).tolist(), bool(solution.negative_curvature)
    ([1.0, 1.0], True)
    """
    _checks.at_least_zero(damping=damping)

    def solve(matvec, b):
        operator, b, restore = _operator(matvec, b, damping)
        matrix = jax.vmap(operator)(jnp.eye(b.size, dtype=b.dtype))
        values, vectors = jnp.linalg.eigh(matrix)
        x = jnp.sum(
            vectors * (jnp.sum(vectors * b[:, None], 0) / values), 1
        )  # V diag(1 / values) V^T b
        r = b - operator(x)
        return LinearSolution(restore(x), _relative(_dot(r, r), _dot(b, b)), (values <= 0).any())

    return solve


def lanczos(steps: int, floor: float, damping: float = 0.0) -> Callable:
    """A linear solver for what may be indefinite: eigenvalues of ``A`` below ``floor`` count as
    ``floor``.

    The Lanczos process (1950) finds those of ``A`` on the space that `cg` searches too, and the
    solution is that of `cg` where all of them are above the floor. Where curvature is negative,
    `cg` has to stop, or its damping has to outweigh it and then shrinks everything else; here it
    counts as little curvature, in the spirit of saddle-free Newton (Dauphin et al. 2014). In
    `metajax.imaml` a ``floor`` of ``lam`` takes directions of negative curvature for flat ones.
    Keeps ``steps`` vectors like ``b``.

    Args:
      steps: products with ``A``.
      floor: above 0.
      damping: added to the diagonal of ``A``, after the floor, at least 0.

    Raises:
      TypeError, ValueError: no step, a floor that is not above 0, or a damping below 0.

    >>> import jax.numpy as jnp, metajax as mx
    >>> matrix = jnp.array([[1.0, 2.0], [2.0, 1.0]])  # eigenvalues 3 and -1
    >>> solution = mx.implicit.lanczos(2, floor=0.5)(lambda v: matrix @ v, jnp.array([4.0, 2.0]))
    >>> solution.x.round().astype(int).tolist(), bool(solution.negative_curvature)  # 3 (1, 1) / 3 + (1, -1) / 0.5
    ([3, -1], True)
    """
    _checks.positive_int(steps=steps)
    floor, damping = (
        _checks.positive_float("floor", floor),
        _checks.at_least_zero("damping", damping),
    )

    def solve(matvec, b):
        operator, b, restore = _operator(matvec, b, 0.0)
        norm = jnp.sqrt(_dot(b, b))
        basis = jnp.zeros((steps + 1, b.size), b.dtype).at[0].set(b / jnp.where(norm == 0, 1, norm))

        def body(basis, i):
            image = operator(basis[i])
            rest = image
            for _ in range(2):  # once leaves behind what rounding has left
                rest -= jnp.sum(basis * jnp.sum(basis * rest, 1, keepdims=True), 0)
            size = jnp.sqrt(_dot(rest, rest))
            ends = size <= 10 * jnp.finfo(b.dtype).eps * jnp.sqrt(_dot(image, image))
            size = jnp.where(ends, 0, size)
            return basis.at[i + 1].set(rest / jnp.where(size == 0, jnp.inf, size)), (
                _dot(basis[i], image),
                size,
            )

        basis, (diagonal, beside) = lax.scan(body, basis, jnp.arange(steps))
        diagonal = jnp.where((basis[:-1] == 0).all(1), floor, diagonal)  # where the space has ended
        matrix = jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
        values, vectors = jnp.linalg.eigh(matrix)
        y = jnp.sum(vectors * vectors[0] / (jnp.maximum(values, floor) + damping), 1) * norm
        r = jnp.append(-jnp.sum(matrix * y, 1) - damping * y, beside[-1] * y[-1]).at[0].add(norm)
        x = jnp.sum(basis[:-1] * y[:, None], 0)
        return LinearSolution(
            restore(x), _relative(_dot(r, r), _dot(b, b)), (values + damping <= 0).any()
        )

    return solve


def _operator(matvec: Callable, b: PyTree, damping: float) -> tuple[Callable, Array, Callable]:
    """A system over trees as one over vectors of at least float32, and the way back."""
    b, unravel = ravel_pytree(b)
    narrow, wide = b.dtype, jnp.promote_types(b.dtype, jnp.float32)

    def restore(x):
        return unravel(x.astype(narrow))

    def operator(x):
        return ravel_pytree(matvec(restore(x)))[0].astype(wide) + damping * x

    return operator, b.astype(wide), restore


def _dot(a: Array, b: Array) -> Array:
    return jnp.sum(
        a * b
    )  # no matrix product, which accelerators compute with fewer bits by default


def _relative(rr: Array, bb: Array) -> Array:
    return jnp.where(bb == 0, 0, jnp.sqrt(rr / jnp.where(bb == 0, 1, bb)))
