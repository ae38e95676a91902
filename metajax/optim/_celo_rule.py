"""What the networks of Celo and Celo2 see of a leaf, and the averages that it is made of.

Moudgil et al. 2025, arXiv 2501.12670; 2026, arXiv 2602.19142; after Metz et al. 2022,
arXiv 2211.09760.
"""

import jax.numpy as jnp
from jax import lax

from metajax._arrays import lift
from metajax.optim import _leaf_moments
from metajax.optim._factored import Whitening, safe_rsqrt, whitened
from metajax.optim._leaf_moments import Decays, Moments, Move, Seen
from metajax.types import Array, PyTree

NUM_INPUTS = 30
_DECAYS = (0.9, 0.99, 0.999)
_LARGEST_GRADIENT = 1_000.0


def init_moments(params: PyTree) -> tuple[Moments, ...]:
    """Zeros, for each shape among ``params``."""
    return _leaf_moments.init_moments(params, len(_DECAYS))


def move_leaves(
    move: Move,
    v_decay: float,
    updates: PyTree,
    state: tuple[Moments, ...],
    params: PyTree,
) -> tuple[PyTree, tuple[Moments, ...]]:
    """What ``move`` makes of each leaf's moments, clipped gradient and parameters."""
    if params is None:
        raise ValueError("params are needed: tx.update(updates, state, params)")
    decays = Decays(jnp.array(_DECAYS), jnp.array(v_decay), jnp.array(_DECAYS))
    return _leaf_moments.move_leaves(
        move,
        decays,
        updates,
        state,
        params,
        _LARGEST_GRADIENT,
    )


def inputs(seen: Seen, v_epsilon: float) -> list[Array]:
    """The inputs of the network in the authors' groups and order.

    30 in all with three decays, the first 15 for a vector. They broadcast to the shape of the leaf:
    averages over rows or columns have an axis of length 1.
    """
    m, second, v, g, theta = seen
    inverse_root = lax.rsqrt(v + v_epsilon)
    first = [g, jnp.clip(g, -0.1, 0.1), theta, m, v]
    first += [m * lift(inverse_root, m), inverse_root]
    if not isinstance(second, Whitening):
        return [*first, lift(g, second) * safe_rsqrt(second + 1e-9), g * inverse_root]

    row, col = second.row, second.col
    white_grad, white_momentum = whitened(g, m, second)
    of_factors = [row, col, lax.rsqrt(row + 1e-8), lax.rsqrt(col + 1e-8)]
    return [*first, white_grad, g * inverse_root, *of_factors, white_momentum]
