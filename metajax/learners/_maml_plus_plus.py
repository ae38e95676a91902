"""MAML++ (Antoniou et al. 2019): judged after each step, with learned rates a layer and step."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax import _trees
from metajax._arguments import PositiveFloat, PositiveInt, UnitInterval, checked
from metajax.learners._maml import adapt, entries, initial_params, scale
from metajax.tasks._with_query import pair
from metajax.types import Array, Learner, Problem, State


class MultiStepState(NamedTuple):
    """The number of steps taken, int32, and the state of the learner that takes them."""

    t: Array
    learner: State


@checked
def multi_step(learner: Learner, weights: Sequence[float]) -> Learner:
    """A learner judged after each of its steps, by a weighted sum of query losses (section 4).

    For batches of `metajax.tasks.with_query` and the meta-loss ``"online"`` over as many steps as
    there are weights: it learns from the support batch and its loss is then that of the query
    batch, times the weight and the number of steps, so that the mean over the steps is the weighted
    sum. So is the mean over the windows of a truncated estimator, which differentiates each as it
    does for any learner. Metrics of the query batch are named ``test_<name>``.

    Args:
      learner: what is judged.
      weights: ``[steps]``, at least 0, e.g. from `step_weights`; the horizon of `metajax.inner` is
        their number. Where `evaluate` goes beyond, steps get the last.

    >>> import jax, metajax as mx
    >>> weights = mx.step_weights(3, progress=0.0)
    >>> learner = mx.multi_step(mx.maml(mx.problems.mlp((64, 10)), rate=0.4), weights)
    >>> loop = mx.inner(learner, mx.tasks.with_query(mx.tasks.minibatches(5)), horizon=3)
    >>> meta_params, digits = learner.meta(jax.random.key(0)), mx.data.load("digits")
    >>> curves = mx.evaluate(loop, jax.random.key(1), meta_params, digits, num_tasks=2)
    >>> curves.metrics["test_accuracy"].shape  # on the query batch, after each step
    (2, 3)
    """
    by_step = _vector(weights)
    if learner.steps not in (None, by_step.size):
        raise ValueError(
            f"weights must be one a step of learner, which is made for {learner.steps} steps, got "
            f"{by_step.size}"
        )
    last = by_step.size - 1

    def init(key, meta_params, task):
        return MultiStepState(jnp.int32(0), learner.init(key, meta_params, task))

    def step(key, meta_params, state, batch):
        support, query = pair(batch)
        k_step, k_query = jax.random.split(key)
        new, _, metrics = learner.step(k_step, meta_params, state.learner, support)
        loss, tested = learner.test(k_query, meta_params, new, query)

        # The mean over the steps is to be the weighted sum.
        factors = jnp.asarray(by_step * by_step.size, loss.dtype)
        factor = factors[jnp.minimum(state.t, last)]
        metrics = metrics | {f"test_{name}": x for name, x in tested.items()}
        return MultiStepState(state.t + 1, new), factor * loss, metrics

    def test(key, meta_params, state, batch):
        return learner.test(key, meta_params, state.learner, batch)

    def predict(key, meta_params, state, inputs):
        return learner.predict(key, meta_params, state.learner, inputs)

    return Learner(init, step, test, predict, learner.meta, by_step.size, "online")


def _vector(weights: Sequence[float]) -> np.ndarray:
    array = np.asarray(weights, float)
    if array.ndim != 1 or np.any(array < 0) or not np.any(array):
        raise ValueError(
            f"weights must be a vector of finite numbers, one a step, at least 0 and not all 0, "
            f"got {weights}"
        )
    return array


@checked
def step_weights(steps: PositiveInt, progress: UnitInterval) -> list[float]:
    """Weights for `multi_step` that go from all steps alike to the last alone, and add up to 1.

    Args:
      steps: inner steps.
      progress: from 0, all alike, to 1, the last alone, all others 0; linear in between. The code
        of MAML++'s authors stops at 0.03 / steps for the others.

    >>> import metajax as mx
    >>> mx.step_weights(4, 0.0), mx.step_weights(4, 0.5)
    ([0.25, 0.25, 0.25, 0.25], [0.125, 0.125, 0.125, 0.625])
    """
    early = (1 - progress) / steps
    last = 1 - (steps - 1) * early
    return [early] * (steps - 1) + [last]


@checked
def maml_plus_plus(
    problem: Problem,
    weights: Sequence[float],
    rate: PositiveFloat,
    second_order: bool = True,
) -> Learner:
    """`maml` with learned rates a layer and step, judged after each of them.

    What the paper anneals over meta-training is an argument here, and training goes in phases: the
    state of one trainer is that of the next. The meta-parameters are ``{"params": ..., "rates":
    ...}``, for each leaf of the first rates ``[steps]``; the batches are those of
    `metajax.tasks.with_query`, the meta-loss ``"online"``, the horizon the number of weights. The
    paper's cosine schedule is optax's; what it says about batch normalisation concerns the network.

    Args:
      problem: what is minimised.
      weights: one a step, e.g. from `step_weights`; section 4, multi-step loss.
      rate: what all rates begin with.
      second_order: False in the first phase of the paper's derivative-order annealing, True later.

    >>> import jax, metajax as mx, optax
    >>> problem, digits = mx.problems.mlp((64, 10)), mx.data.load("digits")
    >>> tasks = mx.tasks.with_query(mx.tasks.minibatches(5))
    >>> state = None
    >>> for phase, progress in enumerate([0.0, 1.0]):
    ...     weights = mx.step_weights(3, progress)
    ...     learner = mx.maml_plus_plus(problem, weights, rate=0.1, second_order=phase > 0)
    ...     loop = mx.inner(learner, tasks, 3)
    ...     trainer = mx.trainer(mx.bptt(loop, num_tasks=2), optax.adam(1e-3))
    ...     if state is None:
    ...         state = trainer.init(jax.random.key(1), learner.meta(jax.random.key(0)), digits)
    ...     state, metrics = jax.jit(trainer.step)(state, digits)
    >>> int(state.step)
    2
    """
    steps = len(_vector(weights))

    def meta(key):
        params = initial_params(problem, key)
        floating, _ = _trees.partition(params)
        rates = jax.tree.map(
            lambda x: jnp.full(steps, rate, jnp.result_type(x)), floating
        )
        return {"params": params, "rates": rates}

    def start(meta_params):
        return entries(meta_params, "maml_plus_plus")["params"]

    def make_tx(meta_params):
        def update(updates, state, params=None):
            del params

            def scale_by_step(rates, grads):
                _check_rates(rates, steps)
                return scale(rates[jnp.minimum(state, len(rates) - 1)], grads)

            updates = jax.tree.map(scale_by_step, meta_params["rates"], updates)
            return updates, state + 1

        return optax.GradientTransformation(lambda params: jnp.int32(0), update)

    learner = adapt(problem, make_tx, start=start, second_order=second_order, meta=meta)
    return multi_step(learner, weights)


def _check_rates(rates: Array, steps: int) -> None:
    if rates.shape != (steps,):
        raise ValueError(
            f"meta_params['rates'] must hold rates [{steps}], one for each of the weights, as "
            f"maml_plus_plus(...).meta(key) makes them, got {list(rates.shape)}"
        )
