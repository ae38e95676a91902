"""The coordinatewise LSTM optimizer (Andrychowicz et al. 2016, arXiv 1606.04474)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import _checks
from metajax._random import draw_flat
from metajax._trees import copy_per_episode
from metajax.optim import _flat
from metajax.types import Array, LearnedOptimizer

# The settings of the paper (appendix A and section 3) and those of its published code.
PRESETS = {"paper": {"p": 10.0, "scale": 0.1}, "repository": {"p": 5.0, "scale": 0.01}}


def log_and_sign(grad: Array, p: float) -> Array:
    """The gradient preprocessing of the paper's appendix A: magnitudes on a log scale, signs apart.

    ``(log|g| / p, sign g)`` where ``|g| >= exp(-p)``, else ``(-1, exp(p) g)``.

    Args:
      grad: ``[P]``.
      p: how small a gradient is still told from zero.

    Returns:
      ``[2, P]``.

    >>> import jax.numpy as jnp, metajax as mx
    >>> mx.optim.log_and_sign(jnp.array([1.0, -1.0, 0.0]), p=10.0).tolist()
    [[0.0, 0.0, -1.0], [1.0, -1.0, 0.0]]
    """
    large = jnp.abs(grad) >= jnp.exp(-p)
    magnitude = (
        jnp.log(jnp.where(large, jnp.abs(grad), 1.0)) / p
    )  # the inner where keeps NaN out of the derivative
    return jnp.stack(
        [jnp.where(large, magnitude, -1.0), jnp.where(large, jnp.sign(grad), jnp.exp(p) * grad)]
    )


class LSTMState(NamedTuple):
    """Hidden and cell states of all coordinates, one ``[H, P]`` a layer, feature-major."""

    h: tuple[Array, ...]
    c: tuple[Array, ...]


def lstm(
    *,
    p: float | None = 10.0,
    scale: float = 0.1,
    hidden: tuple[int, ...] = (20, 20),
    averaged: int = 0,
    state_dtype: jax.typing.DTypeLike | None = None,
) -> LearnedOptimizer:
    """An LSTM shared by all coordinates, with a state for each (section 2.1).

    The network's output, times ``scale``, *is* the update. The defaults are the preset *paper*;
    ``lstm(**PRESETS["repository"])`` is the other. All coordinates form one feature-major buffer
    ``[H, P]``, whatever the tree of parameters, so that many small leaves cost no more than one
    large one; `leafwise` is for the opposite.

    Cell: gates i, j, f, o from ``W [x, h] + b``; ``c' = sigmoid(f + 1) c + sigmoid(i) tanh(j)``;
    ``h' = sigmoid(o) tanh(c')``. With the defaults it has 5,141 meta-parameters.

    With ``averaged`` it is the paper's LSTM+GAC: coordinates communicate by global averaging cells,
    ordinary ones whose outgoing activations are averaged over all coordinates at each step. Here
    that holds for every way out, to the next layer and to the layer itself at the next step.

    Args: p: parameter of `log_and_sign`, at most 80; None feeds the raw gradient, as the paper does
      for quadratics. scale: factor on the output. hidden: units of each layer. averaged: how many
      of the units of each layer, the first ones, are averaged over all coordinates. state_dtype:
      dtype in which states are kept between steps, by default that of the parameters, at least
      float32; arithmetic is in float32 or wider.

    Raises: TypeError, ValueError: settings out of range; and, from the transformation,
      meta-parameters that are not those of this network, parameters that are not floating-point, or
      updates of another size than at ``init``.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> opt = mx.optim.lstm()
    >>> meta_params = opt.init(jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(meta_params))
    5141
    >>> tx = optax.chain(optax.clip_by_global_norm(1.0), opt.tx(meta_params))
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> state = tx.init(params)
    >>> updates, state = tx.update(jax.grad(lambda q: (q["w"] ** 2).sum())(params), state, params)
    >>> params = optax.apply_updates(params, updates)
    """
    p = check_p(p)
    _checks.positive_float(scale=scale)
    hidden = check_hidden(hidden)
    averaged = check_averaged(averaged, hidden)
    _flat.check_state_dtype(state_dtype)

    def init(key: Array):
        _checks.key(key)
        *keys, k_out = jax.random.split(key, 2 * len(hidden) + 1)
        out = {"w": normal(k_out, (hidden[-1],), hidden[-1]), "b": jnp.zeros(())}
        return {"lstm": init_layers(keys, 1 if p is None else 2, hidden), "out": out}

    like = jax.eval_shape(init, jax.random.key(0))

    def tx(meta_params) -> optax.GradientTransformation:
        _flat.check_meta_params(meta_params, like)

        def init_fn(params) -> LSTMState:
            _checks.floating("params", params)
            return init_state(hidden, params, state_dtype)

        def update_fn(updates, state, params=None):
            del params
            _flat.check_updates(updates, state.h[0].shape[-1])
            grad = _flat.ravel(updates)
            x = grad[None] if p is None else log_and_sign(grad, p)
            x, state = run_layers(meta_params["lstm"], x, state, averaged)
            out = meta_params["out"]
            return _flat.unravel(scale * (out["w"] @ x + out["b"]), updates), state

        return optax.GradientTransformation(init_fn, update_fn)

    return LearnedOptimizer(init, tx)


def lstm_cell(layer: dict[str, Array], x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """One LSTM step for all coordinates: ``x [F, P]``, ``h`` and ``c [H, P]`` -> new ``h`` and
    ``c``.
    """
    i, j, f, o = jnp.split(layer["w"] @ jnp.concatenate([x, h]) + layer["b"][:, None], 4)
    c = jax.nn.sigmoid(f + 1.0) * c + jax.nn.sigmoid(i) * jnp.tanh(j)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def run_layers(
    layers: list, x: Array, state: LSTMState, averaged: int = 0
) -> tuple[Array, LSTMState]:
    """One step of a stack of layers on ``x [F, P]``: the last hidden state ``[H, P]``, and all
    states.
    """
    h, c = [], []
    if x.shape[-1] >= 128:  # measured: with 160 it helps, with 40 it costs
        layers = copy_per_episode(layers, x)
    for layer, h_old, c_old in zip(layers, state.h, state.c, strict=True):
        x, c_new = lstm_cell(layer, x, h_old.astype(x.dtype), c_old.astype(x.dtype))
        if averaged:
            mean = x[:averaged].sum(-1, keepdims=True) / max(
                x.shape[-1], 1
            )  # a tree may have no coordinate
            x = jnp.concatenate([jnp.broadcast_to(mean, x[:averaged].shape), x[averaged:]])
        h.append(x.astype(h_old.dtype))
        c.append(c_new.astype(c_old.dtype))
    return x, LSTMState(tuple(h), tuple(c))


@partial(jax.jit, static_argnums=(1, 2))
def normal(key: Array, shape: tuple[int, ...], fan_in: int) -> Array:
    """A truncated normal with standard deviation ``fan_in ** -0.5`` before truncation at two of
    them.
    """
    return draw_flat(key, shape, jax.random.truncated_normal, lower=-2.0, upper=2.0) / jnp.sqrt(
        fan_in
    )


@partial(jax.jit, static_argnums=(1, 2))
def init_layers(keys, inputs: int, hidden: tuple[int, ...]) -> list[dict[str, Array]]:
    """The meta-parameters of a stack of LSTM layers, from two keys a layer."""
    fan_in = [m + n for m, n in zip((inputs, *hidden[:-1]), hidden, strict=True)]
    pairs = zip(keys[::2], keys[1::2], strict=True)
    return [
        {"w": normal(k_w, (4 * n, m), m), "b": normal(k_b, (4 * n,), m)}
        for (k_w, k_b), m, n in zip(pairs, fan_in, hidden, strict=True)
    ]


def init_state(
    hidden: tuple[int, ...], params, state_dtype: jax.typing.DTypeLike | None
) -> LSTMState:
    """Zeros, a column for each coordinate of ``params``."""
    dtype = _flat.dtype(params) if state_dtype is None else state_dtype
    zeros = tuple(jnp.zeros((n, _flat.size(params)), dtype) for n in hidden)
    return LSTMState(zeros, zeros)


def check_p(p: float | None) -> float | None:
    """Returns ``p`` as a float, or says that its exponential would be no float32."""
    if p is not None:
        _checks.positive_float(p=p)
    if p is not None and p > 80:
        raise ValueError(f"p must be at most 80, got {p}: exp(p) has to be a float32")
    return p


def check_hidden(hidden: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the units of each layer, or says what is wrong with them."""
    if not isinstance(hidden, tuple) or not hidden:
        raise TypeError(
            f"hidden must be a tuple with the units of each layer, e.g. (20, 20), got {hidden!r}"
        )
    return tuple(_checks.positive_int("hidden", units) for units in hidden)


def check_averaged(averaged: int, hidden: tuple[int, ...]) -> int:
    """Returns the number of averaged units, or says that no layer may have fewer units."""
    averaged = _checks.positive_int("averaged", averaged) if averaged != 0 else 0
    if averaged > min(hidden):
        raise ValueError(
            f"averaged must be at most the units of the smallest layer, {min(hidden)}, got {averaged}"
        )
    return averaged
