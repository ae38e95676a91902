"""Forward mode through the unrolled inner loop."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from metajax import _checks
from metajax._inner import unroll
from metajax.estimators import _episodes
from metajax.types import Estimate, Estimator, Inner


def forward(
    inner: Inner,
    num_tasks: int,
    truncation: int | None = None,
    *,
    chunk: int = 32,
    stagger: bool = False,
) -> Estimator:
    """The gradient of `metajax.bptt` by forward mode (real-time recurrent learning, Williams &
    Zipser 1989).

    One tangent for each meta-parameter is carried along the unroll, ``chunk`` of them at once.
    Memory does not grow with the horizon: it is that of ``num_tasks * (chunk + 1)`` learner states.
    Time grows with the number of meta-parameters, so this is for few of them and long horizons:
    learning rates, schedules, small networks.

    Args: inner: the inner loop; its meta-loss must be ``"online"`` if truncated. What it runs must
      have a forward mode, as all of JAX does but functions with a `jax.custom_vjp` rule. num_tasks:
      episodes run side by side, each on its own task. truncation: window length, a divisor of the
      horizon; the whole horizon by default. As in `metajax.bptt`, the gradient is then exact for
      the window and biased for the episode. chunk: meta-parameters differentiated at once; it need
      not divide their number. stagger: start the episodes a window apart, as in `metajax.bptt`.

    Raises: TypeError, ValueError: an argument of another type, a chunk below 1, or a window that
      does not divide the horizon.

    >>> import jax, metajax as mx, optax
    >>> loop = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic(), second_order=True), mx.tasks.quadratics(3), 10)
    >>> rate, data = jax.numpy.float32(0.01), ()
    >>> grads = []
    >>> for estimator in (mx.forward(loop, num_tasks=4), mx.bptt(loop, num_tasks=4)):
    ...     state = estimator.init(jax.random.key(0), rate, data)
    ...     estimate, state = jax.jit(estimator.estimate)(jax.random.key(1), rate, state, data)
    ...     grads.append(estimate.updates)
    >>> bool(jax.numpy.allclose(*grads, rtol=1e-4))
    True
    """
    length = _episodes.window(inner, truncation)
    _checks.positive_int(num_tasks=num_tasks, chunk=chunk)

    def init(key, meta_params, data):
        return _episodes.start(inner, key, meta_params, data, num_tasks, length if stagger else 0)

    def estimate(key, meta_params, state, data):
        flat, unravel = ravel_pytree(meta_params)

        def run(flat):
            meta_params = unravel(flat)
            begin = _episodes.restart(inner, key, meta_params, state, data, length)
            window = inner.vmap(lambda m, s, d: unroll(inner, m, s, d, length), (None, 0, None))
            episodes, losses, metrics = window(meta_params, begin, data)
            return losses.mean(), (
                _episodes.close(inner, begin, episodes, jnp.isfinite(losses)),
                metrics,
            )

        loss, (episodes, metrics) = run(flat)
        blocks = -(-flat.size // chunk)
        size = -(
            -flat.size // blocks
        )  # even blocks: 33 parameters in chunks of 32 become 17 and 16, not 32 and 1

        def block(first):
            # Past the last parameter the basis vectors are zero, and so are the derivatives that
            # are cut off below.
            basis = jax.nn.one_hot(first + jnp.arange(size), flat.size, dtype=flat.dtype)
            return jax.vmap(lambda tangent: jax.jvp(lambda x: run(x)[0], (flat,), (tangent,))[1])(
                basis
            )

        grads = (
            lax.map(block, size * jnp.arange(blocks)).reshape(-1)[: flat.size].astype(flat.dtype)
        )
        return Estimate(unravel(grads), loss, jax.tree.map(jnp.mean, metrics)), episodes

    return Estimator(init, estimate)
