"""Reverse mode through the unrolled inner loop."""

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax._inner import unroll
from metajax.estimators import _episodes
from metajax.types import Estimate, Estimator, Inner


def bptt(
    inner: Inner,
    num_tasks: int,
    truncation: int | None = None,
    *,
    stagger: bool = False,
    remat: bool = True,
) -> Estimator:
    """Backpropagation through time (Werbos 1990), truncated if asked (Williams & Peng 1990).

    With ``truncation=K`` each estimate differentiates one window of K steps and carries the inner
    state to the next; an episode restarts when its horizon is reached. The gradient is then exact
    for the window and biased for the episode; without it, exact.

    Args: inner: the inner loop; its meta-loss must be ``"online"`` if truncated. num_tasks:
      episodes run side by side, each on its own task. truncation: window length, a divisor of the
      horizon; the whole horizon by default. stagger: start the episodes a window apart, so that
      each estimate sees all phases of an episode at once; without it all episodes run in step, as
      in Andrychowicz et al. 2016. remat: recompute inner steps in the backward pass; less memory
      and, where the step is bound by it, faster.

    Raises: TypeError, ValueError: an argument of another type, or a window that does not divide the
      horizon.

    >>> import jax, metajax as mx, optax
    >>> loop = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), horizon=10)
    >>> estimator = mx.bptt(loop, num_tasks=4, truncation=5)
    >>> state = estimator.init(jax.random.key(0), 0.1, ())
    >>> estimate, state = jax.jit(estimator.estimate)(jax.random.key(1), 0.1, state, ())
    >>> estimate.updates.shape  # the gradient with respect to the learning rate
    ()
    """
    length = _episodes.window(inner, truncation)
    _checks.positive_int(num_tasks=num_tasks)

    def init(key, meta_params, data):
        return _episodes.start(inner, key, meta_params, data, num_tasks, length if stagger else 0)

    def estimate(key, meta_params, state, data):
        def meta_loss(meta_params):
            begin = _episodes.restart(inner, key, meta_params, state, data, length)
            run = inner.vmap(lambda m, s, d: unroll(inner, m, s, d, length, remat), (None, 0, None))
            episodes, losses, metrics = run(meta_params, begin, data)
            episodes = _episodes.close(inner, begin, episodes, jnp.isfinite(losses))
            return losses.mean(), (episodes, jax.tree.map(jnp.mean, metrics))

        (loss, (episodes, metrics)), grads = jax.value_and_grad(meta_loss, has_aux=True)(
            meta_params
        )
        return Estimate(grads, loss, metrics), episodes

    return Estimator(init, estimate)
