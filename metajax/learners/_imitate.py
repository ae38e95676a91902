"""Learning to optimize from a teacher: the update of a learned optimizer against that of a
hand-made one.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from metajax import _checks
from metajax.learners._l2l import transformation
from metajax.types import Learner, Problem, PyTree


class ImitationState(NamedTuple):
    """The optimizee's parameters, which the teacher moves, and the states of both optimizers."""

    params: PyTree
    student: PyTree
    teacher: PyTree


def imitate(
    make_tx: Callable[..., optax.GradientTransformation],
    teacher: optax.GradientTransformation,
    problem: Problem,
) -> Learner:
    """Trains the parameters of ``problem`` by ``teacher``; the loss is how far off the learned
    update would have been.

    It is the mean over all coordinates of the squared difference of the two updates, and
    ``metrics["objective"]`` is the loss of the problem. Both optimizers see the same gradients,
    along the path of the teacher. Chen et al. 2020 (arXiv 2010.09089) imitate hand-made optimizers
    besides minimising the loss of `metajax.l2l`; here that is a `metajax.mix` of two estimators:
    ``mx.mix([mx.bptt(l2l_loop, 8), mx.bptt(imitation_loop, 8)], weights=...)``.

    Args:
      make_tx: ``meta_params -> optax.GradientTransformation``, as for `metajax.l2l`.
      teacher: any optax transformation, its learning rate included.
      problem: what is minimised.

    Raises:
      TypeError: an argument of another type.

    >>> import jax, metajax as mx, optax
    >>> opt = mx.optim.lstm(hidden=(4,))
    >>> learner = mx.imitate(opt.tx, optax.adam(0.1), mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=5)
    >>> curves = mx.evaluate(loop, jax.random.key(0), opt.init(jax.random.key(1)), num_tasks=2)
    >>> curves.loss.shape, curves.metrics["objective"].shape
    ((2, 5), (2, 5))
    """
    _checks.function(make_tx=make_tx)
    problem = _checks.problem("problem", problem)
    if not (hasattr(teacher, "init") and hasattr(teacher, "update")):
        raise TypeError(
            f"teacher must be an optax.GradientTransformation, got {type(teacher).__name__}"
        )
    teacher = optax.with_extra_args_support(teacher)

    def init(key, meta_params, task):
        params = problem.init(key, task)
        return ImitationState(
            params, transformation(make_tx, meta_params).init(params), teacher.init(params)
        )

    def step(key, meta_params, state, batch):
        value_and_grad = jax.value_and_grad(
            lambda params: problem.loss(key, params, batch), has_aux=True
        )
        (objective, metrics), grads = lax.stop_gradient(value_and_grad(state.params))
        _checks.unused_names("imitate", metrics, ("objective",))
        student = transformation(make_tx, meta_params)
        got, after = student.update(grads, state.student, state.params, value=objective)
        want, taught = teacher.update(grads, state.teacher, state.params, value=objective)
        squares = jax.tree.leaves(
            jax.tree.map(lambda a, b: jnp.sum((a - b).astype(objective.dtype) ** 2), got, want)
        )
        loss = jnp.stack(squares).sum() / sum(x.size for x in jax.tree.leaves(want))
        new = ImitationState(optax.apply_updates(state.params, want), after, taught)
        return new, loss, {**metrics, "objective": objective}

    def loss(key, meta_params, state, batch):
        return step(key, meta_params, state, batch)[1]

    def metrics(key, meta_params, state, batch):
        return step(key, meta_params, state, batch)[2]

    return Learner(init, step, loss, metrics)
