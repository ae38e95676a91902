"""Gradient descent by an optimizer that has meta-parameters (Andrychowicz et al. 2016)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax import lax

from metajax import _checks
from metajax.types import Learner, Problem, PyTree


class L2LState(NamedTuple):
    """The optimizee's parameters and the optimizer's state."""

    params: PyTree
    opt_state: PyTree


def l2l(
    make_tx: Callable[..., optax.GradientTransformation],
    problem: Problem,
    second_order: bool = False,
) -> Learner:
    """Trains the parameters of ``problem`` with the optimizer ``make_tx(meta_params)``.

    ``make_tx`` is the ``tx`` of a learned optimizer, or a hand-made optimizer as a function of what
    one wants to search or learn: ``l2l(optax.adam, problem)`` has the learning rate as its
    meta-parameter.

    Args: make_tx: ``meta_params -> optax.GradientTransformation``. problem: what is minimised.
      second_order: let the meta-gradient flow through the optimizee's gradient too; the paper drops
      that term (section 2, "we assume that the gradients of the optimizee do not depend on the
      optimizer parameters").

    Raises:
      TypeError: ``make_tx`` is no function, or gives something other than an optax transformation.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.adam, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(10), horizon=100)
    >>> mx.evaluate(loop, jax.random.key(0), 0.1, num_tasks=4).loss.shape
    (4, 100)
    """
    if not callable(make_tx):
        raise TypeError(
            f"make_tx must be a function of the meta-parameters: the tx of a learned optimizer, optax.adam, or, if "
            f"there are none, lambda meta_params: optax.adam(0.1); got {type(make_tx).__name__}"
        )
    problem = _checks.problem("problem", problem)

    def init(key, meta_params, task):
        params = problem.init(key, task)
        return L2LState(params, transformation(make_tx, meta_params).init(params))

    def step(key, meta_params, state, batch):
        value_and_grad = jax.value_and_grad(
            lambda params: problem.loss(key, params, batch), has_aux=True
        )
        (loss, metrics), grads = value_and_grad(state.params)
        if not second_order:
            grads = lax.stop_gradient(grads)
        updates, opt_state = transformation(make_tx, meta_params).update(
            grads, state.opt_state, state.params, value=loss
        )
        return L2LState(optax.apply_updates(state.params, updates), opt_state), loss, metrics

    def loss(key, meta_params, state, batch):
        return problem.loss(key, state.params, batch)[0]

    def metrics(key, meta_params, state, batch):
        return problem.loss(key, state.params, batch)[1]

    return Learner(init, step, loss, metrics)


def transformation(
    make_tx: Callable[..., Any], meta_params: PyTree
) -> optax.GradientTransformationExtraArgs:
    """``make_tx(meta_params)``, or says that it is no optax transformation."""
    tx = make_tx(meta_params)
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(
            f"make_tx(meta_params) must give an optax.GradientTransformation, got {type(tx).__name__}; "
            f"for a learned optimizer give its tx, e.g. l2l(mx.optim.lstm().tx, problem)"
        )
    return optax.with_extra_args_support(tx)
