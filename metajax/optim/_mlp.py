"""A small network on hand-made features of each coordinate (Metz et al. 2019, arXiv 1810.10180)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import _checks
from metajax._arguments import PositiveFloat, checked
from metajax.optim import _features, _flat, _networks
from metajax.optim._learned import learned_optimizer
from metajax.types import Array, LearnedOptimizer


class MLPState(NamedTuple):
    """Steps done, and moving averages of the gradient and of its square.

    Attributes:
      count: int32.
      m: ``[K, P]``, with K decays.
      v: ``[J, P]``, with J decays.
    """

    count: Array
    m: Array
    v: Array


@checked
def mlp(
    *,
    hidden: tuple[int, ...] = (32, 32),
    momentum_decays: tuple[float, ...] = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999),
    rms_decays: tuple[float, ...] = (0.999,),
    scale: PositiveFloat = 1e-3,
    exp_scale: PositiveFloat = 1e-3,
    state_dtype: jax.typing.DTypeLike | None = None,
) -> LearnedOptimizer:
    """A network without memory of its own, shared by all coordinates (Metz et al. 2019, "MLPLOpt").

    It sees the gradient ``g``, the parameter, the momenta ``m``, for each second moment ``v`` also
    ``v``, ``m / sqrt(v)`` and ``1 / sqrt(v)``, each feature divided by its root mean square over
    its tensor; and the time, as `time_features`. From its outputs ``d`` and ``e`` the update is
    ``-scale * d * exp(exp_scale * e)``. Averages start at zero and are not corrected for it.

    With ``rms_decays=()`` features, network and update are those of the authors'
    `learned_optimization`. The second moments are added here from their later optimizer with
    Adafactor's features, which is `adafactor_mlp`. It needs the parameters:
    ``tx.update(updates, state, params)``.

    Args:
      hidden: units of each hidden layer, with ReLU.
      momentum_decays: of the moving averages of the gradient.
      rms_decays: of the moving averages of its square.
      scale: factor on the update.
      exp_scale: factor in the exponent.
      state_dtype: dtype in which momenta are kept between steps, by default that of the parameters,
        at least float32. bfloat16 loses changes below 0.4 %: slow momenta of constant gradients
        stall. Second moments stay in the default.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> opt = mx.optim.mlp(rms_decays=())
    >>> meta_params = opt.init(jax.random.key(0))
    >>> meta_params[0]["w"].shape      # the gradient, the parameter, 6 momenta, 11 features of time
    (32, 19)
    >>> tx = opt.tx(meta_params)
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    """
    hidden = _checks.positive_ints("hidden", hidden, like=(32,))
    _features.check_decays(momentum_decays=momentum_decays, rms_decays=rms_decays)
    _flat.check_state_dtype(state_dtype)

    num_momenta = len(momentum_decays)
    num_squares = len(rms_decays)
    num_own = 2 + num_momenta + num_squares * (num_momenta + 2)
    num_features = num_own + len(_features.TIMESCALES)

    def init(key):
        return _networks.init_mlp(key, (num_features, *hidden, 2))

    def tx(meta_params) -> optax.GradientTransformation:
        def init_fn(params) -> MLPState:
            _checks.floating("params", params)
            return MLPState(
                count=jnp.zeros((), jnp.int32),
                m=_flat.zeros(params, num_momenta, state_dtype=state_dtype),
                v=_flat.zeros(params, num_squares),
            )

        def update_fn(updates, state, params=None):
            size = state.m.shape[-1]
            _flat.check_trees(size, updates=updates, params=params)
            grad, unravel = _flat.ravel(updates)
            theta, _ = _flat.ravel(params)

            m = _features.update_averages(state.m, grad, momentum_decays)
            v = _features.update_averages(state.v, grad**2, rms_decays)
            features = [
                grad[None],
                theta[None],
                m,
                *_features.second_moment_features(m, v),
            ]
            x = jnp.concatenate(features)
            x = _features.normalize(x, updates)
            update = _features.update_from_features(
                meta_params, x, state.count, scale, exp_scale
            )

            new_state = MLPState(state.count + 1, m, v)
            return unravel(update), optax.tree.cast_like(new_state, state)

        return optax.GradientTransformation(init_fn, update_fn)

    return learned_optimizer(init, tx)
