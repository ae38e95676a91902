"""An inner loss with meta-parameters, for any learner that minimises a problem."""

from collections.abc import Callable
from dataclasses import replace

import jax

from metajax import _checks
from metajax._arguments import check, checked
from metajax.types import (
    Array,
    Batch,
    Key,
    Learner,
    MetaParams,
    ModelState,
    Params,
    Problem,
    PyTree,
)

Objective = Callable[[PyTree, Key, Params, ModelState, Batch], Array]


@checked
def learned_loss(
    make: Callable[[Problem], Learner],
    problem: Problem,
    objective: Objective,
    meta: Callable[[Key], PyTree],
) -> Learner:
    """The learner ``make(problem)`` that descends on ``objective`` and is judged by the problem.

    What the inner loop minimises may then have meta-parameters of its own: a learned loss (Bechtle
    et al. 2021; Baik et al. 2021, MeTAL), a weight for each example, a prior. The losses that it
    reports, online and on the test batch, are those of ``problem``; the value of the objective is
    the metric ``objective``. The meta-parameters are ``{"learner": ..., "objective": ...}``.
    The meta-gradient reaches those of the objective through the gradients of the inner loop, which
    a first-order learner (`fomaml`, `l2l` without ``second_order``) takes for constants: there it
    is 0.

    Args:
      make: e.g. ``lambda problem: mx.maml(problem, rate=0.1)``.
      problem: what the result is judged by.
      objective: ``(objective_params, key, params, model_state, batch) -> scalar``.
      meta: ``key -> objective_params``.

    A penalty whose strength is learned:

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> problem = mx.problems.mlp((64, 10))
    >>> def penalised(log_strength, key, params, model_state, batch):
    ...     loss, _ = problem.loss(key, params, model_state, batch)
    ...     return loss + jnp.exp(log_strength) * optax.tree.norm(params, squared=True)
    >>> learner = mx.learned_loss(lambda problem: mx.maml(problem, rate=0.1), problem, penalised,
    ...                           meta=lambda key: jnp.float32(-3.0))
    >>> sorted(learner.meta(jax.random.key(0)))
    ['learner', 'objective']
    """
    arguments = "objective_params, key, params, model_state, batch"
    _checks.takes("objective", objective, arguments)
    judged = make(problem)
    check(Learner, **{"make(problem)": judged})

    def learner_at(meta_params: MetaParams) -> Learner:
        def loss(key, params, model_state, batch):
            own = meta_params["objective"]
            # With the same key: what it drops, the problem drops too.
            same = jax.random.clone(key)
            value = objective(own, same, params, model_state, batch)
            _checks.scalar("what objective returned", value)
            true, (metrics, model_state) = problem.loss(key, params, model_state, batch)
            _checks.unused_names("learned_loss", metrics, ("objective",))
            return value, (metrics | {"objective": true}, model_state)

        return make(replace(problem, loss=loss))

    def init(key, meta_params, task):
        return learner_at(meta_params).init(key, meta_params["learner"], task)

    def step(key, meta_params, state, batch):
        learner = learner_at(meta_params)
        state, value, metrics = learner.step(key, meta_params["learner"], state, batch)
        # The learner took the objective for its loss, and met the loss as a metric.
        return state, metrics["objective"], metrics | {"objective": value}

    def test(key, meta_params, state, batch):
        return judged.test(key, meta_params["learner"], state, batch)

    def predict(key, meta_params, state, inputs):
        return judged.predict(key, meta_params["learner"], state, inputs)

    def both(key):
        return {"learner": judged.meta(key), "objective": meta(key)}

    return replace(judged, init=init, step=step, test=test, predict=predict, meta=both)
