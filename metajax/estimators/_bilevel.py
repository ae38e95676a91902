"""Single-loop bilevel optimization: the inner solution is followed, not found anew."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from metajax import _checks, _trees
from metajax._arguments import NonNegative, PositiveInt, check, checked
from metajax.types import (
    Array,
    Batch,
    Data,
    Estimate,
    Estimator,
    Key,
    MetaParams,
    Metrics,
    ModelState,
    Params,
    Problem,
    PyTree,
    Tasks,
)

Objective = Callable[[MetaParams, Key, Params, ModelState, Batch], Array]


class BilevelState(NamedTuple):
    """What a single loop carries from one meta-step to the next.

    Attributes:
      task: drawn once.
      params: of the model, on their way to the minimum of the objective.
      model_state: what the model keeps and is not trained.
      opt_state: of the inner optimizer.
      adjoint: a tree like the floating ``params``, on its way to the inverse Hessian of the
        objective times the gradient of the outer loss.
      memory: what `saba` remembers of each batch, else ().
    """

    task: PyTree
    params: Params
    model_state: ModelState
    opt_state: PyTree
    adjoint: PyTree
    memory: PyTree = ()


class Batches(NamedTuple):
    """Numbered batches, for `saba`.

    Attributes:
      batch: ``(data, i) -> batch``, the ``i``-th.
      num: how many there are.
    """

    batch: Callable[[Data, Array], Batch]
    num: int


@checked
def soba(
    problem: Problem,
    objective: Objective,
    tasks: Tasks,
    tx: optax.GradientTransformation,
    adjoint_rate: NonNegative,
) -> Estimator:
    """SOBA (Dagréou et al. 2022, algorithm 1): one step of everything at once.

    Minimises the outer loss ``F(z(lam))``, that of ``problem.test``, over the meta-parameters
    ``lam``, where ``z(lam)`` minimises ``G(lam, z)``, the objective. With the adjoint ``v``, each
    estimate draws a training batch for ``G`` and a test batch for ``F``, makes one step of ``tx``
    along ``grad_z G``, one of ``v -= adjoint_rate (grad_zz G v - grad_z F)``, and gives
    ``-grad_lam,z G v``: at both solutions the implicit gradient. Nothing is unrolled or solved
    within it, and it costs one product with a Hessian.

    An estimate that is not finite is left out, the parameters stay where they were, and the metric
    ``diverged`` says so. ``inner_grad_norm`` and ``adjoint_residual``, relative to the gradient of
    the outer loss, say on each batch how far the two are behind.

    Args:
      problem: what makes the parameters, and whose ``test`` is the outer loss.
      objective: ``(meta_params, key, params, model_state, batch) -> scalar``, the inner one.
      tasks: ``train`` draws batches for the objective and ``test`` those for the outer loss.
      tx: the inner optimizer.
      adjoint_rate: below two over the largest eigenvalue of the objective's Hessian, e.g. the rate
        of ``tx``.

    How strongly a ridge regression is to shrink:

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> problem = mx.problems.regressor(lambda key: jnp.zeros((4, 1)), lambda w, x: x @ w)
    >>> def penalised(log_strength, key, w, model_state, batch):
    ...     loss, _ = problem.loss(key, w, model_state, batch)
    ...     return loss + jnp.exp(log_strength) * jnp.sum(w**2)
    >>> tasks = mx.tasks.linear_regressions(4, shots=8, queries=8)
    >>> estimator = mx.soba(problem, penalised, tasks, optax.sgd(0.1), adjoint_rate=0.1)
    >>> trainer = mx.trainer(estimator, optax.adam(0.01))
    >>> state = trainer.init(jax.random.key(0), jnp.float32(0))
    >>> result = mx.fit(trainer, state, num_steps=20, progress=None)
    >>> result.state.estimator.params.shape
    (4, 1)
    """
    inner, outer = _inner_level(problem, objective), _outer_level(problem)

    def estimate(key, meta_params, state, data):
        k_train, k_test = jax.random.split(key)
        train = partial(_draw, tasks.train, data, state)
        test = partial(_draw, tasks.test, data, state)
        found = inner(k_train, meta_params, state, train)
        judged = outer(k_test, state, test)

        new = _descend(tx, state, found)
        new = _refine(adjoint_rate, new, found.product, judged.gradient)
        return _finish(state, new, found, judged, found.cross)

    return Estimator(_start(problem, tasks.sample, tx), estimate)


@checked
def amigo(
    problem: Problem,
    objective: Objective,
    tasks: Tasks,
    tx: optax.GradientTransformation,
    adjoint_rate: NonNegative,
    *,
    inner_steps: PositiveInt = 10,
    adjoint_steps: PositiveInt = 10,
) -> Estimator:
    """AmIGO (Arbel & Mairal 2022, algorithm 1): the inner solution, then its adjoint, warm-started.

    As `soba`, but one after another and from where the last meta-step left them: ``inner_steps`` of
    ``tx``, then on one test batch ``adjoint_steps`` of gradient descent on the linear system, then
    the implicit gradient; each on a training batch of its own. Other arguments are those of `soba`.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> problem = mx.problems.regressor(lambda key: jnp.zeros((4, 1)), lambda w, x: x @ w)
    >>> def penalised(log_strength, key, w, model_state, batch):
    ...     loss, _ = problem.loss(key, w, model_state, batch)
    ...     return loss + jnp.exp(log_strength) * jnp.sum(w**2)
    >>> tasks = mx.tasks.linear_regressions(4, shots=8, queries=8)
    >>> estimator = mx.amigo(problem, penalised, tasks, optax.sgd(0.1), 0.1, inner_steps=5)
    >>> state = estimator.init(jax.random.key(0), jnp.float32(0), ())
    >>> estimate, state = jax.jit(estimator.estimate)(jax.random.key(1), jnp.float32(0), state, ())
    >>> sorted(estimate.metrics)
    ['adjoint_residual', 'diverged', 'inner_grad_norm', 'inner_loss']
    """
    inner, outer = _inner_level(problem, objective), _outer_level(problem)

    def estimate(key, meta_params, state, data):
        k_inner, k_adjoint, k_end, k_test = jax.random.split(key, 4)
        train = partial(_draw, tasks.train, data, state)
        test = partial(_draw, tasks.test, data, state)

        def inner_step(state, key):
            return _descend(tx, state, inner(key, meta_params, state, train)), None

        new, _ = lax.scan(inner_step, state, jax.random.split(k_inner, inner_steps))
        judged = outer(k_test, new, test)

        def adjoint_step(state, key):
            product = inner(key, meta_params, state, train).product
            return _refine(adjoint_rate, state, product, judged.gradient), None

        keys = jax.random.split(k_adjoint, adjoint_steps)
        new, _ = lax.scan(adjoint_step, new, keys)
        found = inner(k_end, meta_params, new, train)
        return _finish(state, new, found, judged, found.cross)

    return Estimator(_start(problem, tasks.sample, tx), estimate)


@checked
def saba(
    problem: Problem,
    objective: Objective,
    train: Batches,
    test: Batches,
    tx: optax.GradientTransformation,
    adjoint_rate: NonNegative,
) -> Estimator:
    """SABA (Dagréou et al. 2022, section 3.3): `soba` with the variance reduction of SAGA.

    For finite sums: each of the three directions is that of the batch drawn, less the one that was
    last met on it, plus the mean of those remembered (Defazio et al. 2014). They stay unbiased, and
    their variance goes to 0 on the way to the solution, so that constant rates converge to it. The
    memory, in the state, holds for each training batch twice the parameters and once the
    meta-parameters, and for each test batch once the parameters.

    The objective's mean over the batches of ``train`` is minimised, and ``test`` are those of the
    outer loss. Other arguments are those of `soba`.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> problem = mx.problems.mlp((64, 10))
    >>> def penalised(log_strength, key, params, model_state, batch):
    ...     loss, _ = problem.loss(key, params, model_state, batch)
    ...     return loss + jnp.exp(log_strength) * optax.tree.norm(params, squared=True)
    >>> def batch(data, i):
    ...     return jax.tree.map(lambda x: x.reshape(-1, 100, *x.shape[1:])[i], data)
    >>> digits = mx.data.load("digits")
    >>> digits = {"image": digits["image"][:1000] / 16.0, "label": digits["label"][:1000]}
    >>> train, test = mx.Batches(batch, 8), mx.Batches(lambda data, i: batch(data, 8 + i), 2)
    >>> estimator = mx.saba(problem, penalised, train, test, optax.sgd(0.1), 0.1)
    >>> state = estimator.init(jax.random.key(0), jnp.float32(-3), digits)
    >>> estimate, state = jax.jit(estimator.estimate)(
    ...     jax.random.key(1), jnp.float32(-3), state, digits)
    >>> estimate.updates.shape
    ()
    """
    check(PositiveInt, **{"train.num": train.num, "test.num": test.num})
    inner, outer = _inner_level(problem, objective), _outer_level(problem)
    start = _start(problem, lambda key, data: (), tx)

    def init(key, meta_params, data):
        state = start(key, meta_params, data)
        floating, _ = _trees.partition(meta_params)
        of_inner = (state.adjoint, state.adjoint, floating)
        memory = _empty(train.num, of_inner), _empty(test.num, state.adjoint)
        return state._replace(memory=memory)

    def estimate(key, meta_params, state, data):
        k_which, k_train, k_test = jax.random.split(key, 3)
        k_i, k_j = jax.random.split(k_which)
        i = jax.random.randint(k_i, (), 0, train.num)
        j = jax.random.randint(k_j, (), 0, test.num)
        found = inner(k_train, meta_params, state, lambda _: train.batch(data, i))
        judged = outer(k_test, state, lambda _: test.batch(data, j))

        of_inner, of_outer = state.memory
        directions = (found.gradient, found.product, found.cross)
        change = _change(of_inner, i, directions)
        outer_change = _change(of_outer, j, judged.gradient)
        gradient, product, cross = optax.tree.add(of_inner.mean, change)
        target = optax.tree.add(of_outer.mean, outer_change)

        new = _descend(tx, state, found._replace(gradient=gradient))
        new = _refine(adjoint_rate, new, product, target)
        estimate, new = _finish(state, new, found, judged, cross)

        # Only the entries that are new are written: the tables may be large.
        ok = estimate.metrics["diverged"] == 0
        of_inner = _remember(of_inner, i, change, ok)
        of_outer = _remember(of_outer, j, outer_change, ok)
        return estimate, new._replace(memory=(of_inner, of_outer))

    return Estimator(init, estimate)


class _Found(NamedTuple):
    """Of the objective ``G`` on a batch, with the adjoint ``v``.

    Attributes:
      loss: ``G``.
      gradient: ``grad_z G``.
      product: ``grad_zz G v``.
      cross: ``grad_lam,z G v``, a tree like the floating meta-parameters.
      model_state: after the batch.
    """

    loss: Array
    gradient: PyTree
    product: PyTree
    cross: PyTree
    model_state: ModelState


class _Judged(NamedTuple):
    """Of the outer loss on a batch: its value, its metrics and its gradient."""

    loss: Array
    metrics: Metrics
    gradient: PyTree


def _inner_level(problem: Problem, objective: Objective) -> Callable[..., _Found]:
    """``(key, meta_params, state, draw) -> _Found``."""
    arguments = "meta_params, key, params, model_state, batch"
    _checks.takes("objective", objective, arguments)

    def at(key, meta_params, state, draw):
        k_batch, k_loss, k_state = jax.random.split(key, 3)
        batch = draw(k_batch)
        floating, fixed = _trees.partition(meta_params)
        params, fixed_params = _trees.partition(state.params)

        def value(params, floating):
            loss = objective(
                _trees.combine(floating, fixed),
                k_loss,
                _trees.combine(params, fixed_params),
                state.model_state,
                batch,
            )
            _checks.scalar("what objective returned", loss)
            return loss

        # Mixed derivatives commute: along the adjoint, the gradient in both changes by both
        # products.
        def gradients(params):
            return jax.value_and_grad(value, (0, 1))(params, floating)

        at_params, along = jax.jvp(gradients, (params,), (state.adjoint,))
        loss, (gradient, _) = at_params
        _, (product, cross) = along
        _, (_, model_state) = problem.loss(
            k_state, state.params, state.model_state, batch
        )
        return _Found(loss, gradient, product, cross, model_state)

    return at


def _outer_level(problem: Problem) -> Callable[..., _Judged]:
    """``(key, state, draw) -> _Judged``."""

    def at(key, state, draw):
        k_batch, k_loss = jax.random.split(key)
        batch = draw(k_batch)
        params, fixed = _trees.partition(state.params)

        def value(params):
            whole = _trees.combine(params, fixed)
            return problem.test(k_loss, whole, state.model_state, batch)

        (loss, metrics), gradient = jax.value_and_grad(value, has_aux=True)(params)
        return _Judged(loss, metrics, gradient)

    return at


def _start(
    problem: Problem,
    sample: Callable[[Key, Data], PyTree],
    tx: optax.GradientTransformation,
) -> Callable:
    def init(key, meta_params, data):
        del meta_params
        k_task, k_params = jax.random.split(key)
        task = sample(k_task, data)
        params, model_state = problem.init(k_params, task)
        floating, _ = _trees.partition(params)
        adjoint = optax.tree.zeros_like(floating)
        return BilevelState(task, params, model_state, tx.init(floating), adjoint)

    return init


def _draw(draw: Callable, data: Data, state: BilevelState, key: Key) -> Batch:
    return draw(key, data, state.task)


def _descend(
    tx: optax.GradientTransformation, state: BilevelState, found: _Found
) -> BilevelState:
    params, fixed = _trees.partition(state.params)
    updates, opt_state = tx.update(found.gradient, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    return state._replace(
        params=_trees.combine(params, fixed),
        opt_state=opt_state,
        model_state=found.model_state,
    )


def _refine(
    rate: float, state: BilevelState, product: PyTree, target: PyTree
) -> BilevelState:
    """A step of gradient descent on ``1/2 v^T H v - v^T target``."""
    residual = optax.tree.sub(product, target)
    adjoint = optax.tree.add_scale(state.adjoint, -rate, residual)
    return state._replace(adjoint=adjoint)


def _finish(
    old: BilevelState, new: BilevelState, found: _Found, judged: _Judged, cross: PyTree
) -> tuple[Estimate, BilevelState]:
    norm = optax.tree.norm
    residual = norm(optax.tree.sub(found.product, judged.gradient))
    scale = norm(judged.gradient)
    own = {
        "inner_loss": found.loss,
        "inner_grad_norm": norm(found.gradient),
        "adjoint_residual": residual / jnp.where(scale > 0, scale, 1),
    }
    _checks.unused_names("a bilevel estimator", judged.metrics, (*own, "diverged"))

    ok = _trees.all_finite((judged.loss, cross, new.params, new.adjoint))
    kept = old._replace(memory=())
    state = optax.tree.where(ok, new._replace(memory=()), kept)
    updates = jax.tree.map(lambda x: jnp.where(ok, -x, 0), cross)
    metrics = judged.metrics | own | {"diverged": 1.0 - ok}
    return Estimate(updates, judged.loss, metrics), state


class _Memory(NamedTuple):
    """What was last found on each batch, ``[num, ...]``, and the mean of that."""

    table: PyTree
    mean: PyTree


def _empty(num: int, like: PyTree) -> _Memory:
    table = jax.tree.map(lambda x: jnp.zeros((num, *x.shape), x.dtype), like)
    return _Memory(table, optax.tree.zeros_like(like))


def _change(memory: _Memory, i: Array, value: PyTree) -> PyTree:
    """What is new on the ``i``-th batch; added to the mean, an estimate without bias."""
    return jax.tree.map(lambda x, table: x - table[i], value, memory.table)


def _remember(memory: _Memory, i: Array, change: PyTree, ok: Array) -> _Memory:
    change = jax.tree.map(lambda x: jnp.where(ok, x, 0), change)
    table = jax.tree.map(lambda x, new: x.at[i].add(new), memory.table, change)
    num = len(jax.tree.leaves(table)[0])
    return _Memory(table, optax.tree.add_scale(memory.mean, 1 / num, change))
