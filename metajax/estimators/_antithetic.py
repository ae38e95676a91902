"""Antithetic pairs of episodes.

The meta-parameters of each episode are perturbed by some noise, those of its twin by its negative.
Twins share all that does not depend on the sign (key, task, minibatches), and that is so by
construction: it is stored and computed once.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from metajax import _trees
from metajax._inner import unroll
from metajax.estimators import _episodes
from metajax.types import Array, Estimate, Inner, InnerState, Key, Metrics, PyTree

# Twins share all but the learner.
_PAIR_AXES: Any = InnerState(key=None, t=None, task=None, learner=0)  # pyright: ignore[reportArgumentType]


def check_precision(meta_params: PyTree) -> None:
    """Says which of the meta-parameters is too coarse for small perturbations."""
    floating, _ = _trees.partition(meta_params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(floating):
        dtype = jnp.result_type(leaf)
        if jnp.finfo(dtype).bits < 32:
            raise TypeError(
                f"meta_params{jax.tree_util.keystr(path)} must be float32 or float64, got {dtype}: "
                f"a small perturbation of it would be rounded away; keep float32 and let the "
                f"learner convert"
            )


def normal(key: Key, like: PyTree, num_tasks: int, std: float) -> PyTree:
    """Noise with leaves ``[num_tasks, ...]``, one for each floating leaf of ``like``.

    In one draw: each draw costs compile time, and trees have many leaves.
    """
    floating, _ = _trees.partition(like)
    flat, unravel = ravel_pytree(floating)
    noise = std * jax.random.normal(key, (num_tasks, flat.size), flat.dtype)
    return jax.vmap(unravel)(noise)


def twins_of(meta_params: PyTree, noise: PyTree) -> PyTree:
    """The meta-parameters of the pairs, leaves ``[num_tasks, 2, ...]``."""
    floating, others = _trees.partition(meta_params)
    twins = jax.tree.map(lambda m, e: jnp.stack([m + e, m - e], 1), floating, noise)
    num_tasks = len(jax.tree.leaves(noise)[0])
    copies = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (num_tasks, 2, *jnp.shape(x))), others
    )
    return _trees.combine(twins, copies)


def fresh_pairs(inner: Inner, key: Key, twins: PyTree, data: PyTree) -> InnerState:
    """A new pair of episodes for each of ``twins``."""
    init_pair = jax.vmap(inner.init, (None, 0, None), _PAIR_AXES)
    num_tasks = len(jax.tree.leaves(twins)[0])
    keys = jax.random.split(key, num_tasks)
    return inner.vmap(init_pair, (0, 0, None))(keys, twins, data)


def run_pairs(
    inner: Inner, twins: PyTree, episodes: InnerState, data: PyTree, window: int
) -> tuple[InnerState, Array, Metrics]:
    """Runs a window of each pair: episodes, losses ``[num_tasks, 2]``, metrics of that shape."""

    def run(meta_params, state, data):
        return unroll(inner, meta_params, state, data, window)

    run_pair = jax.vmap(run, (0, _PAIR_AXES, None), (_PAIR_AXES, 0, 0))
    return inner.vmap(run_pair, (0, 0, None))(twins, episodes, data)


def weigh(weight: PyTree, losses: Array, metrics: Metrics, std: float) -> Estimate:
    """The mean over the finite pairs of ``weight * (L+ - L-) / (2 std^2)``; NaN if none is."""
    ok = jnp.isfinite(losses).all(1)
    difference = losses[:, 0] - losses[:, 1]
    slope = jnp.where(ok, difference, 0) / (2 * std**2)
    count = ok.sum(dtype=float)

    def weighted(weight):
        total = jnp.tensordot(slope.astype(weight.dtype), weight, 1)
        return (total / count).astype(weight.dtype)

    updates = jax.tree.map(weighted, weight)
    over_pairs = jax.tree.map(lambda x: x.mean(1), (losses, metrics))
    loss, metrics = _episodes.mean_of_finite(ok, over_pairs)
    metrics = _episodes.with_diverged("an evolution strategy", metrics, ok)
    return Estimate(updates, loss, metrics)
