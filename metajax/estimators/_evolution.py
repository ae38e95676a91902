"""Evolution strategies over antithetic pairs of episodes.

No derivative is taken, and none has to exist. All of them perturb the meta-parameters of each
episode by some Gaussian noise and of its twin by its negative, and weigh noise by the difference
between the twins' losses. They differ in which noise a window is run with and by which it is
weighed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax import _trees
from metajax._arguments import PositiveFloat, PositiveInt, checked
from metajax.estimators import _antithetic, _episodes
from metajax.estimators._perturbations import (
    Perturbation,
    gaussian,
    no_windows,
    with_window,
)
from metajax.types import Estimator, Inner, InnerState, PyTree


class PairsState(NamedTuple):
    """Antithetic episodes under way.

    Attributes:
      episodes: leaves ``[num_tasks, ...]``, those of the learner ``[num_tasks, 2, ...]``.
      noise: with leaves ``[num_tasks, ...]``, in units of the standard deviation: what the present
        episode was perturbed by; of persistent evolution strategies the sum over its windows.
    """

    episodes: InnerState
    noise: PyTree


@checked
def es(
    inner: Inner,
    num_tasks: PositiveInt,
    std: PositiveFloat,
    perturbation: Perturbation | None = None,
) -> Estimator:
    """Antithetic evolution strategies over whole episodes (Rechenberg 1973; Salimans et al. 2017).

    Estimates the gradient of the smoothed meta-loss ``E L(meta_params + std * normal)`` without
    bias, by the mean over tasks of ``noise * (L(m + noise) - L(m - noise)) / (2 std^2)``. It is
    `metajax.pes` with the whole horizon as the window.

    Args:
      inner: the inner loop.
      num_tasks: antithetic pairs, each with a task and a perturbation of its own.
      std: standard deviation of the perturbation, in units of the meta-parameters.
      perturbation: what is drawn, `metajax.gaussian` by default; `metajax.low_rank` takes less
        memory and time where meta-parameters are large matrices.

    The metric ``diverged`` is the share of pairs whose loss was not finite; they are left out of
    the estimate.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=10)
    >>> trainer = mx.trainer(mx.es(loop, num_tasks=64, std=0.003), optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> state, metrics = jax.jit(trainer.step)(state)
    >>> sorted(metrics)
    ['diverged', 'loss', 'skipped', 'update_norm']
    """
    return _pairs(
        inner,
        num_tasks,
        std,
        None,
        stagger=False,
        reuse=False,
        perturbation=perturbation or gaussian(),
    )


@checked
def pes(
    inner: Inner,
    num_tasks: PositiveInt,
    std: PositiveFloat,
    truncation: PositiveInt | None = None,
    *,
    stagger: bool = False,
    perturbation: Perturbation | None = None,
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
      perturbation: what is drawn, `metajax.gaussian` by default. Of `metajax.low_rank` the factors
        of all windows of an episode are kept.

    A pair whose loss is not finite is left out of the estimate, starts anew, and is counted by the
    metric ``diverged``.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=100)
    >>> estimator = mx.pes(loop, num_tasks=64, std=0.003, truncation=10)
    >>> trainer = mx.trainer(estimator, optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> state, metrics = jax.jit(trainer.step)(state)
    """
    return _pairs(
        inner,
        num_tasks,
        std,
        truncation,
        stagger=stagger,
        reuse=False,
        perturbation=perturbation or gaussian(),
    )


@checked
def noise_reuse_es(
    inner: Inner,
    num_tasks: PositiveInt,
    std: PositiveFloat,
    truncation: PositiveInt | None = None,
    *,
    stagger: bool = True,
    perturbation: Perturbation | None = None,
) -> Estimator:
    """Noise-reuse evolution strategies (Li et al. 2023): one perturbation for a whole episode.

    It is reused in each window. Truncated and unbiased for the smoothed meta-loss of `metajax.es`,
    in the mean over the windows of an episode. The variance does not grow with the number of
    windows as that of `metajax.pes` may. The episodes are staggered, so that an estimate is a mean
    over phases from the second episode of each pair on.

    Args:
      inner: the inner loop; its meta-loss must be ``"online"`` if truncated.
      num_tasks: antithetic pairs, each with a task and a perturbation of its own; a multiple of the
        number of windows puts equally many at each phase.
      std: standard deviation of the perturbation, in units of the meta-parameters.
      truncation: window length, a divisor of the horizon; the whole horizon by default, which is
        `metajax.es`.
      stagger: start the episodes a window apart, so that each estimate sees all phases of an
        episode at once. The first episodes, which are cut short by that, lack their earlier part.
      perturbation: what is drawn, `metajax.gaussian` by default.

    A pair whose loss is not finite is left out of the estimate, starts anew, and is counted by the
    metric ``diverged``.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=100)
    >>> estimator = mx.noise_reuse_es(loop, num_tasks=60, std=0.003, truncation=10)
    >>> trainer = mx.trainer(estimator, optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> state, metrics = jax.jit(trainer.step)(state)
    """
    return _pairs(
        inner,
        num_tasks,
        std,
        truncation,
        stagger=stagger,
        reuse=True,
        perturbation=perturbation or gaussian(),
    )


def _pairs(
    inner: Inner,
    num_tasks: int,
    std: float,
    truncation: int | None,
    *,
    stagger: bool,
    reuse: bool,
    perturbation: Perturbation,
) -> Estimator:
    window = _episodes.window_length(inner, truncation)
    pairs = _antithetic.Pairs(inner, perturbation, std)
    if window == inner.horizon:
        return _whole_pairs(pairs, num_tasks)

    def init(key, meta_params, data):
        _antithetic.check_precision(meta_params)
        k_start, k_noise = jax.random.split(key)
        stride = window if stagger else 0
        episodes = _episodes.start(inner, k_start, meta_params, data, num_tasks, stride)
        twins = jax.tree.map(lambda x: jnp.stack([x, x], 1), episodes.learner)
        noise = perturbation.sample(k_noise, meta_params, num_tasks)
        if not reuse:
            noise = no_windows(noise, inner.horizon // window)
        return PairsState(episodes._replace(learner=twins), noise)

    def estimate(key, meta_params, state, data):
        k_noise, k_restart = jax.random.split(key)
        is_over = jax.vmap(lambda s: _episodes.has_ended(inner, s, window))(
            state.episodes
        )

        # Which noise a window is run with, and by which it is weighed.
        fresh_noise = perturbation.sample(k_noise, meta_params, num_tasks)
        if reuse:
            noise = _trees.where(is_over, fresh_noise, state.noise)
            weight = noise
        else:
            noise = fresh_noise
            none = jax.tree.map(jnp.zeros_like, state.noise)
            weight = with_window(_trees.where(is_over, none, state.noise), noise)

        fresh = pairs.start(k_restart, meta_params, noise, data)
        begin = _trees.where(is_over, fresh, state.episodes)
        end, losses, metrics = pairs.run(meta_params, noise, begin, data, window)

        ok = jnp.isfinite(losses).all(1)
        episodes = _episodes.end_diverged(inner, begin, end, ok)
        result = pairs.weigh(meta_params, weight, losses, metrics)
        return result, PairsState(episodes, weight)

    return Estimator(init, estimate, inner)


def _whole_pairs(pairs: _antithetic.Pairs, num_tasks: int) -> Estimator:
    """Episodes that begin and end within an estimate: nothing is carried from one to the next."""

    def init(key, meta_params, data):
        del key, data
        _antithetic.check_precision(meta_params)
        return ()

    def estimate(key, meta_params, state, data):
        k_noise, k_start = jax.random.split(key)
        noise = pairs.perturbation.sample(k_noise, meta_params, num_tasks)
        losses, metrics = pairs.run_whole(k_start, meta_params, noise, data)
        return pairs.weigh(meta_params, noise, losses, metrics), state

    return Estimator(init, estimate, pairs.inner)
