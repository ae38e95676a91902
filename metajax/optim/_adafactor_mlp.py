"""A tiny network on the features of Adam and Adafactor (Metz et al. 2022, arXiv 2203.11860)."""

from functools import partial
from itertools import starmap
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from metajax import _checks
from metajax._arguments import PositiveFloat, checked
from metajax.optim import _features, _flat, _networks
from metajax.optim._factored import (
    Factored,
    init_factors,
    per_coordinate,
    update_factors,
)
from metajax.optim._learned import learned_optimizer
from metajax.types import Array, LearnedOptimizer, PyTree


class AdafactorState(NamedTuple):
    """Steps done, and moving averages of the gradient and of its square.

    Attributes:
      count: int32.
      m: ``[K, P]``, of the gradient.
      v: ``[1, P]``, of its square.
      factored: of its square, for each leaf.
    """

    count: Array
    m: Array
    v: Array
    factored: tuple[Factored, ...]


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
    with weights that are transposed. As many momenta as factored decays are needed, since they are
    multiplied pair by pair. It needs the parameters: ``tx.update(updates, state, params)``.

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
    >>> updates, state = tx.update(params, tx.init(params), params)
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
            _checks.floating("params", params)
            return _init_state(params, num_decays, state_dtype)

        def update_fn(updates, state, params=None):
            size = state.m.shape[-1]
            _flat.check_trees(size, updates=updates, params=params)
            if size == 0:
                # Such a tree may have no leaf, and then no features to join.
                return updates, state._replace(count=state.count + 1)

            _, unravel = _flat.ravel(updates)
            new_state = _update_state(state, updates, decays)
            x = _make_features(new_state, updates, params)
            update = _features.update_from_features(
                network, x, state.count, scale, exp_scale
            )
            return unravel(update), optax.tree.cast_like(new_state, state)

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
) -> dict[str, Array]:
    decays = {}
    for name, values in initial.items():
        factor = jnp.exp(10 * learned[name])
        decays[name] = 1 - (1 - jnp.asarray(values)) * factor
    # The authors leave the decays of momenta free.
    for name in ("rms", "factored"):
        decays[name] = jnp.clip(decays[name], 0.0, 1.0)
    return decays


def _init_state(
    params: PyTree,
    num_decays: int,
    state_dtype: jax.typing.DTypeLike | None,
) -> AdafactorState:
    leaves = jax.tree.leaves(params)
    return AdafactorState(
        count=jnp.zeros((), jnp.int32),
        m=_flat.zeros(params, num_decays, state_dtype=state_dtype),
        v=_flat.zeros(params, 1),
        factored=tuple(init_factors(leaf, num_decays) for leaf in leaves),
    )


def _update_state(
    state: AdafactorState,
    updates: PyTree,
    decays: dict[str, Array],
) -> AdafactorState:
    grad, _ = _flat.ravel(updates)
    update = partial(update_factors, decays=decays["factored"])
    leaves = jax.tree.leaves(updates)
    pairs = zip(state.factored, leaves, strict=True)
    return AdafactorState(
        count=state.count + 1,
        m=_features.update_averages(state.m, grad, decays["momentum"]),
        v=_features.update_averages(state.v, grad**2, decays["rms"]),
        factored=tuple(starmap(update, pairs)),
    )


def _make_features(
    state: AdafactorState,
    updates: PyTree,
    params: PyTree,
) -> Array:
    # [F, P], without the time.
    grad, _ = _flat.ravel(updates)
    theta, _ = _flat.ravel(params)
    factors = per_coordinate(state.factored, updates)
    features = [
        grad[None],
        theta[None],
        state.m,
        *_features.second_moment_features(state.m, state.v),
        grad[None] * factors.grad_factor,
        factors.row,
        factors.col,
        lax.rsqrt(factors.row + 1e-8),
        lax.rsqrt(factors.col + 1e-8),
        state.m * factors.momentum_factor,
    ]
    x = jnp.concatenate(features)
    return _features.normalize(x, updates)
