"""Meta-learning with implicit gradients: a whole inner solve as one step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
from jax import lax

from metajax import _checks
from metajax._arguments import checked
from metajax.implicit import argmin, inverse_hvp, proximal
from metajax.learners._descent import with_checked_loss
from metajax.learners._maml import (
    chosen,
    completed,
    everything,
    initial_params,
    itself,
)
from metajax.tasks._with_query import pair
from metajax.types import (
    Key,
    Learner,
    MetaParams,
    ModelState,
    Params,
    Problem,
    PyTree,
    no_meta,
)


class Solution(NamedTuple):
    """The start before the first step, the solution after it, and the state of the model.

    The parameters are those that adapt, with None in the place of the others.
    """

    params: Params
    model_state: ModelState


@checked
def imaml(
    problem: Problem,
    solver: Callable[..., Any],
    linear_solver: Callable[..., Any],
    lam: Any,
    *,
    start: Callable[[MetaParams], Params] = itself,
    adapts: Callable[[Params], PyTree] = everything,
    meta: Callable[[Key], MetaParams] | None = None,
) -> Learner:
    """IMAML (Rajeswaran et al. 2019): the centre of a proximal inner problem is meta-learned.

    One step of this learner solves ``argmin_phi L_train(phi) + lam/2 |phi - theta|^2`` on the
    support batch; give `metajax.inner` ``horizon=1`` and ``meta_loss="heldout"``. The implicit
    gradient is taken where the solve is, so any estimator works: with `metajax.bptt` the
    meta-gradient is ``(I + H / lam)^{-1} grad L_val(phi)`` (lemma 1), in memory that does not grow
    with the steps of the solver.

    The metrics are those of the problem on the support batch before the solve, and of
    `metajax.implicit.argmin`: ``inner_grad_norm`` says how far the solve got, ``inner_diverged``
    whether it went the wrong way. The linear solve runs in the backward pass, from where no metric
    comes: whether it met negative curvature, and what it left unsolved, is told by
    `imaml_diagnosed`, with which one looks at the same meta-parameters now and then.

    Args:
      problem: what is minimised.
      solver: e.g. ``metajax.implicit.descend(optax.sgd(0.1), 16)`` or
        ``metajax.implicit.newton(3, linear_solver)``.
      linear_solver: e.g. ``metajax.implicit.cg(5)``.
      lam: how strongly solutions are pulled to the start, above 0: a number, one a layer or one a
        parameter (any prefix of the parameters' tree), or to learn it a function ``meta_params ->
        lam`` whose values are above 0.
      start: ``meta_params -> params``, where they hold more than the parameters.
      adapts: from ``params`` to a tree of bools like it, which of them adapt; the others are taken
        from the meta-parameters and are still learned.
      meta: ``key -> meta_params``; by default the parameters of ``problem``, where they are the
        start.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> solver, cg = mx.implicit.descend(optax.sgd(0.3), 10), mx.implicit.cg(5)
    >>> learner = mx.imaml(mx.problems.mlp((64, 10)), solver, cg, lam=0.5)
    >>> loop = mx.inner(learner, mx.tasks.minibatches(5), horizon=1, meta_loss="heldout")
    >>> trainer = mx.trainer(mx.bptt(loop, num_tasks=4), optax.adam(1e-3))
    >>> meta_params, digits = learner.meta(jax.random.key(0)), mx.data.load("digits")
    >>> state = trainer.init(jax.random.key(1), meta_params, digits)
    >>> state, metrics = jax.jit(trainer.step)(state, digits)
    >>> metrics["inner_grad_norm"].shape
    ()

    With a learned ``lam``:

    >>> learner = mx.imaml(mx.problems.mlp((64, 10)), solver, cg,
    ...                    lam=lambda m: jnp.exp(m["log_lam"]), start=lambda m: m["params"])
    """
    problem = with_checked_loss(problem)
    objective, arguments = _objective(problem, lam, start, adapts)
    solve = argmin(objective, solver, linear_solver)
    if meta is None and start is itself:
        meta = lambda key: initial_params(problem, key)  # noqa: E731

    def init(key, meta_params, task):
        _, model_state = problem.init(key, task)
        return Solution(chosen(adapts, start(meta_params)), model_state)

    def loss_at(params, key, meta_params, state, batch):
        whole = completed(params, start(meta_params))
        return problem.loss(key, whole, state.model_state, batch)

    def step(key, meta_params, state, batch):
        # One key for the loss before the solve, in it and after it.
        same = jax.random.clone
        before = loss_at(state.params, same(key), meta_params, state, batch)
        loss, (metrics, _) = before
        inner_arguments = arguments(meta_params)
        params, solved = solve(
            state.params, *inner_arguments, same(key), state.model_state, batch
        )
        _checks.unused_names("imaml", metrics, tuple(solved))

        # The state that goes with the solution; a model that has none pays nothing for it.
        _, (_, model_state) = loss_at(params, key, meta_params, state, batch)
        return Solution(params, model_state), loss, metrics | solved

    def test(key, meta_params, state, batch):
        params = completed(state.params, start(meta_params))
        return problem.test(key, params, state.model_state, batch)

    def predict(key, meta_params, state, inputs):
        params = completed(state.params, start(meta_params))
        return problem.predict(key, params, state.model_state, inputs)

    return Learner(init, step, test, predict, meta or no_meta)


@checked
def imaml_diagnosed(
    problem: Problem,
    solver: Callable[..., Any],
    linear_solver: Callable[..., Any],
    lam: Any,
    *,
    start: Callable[[MetaParams], Params] = itself,
    adapts: Callable[[Params], PyTree] = everything,
    meta: Callable[[Key], MetaParams] | None = None,
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
    >>> tasks = mx.tasks.with_query(mx.tasks.minibatches(5))
    >>> loop = mx.inner(learner, tasks, horizon=1, meta_loss="heldout")
    >>> meta_params, digits = learner.meta(jax.random.key(0)), mx.data.load("digits")
    >>> curves = mx.evaluate(loop, jax.random.key(1), meta_params, digits, num_tasks=8)
    >>> bool(curves.metrics["residual"].max() < 0.1)
    True
    """
    options: dict[str, Any] = {"start": start, "adapts": adapts, "meta": meta}
    learner = imaml(problem, solver, linear_solver, lam, **options)
    objective, arguments = _objective(problem, lam, start, adapts)
    system = inverse_hvp(objective, linear_solver)

    def step(key, meta_params, state, batch):
        support, query = pair(batch)
        same = jax.random.clone
        new, loss, metrics = learner.step(same(key), meta_params, state, support)

        # The system of reverse mode, and nothing of it is differentiated.
        phi = lax.stop_gradient(new.params)
        inner_arguments = lax.stop_gradient(arguments(meta_params))
        *_, whole = inner_arguments

        def query_loss(phi):
            params = completed(phi, whole)
            return problem.test(same(key), params, new.model_state, query)[0]

        vector = jax.grad(query_loss)(phi)
        solution = system(
            phi, vector, *inner_arguments, key, state.model_state, support
        )
        quality = {
            "residual": solution.residual,
            "negative_curvature": solution.negative_curvature.astype(float),
        }
        return new, loss, metrics | quality

    return replace(learner, step=step)


@checked
def _objective(
    problem: Problem, lam: Any, start: Callable, adapts: Callable
) -> tuple[Callable, Callable]:
    """The inner objective ``(phi, theta, lam, params, key, model_state, batch)``.

    And ``meta_params -> (theta, lam, params)``: all parameters, of which ``theta`` are those that
    adapt.
    """
    if not callable(lam):
        _checks.positive("lam", lam)

    def loss(phi, params, key, model_state, batch):
        same = jax.random.clone(key)  # at each step of the solver
        return problem.loss(same, completed(phi, params), model_state, batch)[0]

    def arguments(meta_params):
        params = start(meta_params)
        strength = lam(meta_params) if callable(lam) else lam
        return chosen(adapts, params), strength, params

    return proximal(loss), arguments
