"""Meta-learning with implicit gradients: a whole inner solve as one step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metajax import _checks
from metajax.implicit import argmin, inverse_hvp, proximal
from metajax.learners._maml import itself
from metajax.tasks._with_query import pair
from metajax.types import Learner, Problem, PyTree


class Solved(NamedTuple):
    """The parameters: the start before the first step, the solution after it."""

    params: PyTree


def imaml(
    problem: Problem,
    solver: Callable[..., Any],
    linear_solver: Callable[..., Any],
    lam: Any,
    *,
    start: Callable[..., PyTree] = itself,
) -> Learner:
    """IMAML (Rajeswaran et al. 2019): the centre of a proximal inner problem is meta-learned,
    without unrolling.

    One step of this learner solves ``argmin_phi L_train(phi) + lam/2 |phi - theta|^2`` on the
    support batch; give `metajax.inner` ``horizon=1`` and ``meta_loss="heldout"``. The implicit
    gradient is taken where the solve is, so any estimator works: with `metajax.bptt` the
    meta-gradient is ``(I + H / lam)^{-1} grad L_val(phi)`` (lemma 1), in memory that does not grow
    with the steps of the solver.

    The metrics are those of the problem on the support batch before the solve, and of
    `metajax.implicit.argmin`: ``inner_grad_norm`` says how far the solve got. How good the linear
    solve is depends on the gradient of the query loss and is told by `imaml_diagnosed`.

    Args: problem: what is minimised. solver: e.g. ``metajax.implicit.descend(optax.sgd(0.1), 16)``
      or ``metajax.implicit.newton(3, linear_solver)``. linear_solver: e.g.
      ``metajax.implicit.cg(5)``. lam: how strongly solutions are pulled to the start, above 0: a
      number, one a layer or one a parameter (any prefix of the parameters' tree), or to learn it a
      function ``meta_params -> lam`` whose values are above 0. start: ``meta_params -> params``,
      where they hold more than the parameters.

    Raises:
      TypeError, ValueError: a problem or function that is none, a ``lam`` that is not above 0.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> problem, data, cg = mx.problems.mlp((64, 10)), mx.data.load("digits"), mx.implicit.cg(5)
    >>> learner = mx.imaml(problem, mx.implicit.descend(optax.sgd(0.3), 10), cg, lam=lambda m: jnp.exp(m["log_lam"]),
    ...                    start=lambda m: m["params"])
    >>> meta_params = {"params": problem.init(jax.random.key(0), ()), "log_lam": jnp.float32(0.7)}
    >>> loop = mx.inner(learner, mx.tasks.minibatches(5), horizon=1, meta_loss="heldout")
    >>> trainer = mx.trainer(mx.bptt(loop, num_tasks=4), optax.adam(1e-3))
    >>> state, metrics = jax.jit(trainer.step)(trainer.init(jax.random.key(1), meta_params, data), data)
    >>> sorted(metrics)
    ['accuracy', 'inner_grad_norm', 'loss', 'skipped', 'test_accuracy', 'update_norm']
    """
    problem = _checks.problem("problem", problem)
    objective, args = _objective(problem, lam, start)
    solve = argmin(objective, solver, linear_solver)

    def init(key, meta_params, task):
        return Solved(jax.tree.map(jnp.asarray, start(meta_params)))

    def step(key, meta_params, state, batch):
        loss, metrics = problem.loss(key, state.params, batch)
        params, solved = solve(state.params, *args(meta_params), key, batch)
        _checks.unused_names("imaml", metrics, tuple(solved))
        return Solved(params), loss, metrics | solved

    def loss(key, meta_params, state, batch):
        return problem.loss(key, state.params, batch)[0]

    def metrics(key, meta_params, state, batch):
        return problem.loss(key, state.params, batch)[1]

    return Learner(init, step, loss, metrics)


def imaml_diagnosed(
    problem: Problem,
    solver: Callable[..., Any],
    linear_solver: Callable[..., Any],
    lam: Any,
    *,
    start: Callable[..., PyTree] = itself,
) -> Learner:
    """`imaml` that tells how good its implicit gradient is, at the price of one more linear solve.

    The same learner with the same state, for batches of `metajax.tasks.with_query`. Its step solves
    the system of reverse mode, that with the gradient of the query loss, and adds the metrics
    ``residual`` (relative, 1 where nothing was solved) and ``negative_curvature`` (whether the
    inner problem was seen not to be convex; ``lam`` or the damping is then too small and the
    gradient not to be trusted). Meta-train with it, or only look with it now and then.

    Arguments and errors are those of `imaml`, and a TypeError for a batch that is no pair.

    >>> import jax, metajax as mx, optax
    >>> problem, cg = mx.problems.mlp((64, 10)), mx.implicit.cg(5)
    >>> learner = mx.imaml_diagnosed(problem, mx.implicit.newton(3, cg), cg, lam=2.0)
    >>> loop = mx.inner(learner, mx.tasks.with_query(mx.tasks.minibatches(5)), horizon=1, meta_loss="heldout")
    >>> meta_params = problem.init(jax.random.key(0), ())
    >>> curves = mx.evaluate(loop, jax.random.key(1), meta_params, mx.data.load("digits"), num_tasks=8)
    >>> bool(curves.metrics["residual"].max() < 0.1), float(curves.metrics["negative_curvature"].mean())
    (True, 0.0)
    """
    learner = imaml(problem, solver, linear_solver, lam, start=start)
    problem = _checks.problem("problem", problem)
    objective, args = _objective(problem, lam, start)
    system = inverse_hvp(objective, linear_solver)

    def step(key, meta_params, state, batch):
        support, query = pair(batch)
        new, loss, metrics = learner.step(key, meta_params, state, support)
        phi, (theta, lam) = lax.stop_gradient((new.params, args(meta_params)))
        vector = jax.grad(lambda phi: problem.loss(key, phi, query)[0])(phi)
        solution = system(phi, vector, theta, lam, key, support)
        told = {
            "residual": solution.residual,
            "negative_curvature": solution.negative_curvature.astype(float),
        }
        return new, loss, metrics | told

    return learner._replace(step=step)


def _objective(problem: Problem, lam: Any, start: Callable) -> tuple[Callable, Callable]:
    """The inner objective ``(phi, theta, lam, key, batch)``, and ``meta_params -> (theta,
    lam)``.
    """
    _checks.function(start=start)
    if not callable(lam):
        _checks.positive("lam", lam)
    objective = proximal(lambda phi, key, batch: problem.loss(key, phi, batch)[0])
    return objective, lambda meta_params: (
        start(meta_params),
        lam(meta_params) if callable(lam) else lam,
    )
