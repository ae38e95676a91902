"""Evolution strategies over antithetic pairs of episodes.

No derivative is taken, and none has to exist. All of them perturb the meta-parameters of each episode by some Gaussian noise and of its twin by
its negative, and weigh noise by the difference between the twins' losses. They differ in which
noise a window is run with and by which it is weighed. Twins share all that does not depend on the
sign (key, task, minibatches), and that is so by construction: it is stored and computed once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from metajax import _checks, _trees
from metajax._inner import unroll
from metajax.estimators import _episodes
from metajax.types import Array, Estimate, Estimator, Inner, InnerState, Key, Metrics, PyTree

# Twins share all but the learner.
_PAIR_AXES: Any = InnerState(key=None, t=None, task=None, learner=0)  # pyright: ignore[reportArgumentType]


class Pairs(NamedTuple):
    """Antithetic episodes under way.

    Attributes:
      episodes: leaves ``[num_tasks, ...]``, those of the learner ``[num_tasks, 2, ...]``.
      noise: like ``meta_params`` with leaves ``[num_tasks, ...]``: what the present episode was
        perturbed by; of persistent evolution strategies the sum over its windows.
    """

    episodes: InnerState
    noise: PyTree


def es(inner: Inner, num_tasks: int, std: float) -> Estimator:
    """Antithetic evolution strategies over whole episodes (Rechenberg 1973; Salimans et al. 2017).

    Estimates the gradient of the smoothed meta-loss ``E L(meta_params + std * normal)`` without
    bias, by the mean over tasks of ``noise * (L(m + noise) - L(m - noise)) / (2 std^2)``. It is
    `metajax.pes` with the whole horizon as the window.

    Args:
      inner: the inner loop.
      num_tasks: antithetic pairs, each with a task and a perturbation of its own.
      std: standard deviation of the perturbation, in units of the meta-parameters.

    The metric ``diverged`` is the share of pairs whose loss was not finite; they are left out of
    the estimate.

    >>> import jax, metajax as mx, optax
    >>> loop = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), horizon=10)
    >>> trainer = mx.trainer(mx.es(loop, num_tasks=64, std=0.003), optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> state, metrics = jax.jit(trainer.step)(state)
    >>> sorted(metrics)
    ['diverged', 'loss', 'skipped', 'update_norm']
    """
    return _pairs(inner, num_tasks, std, None, stagger=False, reuse=False)


def pes(
    inner: Inner,
    num_tasks: int,
    std: float,
    truncation: int | None = None,
    *,
    stagger: bool = False,
) -> Estimator:
    """Persistent evolution strategies (Vicol et al. 2021): truncated, and unbiased for the episode.

    Each window is run with fresh noise and weighed by the sum of the noise of all windows of the
    episode so far, which carries the influence of earlier windows on this one's loss. The mean of
    the estimates over the windows of an episode is an unbiased estimate of the gradient of the
    meta-loss, smoothed by noise that is drawn anew in each window. Its variance grows with the
    number of windows.

    Args:
      inner: the inner loop; its meta-loss must be ``"online"`` if truncated.
      num_tasks: antithetic pairs, each with a task and a perturbation of its own.
      std: standard deviation of a window's perturbation, in units of the meta-parameters.
      truncation: window length, a divisor of the horizon; the whole horizon by default, which is
        `metajax.es`.
      stagger: start the episodes a window apart, so that each estimate sees all phases of an
        episode at once. The first episodes, which are cut short by that, lack their earlier part.

    A pair whose loss is not finite is left out of the estimate, starts anew, and is counted by the
    metric ``diverged``.

    >>> import jax, metajax as mx, optax
    >>> loop = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), horizon=100)
    >>> trainer = mx.trainer(mx.pes(loop, num_tasks=64, std=0.003, truncation=10), optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> state, metrics = jax.jit(trainer.step)(state)
    """
    return _pairs(inner, num_tasks, std, truncation, stagger=stagger, reuse=False)


def noise_reuse_es(
    inner: Inner, num_tasks: int, std: float, truncation: int | None = None, *, stagger: bool = True
) -> Estimator:
    """Noise-reuse evolution strategies (Li et al. 2023): one perturbation an episode, reused in
    each of its windows.

    Truncated and unbiased for the smoothed meta-loss of `metajax.es`, in the mean over the windows
    of an episode. The variance does not grow with the number of windows as that of `metajax.pes`
    may. The episodes are staggered, so that an estimate is a mean over phases from the second
    episode of each pair on.

    Args:
      inner: the inner loop; its meta-loss must be ``"online"`` if truncated.
      num_tasks: antithetic pairs, each with a task and a perturbation of its own; a multiple of the
        number of windows puts equally many at each phase.
      std: standard deviation of the perturbation, in units of the meta-parameters.
      truncation: window length, a divisor of the horizon; the whole horizon by default, which is
        `metajax.es`.
      stagger: start the episodes a window apart, so that each estimate sees all phases of an
        episode at once. The first episodes, which are cut short by that, lack their earlier part.

    A pair whose loss is not finite is left out of the estimate, starts anew, and is counted by the
    metric ``diverged``.

    >>> import jax, metajax as mx, optax
    >>> loop = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), horizon=100)
    >>> trainer = mx.trainer(mx.noise_reuse_es(loop, num_tasks=60, std=0.003, truncation=10), optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> state, metrics = jax.jit(trainer.step)(state)
    """
    return _pairs(inner, num_tasks, std, truncation, stagger=stagger, reuse=True)


def _pairs(
    inner: Inner, num_tasks: int, std: float, truncation: int | None, *, stagger: bool, reuse: bool
) -> Estimator:
    window = _episodes.window_length(inner, truncation)
    _checks.positive_int(num_tasks=num_tasks)
    _checks.positive_float(std=std)

    def init(key, meta_params, data):
        _check_precision(meta_params)
        k_start, k_noise = jax.random.split(key)
        stride = window if stagger else 0
        episodes = _episodes.start(inner, k_start, meta_params, data, num_tasks, stride)
        twins = jax.tree.map(lambda x: jnp.stack([x, x], 1), episodes.learner)
        noise = _normal(k_noise, meta_params, num_tasks, std)
        if not reuse:
            noise = jax.tree.map(jnp.zeros_like, noise)
        return Pairs(episodes._replace(learner=twins), noise)

    def estimate(key, meta_params, state, data):
        k_noise, k_restart = jax.random.split(key)
        is_over = jax.vmap(lambda s: _episodes.has_ended(inner, s, window))(state.episodes)

        # Which noise a window is run with, and by which it is weighed.
        fresh_noise = _normal(k_noise, meta_params, num_tasks, std)
        if reuse:
            noise = _trees.where(is_over, fresh_noise, state.noise)
            weight = noise
        else:
            noise = fresh_noise
            weight = _trees.where(is_over, noise, optax.tree.add(state.noise, noise))

        twins = _twins(meta_params, noise)
        fresh = _fresh_pairs(inner, k_restart, twins, data)
        begin = _trees.where(is_over, fresh, state.episodes)
        end, losses, metrics = _run_pairs(inner, twins, begin, data, window)

        ok = jnp.isfinite(losses).all(1)
        episodes = _episodes.end_diverged(inner, begin, end, ok)
        result = _weigh(meta_params, weight, losses, metrics, std)
        return result, Pairs(episodes, weight)

    return Estimator(init, estimate)


class GuidedState(NamedTuple):
    """The surrogate's state and its latest estimates, ``recent [rank, n]`` for ``n``
    meta-parameters, newest first.
    """

    surrogate: PyTree
    recent: Array


def guided_es(
    inner: Inner,
    num_tasks: int,
    std: float,
    surrogate: Estimator,
    *,
    rank: int = 1,
    alpha: float = 0.5,
) -> Estimator:
    """Guided evolution strategies (Maheswaranathan et al. 2019): a search stretched along known
    directions.

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
    >>> estimator = mx.guided_es(loop, num_tasks=8, std=0.01, surrogate=mx.bptt(loop, 2, truncation=5))
    >>> trainer = mx.trainer(estimator, optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), {"rate": jax.numpy.float32(0.01), "momentum": jax.numpy.float32(0.5)})
    >>> state, metrics = jax.jit(trainer.step)(state)
    """
    window = _episodes.window_length(inner, None)
    _checks.positive_int(num_tasks=num_tasks, rank=rank)
    _checks.positive_float(std=std)
    _checks.unit_interval(alpha=alpha)
    _checks.instance(Estimator, surrogate=surrogate)

    def init(key, meta_params, data):
        _check_precision(meta_params)
        k_surrogate, k_recent = jax.random.split(key)
        flat, _ = ravel_pytree(meta_params)
        if rank > flat.size:
            raise ValueError(
                f"rank must be at most the number of meta-parameters, {flat.size}, got {rank}"
            )
        recent = jax.random.normal(k_recent, (rank, flat.size), flat.dtype)
        return GuidedState(surrogate.init(k_surrogate, meta_params, data), recent)

    def estimate(key, meta_params, state, data):
        k_surrogate, k_all, k_subspace, k_start = jax.random.split(key, 4)
        guess, surrogate_state = surrogate.estimate(k_surrogate, meta_params, state.surrogate, data)
        direction, unravel = ravel_pytree(guess.updates)
        recent = _remember(state.recent, direction)

        # Noise that is spread over all directions, and noise within the subspace.
        basis, _ = jnp.linalg.qr(recent.T)
        size = direction.size
        dtype = direction.dtype
        everywhere = jax.random.normal(k_all, (num_tasks, size), dtype)
        within = jax.random.normal(k_subspace, (num_tasks, rank), dtype) @ basis.T
        spread_all = (alpha / size) ** 0.5
        spread_within = ((1 - alpha) / rank) ** 0.5
        flat_noise = std * (spread_all * everywhere + spread_within * within)
        noise = jax.vmap(unravel)(flat_noise)

        twins = _twins(meta_params, noise)
        begin = _fresh_pairs(inner, k_start, twins, data)
        _, losses, metrics = _run_pairs(inner, twins, begin, data, window)
        result = _weigh(meta_params, noise, losses, metrics, std)
        _checks.unused_names("guided_es", result.metrics, ("surrogate_loss",))
        metrics = result.metrics | {"surrogate_loss": guess.loss}
        return result._replace(metrics=metrics), GuidedState(surrogate_state, recent)

    return Estimator(init, estimate)


def _remember(recent: Array, direction: Array) -> Array:
    """The latest directions ``[rank, n]`` with a new one before them, if that is finite."""
    direction /= jnp.abs(direction).max()  # whose norm may overflow; 0 / 0 drops a zero too
    direction /= jnp.linalg.norm(direction)
    is_direction = jnp.isfinite(direction).all()
    return jnp.where(is_direction, jnp.roll(recent, 1, 0).at[0].set(direction), recent)


def _check_precision(meta_params: PyTree) -> None:
    """Says which of the meta-parameters is too coarse for small perturbations."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(meta_params):
        dtype = jnp.result_type(leaf)
        if jnp.finfo(dtype).bits < 32:
            raise TypeError(
                f"meta_params{jax.tree_util.keystr(path)} must be float32 or float64, got {dtype}: "
                f"a small perturbation of it would be rounded away; keep float32 and let the "
                f"learner convert"
            )


