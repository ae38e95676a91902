"""Reverse mode through the unrolled inner loop."""

import jax
import jax.numpy as jnp

from metajax import _trees
from metajax._arguments import PositiveInt, checked
from metajax._inner import Remat, check_remat, unroll
from metajax.estimators import _episodes
from metajax.types import Estimate, Estimator, Inner


@checked
def bptt(
    inner: Inner,
    num_tasks: PositiveInt,
    truncation: PositiveInt | None = None,
    *,
    stagger: bool = False,
    remat: Remat = True,
) -> Estimator:
    """Backpropagation through time (Werbos 1990), truncated if asked (Williams & Peng 1990).

    With ``truncation=K`` each estimate differentiates one window of K steps and carries the inner
    state to the next; an episode restarts when its horizon is reached. The gradient is then exact
    for the window and biased for the episode; without it, exact.

    Args:
      inner: the inner loop; its meta-loss must be ``"online"`` if truncated.
      num_tasks: episodes run side by side, each on its own task.
      truncation: window length, a divisor of the horizon; the whole horizon by default.
      stagger: start the episodes a window apart, so that each estimate sees all phases of an
        episode at once; without it all episodes run in step, as in Andrychowicz et al. 2016.
      remat: recompute inner steps in the backward pass; less memory and, where the step is bound by
        it, faster. ``"nested"`` and a number of kept states save more, for more passes over the
        steps: `metajax.unroll`.

    An episode whose loss or gradient is not finite is left out of the estimate, starts anew, and is
    counted by the metric ``diverged``.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=10)
    >>> estimator = mx.bptt(loop, num_tasks=4, truncation=5)
    >>> state = estimator.init(jax.random.key(0), 0.1, ())
    >>> estimate, state = jax.jit(estimator.estimate)(jax.random.key(1), 0.1, state, ())
    >>> estimate.updates.shape  # the gradient with respect to the learning rate
    ()
    """
    check_remat(remat)
    window = _episodes.window_length(inner, truncation)

    def init(key, meta_params, data):
        stride = window if stagger else 0
        return _episodes.start(inner, key, meta_params, data, num_tasks, stride)

    def meta_loss(floating, others, key, state, data):
        """Of one window of one episode."""
        meta_params = _trees.combine(floating, others)
        begin = _episodes.restart(inner, key, meta_params, state, data, window)
        end, loss, metrics = unroll(inner, meta_params, begin, data, window, remat)
        return loss, (begin, end, metrics)

    def estimate(key, meta_params, state, data):
        # A gradient for each episode, so that one that diverges can be left out.
        value_and_grad = jax.value_and_grad(meta_loss, has_aux=True)
        run = inner.vmap(value_and_grad, (None, None, 0, 0, None))
        keys = jax.random.split(key, num_tasks)
        parts = _trees.partition(meta_params)
        (losses, (begin, end, metrics)), grads = run(*parts, keys, state, data)

        ok = jnp.isfinite(losses) & _trees.all_finite(grads, batch=True)
        per_task = (grads, losses, metrics)
        updates, loss, metrics = _episodes.mean_of_finite(ok, per_task)
        metrics = _episodes.with_diverged("bptt", metrics, ok)
        state = _episodes.end_diverged(inner, begin, end, ok)
        return Estimate(updates, loss, metrics), state

    return Estimator(init, estimate, inner)
