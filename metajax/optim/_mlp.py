"""Small networks on hand-made features of each coordinate (Metz et al. 2019, arXiv 1810.10180;
2022, 2203.11860).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from metajax import _checks
from metajax.optim import _flat
from metajax.optim._lstm import check_hidden, normal
from metajax.optim._rnnprop import check_decay
from metajax.types import Array, LearnedOptimizer, PyTree

TIMESCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)


class MLPState(NamedTuple):
    """Steps done, and moving averages of the gradient ``m [K, P]`` and of its square ``v [J,
    P]``.
    """

    count: Array
    m: Array
    v: Array


def mlp(
    *,
    hidden: tuple[int, ...] = (32, 32),
    momentum_decays: tuple[float, ...] = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999),
    rms_decays: tuple[float, ...] = (0.999,),
    scale: float = 1e-3,
    exp_scale: float = 1e-3,
    state_dtype: jax.typing.DTypeLike | None = None,
) -> LearnedOptimizer:
    """A network without memory of its own, shared by all coordinates (Metz et al. 2019, "MLPLOpt").

    It sees the gradient ``g``, the parameter, the momenta ``m``, for each second moment ``v`` also
    ``v``, ``m / sqrt(v)`` and ``1 / sqrt(v)``, each feature divided by its root mean square over
    its tensor; and the time, as `time_features`. From its outputs ``d`` and ``e`` the update is
    ``-scale * d * exp(exp_scale * e)``. Averages start at zero and are not corrected for it.

    With ``rms_decays=()`` features, network and update are those of the authors'
    `learned_optimization`. The second moments are added here from their later optimizer with
    Adafactor's features, which is `adafactor_mlp`.

    Args: hidden: units of each hidden layer, with ReLU. momentum_decays: of the moving averages of
      the gradient. rms_decays: of the moving averages of its square. scale: factor on the update.
      exp_scale: factor in the exponent. state_dtype: dtype in which momenta are kept between steps,
      by default that of the parameters, at least float32. bfloat16 loses changes below 0.4 %: slow
      momenta of constant gradients stall. Second moments stay in the default.

    Raises: TypeError, ValueError: as `lstm`; a decay outside [0, 1); and from the transformation if
      it gets no parameters.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> opt = mx.optim.mlp(rms_decays=())
    >>> meta_params = opt.init(jax.random.key(0))
    >>> meta_params[0]["w"].shape      # the gradient, the parameter, 6 momenta, 11 features of time
    (32, 19)
    >>> tx = opt.tx(meta_params)
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> updates, state = tx.update(params, tx.init(params), params)
    """
    hidden = check_hidden(hidden)
    momentum_decays = check_decays("momentum_decays", momentum_decays)
    rms_decays = check_decays("rms_decays", rms_decays, least=0)
    scale, exp_scale = (
        _checks.positive_float("scale", scale),
        _checks.positive_float("exp_scale", exp_scale),
    )
    _flat.check_state_dtype(state_dtype)
    momenta, squares = len(momentum_decays), len(rms_decays)
    features = 2 + momenta + squares * (momenta + 2) + len(TIMESCALES)

    def init(key: Array):
        _checks.key(key)
        return init_network(key, (features, *hidden, 2))

    like = jax.eval_shape(init, jax.random.key(0))

    def tx(meta_params) -> optax.GradientTransformation:
        _flat.check_meta_params(meta_params, like)

        def init_fn(params) -> MLPState:
            _checks.floating("params", params)
            return init_averages(params, momenta, squares, state_dtype)

        def update_fn(updates, state, params=None):
            _flat.check_updates(updates, state.m.shape[-1])
            _flat.check_params(params, updates)
            grad, theta = _flat.ravel(updates), _flat.ravel(params)
            m, v = averages(state, grad, jnp.asarray(momentum_decays), jnp.asarray(rms_decays))
            x = jnp.concatenate([grad[None], theta[None], m, *second_moments(m, v)])
            new = step(meta_params, unit_scale(x, updates), state.count, scale, exp_scale)
            state = MLPState(state.count + 1, m.astype(state.m.dtype), v.astype(state.v.dtype))
            return _flat.unravel(new, updates), state

        return optax.GradientTransformation(init_fn, update_fn)

    return LearnedOptimizer(init, tx)


def time_features(count: Array) -> Array:
    """``tanh(count / T - 1)`` for eleven time scales T from 1 to 100,000 steps, ``[11]``.

    >>> import jax.numpy as jnp, metajax as mx
    >>> mx.optim.time_features(jnp.int32(30))[3]
    Array(0., dtype=float32)
    """
    return jnp.tanh(count / jnp.asarray(TIMESCALES, jnp.float32) - 1.0)


def init_averages(params: PyTree, momenta: int, squares: int, state_dtype: Any) -> MLPState:
    """Zeros, a column for each coordinate of ``params``."""
    dtype, size = _flat.dtype(params), _flat.size(params)
    m = jnp.zeros((momenta, size), dtype if state_dtype is None else state_dtype)
    return MLPState(jnp.zeros((), jnp.int32), m, jnp.zeros((squares, size), dtype))


def averages(state, grad: Array, momentum_decays: Array, rms_decays: Array) -> tuple[Array, Array]:
    """The moving averages ``m [K, P]`` and ``v [J, P]`` after one more gradient ``[P]``, in the
    gradient's dtype.
    """
    b1, b2 = (x.astype(grad.dtype)[:, None] for x in (momentum_decays, rms_decays))
    return b1 * state.m.astype(grad.dtype) + (1 - b1) * grad, b2 * state.v + (1 - b2) * grad**2


def second_moments(m: Array, v: Array) -> list[Array]:
    """``v``, ``m / sqrt(v)`` for each pair of them, and ``1 / sqrt(v)``; each ``[., P]``."""
    inverse = lax.rsqrt(v + 1e-6)
    return [v, (inverse[:, None] * m).reshape(len(v) * len(m), m.shape[-1]), inverse]


def unit_scale(x: Array, like: PyTree) -> Array:
    """Each row of ``x [F, P]`` over its root mean square within each leaf of ``like``."""
    parts = [
        part * lax.rsqrt(1e-5 + (part**2).mean(-1, keepdims=True))
        for part in _flat.split(x, like)
        if part.size
    ]
    return jnp.concatenate(parts, -1) if parts else x


def step(
    network: list[dict[str, Array]], x: Array, count: Array, scale: float, exp_scale: float
) -> Array:
    """The update ``[P]`` from the features ``x [F, P]`` and the time."""
    time = jnp.broadcast_to(
        time_features(count).astype(x.dtype)[:, None], (len(TIMESCALES), x.shape[-1])
    )
    direction, magnitude = apply_network(network, jnp.concatenate([x, time]))
    return -scale * direction * jnp.exp(exp_scale * magnitude)


def init_network(key: Array, sizes: Sequence[int]) -> list[dict[str, Array]]:
    """Layers ``{"w": [n, m], "b": [n]}``: truncated normal weights of standard deviation ``m **
    -0.5``, biases 0.
    """
    pairs = zip(jax.random.split(key, len(sizes) - 1), sizes[:-1], sizes[1:], strict=True)
    return [{"w": normal(k, (n, m), m), "b": jnp.zeros(n)} for k, m, n in pairs]


def apply_network(network: list[dict[str, Array]], x: Array) -> Array:
    """A perceptron with ReLU on the columns of ``x [F, P]``."""
    for layer in network[:-1]:
        x = jax.nn.relu(layer["w"] @ x + layer["b"][:, None])
    return network[-1]["w"] @ x + network[-1]["b"][:, None]


def check_decays(name: str, decays: tuple[float, ...], least: int = 1) -> tuple[float, ...]:
    """Returns the decays of moving averages, or says what is wrong with them."""
    if not isinstance(decays, tuple) or len(decays) < least:
        raise TypeError(f"{name} must be a tuple of decays, e.g. (0.9, 0.99), got {decays!r}")
    return tuple(check_decay(name, x) for x in decays)
