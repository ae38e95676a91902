"""Forward mode through the unrolled inner loop."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from metajax import _trees
from metajax._arguments import PositiveInt, checked
from metajax._inner import unroll
from metajax.estimators import _episodes
from metajax.types import Estimate, Estimator, Inner


@checked
def forward(
    inner: Inner,
    num_tasks: PositiveInt,
    truncation: PositiveInt | None = None,
    *,
    chunk: PositiveInt = 32,
    stagger: bool = False,
) -> Estimator:
    """The gradient of `metajax.bptt` by forward mode (Williams & Zipser 1989).

    One tangent for each meta-parameter is carried along the unroll (real-time recurrent learning),
    ``chunk`` of them at once. Memory does not grow with the horizon: it is that of ``num_tasks *
    (chunk + 1)`` learner states. Time grows with the number of meta-parameters, so this is for few
    of them and long horizons: learning rates, schedules, small networks.

    Args:
      inner: the inner loop; its meta-loss must be ``"online"`` if truncated. What it runs must have
        a forward mode, as all of JAX does but functions with a `jax.custom_vjp` rule.
      num_tasks: episodes run side by side, each on its own task.
      truncation: window length, a divisor of the horizon; the whole horizon by default. As in
        `metajax.bptt`, the gradient is then exact for the window and biased for the episode.
      chunk: meta-parameters differentiated at once; it need not divide their number.
      stagger: start the episodes a window apart, as in `metajax.bptt`.

    An episode whose loss or gradient is not finite is left out of the estimate, starts anew, and is
    counted by the metric ``diverged``.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic(), second_order=True)
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=10)
    >>> rate = jax.numpy.float32(0.01)
    >>> grads = []
    >>> for estimator in (mx.forward(loop, num_tasks=4), mx.bptt(loop, num_tasks=4)):
    ...     state = estimator.init(jax.random.key(0), rate, ())
    ...     estimate, state = jax.jit(estimator.estimate)(jax.random.key(1), rate, state, ())
    ...     grads.append(estimate.updates)
    >>> bool(jax.numpy.allclose(*grads, rtol=1e-4))
    True
    """
    window = _episodes.window_length(inner, truncation)

    def init(key, meta_params, data):
        stride = window if stagger else 0
        return _episodes.start(inner, key, meta_params, data, num_tasks, stride)

    def episode(meta_params, key, state, data):
        begin = _episodes.restart(inner, key, meta_params, state, data, window)
        end, loss, metrics = unroll(inner, meta_params, begin, data, window)
        return loss, (begin, end, metrics)

    def estimate(key, meta_params, state, data):
        keys = jax.random.split(key, num_tasks)
        floating, others = _trees.partition(meta_params)
        flat, unravel = ravel_pytree(floating)

        def run(flat):
            meta_params = _trees.combine(unravel(flat), others)
            episodes = inner.vmap(episode, (None, 0, 0, None))
            same = _trees.clone_keys((keys, state))  # for each block of tangents
            return episodes(meta_params, *same, data)

        losses, (begin, end, metrics) = run(flat)
        grads = _jacobian(lambda flat: run(flat)[0], flat, chunk)

        ok = jnp.isfinite(losses) & jnp.isfinite(grads).all(1)
        episodes = (grads, losses, metrics)
        mean_grad, loss, metrics = _episodes.mean_of_finite(ok, episodes)
        updates = unravel(mean_grad.astype(flat.dtype))
        metrics = _episodes.with_diverged("forward", metrics, ok)
        state = _episodes.end_diverged(inner, begin, end, ok)
        return Estimate(updates, loss, metrics), state

    return Estimator(init, estimate, inner)


def _jacobian(losses_of, flat, chunk):
    """The derivatives ``[num_tasks, n]`` of the losses ``[num_tasks]`` in ``flat [n]``."""
    blocks = -(-flat.size // chunk)
    size = -(
        -flat.size // blocks
    )  # even blocks: of 33 parameters 17 and 16, not 32 and 1

    def slope(tangent):
        _, slopes = jax.jvp(losses_of, (flat,), (tangent,))
        return slopes

    def block(first):
        # Past the last parameter the basis vectors are zero; what they give is cut off below.
        basis = jax.nn.one_hot(first + jnp.arange(size), flat.size, dtype=flat.dtype)
        return jax.vmap(slope)(basis)

    slopes = lax.map(block, size * jnp.arange(blocks))
    return slopes.reshape(blocks * size, -1)[: flat.size].T
