"""Learning to optimize from a teacher: a learned update against that of a hand-made optimizer."""

from typing import NamedTuple

import jax
import optax
from jax import lax

from metajax import _checks, _trees
from metajax._arguments import checked
from metajax.learners._descent import (
    MakeTx,
    as_learned,
    transformation,
    with_checked_loss,
)
from metajax.types import LearnedOptimizer, Learner, Problem, PyTree, no_meta


class ImitationState(NamedTuple):
    """The optimizee, which the teacher moves, and the states of both optimizers."""

    params: PyTree
    model_state: PyTree
    student: PyTree
    teacher: PyTree


@checked
def imitate(
    optimizer: LearnedOptimizer | MakeTx,
    teacher: optax.GradientTransformation,
    problem: Problem,
) -> Learner:
    """Trains ``problem`` by ``teacher``; the loss is how far off the learned update is.

    It is the mean over all coordinates of the squared difference of the two updates, and
    ``metrics["objective"]`` is the loss of the problem. Both optimizers see the same gradients,
    along the path of the teacher. Chen et al. 2020 (arXiv 2010.09089) imitate hand-made optimizers
    besides minimising the loss of `metajax.l2l`; here that is a `metajax.mix` of two estimators:
    ``mx.mix([mx.bptt(l2l_loop, 8), mx.bptt(imitation_loop, 8)], weights=...)``.

    Args:
      optimizer: as for `metajax.l2l`.
      teacher: any optax transformation, its learning rate included.
      problem: what is minimised.

    >>> import jax, metajax as mx, optax
    >>> student = mx.optim.lstm(hidden=(4,))
    >>> learner = mx.imitate(student, optax.adam(0.1), mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=5)
    >>> meta_params = learner.meta(jax.random.key(1))
    >>> curves = mx.evaluate(loop, jax.random.key(0), meta_params, num_tasks=2)
    >>> curves.loss.shape, curves.metrics["objective"].shape
    ((2, 5), (2, 5))
    """
    make_tx, meta = as_learned(optimizer)
    problem = with_checked_loss(problem)
    teacher = optax.with_extra_args_support(teacher)

    def init(key, meta_params, task):
        params, model_state = problem.init(key, task)
        floating, _ = _trees.partition(params)
        student_state = transformation(make_tx, meta_params).init(floating)
        teacher_state = teacher.init(floating)
        return ImitationState(params, model_state, student_state, teacher_state)

    def step(key, meta_params, state, batch):
        floating, others = _trees.partition(state.params)

        def objective(floating):
            params = _trees.combine(floating, others)
            same = jax.random.clone(key)  # wherever a line search looks
            return problem.loss(same, params, state.model_state, batch)

        # Neither what is imitated nor the path depends on the meta-parameters.
        value_and_grad = jax.value_and_grad(objective, has_aux=True)
        (value, (metrics, model_state)), grads = lax.stop_gradient(
            value_and_grad(floating)
        )
        _checks.unused_names("imitate", metrics, ("objective",))
        seen = {
            "value": value,
            "grad": grads,
            "value_fn": lambda floating: objective(floating)[0],
        }

        student = transformation(make_tx, meta_params)
        guess, student_state = student.update(grads, state.student, floating, **seen)
        target, teacher_state = teacher.update(grads, state.teacher, floating, **seen)

        difference = optax.tree.cast(optax.tree.sub(guess, target), value.dtype)
        loss = optax.tree.norm(difference, squared=True) / optax.tree.size(target)

        params = _trees.combine(optax.apply_updates(floating, target), others)
        new = ImitationState(params, model_state, student_state, teacher_state)
        return new, loss, metrics | {"objective": value}

    def test(key, meta_params, state, batch):
        _, loss, metrics = step(key, meta_params, state, batch)
        return loss, metrics

    def predict(key, meta_params, state, inputs):
        return problem.predict(key, state.params, state.model_state, inputs)

    return Learner(init, step, test, predict, meta or no_meta)
