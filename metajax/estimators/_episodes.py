"""Batches of episodes that restart when they end, shared by the truncated estimators."""

import jax
import jax.numpy as jnp

from metajax import checks
from metajax.types import Array, Inner, InnerState, PyTree


def window(inner: Inner, truncation: int | None) -> int:
    """The number of inner steps in a window; it must divide the horizon, since episodes restart between windows."""
    checks.instance("inner", inner, Inner, "metajax.inner")
    if truncation is None:
        return inner.horizon
    truncation = checks.positive_int("truncation", truncation)
    if inner.horizon % truncation:
        raise ValueError(
            f"truncation must divide the horizon {inner.horizon} of inner, got {truncation}; "
            f"take {max(k for k in range(1, truncation + 1) if inner.horizon % k == 0)}, or another horizon"
        )
    if inner.loss is not None and truncation != inner.horizon:
        raise ValueError(
            "truncation needs the meta-loss 'online': a 'heldout' loss exists only at the end of an episode; "
            "leave truncation out, or make inner with meta_loss='online'"
        )
    return truncation


def start(inner: Inner, key: Array, meta_params: PyTree, data: PyTree, num_tasks: int, stride: int = 0) -> InnerState:
    """A batch of episodes; the i-th begins ``i * stride`` steps late in its first episode, which is cut short by that.

    Those that are not cut short are marked as over, so that they begin inside the estimate and its gradient reaches
    what ``inner.init`` makes of the meta-parameters.
    """
    state = jax.vmap(inner.init, (0, None, None))(jax.random.split(key, num_tasks), meta_params, data)
    late = jnp.arange(num_tasks, dtype=jnp.int32) * stride % inner.horizon
    return state._replace(t=jnp.where(late == 0, inner.horizon, late))


def restart(inner: Inner, key: Array, meta_params: PyTree, state: InnerState, data: PyTree, axis=None) -> InnerState:
    """Puts a fresh episode in the place of each that is over or no longer finite.

    ``axis`` is 0 where every episode has meta-parameters of its own, None where they are shared.
    """
    keys = jax.random.split(key, state.t.shape[0])
    fresh = jax.vmap(inner.init, (0, axis, None))(keys, meta_params, data)
    return where((state.t >= inner.horizon) | ~all_finite(state.learner, batch=True), fresh, state)


def where(pred: Array, a: PyTree, b: PyTree) -> PyTree:
    """`jnp.where` over trees, ``pred [n]`` against leaves ``[n, ...]``."""
    return jax.vmap(lambda p, x, y: jax.tree.map(lambda u, v: jnp.where(p, u, v), x, y))(pred, a, b)


def all_finite(tree: PyTree, batch: bool = False) -> Array:
    """Whether all floating leaves are finite; with ``batch``, for each index of their leading axis."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    ok = [jnp.isfinite(x).reshape(x.shape[0], -1).all(1) if batch else jnp.isfinite(x).all() for x in leaves]
    return jnp.stack(ok).all(0) if ok else jnp.array(True)
