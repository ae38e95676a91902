"""RNNProp: an LSTM on gradients that Adam has normalised (Lv et al. 2017, arXiv 1703.03633)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import _checks
from metajax.optim import _flat
from metajax.optim._lstm import LSTMState, check_hidden, init_layers, init_state, normal, run_layers
from metajax.types import Array, LearnedOptimizer


class RNNPropState(NamedTuple):
    """Steps done, the two moments ``[P]`` of the gradient, and the states of the LSTM."""

    count: Array
    m: Array
    v: Array
    lstm: LSTMState


def rnnprop(
    *,
    scale: float = 0.1,
    hidden: tuple[int, ...] = (20, 20),
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    state_dtype: jax.typing.DTypeLike | None = None,
) -> LearnedOptimizer:
    """An LSTM shared by all coordinates that cannot see how large gradients are and cannot take
    large steps.

    From Adam's moments, corrected for their start at zero, it makes the inputs ``g / s`` and ``m /
    s`` with ``s = sqrt(v) + eps``; then follow a linear layer with ELU, of as many units as the
    first LSTM layer, the LSTM layers, each the cell of `lstm`, and a linear output. The update is
    ``-scale * tanh(output)``.

    Settings and structure are those of the paper and its code. Here differ the initial values of
    the weights, truncated normal with standard deviation ``fan_in ** -0.5`` as in `lstm`, and
    nothing else of the optimizer; how the paper meta-trains it is a matter of the tasks:
    `metajax.problems.random_scaling`.

    Args: scale: the largest step. hidden: units of each layer. b1: decay of the first moment. b2:
      decay of the second moment. eps: keeps the division from zero. state_dtype: dtype in which the
      first moment and the LSTM's states are kept between steps, by default that of the parameters,
      at least float32. The second moment stays in that default: bfloat16 loses changes below 0.4 %.

    Raises:
      TypeError, ValueError: as `lstm`.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> opt = mx.optim.rnnprop()
    >>> tx = opt.tx(opt.init(jax.random.key(0)))
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> updates, state = tx.update(params, tx.init(params))
    >>> bool(jnp.abs(updates["w"]).max() <= 0.1)
    True
    """
    _checks.positive_float(scale=scale, eps=eps)
    hidden, b1, b2 = check_hidden(hidden), check_decay("b1", b1), check_decay("b2", b2)
    _flat.check_state_dtype(state_dtype)

    def init(key: Array):
        _checks.key(key)
        *keys, k_in, k_out = jax.random.split(key, 2 * len(hidden) + 2)
        return {
            "in": {"w": normal(k_in, (hidden[0], 2), 2), "b": jnp.zeros(hidden[0])},
            "lstm": init_layers(keys, hidden[0], hidden),
            "out": {"w": normal(k_out, (hidden[-1],), hidden[-1]), "b": jnp.zeros(())},
        }

    like = jax.eval_shape(init, jax.random.key(0))

    def tx(meta_params) -> optax.GradientTransformation:
        _flat.check_meta_params(meta_params, like)

        def init_fn(params) -> RNNPropState:
            _checks.floating("params", params)
            v = jnp.zeros(_flat.size(params), _flat.dtype(params))
            m = v if state_dtype is None else v.astype(state_dtype)
            return RNNPropState(
                jnp.zeros((), jnp.int32), m, v, init_state(hidden, params, state_dtype)
            )

        def update_fn(updates, state, params=None):
            del params
            _flat.check_updates(updates, state.v.size)
            grad, count = _flat.ravel(updates), state.count + 1
            m = b1 * state.m.astype(grad.dtype) + (1 - b1) * grad
            v = b2 * state.v + (1 - b2) * grad**2
            spread = _root(v / (1 - b2**count)) + eps
            x = jnp.stack([grad / spread, m / (1 - b1**count) / spread])
            x = jax.nn.elu(meta_params["in"]["w"] @ x + meta_params["in"]["b"][:, None])
            x, lstm = run_layers(meta_params["lstm"], x, state.lstm)
            new = -scale * jnp.tanh(meta_params["out"]["w"] @ x + meta_params["out"]["b"])
            state = RNNPropState(count, m.astype(state.m.dtype), v.astype(state.v.dtype), lstm)
            return _flat.unravel(new, updates), state

        return optax.GradientTransformation(init_fn, update_fn)

    return LearnedOptimizer(init, tx)


def _root(x: Array) -> Array:
    # The square root with derivative 0 at 0, where second-order meta-gradients would be NaN.
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def check_decay(name: str, value: float) -> float:
    """Returns the decay of a moving average, or says that it must lie between 0 and 1."""
    value = _checks.at_least_zero(name, value)
    if value >= 1:
        raise ValueError(f"{name} must be below 1, got {value}")
    return value
