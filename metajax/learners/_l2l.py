"""Gradient descent by an optimizer that has meta-parameters (Andrychowicz et al. 2016)."""

from metajax._arguments import checked
from metajax.learners._descent import MakeTx, as_learned, descent
from metajax.types import LearnedOptimizer, Learner, Problem, no_meta


@checked
def l2l(
    optimizer: LearnedOptimizer | MakeTx, problem: Problem, second_order: bool = False
) -> Learner:
    """Trains the parameters of ``problem`` from scratch with an optimizer that is learned.

    ``optimizer`` is one of `metajax.optim`, or a hand-made optimizer as a function of what one
    wants to search or learn: ``l2l(optax.adam, problem)`` has the learning rate as its
    meta-parameter.

    Args:
      optimizer: a `metajax.LearnedOptimizer`, or ``meta_params -> optax.GradientTransformation``.
      problem: what is minimised.
      second_order: let the meta-gradient flow through the optimizee's gradient too; the paper drops
        that term (section 2, "we assume that the gradients of the optimizee do not depend on the
        optimizer parameters").

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(mx.optim.rnnprop(), mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(10), horizon=100)
    >>> meta_params = learner.meta(jax.random.key(1))
    >>> mx.evaluate(loop, jax.random.key(0), meta_params, num_tasks=4).loss.shape
    (4, 100)
    """
    make_tx, meta = as_learned(optimizer)

    def start(key, meta_params, task):
        del meta_params
        return problem.init(key, task)

    return descent(
        problem, make_tx, start, second_order=second_order, meta=meta or no_meta
    )
