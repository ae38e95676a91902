"""Linear solvers: conjugate gradients, the Neumann series, a matrix, the Lanczos process."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metajax._arguments import NonNegative, PositiveFloat, PositiveInt, checked
from metajax.implicit._vectors import System, dot, flatten, relative_norm
from metajax.types import Array, PyTree


class LinearSolution(NamedTuple):
    """What a linear solver returns.

    Attributes:
      x: an approximate solution of ``A x = b``, a tree like ``b``.
      residual: ``|b - A x| / |b|``, a scalar, 0 where ``b`` is; ``A`` includes the damping. That of
        `cg` is the one that it carries along. In float32 it falls below the true one after many
        steps on an ill-conditioned ``A``.
      negative_curvature: a bool, whether a direction with ``p^T A p <= 0`` was met. ``A`` is then
        not positive definite, and the point that it belongs to is no strict minimum.
    """

    x: PyTree
    residual: Array
    negative_curvature: Array


LinearSolver = Callable[[Callable, PyTree], LinearSolution]


@checked
def cg(steps: PositiveInt, damping: NonNegative = 0.0) -> LinearSolver:
    """A linear solver: a fixed number of conjugate gradient steps on ``A + damping I``.

    Exact after as many steps as ``A`` has distinct eigenvalues, up to rounding (Hestenes & Stiefel
    1952). It no longer moves once the residual is at the precision of the numbers. Where it meets
    ``p^T A p <= 0`` it stops too, and gives back its iterate with the least residual, zero among
    them.

    Args:
      steps: products with ``A``.
      damping: added to its diagonal, at least 0.

    >>> import jax.numpy as jnp, metajax as mx
    >>> matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    >>> solution = mx.implicit.cg(2)(lambda v: matrix @ v, jnp.array([3.0, 4.0]))
    >>> solution.x.round(3).tolist(), bool(solution.residual < 1e-6)
    ([1.0, 1.0], True)
    """

    def solve(matvec, b):
        system = flatten(matvec, b, damping)
        start = _start(system)
        eps = jnp.finfo(system.b.dtype).eps
        precision = eps**2 * start.squared_norm

        def step(carry, _):
            iterate, direction = carry
            product = system.operator(direction)
            curvature = dot(direction, product)

            # Comparisons with NaN are false. So what is not a number goes on and comes out at the
            # end, instead of being frozen here.
            converged = iterate.squared_norm <= precision
            bends_down = ~converged & (curvature <= 0)
            negative_curvature = iterate.negative_curvature | bends_down
            moves = ~(converged | negative_curvature)

            # Under `jax.vmap` all steps are made: those that are not to move have length 0.
            length = iterate.squared_norm / jnp.where(moves, curvature, 1)
            length = jnp.where(moves, length, 0)
            x = iterate.x + length * direction
            residual = iterate.residual - length * product
            new = _advance(iterate, x, residual, negative_curvature)

            # Conjugate to all directions before.
            ratio = new.squared_norm / jnp.where(moves, iterate.squared_norm, 1)
            direction = jnp.where(moves, residual + ratio * direction, direction)
            return (new, direction), None

        carry = (start, system.b)
        (last, _), _ = lax.scan(step, carry, None, length=steps)
        return _finish(system, last)

    return solve


@checked
def neumann(
    steps: PositiveInt, rate: PositiveFloat, damping: NonNegative = 0.0
) -> LinearSolver:
    """A linear solver: the first ``steps`` terms of ``rate * sum_k (I - rate A)^k b``.

    The same as so many steps of gradient descent on ``1/2 x^T A x - b^T x`` (Lorraine et al. 2020);
    converges if ``0 < A < 2 / rate``. For a `proximal` objective with one ``lam``, the rate ``1 /
    lam`` gives the series of ``(I + H / lam)^{-1}``. Where it meets ``p^T A p <= 0`` it gives back
    the partial sum with the least residual, zero among them.

    Args:
      steps: terms, and products with ``A``.
      rate: above 0.
      damping: added to the diagonal of ``A``, at least 0.

    >>> import jax.numpy as jnp, metajax as mx
    >>> matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    >>> solution = mx.implicit.neumann(60, rate=0.4)(lambda v: matrix @ v, jnp.array([3.0, 4.0]))
    >>> solution.x.round(3).tolist()
    [1.0, 1.0]
    """

    def solve(matvec, b):
        system = flatten(matvec, b, damping)
        start = _start(system)

        def step(iterate, _):
            product = system.operator(iterate.residual)
            curvature = dot(iterate.residual, product)
            bends_down = (curvature <= 0) & (iterate.squared_norm > 0)
            negative_curvature = iterate.negative_curvature | bends_down

            x = iterate.x + rate * iterate.residual
            residual = iterate.residual - rate * product
            return _advance(iterate, x, residual, negative_curvature), None

        last, _ = lax.scan(step, start, None, length=steps)
        return _finish(system, last)

    return solve


class _Iterate(NamedTuple):
    """Where an iteration is, and the best place that it has been at.

    Attributes:
      x: the iterate.
      residual: ``b - A x``.
      squared_norm: ``|residual|^2``.
      best_x: the iterate with the least residual so far.
      best_squared_norm: of its residual.
      negative_curvature: whether a direction with ``p^T A p <= 0`` was met.
    """

    x: Array
    residual: Array
    squared_norm: Array
    best_x: Array
    best_squared_norm: Array
    negative_curvature: Array


def _start(system: System) -> _Iterate:
    zero = jnp.zeros_like(system.b)
    squared_norm = dot(system.b, system.b)
    return _Iterate(
        x=zero,
        residual=system.b,
        squared_norm=squared_norm,
        best_x=zero,
        best_squared_norm=squared_norm,
        negative_curvature=jnp.zeros_like(squared_norm, bool),
    )


def _advance(
    before: _Iterate,
    x: Array,
    residual: Array,
    negative_curvature: Array,
) -> _Iterate:
    squared_norm = dot(residual, residual)
    better = squared_norm < before.best_squared_norm
    return _Iterate(
        x=x,
        residual=residual,
        squared_norm=squared_norm,
        best_x=jnp.where(better, x, before.best_x),
        best_squared_norm=jnp.where(better, squared_norm, before.best_squared_norm),
        negative_curvature=negative_curvature,
    )


def _finish(system: System, last: _Iterate) -> LinearSolution:
    negative = last.negative_curvature
    x = jnp.where(negative, last.best_x, last.x)
    squared_norm = jnp.where(negative, last.best_squared_norm, last.squared_norm)
    return _solution(system, x, squared_norm, negative)


def _solution(
    system: System,
    x: Array,
    squared_norm: Array,
    negative_curvature: Array,
) -> LinearSolution:
    b_squared = dot(system.b, system.b)
    return LinearSolution(
        x=system.restore(x),
        residual=relative_norm(squared_norm, b_squared),
        negative_curvature=negative_curvature,
    )


@checked
def direct(damping: NonNegative = 0.0) -> LinearSolver:
    """A linear solver for small problems: the eigenvalues of the matrix ``A + damping I``.

    Exact if the matrix is regular. An indefinite one is reported and solved all the same. Takes
    memory of the square and time of the cube of the number of unknowns.

    >>> import jax.numpy as jnp, metajax as mx
    >>> matrix = jnp.array([[1.0, 2.0], [2.0, 1.0]])
    >>> solution = mx.implicit.direct()(lambda v: matrix @ v, jnp.array([3.0, 3.0]))
    >>> solution.x.round(3).tolist(), bool(solution.negative_curvature)
    ([1.0, 1.0], True)
    """

    def solve(matvec, b):
        system = flatten(matvec, b, damping)
        b = system.b
        identity = jnp.eye(b.size, dtype=b.dtype)
        matrix = jax.vmap(system.operator)(identity)
        values, vectors = jnp.linalg.eigh(matrix)

        # V diag(1 / values) V^T b
        projected = jnp.sum(vectors * b[:, None], 0)
        x = jnp.sum(vectors * (projected / values)[None], 1)

        residual = b - system.operator(x)
        squared_norm = dot(residual, residual)
        negative_curvature = (values <= 0).any()
        return _solution(system, x, squared_norm, negative_curvature)

    return solve


@checked
def lanczos(
    steps: PositiveInt, floor: PositiveFloat, damping: NonNegative = 0.0
) -> LinearSolver:
    """A linear solver for an indefinite ``A``: eigenvalues below ``floor`` count as ``floor``.

    The Lanczos process (1950) finds the eigenvalues of ``A`` on the space that `cg` searches too,
    and the solution is that of `cg` where all of them are above the floor. Where curvature is
    negative, `cg` has to stop, or its damping has to outweigh it and then shrinks everything else.
    Here it counts as little curvature, in the spirit of saddle-free Newton (Dauphin et al. 2014).
    In `metajax.imaml` a ``floor`` of ``lam`` takes directions of negative curvature for flat ones.
    Keeps ``steps`` vectors like ``b``.

    Args:
      steps: products with ``A``.
      floor: above 0.
      damping: added to the diagonal of ``A``, after the floor, at least 0.

    The eigenvalues here are 3 and -1, and ``b`` is ``3 (1, 1) + (1, -1)``:

    >>> import jax.numpy as jnp, metajax as mx
    >>> matrix = jnp.array([[1.0, 2.0], [2.0, 1.0]])
    >>> solution = mx.implicit.lanczos(2, floor=0.5)(lambda v: matrix @ v, jnp.array([4.0, 2.0]))
    >>> solution.x.round().astype(int).tolist()  # (1, 1) + (1, -1) / 0.5
    [3, -1]
    >>> bool(solution.negative_curvature)
    True
    """

    def solve(matvec, b):
        system = flatten(matvec, b)
        b_norm = jnp.sqrt(dot(system.b, system.b))
        projection = _project(system, steps, floor)
        basis = projection.basis
        matrix = projection.matrix
        values, vectors = jnp.linalg.eigh(matrix)

        # In coordinates of the basis, b is its norm times the first unit vector.
        curvature = jnp.maximum(values, floor) + damping
        y = jnp.sum(vectors * vectors[0][None] / curvature[None], 1) * b_norm
        x = jnp.sum(basis * y[:, None], 0)

        # The basis is orthonormal, so the norm of the residual is that of its coordinates: those
        # within the space, and one along the vector that would come next.
        within = -jnp.sum(matrix * y[None], 1) - damping * y
        beyond = projection.overflow * y[-1]
        residual = jnp.append(within, beyond)
        residual = residual.at[0].add(b_norm)
        squared_norm = dot(residual, residual)

        negative_curvature = (values + damping <= 0).any()
        return _solution(system, x, squared_norm, negative_curvature)

    return solve


class _Projection(NamedTuple):
    """``A`` on a Krylov space of ``b``.

    Attributes:
      basis: ``[steps, N]``, orthonormal rows, the first along ``b``; zero past the space's end.
      matrix: ``[steps, steps]``, ``A`` in coordinates of the basis, tridiagonal.
      overflow: what ``A`` takes from the last row of the basis out of the space, a scalar.
    """

    basis: Array
    matrix: Array
    overflow: Array


def _project(system: System, steps: int, floor: float) -> _Projection:
    """The Lanczos process; ``A`` counts as ``floor`` where the space has ended."""
    b = system.b
    eps = jnp.finfo(b.dtype).eps
    norm = jnp.sqrt(dot(b, b))
    first = b / jnp.where(norm == 0, 1, norm)
    basis = jnp.zeros((steps + 1, b.size), b.dtype)
    basis = basis.at[0].set(first)

    def step(basis, i):
        product = system.operator(basis[i])
        diagonal = dot(basis[i], product)

        # Twice, since rounding leaves something of the basis behind.
        rest = product
        for _ in range(2):
            overlaps = jnp.sum(basis * rest[None], 1, keepdims=True)
            rest -= jnp.sum(basis * overlaps, 0)

        # A rest that is nothing but rounding ends the space.
        length = jnp.sqrt(dot(rest, rest))
        rounding = 10 * eps * jnp.sqrt(dot(product, product))
        length = jnp.where(length <= rounding, 0, length)
        following = rest / jnp.where(length == 0, jnp.inf, length)
        basis = basis.at[i + 1].set(following)
        return basis, (diagonal, length)

    indices = jnp.arange(steps)
    basis, (diagonal, lengths) = lax.scan(step, basis, indices)
    basis = basis[:-1]
    ended = (basis == 0).all(1)
    diagonal = jnp.where(ended, floor, diagonal)

    beside = lengths[:-1]
    matrix = jnp.diag(diagonal)
    matrix += jnp.diag(beside, 1)
    matrix += jnp.diag(beside, -1)
    return _Projection(basis, matrix, overflow=lengths[-1])
