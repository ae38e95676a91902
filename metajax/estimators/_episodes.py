"""Batches of episodes that restart when they end, shared by the estimators."""

import jax
import jax.numpy as jnp

from metajax import _checks, _trees
from metajax.types import Array, Inner, InnerState, PyTree

_LENGTH = 2**31 - 2  # the fold_in tag of an episode's length: no inner step reaches it


def window(inner: Inner, truncation: int | None) -> int:
    """The number of inner steps in a window; it must divide the horizon, since episodes restart
    between windows.
    """
    _checks.instance(Inner, inner=inner)
    if truncation is None:
        return inner.horizon
    _checks.positive_int(truncation=truncation)
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


def start(
    inner: Inner, key: Array, meta_params: PyTree, data: PyTree, num_tasks: int, stride: int = 0
) -> InnerState:
    """A batch of episodes; the i-th begins ``i * stride`` steps late in its first episode, which is
    cut short by that.

    Those that are not cut short are marked as over, so that they begin inside the estimate and its
    gradient reaches what ``inner.init`` makes of the meta-parameters.
    """
    keys, init = jax.random.split(key, num_tasks), inner.vmap(inner.init, (0, None, None))
    if stride == 0:  # only the shapes matter: to compile what makes the contents would take seconds
        shapes = jax.eval_shape(init, keys, meta_params, data)
        return jax.tree.map(lambda x: _blank(x, key), shapes)._replace(
            t=jnp.full(num_tasks, inner.horizon, jnp.int32)
        )
    state = init(keys, meta_params, data)
    late = jnp.arange(num_tasks, dtype=jnp.int32) * stride % inner.horizon
    return state._replace(t=jnp.where(late == 0, inner.horizon, late))


def _blank(x: jax.ShapeDtypeStruct, key: Array) -> Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(key, x.shape)
    return jnp.zeros(x.shape, x.dtype)


def length(inner: Inner, key: Array, window: int) -> Array | int:
    """The steps ``[n]`` of the episodes with the keys ``key [n]``, in whole windows.

    Log-uniform from ``inner.shortest`` to ``inner.horizon``, and a function of the episode's key
    alone: nothing has to be carried along, and antithetic episodes agree.
    """
    if inner.shortest is None:
        return inner.horizon
    u = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, _LENGTH)))(key)
    steps = inner.shortest * (inner.horizon / inner.shortest) ** u
    return jnp.minimum(jnp.ceil(steps / window).astype(jnp.int32) * window, inner.horizon)


def ended(inner: Inner, state: InnerState, window: int) -> Array:
    """Which episodes ``[n]`` are over and are to restart."""
    return state.t >= length(inner, state.key, window)


def restart(
    inner: Inner, key: Array, meta_params: PyTree, state: InnerState, data: PyTree, window: int
) -> InnerState:
    """Puts a fresh episode in the place of each that has `ended`."""
    fresh = inner.vmap(inner.init, (0, None, None))(
        jax.random.split(key, state.t.shape[0]), meta_params, data
    )
    return _trees.where(ended(inner, state, window), fresh, state)


def close(inner: Inner, before: InnerState, after: InnerState, ok: Array) -> InnerState:
    """Marks as over the episodes that have diverged in a window: their loss was not ``ok [n]``, or
    a state got lost.
    """
    ok &= _trees.stays_finite(after.learner, before.learner, batch=True)
    return after._replace(t=jnp.where(ok, after.t, inner.horizon))
