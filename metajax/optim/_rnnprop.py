"""RNNProp: an LSTM on gradients that Adam has normalised (Lv et al. 2017, arXiv 1703.03633)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import _checks
from metajax._arguments import Decay, PositiveFloat, checked
from metajax.optim import _flat, _networks
from metajax.optim._learned import learned_optimizer
from metajax.optim._networks import LSTMState
from metajax.types import Array, LearnedOptimizer


class RNNPropState(NamedTuple):
    """Steps done, the two moments ``[P]`` of the gradient, and the states of the LSTM."""

    count: Array
    m: Array
    v: Array
    lstm: LSTMState


@checked
def rnnprop(
    *,
    scale: PositiveFloat = 0.1,
    hidden: tuple[int, ...] = (20, 20),
    b1: Decay = 0.95,
    b2: Decay = 0.95,
    eps: PositiveFloat = 1e-8,
    state_dtype: jax.typing.DTypeLike | None = None,
) -> LearnedOptimizer:
    """An LSTM shared by all coordinates that sees gradients normalised and takes bounded steps.

    From Adam's moments, corrected for their start at zero, it makes the inputs ``g / s`` and ``m /
    s`` with ``s = sqrt(v) + eps``; then follow a linear layer with ELU, of as many units as the
    first LSTM layer, the LSTM layers, each the cell of `lstm`, and a linear output. The update is
    ``-scale * tanh(output)``. So it cannot see how large gradients are and cannot take large steps.

    Settings and structure are those of the paper and its code. Here differ the initial values of
    the weights, truncated normal with standard deviation ``fan_in ** -0.5`` as in `lstm`, and
    nothing else of the optimizer; how the paper meta-trains it is a matter of the tasks:
    `metajax.problems.random_scaling`.

    Args:
      scale: the largest step.
      hidden: units of each layer.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: keeps the division from zero.
      state_dtype: dtype in which the first moment and the LSTM's states are kept between steps, by
        default that of the parameters, at least float32. The second moment stays in that default:
        bfloat16 loses changes below 0.4 %.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> opt = mx.optim.rnnprop()
    >>> tx = opt.tx(opt.init(jax.random.key(0)))
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> updates, state = tx.update(params, tx.init(params))
    >>> bool(jnp.abs(updates["w"]).max() <= 0.1)
    True
    """
    hidden = _checks.positive_ints("hidden", hidden, like=(20,))
    _flat.check_state_dtype(state_dtype)

    def init(key):
        num_keys = 2 * len(hidden) + 2
        *layer_keys, k_in, k_out = jax.random.split(key, num_keys)
        return {
            "in": _networks.init_linear(k_in, (hidden[0], 2)),
            "lstm": _networks.init_lstm(layer_keys, hidden[0], hidden),
            "out": _networks.init_linear(k_out, (hidden[-1],)),
        }

    def tx(meta_params) -> optax.GradientTransformation:
        def init_fn(params) -> RNNPropState:
            _checks.floating("params", params)
            return RNNPropState(
                count=jnp.zeros((), jnp.int32),
                m=_flat.zeros(params, state_dtype=state_dtype),
                v=_flat.zeros(params),
                lstm=_networks.init_lstm_state(hidden, params, state_dtype),
            )

        def update_fn(updates, state, params=None):
            del params
            _flat.check_trees(state.v.size, updates=updates)
            grad, unravel = _flat.ravel(updates)
            count = state.count + 1

            m = state.m.astype(grad.dtype)
            m = optax.tree.update_moment(grad, m, b1, 1)
            v = optax.tree.update_moment(grad, state.v, b2, 2)
            m_hat = optax.tree.bias_correction(m, b1, count)
            v_hat = optax.tree.bias_correction(v, b2, count)
            spread = _safe_sqrt(v_hat) + eps

            x = jnp.stack([grad / spread, m_hat / spread])
            x = jax.nn.elu(_networks.linear(meta_params["in"], x))
            x, lstm = _networks.lstm(meta_params["lstm"], x, state.lstm)
            output = _networks.linear(meta_params["out"], x)
            update = -scale * jnp.tanh(output)

            new_state = RNNPropState(count, m, v, lstm)
            return unravel(update), optax.tree.cast_like(new_state, state)

        return optax.GradientTransformation(init_fn, update_fn)

    return learned_optimizer(init, tx)


def _safe_sqrt(x: Array) -> Array:
    # With the derivative 0 at 0, where second-order meta-gradients would be NaN.
    positive = x > 0
    root = jnp.sqrt(jnp.where(positive, x, 1.0))
    return jnp.where(positive, root, 0.0)
