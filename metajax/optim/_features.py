"""Hand-made features of each coordinate, and the network that turns them into an update.

Metz et al. 2019, arXiv 1810.10180; 2022, arXiv 2203.11860.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import optax
from jax import lax

from metajax._arguments import Decay, check, checked
from metajax.optim import _flat, _networks
from metajax.types import Array, PyTree

TIMESCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)


@checked
def time_features(count: Array) -> Array:
    """``tanh(count / T - 1)`` for eleven time scales T from 1 to 100,000 steps, ``[11]``.

    >>> import jax.numpy as jnp, metajax as mx
    >>> mx.optim.time_features(jnp.int32(30))[3]
    Array(0., dtype=float32)
    """
    if count.ndim:
        raise ValueError(f"count must be a scalar, got {list(count.shape)}")
    timescales = jnp.asarray(TIMESCALES, jnp.float32)
    return jnp.tanh(count / timescales - 1.0)


def update_averages(
    averages: Array,
    value: Array,
    decays: Array | Sequence[float],
) -> Array:
    """Moving averages ``[K, ...]`` with ``decays [K]`` after one more ``value [...]``.

    They are in the dtype of the value.
    """
    averages = averages.astype(value.dtype)
    decays = jnp.asarray(decays, value.dtype)
    value_axes = range(1, averages.ndim)
    decays = jnp.expand_dims(decays, tuple(value_axes))
    return optax.tree.update_moment(value[None], averages, decays, 1)


def second_moment_features(m: Array, v: Array) -> list[Array]:
    """``v``, ``m / sqrt(v)`` for each pair of them, and ``1 / sqrt(v)``; each ``[., P]``."""
    inverse_root = lax.rsqrt(v + 1e-6)
    normalized = inverse_root[:, None] * m[None]
    num_pairs = len(v) * len(m)
    size = m.shape[-1]
    return [v, normalized.reshape(num_pairs, size), inverse_root]


def normalize(features: Array, like: PyTree) -> Array:
    """Each row of ``features [F, P]`` over its root mean square within each leaf of ``like``."""
    leaves = []
    for x in _flat.split(features, like):
        mean_square = (x**2).mean(-1, keepdims=True)
        leaves.append(x * lax.rsqrt(1e-5 + mean_square))
    return jnp.concatenate(leaves, axis=-1)


def update_from_features(
    network: list[_networks.Layer],
    features: Array,
    count: Array,
    scale: float,
    exp_scale: float,
) -> Array:
    """The update ``[P]`` of a ``network`` that sees ``features [F, P]`` and the time.

    Its outputs are a direction ``d`` and a magnitude ``e``; the update is ``-scale * d *
    exp(exp_scale * e)``.
    """
    size = features.shape[-1]
    time = time_features(count).astype(features.dtype)
    time = jnp.broadcast_to(time[:, None], (len(time), size))
    x = jnp.concatenate([features, time])
    direction, magnitude = _networks.mlp(network, x)
    return -scale * direction * jnp.exp(exp_scale * magnitude)


def check_decays(**values: tuple[float, ...]) -> None:
    """Each must be a tuple of decays."""
    for name, decays in values.items():
        if not isinstance(decays, tuple):
            raise TypeError(
                f"{name} must be a tuple of decays, e.g. (0.9, 0.99), got {decays!r}"
            )
        for decay in decays:
            check(Decay, **{name: decay})