def _normal(key: Key, like: PyTree, num_tasks: int, std: float) -> PyTree:
    """Noise with leaves ``[num_tasks, ...]``.

    In one draw: each draw costs compile time, and trees have many leaves.
    """
    flat, unravel = ravel_pytree(like)
    noise = std * jax.random.normal(key, (num_tasks, flat.size), flat.dtype)
    return jax.vmap(unravel)(noise)


def _twins(meta_params: PyTree, noise: PyTree) -> PyTree:
    """The meta-parameters of the pairs, leaves ``[num_tasks, 2, ...]``."""
    return jax.tree.map(lambda m, e: jnp.stack([m + e, m - e], 1), meta_params, noise)


def _fresh_pairs(inner: Inner, key: Key, twins: PyTree, data: PyTree) -> InnerState:
    """A new pair of episodes for each of ``twins``."""
    init_pair = jax.vmap(inner.init, (None, 0, None), _PAIR_AXES)
    num_tasks = len(jax.tree.leaves(twins)[0])
    keys = jax.random.split(key, num_tasks)
    return inner.vmap(init_pair, (0, 0, None))(keys, twins, data)


def _run_pairs(
    inner: Inner, twins: PyTree, episodes: InnerState, data: PyTree, window: int
) -> tuple[InnerState, Array, Metrics]:
    """Runs a window of each pair: the episodes, losses ``[num_tasks, 2]``, metrics of that shape."""

    def run(meta_params, state, data):
        return unroll(inner, meta_params, state, data, window)

    run_pair = jax.vmap(run, (0, _PAIR_AXES, None), (_PAIR_AXES, 0, 0))
    return inner.vmap(run_pair, (0, 0, None))(twins, episodes, data)


def _weigh(
    meta_params: PyTree, weight: PyTree, losses: Array, metrics: Metrics, std: float
) -> Estimate:
    """The mean over the finite pairs of ``weight * (L+ - L-) / (2 std^2)``; NaN if there is none."""
    ok = jnp.isfinite(losses).all(1)
    difference = losses[:, 0] - losses[:, 1]
    slope = jnp.where(ok, difference, 0) / (2 * std**2 * ok.sum())

    def weighted(leaf, weight):
        return jnp.tensordot(slope.astype(weight.dtype), weight, 1)

    updates = jax.tree.map(weighted, meta_params, weight)
    pair_means = {name: x.mean(1) for name, x in metrics.items()}
    loss = _episodes.mean_of_finite(ok, losses.mean(1))
    return Estimate(updates, loss, _episodes.mean_metrics("an evolution strategy", pair_means, ok))
