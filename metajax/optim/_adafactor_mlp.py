"""A tiny network on the features of Adam and Adafactor (Metz et al. 2022, arXiv 2203.11860)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from metajax import _checks
from metajax._arguments import PositiveFloat, checked
from metajax._arrays import lift
from metajax.optim import _features, _flat, _networks
from metajax.optim._factored import Whitening, safe_rsqrt, whitened
from metajax.optim._leaf_moments import (
    Decays,
    Moments,
    Seen,
    init_moments,
    move_leaves,
    normalized,
    seen,
)
from metajax.optim._learned import learned_optimizer
from metajax.types import Array, LearnedOptimizer


class AdafactorState(NamedTuple):
    """Steps done, and moving averages of the gradient and of its square.

    Attributes:
      count: int32.
      moments: for the leaves of each shape.
    """

    count: Array
    moments: tuple[Moments, ...]


@checked
def adafactor_mlp(
    *,
    hidden: tuple[int, ...] = (4, 4),
    momentum_decays: tuple[float, ...] = (0.9, 0.99, 0.999),
    rms_decays: tuple[float, ...] = (0.999,),
    factored_decays: tuple[float, ...] = (0.9, 0.99, 0.999),
    scale: PositiveFloat = 1e-3,
    exp_scale: PositiveFloat = 1e-3,
    state_dtype: jax.typing.DTypeLike | None = None,
) -> LearnedOptimizer:
    """The ``small_fc_lopt`` of Metz et al. 2022: `mlp` with learned decays and Adafactor's moments.

    Besides the features of `mlp` with second moments it sees, for each factored decay, the averages
    of the squared gradient over rows and over columns, their inverse roots, and gradient and
    momentum divided by the root of the second moment that the two factors make (Shazeer & Stern
    2018); 39 features with those of time, and 197 parameters. For a tensor with more than two axes
    the two longest are factored, for one with fewer the second moment itself is taken. A decay
    ``b`` is learned as ``x`` in ``1 - (1 - b) exp(10 x)``, from ``x = 0``.

    Features, their order, constants and network are those of the authors' `learned_optimization`,
    with weights that are transposed; of the repository, that is: its release 0.0.1 divides the
    momentum of scalars and vectors by ``sqrt(v)`` and not yet by ``sqrt(v + 1e-6)``. As many
    momenta as factored decays are needed, since they are multiplied pair by pair. It needs the
    parameters: ``tx.update(updates, state, params)``.

    Args:
      hidden: units of each hidden layer, with ReLU.
      momentum_decays: initial decays of the moving averages of the gradient.
      rms_decays: initial decay of the moving average of its square, exactly one.
      factored_decays: initial decays of the averages over rows and columns.
      scale: factor on the update.
      exp_scale: factor in the exponent.
      state_dtype: dtype in which momenta are kept between steps, as in `mlp`; second moments stay
        in the default.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> opt = mx.optim.adafactor_mlp()
    >>> meta_params = opt.init(jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(meta_params))
    197
    >>> tx = opt.tx(meta_params)
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    """
    hidden = _checks.positive_ints("hidden", hidden, like=(4,))
    initial_decays = {
        "momentum": momentum_decays,
        "rms": rms_decays,
        "factored": factored_decays,
    }
    _check_decays(**initial_decays)
    _flat.check_state_dtype(state_dtype)

    num_decays = len(factored_decays)
    num_features = 4 + 8 * num_decays + len(_features.TIMESCALES)

    def init(key):
        sizes = (num_features, *hidden, 2)
        return {
            "decays": {name: jnp.zeros(len(x)) for name, x in initial_decays.items()},
            "network": _networks.init_mlp(key, sizes),
        }

    def tx(meta_params) -> optax.GradientTransformation:
        decays = _learned_decays(initial_decays, meta_params["decays"])
        network = meta_params["network"]

        def init_fn(params) -> AdafactorState:
            moments = init_moments(params, num_decays)
            if state_dtype is not None:
                moments = tuple(x._replace(m=x.m.astype(state_dtype)) for x in moments)
            return AdafactorState(jnp.zeros((), jnp.int32), moments)

        def update_fn(updates, state, params=None):
            def move(moments, grad, theta):
                x = normalized(_inputs, seen(moments, grad, theta), grad.ndim, 1e-5)
                time = _features.time_features(state.count).astype(grad.dtype)
                x += list(time.reshape(-1, *[1] * grad.ndim))
                direction, magnitude = _networks.mlp_of_arrays(network, x)
                return -scale * direction * jnp.exp(exp_scale * magnitude)

            moves, moments = move_leaves(move, decays, updates, state.moments, params)
            return moves, AdafactorState(state.count + 1, moments)

        return optax.GradientTransformation(init_fn, update_fn)

    return learned_optimizer(init, tx)


def _check_decays(
    momentum: tuple[float, ...],
    rms: tuple[float, ...],
    factored: tuple[float, ...],
) -> None:
    _features.check_decays(
        momentum_decays=momentum, rms_decays=rms, factored_decays=factored
    )
    if len(rms) != 1 or len(momentum) != len(factored):
        raise ValueError(
            f"rms_decays must be one, and momentum_decays as many as factored_decays, got {rms}, "
            f"{momentum} and {factored}"
        )


def _learned_decays(
    initial: dict[str, tuple[float, ...]],
    learned: dict[str, Array],
) -> Decays:
    decays = {}
    for name, values in initial.items():
        factor = jnp.exp(10 * learned[name])
        decays[name] = 1 - (1 - jnp.asarray(values)) * factor
    # The authors leave the decays of momenta free.
    [v_decay] = jnp.clip(decays["rms"], 0.0, 1.0)
    factored = jnp.clip(decays["factored"], 0.0, 1.0)
    return Decays(decays["momentum"], v_decay, factored)


def _inputs(seen: Seen) -> list[Array]:
    """Groups of features of a leaf, which broadcast to its shape, without the time."""
    m, second, v, g, theta = seen
    inverse_root = lax.rsqrt(v + 1e-6)
    if isinstance(second, Whitening):
        row, col = second.row, second.col
        white_grad, white_momentum = whitened(g, m, second)
    else:
        row = col = second
        # The constants differ in the authors' code too.
        white_grad = lift(g, row) * safe_rsqrt(row + 1e-9)
        white_momentum = m * lax.rsqrt(row + 1e-6)
    return [
        g,
        theta,
        m,
        v,
        m * lift(inverse_root, m),
        inverse_root,
        white_grad,
        row,
        col,
        lax.rsqrt(row + 1e-8),
        lax.rsqrt(col + 1e-8),
        white_momentum,
    ]
