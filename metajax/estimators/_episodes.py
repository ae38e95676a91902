"""Batches of episodes that restart when they end, shared by the estimators."""

import jax
import jax.numpy as jnp
import optax

from metajax import _checks, _trees
from metajax._arguments import PositiveInt, checked
from metajax.types import (
    Array,
    Data,
    Inner,
    InnerState,
    Key,
    MetaParams,
    Metrics,
    PyTree,
)

_LENGTH = 2**31 - 2  # the fold_in tag of an episode's length: no inner step reaches it


@checked
def window_length(inner: Inner, truncation: PositiveInt | None) -> int:
    """The inner steps in a window, which divide the horizon: episodes restart between windows."""
    horizon = inner.horizon
    if truncation is None:
        return horizon
    if horizon % truncation:
        nearest = max(k for k in range(1, truncation + 1) if horizon % k == 0)
        raise ValueError(
            f"truncation must divide the horizon {horizon} of inner, got {truncation}; take "
            f"{nearest}, or another horizon"
        )
    if inner.heldout and truncation != horizon:
        raise ValueError(
            "truncation needs the meta-loss 'online': a 'heldout' loss exists only at the end of "
            "an episode; leave truncation out, or make inner with meta_loss='online'"
        )
    return truncation


def start(
    inner: Inner,
    key: Key,
    meta_params: MetaParams,
    data: Data,
    num_tasks: int,
    stride: int = 0,
) -> InnerState:
    """A batch of episodes; the i-th begins ``i * stride`` steps late in its first episode.

    Those that are not cut short by that are marked as over, so that they begin inside the estimate
    and its gradient reaches what ``inner.init`` makes of the meta-parameters.
    """
    init = inner.vmap(inner.init, (0, None, None))
    keys = jax.random.split(key, num_tasks)
    if stride == 0:
        # Only the shapes matter: to compile what makes the contents would take seconds.
        shapes = jax.eval_shape(init, keys, meta_params, data)
        blank = jax.tree.map(lambda x: _blank(x, key), shapes)
        return blank._replace(t=jnp.full(num_tasks, inner.horizon, jnp.int32))
    state = init(keys, meta_params, data)
    late = jnp.arange(num_tasks, dtype=jnp.int32) * stride % inner.horizon
    return state._replace(t=jnp.where(late == 0, inner.horizon, late))


def _blank(x: jax.ShapeDtypeStruct, key: Key) -> Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.clone(key), x.shape)
    return jnp.zeros(x.shape, x.dtype)


def episode_length(inner: Inner, key: Key, window: int) -> Array | int:
    """The steps of the episode with that ``key``, in whole windows.

    Log-uniform from ``inner.shortest`` to ``inner.horizon``, and a function of the episode's key
    alone: nothing has to be carried along, and antithetic episodes agree.
    """
    if inner.shortest is None:
        return inner.horizon
    u = jax.random.uniform(jax.random.fold_in(key, _LENGTH))
    steps = inner.shortest * (inner.horizon / inner.shortest) ** u
    windows = jnp.ceil(steps / window).astype(jnp.int32)
    return jnp.minimum(windows * window, inner.horizon)


def has_ended(inner: Inner, state: InnerState, window: int) -> Array:
    """Whether an episode is over and is to restart."""
    return state.t >= episode_length(inner, state.key, window)


def restart(
    inner: Inner,
    key: Key,
    meta_params: MetaParams,
    state: InnerState,
    data: Data,
    window: int,
) -> InnerState:
    """The episode, or a fresh one in its place if it `has_ended`."""
    fresh = inner.init(key, meta_params, data)
    is_over = has_ended(inner, state, window)
    return _trees.clone_keys(optax.tree.where(is_over, fresh, state))


def end_diverged(
    inner: Inner, before: InnerState, after: InnerState, ok: Array
) -> InnerState:
    """Marks as over the episodes that have diverged in a window.

    Their loss was not ``ok [n]``, or a state got lost.
    """
    ok &= _trees.stays_finite(after.learner, before.learner, batch=True)
    return after._replace(t=jnp.where(ok, after.t, inner.horizon))


def mean_of_finite(ok: Array, tree: PyTree) -> PyTree:
    """The means of the leaves ``[n, ...]`` over what is ``ok [n]``; NaN if nothing is."""
    # Counted once and in floats, so that devices exchange it together with the sums.
    count = ok.sum(dtype=float)

    def mean(x):
        mask = ok.reshape(-1, *[1] * (x.ndim - 1))
        total = jnp.where(mask, x, 0).sum(0)
        return (total / count).astype(x.dtype)

    return jax.tree.map(mean, tree)


def with_diverged(who: str, metrics: Metrics, ok: Array) -> Metrics:
    """The metrics, and as ``diverged`` the share of the episodes that are not ``ok [n]``."""
    _checks.unused_names(who, metrics, ("diverged",))
    return metrics | {"diverged": (ok.size - ok.sum(dtype=float)) / ok.size}
