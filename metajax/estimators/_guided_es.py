"""Evolution strategies whose search another estimator guides."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from metajax import _checks, _trees
from metajax._arguments import PositiveFloat, PositiveInt, UnitInterval, checked
from metajax._arrays import matmul
from metajax.estimators import _antithetic, _episodes
from metajax.estimators._perturbations import gaussian
from metajax.types import Array, Estimator, Inner, PyTree


class GuidedState(NamedTuple):
    """The surrogate's state, and its latest estimates ``[rank, n]``, newest first."""

    surrogate: PyTree
    recent: Array


@checked
def guided_es(
    inner: Inner,
    num_tasks: PositiveInt,
    std: PositiveFloat,
    surrogate: Estimator,
    *,
    rank: PositiveInt = 1,
    alpha: UnitInterval = 0.5,
) -> Estimator:
    """Guided evolution strategies (Maheswaranathan et al. 2019): a search along known directions.

    The noise has the covariance ``std^2 C`` with ``C = alpha / n * I + (1 - alpha) / k * U U^T``,
    where ``n`` is the number of meta-parameters and ``U [n, k]`` an orthonormal basis of the latest
    ``k = rank`` estimates of the surrogate. The estimate is that of `metajax.es` with this noise:
    in the mean ``C`` times the smoothed gradient, a direction of descent and not the gradient
    itself, with the paper's overall scale (its beta) left to the outer transformation. Since C has
    trace 1, a perturbation has length ``std``, where that of `metajax.es` has ``std * sqrt(n)``.

    Args:
      inner: the inner loop.
      num_tasks: antithetic pairs, each with a task and a perturbation of its own.
      std: root mean square length of a perturbation, in units of the meta-parameters.
      surrogate: any estimator over the same meta-parameters and data, biased but cheap: e.g. a
        truncated `metajax.bptt`.
      rank: how many of its estimates span the guiding subspace, at most the number of
        meta-parameters. Until there are as many, random directions take the place of the missing
        ones.
      alpha: the share of the variance that is spread over all directions: 1 ignores the surrogate,
        0 never leaves the subspace.

    The metrics are those of `metajax.es` and ``surrogate_loss``. A surrogate's estimate that is not
    finite is passed over.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(lambda m: optax.sgd(m["rate"], m["momentum"]), mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=10)
    >>> surrogate = mx.bptt(loop, 2, truncation=5)
    >>> estimator = mx.guided_es(loop, num_tasks=8, std=0.01, surrogate=surrogate)
    >>> trainer = mx.trainer(estimator, optax.adam(1e-3))
    >>> meta_params = {"rate": jax.numpy.float32(0.01), "momentum": jax.numpy.float32(0.5)}
    >>> state = trainer.init(jax.random.key(0), meta_params)
    >>> state, metrics = jax.jit(trainer.step)(state)
    """
    window = _episodes.window_length(inner, None)
    pairs = _antithetic.Pairs(inner, gaussian(), std)

    def init(key, meta_params, data):
        _antithetic.check_precision(meta_params)
        k_surrogate, k_recent = jax.random.split(key)
        floating, _ = _trees.partition(meta_params)
        flat, _ = ravel_pytree(floating)
        if rank > flat.size:
            raise ValueError(
                f"rank must be at most the number of meta-parameters, {flat.size}, got {rank}"
            )
        recent = jax.random.normal(k_recent, (rank, flat.size), flat.dtype)
        return GuidedState(surrogate.init(k_surrogate, meta_params, data), recent)

    def estimate(key, meta_params, state, data):
        k_surrogate, k_all, k_subspace, k_start = jax.random.split(key, 4)
        guess, surrogate_state = surrogate.estimate(
            k_surrogate, meta_params, state.surrogate, data
        )
        direction, unravel = ravel_pytree(guess.updates)
        recent = _remember(state.recent, direction)

        # Noise that is spread over all directions, and noise within the subspace.
        basis, _ = jnp.linalg.qr(recent.T)
        size = direction.size
        dtype = direction.dtype
        everywhere = jax.random.normal(k_all, (num_tasks, size), dtype)
        within = jax.random.normal(k_subspace, (num_tasks, rank), dtype)
        within = matmul(within, basis.T)
        spread_all = (alpha / size) ** 0.5
        spread_within = ((1 - alpha) / rank) ** 0.5
        flat_noise = spread_all * everywhere + spread_within * within
        noise = jax.vmap(unravel)(flat_noise)

        begin = pairs.start(k_start, meta_params, noise, data)
        _, losses, metrics = pairs.run(meta_params, noise, begin, data, window)
        result = pairs.weigh(meta_params, noise, losses, metrics)
        _checks.unused_names("guided_es", result.metrics, ("surrogate_loss",))
        metrics = result.metrics | {"surrogate_loss": guess.loss}
        return result._replace(metrics=metrics), GuidedState(surrogate_state, recent)

    return Estimator(init, estimate, inner)


def _remember(recent: Array, direction: Array) -> Array:
    """The latest directions ``[rank, n]`` with a new one before them, if that is finite."""
    direction /= jnp.abs(
        direction
    ).max()  # whose norm may overflow; 0 / 0 drops a zero too
    direction /= jnp.linalg.norm(direction)
    is_direction = jnp.isfinite(direction).all()
    return jnp.where(is_direction, jnp.roll(recent, 1, 0).at[0].set(direction), recent)
