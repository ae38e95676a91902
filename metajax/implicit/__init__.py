"""Implicit differentiation: solutions of inner problems as differentiable functions.

Three things are joined, each a plain function:

- An *objective* is ``(phi, *args) -> scalar``; for `root` and `fixed_point` it is a map instead,
  ``(phi, *args) -> tree like phi``.
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
from metajax.implicit._root import fixed_point, iterate, root
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
    "fixed_point",
    "inverse_hvp",
    "iterate",
    "lanczos",
    "neumann",
    "newton",
    "proximal",
    "root",
]
