"""Implicit differentiation: solutions of inner problems as differentiable functions.

Three things are joined, each a plain function:

- An *objective* is ``(phi, *args) -> scalar``.
- A *solver* minimises it: ``(objective, init) -> (solution, metrics)``, where ``objective`` takes
  the solution alone. It is never differentiated, so it may loop, branch and search lines.
- A *linear solver* is ``(matvec, b) -> LinearSolution`` for a symmetric ``matvec`` over trees like
  ``b``. It solves the systems that the implicit function theorem leads to.
"""

from metajax.implicit._argmin import argmin, inverse_hvp, proximal
from metajax.implicit._linear_solvers import (
    LinearSolution,
    LinearSolver,
    cg,
    direct,
    lanczos,
    neumann,
)
from metajax.implicit._solvers import Objective, Solver, descend, newton

__all__ = [
    "LinearSolution",
    "LinearSolver",
    "Objective",
    "Solver",
    "argmin",
    "cg",
    "descend",
    "direct",
    "inverse_hvp",
    "lanczos",
    "neumann",
    "newton",
    "proximal",
]
