"""Weights that all episodes share, in products under `jax.vmap`."""

import jax
import jax.numpy as jnp

from metajax.types import Array, PyTree


def unshared(weights: PyTree, x: Array) -> PyTree:
    """The same values, but where `jax.vmap` runs several ``x``, a copy for each.

    A product with a matrix that all share has the episodes on another axis than products within an episode, and XLA
    turns everything around, what comes back in its derivative too. For an LSTM optimizer with 1,500 coordinates that
    was a fifth of the time of a meta-step on a CPU, for VSML a third; with a few dozen rows one large product is worth
    more.
    """
    batched = x.reshape(-1)[0] > 0
    return jax.tree.map(lambda w: jnp.where(batched, w, w), weights)
