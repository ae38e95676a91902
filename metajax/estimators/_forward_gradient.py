"""Meta-gradients from one derivative along a random direction."""

import jax
import jax.numpy as jnp
import optax

from metajax import _trees
from metajax._arguments import PositiveInt, checked
from metajax._inner import unroll
from metajax.estimators import _episodes
from metajax.types import Estimate, Estimator, Inner


@checked
def forward_gradient(
    inner: Inner,
    num_tasks: PositiveInt,
    truncation: PositiveInt | None = None,
    *,
    stagger: bool = False,
) -> Estimator:
    """The forward gradient (Baydin et al. 2022, "Gradients without Backpropagation").

    Each episode is differentiated along one direction of its own, drawn from a standard normal, and
    the derivative times the direction is an unbiased estimate of the gradient of `metajax.bptt`.
    Memory is that of two runs forward, whatever the horizon, and time that of about two; variance
    grows with the number of meta-parameters, as that of evolution strategies does, but there is no
    smoothing.

    Args:
      inner: the inner loop; its meta-loss must be ``"online"`` if truncated. What it runs must have
        a forward mode.
      num_tasks: episodes run side by side, each with a task and a direction of its own.
      truncation: window length, a divisor of the horizon; the whole horizon by default.
      stagger: start the episodes a window apart, as in `metajax.bptt`.

    An episode whose loss or gradient is not finite is left out of the estimate, starts anew, and is
    counted by the metric ``diverged``.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=10)
    >>> trainer = mx.trainer(mx.forward_gradient(loop, num_tasks=16), optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> state, metrics = jax.jit(trainer.step)(state)
    """
    window = _episodes.window_length(inner, truncation)

    def init(key, meta_params, data):
        stride = window if stagger else 0
        return _episodes.start(inner, key, meta_params, data, num_tasks, stride)

    def episode(meta_params, key, state, data):
        k_restart, k_direction = jax.random.split(key)
        floating, others = _trees.partition(meta_params)
        direction = optax.tree.random_like(k_direction, floating)

        def run(floating):
            meta_params = _trees.combine(floating, others)
            begin = _episodes.restart(
                inner, k_restart, meta_params, state, data, window
            )
            end, loss, metrics = unroll(inner, meta_params, begin, data, window)
            return loss, (begin, end, metrics)

        loss, slope, found = jax.jvp(run, (floating,), (direction,), has_aux=True)
        return (loss, found), optax.tree.scale(slope, direction)

    def estimate(key, meta_params, state, data):
        run = inner.vmap(episode, (None, 0, 0, None))
        keys = jax.random.split(key, num_tasks)
        (losses, (begin, end, metrics)), grads = run(meta_params, keys, state, data)

        ok = jnp.isfinite(losses) & _trees.all_finite(grads, batch=True)
        episodes = (grads, losses, metrics)
        updates, loss, metrics = _episodes.mean_of_finite(ok, episodes)
        metrics = _episodes.with_diverged("forward_gradient", metrics, ok)
        state = _episodes.end_diverged(inner, begin, end, ok)
        return Estimate(updates, loss, metrics), state

    return Estimator(init, estimate, inner)
