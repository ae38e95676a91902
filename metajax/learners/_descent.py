"""Steps of an optimizer on a problem: what learners that take gradients are made of."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import optax

from metajax import _checks, _trees
from metajax._arguments import checked, is_transformation
from metajax.learners._value_and_grad import (
    first_order_value_and_grad,
    value_and_grad,
)
from metajax.optim._differentiable import differentiable
from metajax.types import (
    Key,
    LearnedOptimizer,
    Learner,
    MetaParams,
    ModelState,
    Params,
    Problem,
    PyTree,
    Task,
)

MakeTx = Callable[[MetaParams], Any]


class DescentState(NamedTuple):
    """Where an optimizer has come to.

    Attributes:
      params: the parameters that adapt, None in the place of those that do not. Integers, booleans
        and keys among them stay as they are.
      model_state: what the model keeps and does not train.
      opt_state: of the optimizer.
    """

    params: Params
    model_state: ModelState
    opt_state: PyTree


def _all_adapt(meta_params: MetaParams, params: Params) -> Params:
    """The ``complete`` of a learner all of whose parameters adapt."""
    del meta_params
    return params


def descent(
    problem: Problem,
    make_tx: MakeTx,
    start: Callable[[Key, MetaParams, Task], tuple[Params, ModelState]],
    *,
    second_order: bool,
    meta: Callable[[Key], MetaParams],
    complete: Callable[[MetaParams, Params], Params] = _all_adapt,
) -> Learner:
    """A learner whose step is one step of the optimizer ``make_tx(meta_params)`` on ``problem``.

    Args:
      problem: what is minimised.
      make_tx: ``meta_params -> optax.GradientTransformation``.
      start: ``(key, meta_params, task) -> (params, model_state)``, where each task starts.
      second_order: let the meta-gradient flow through the gradients of the problem too.
      meta: ``key -> meta_params``.
      complete: ``(meta_params, params) -> params``, puts those that do not adapt in their place.
    """
    problem = with_checked_loss(problem)

    def init(key, meta_params, task):
        params, model_state = start(key, meta_params, task)
        floating, _ = _trees.partition(params)
        if jax.tree.leaves(params) and not jax.tree.leaves(floating):
            raise TypeError(
                "none of the parameters that problem.init gives is floating-point, so that there "
                "is nothing to train: make them e.g. float32"
            )
        opt_state = transformation(make_tx, meta_params).init(floating)
        return DescentState(params, model_state, opt_state)

    def step(key, meta_params, state, batch):
        floating, others = _trees.partition(state.params)

        def objective(floating):
            params = complete(meta_params, _trees.combine(floating, others))
            same = jax.random.clone(key)  # wherever a line search looks
            return problem.loss(same, params, state.model_state, batch)

        differentiate = value_and_grad if second_order else first_order_value_and_grad
        value_and_grads = differentiate(objective, has_aux=True)(floating)
        (loss, (metrics, model_state)), grads = value_and_grads

        # Line searches and adaptive rates look at more than the gradient.
        updates, opt_state = transformation(make_tx, meta_params).update(
            grads,
            state.opt_state,
            floating,
            value=loss,
            grad=grads,
            value_fn=lambda floating: objective(floating)[0],
        )
        params = _trees.combine(optax.apply_updates(floating, updates), others)
        return DescentState(params, model_state, opt_state), loss, metrics

    def test(key, meta_params, state, batch):
        params = complete(meta_params, state.params)
        return problem.test(key, params, state.model_state, batch)

    def predict(key, meta_params, state, inputs):
        params = complete(meta_params, state.params)
        return problem.predict(key, params, state.model_state, inputs)

    return Learner(init, step, test, predict, meta)


def as_learned(optimizer: LearnedOptimizer | MakeTx) -> tuple[MakeTx, Callable | None]:
    """The two parts of a learned optimizer; a function of the meta-parameters has the first."""
    if isinstance(optimizer, LearnedOptimizer):
        return optimizer.tx, optimizer.init
    if not callable(optimizer):
        raise TypeError(
            f"optimizer must be a metajax.LearnedOptimizer or a function of the meta-parameters: "
            f"optax.adam, say, or, if there are none, lambda meta_params: optax.adam(0.1); got "
            f"{type(optimizer).__name__}"
        )
    return optimizer, None


def transformation(make_tx: MakeTx, meta_params: MetaParams) -> Any:
    """``make_tx(meta_params)``, differentiable and with room for extra arguments.

    Or says that it is no optimizer.
    """
    tx = make_tx(meta_params)
    if not is_transformation(tx):
        raise TypeError(
            f"the function of the meta-parameters must give an optax.GradientTransformation, got "
            f"{type(tx).__name__}; of a learned optimizer give it itself, e.g. "
            f"l2l(mx.optim.lstm(), problem)"
        )
    return differentiable(tx)


@checked
def with_checked_loss(problem: Problem) -> Problem:
    """The problem with a loss that says so when it gives something else than it should."""

    def loss(key, params, model_state, batch):
        result = problem.loss(key, params, model_state, batch)
        _checks.returned("problem.loss", result, "loss, (metrics, model_state)")
        value, aux = result
        _checks.returned("problem.loss", aux, "metrics, model_state")
        _checks.loss_and_metrics("problem.loss", value, aux[0])
        return result

    return replace(problem, loss=loss)
