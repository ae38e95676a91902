"""Antithetic pairs of episodes.

The meta-parameters of each episode are perturbed by some noise, those of its twin by its negative.
Twins share all that does not depend on the sign (key, task, minibatches), and that is so by
construction: it is stored and computed once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax import _trees
from metajax._inner import unroll
from metajax.estimators import _episodes
from metajax.estimators._perturbations import MovedMatrix, Perturbation
from metajax.types import (
    Array,
    Data,
    Estimate,
    Inner,
    InnerState,
    Key,
    MetaParams,
    Metrics,
    PyTree,
)

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


class Pairs(NamedTuple):
    """How antithetic pairs of episodes are run and weighed.

    Attributes:
      inner: the inner loop.
      perturbation: what the noise is.
      std: its standard deviation, in units of the meta-parameters.
    """

    inner: Inner
    perturbation: Perturbation
    std: float

    def moved(self, meta_params: MetaParams, noise: PyTree, sign: Array) -> MetaParams:
        """The meta-parameters of one twin."""
        return self.perturbation.move(meta_params, noise, sign * self.std)

    def start(
        self, key: Key, meta_params: MetaParams, noise: PyTree, data: Data
    ) -> InnerState:
        """A new pair of episodes for each of the noises."""

        def start_pair(key, meta_params, noise, data):
            def start(sign):
                moved = self.moved(meta_params, noise, sign)
                with _blame_shared_matrices(moved):
                    state = self.inner.init(key, moved, data)
                _refuse_shared_matrices(state)
                return state

            return jax.vmap(start, out_axes=_PAIR_AXES)(_signs())

        num_tasks = len(jax.tree.leaves(noise)[0])
        keys = jax.random.split(key, num_tasks)
        start_all = self.inner.vmap(start_pair, (0, None, 0, None))
        return start_all(keys, meta_params, noise, data)

    def run(
        self,
        meta_params: MetaParams,
        noise: PyTree,
        episodes: InnerState,
        data: Data,
        window: int,
    ) -> tuple[InnerState, Array, Metrics]:
        """Runs a window of each pair: episodes, losses ``[num_tasks, 2]``, metrics like these."""

        def run_pair(meta_params, noise, episodes, data):
            def run(sign, state):
                moved = self.moved(meta_params, noise, sign)
                with _blame_shared_matrices(moved):
                    return unroll(self.inner, moved, state, data, window)

            return jax.vmap(run, (0, _PAIR_AXES), (_PAIR_AXES, 0, 0))(
                _signs(), episodes
            )

        run_all = self.inner.vmap(run_pair, (None, 0, 0, None))
        return run_all(meta_params, noise, episodes, data)

    def run_whole(
        self, key: Key, meta_params: MetaParams, noise: PyTree, data: Data
    ) -> tuple[Array, Metrics]:
        """Runs new pairs from beginning to end: losses ``[num_tasks, 2]``, metrics like these."""

        def run_pair(key, meta_params, noise, data):
            def run(sign):
                moved = self.moved(meta_params, noise, sign)
                with _blame_shared_matrices(moved):
                    start = self.inner.init(key, moved, data)
                    _refuse_shared_matrices(start)
                    steps = self.inner.horizon
                    _, loss, metrics = unroll(self.inner, moved, start, data, steps)
                return loss, metrics

            return jax.vmap(run)(_signs())

        num_tasks = len(jax.tree.leaves(noise)[0])
        keys = jax.random.split(key, num_tasks)
        run_all = self.inner.vmap(run_pair, (0, None, 0, None))
        return run_all(keys, meta_params, noise, data)

    def weigh(
        self, meta_params: MetaParams, weight: PyTree, losses: Array, metrics: Metrics
    ) -> Estimate:
        """The mean over finite pairs of ``weight * (L+ - L-) / (2 std)``; NaN if none is."""
        ok = jnp.isfinite(losses).all(1)
        difference = losses[:, 0] - losses[:, 1]
        slope = jnp.where(ok, difference, 0) / (2 * self.std)
        count = ok.sum(dtype=float)

        total = self.perturbation.combine(slope, weight, meta_params)
        updates = jax.tree.map(lambda x: (x / count).astype(x.dtype), total)
        over_pairs = jax.tree.map(lambda x: x.mean(1), (losses, metrics))
        loss, metrics = _episodes.mean_of_finite(ok, over_pairs)
        metrics = _episodes.with_diverged("an evolution strategy", metrics, ok)
        return Estimate(updates, loss, metrics)


def _signs() -> Array:
    return jnp.array([1.0, -1.0])


@contextmanager
def _blame_shared_matrices(meta_params: MetaParams) -> Iterator[None]:
    """Says what to do about an operation that does not know a `MovedMatrix`."""
    try:
        yield
    except (AttributeError, TypeError) as error:
        if not _shared_matrices(meta_params):
            raise
        raise TypeError(
            f"the learner does more with its matrices than to multiply by @: {error}; take "
            f"metajax.low_rank(shared=False), or matrix.dense() there"
        ) from error


def _refuse_shared_matrices(state: InnerState) -> None:
    if _shared_matrices(state):
        raise ValueError(
            "the learner keeps its meta-parameters in its state, as those do that adapt them, and "
            "would change the parts of a shared matrix; take metajax.low_rank(shared=False)"
        )


def _shared_matrices(tree: PyTree) -> list[MovedMatrix]:
    return [x for x in jax.tree.leaves(tree) if isinstance(x, MovedMatrix)]
