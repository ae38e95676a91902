"""The coordinatewise LSTM optimizer (Andrychowicz et al. 2016, arXiv 1606.04474)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import checks
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
    magnitude = jnp.log(jnp.where(large, jnp.abs(grad), 1.0)) / p  # the inner where keeps NaN out of the derivative
    return jnp.stack([jnp.where(large, magnitude, -1.0), jnp.where(large, jnp.sign(grad), jnp.exp(p) * grad)])


class LSTMState(NamedTuple):
    """Hidden and cell states of all coordinates, one ``[H, P]`` a layer, feature-major."""

    h: tuple[Array, ...]
    c: tuple[Array, ...]


def lstm(
    *,
    p: float | None = 10.0,
    scale: float = 0.1,
    hidden: tuple[int, ...] = (20, 20),
    state_dtype: jax.typing.DTypeLike | None = None,
) -> LearnedOptimizer:
    """An LSTM shared by all coordinates, with a state for each (section 2.1).

    The network's output, times ``scale``, *is* the update. The defaults are the preset *paper*;
    ``lstm(**PRESETS["repository"])`` is the other. All coordinates form one feature-major buffer ``[H, P]``, whatever
    the tree of parameters, so that many small leaves cost no more than one large one.

    Cell: gates i, j, f, o from ``W [x, h] + b``; ``c' = sigmoid(f + 1) c + sigmoid(i) tanh(j)``; ``h' = sigmoid(o)
    tanh(c')``. With the defaults it has 5,141 meta-parameters.

    Args:
      p: parameter of `log_and_sign`; None feeds the raw gradient, as the paper does for quadratics.
      scale: factor on the output.
      hidden: units of each layer.
      state_dtype: dtype in which states are kept between steps, by default that of the parameters, at least float32;
        arithmetic is in float32 or wider.

    Raises:
      TypeError, ValueError: settings out of range; and, from the transformation, meta-parameters that are not those of
        this network, parameters that are not floating-point, or updates of another size than at ``init``.

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
    p = None if p is None else checks.positive_float("p", p)
    scale = checks.positive_float("scale", scale)
    if not isinstance(hidden, tuple) or not hidden:
        raise TypeError(f"hidden must be a tuple with the units of each layer, e.g. (20, 20), got {hidden!r}")
    hidden = tuple(checks.positive_int("hidden", units) for units in hidden)
    if state_dtype is not None and not jnp.issubdtype(state_dtype, jnp.floating):
        raise TypeError(f"state_dtype must be a floating-point dtype, got {state_dtype!r}")
    inputs = (1 if p is None else 2, *hidden[:-1])

    def init(key: Array):
        checks.key(key)
        keys = iter(jax.random.split(key, 2 * len(hidden) + 1))

        def normal(shape, fan_in):
            return jax.random.truncated_normal(next(keys), -2.0, 2.0, shape) / jnp.sqrt(fan_in)

        layers = [
            {"w": normal((4 * n, m + n), m + n), "b": normal((4 * n,), m + n)}
            for m, n in zip(inputs, hidden, strict=True)
        ]
        return {"lstm": layers, "out": {"w": normal((hidden[-1],), hidden[-1]), "b": jnp.zeros(())}}

    like = jax.eval_shape(init, jax.random.key(0))

    def tx(meta_params) -> optax.GradientTransformation:
        _check_meta_params(meta_params, like)

        def init_fn(params) -> LSTMState:
            checks.floating("params", params)
            dtype = _flat.dtype(params) if state_dtype is None else state_dtype
            zeros = tuple(jnp.zeros((n, _flat.size(params)), dtype) for n in hidden)
            return LSTMState(zeros, zeros)

        def update_fn(updates, state, params=None):
            del params
            _flat.check_updates(updates, state.h[0].shape[-1])
            grad = _flat.ravel(updates)
            x = grad[None] if p is None else log_and_sign(grad, p)
            h, c = [], []
            for layer, h_old, c_old in zip(meta_params["lstm"], state.h, state.c, strict=True):
                x, c_new = lstm_cell(layer, x, h_old.astype(x.dtype), c_old.astype(x.dtype))
                h.append(x.astype(h_old.dtype))
                c.append(c_new.astype(c_old.dtype))
            out = meta_params["out"]
            new = scale * (out["w"] @ x + out["b"])
            return _flat.unravel(new, updates), LSTMState(tuple(h), tuple(c))

        return optax.GradientTransformation(init_fn, update_fn)

    return LearnedOptimizer(init, tx)


def lstm_cell(layer: dict[str, Array], x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """One LSTM step for all coordinates: ``x [F, P]``, ``h`` and ``c [H, P]`` -> new ``h`` and ``c``."""
    w_x, w_h = layer["w"][:, : x.shape[0]], layer["w"][:, x.shape[0] :]
    i, j, f, o = jnp.split(w_x @ x + w_h @ h + layer["b"][:, None], 4)
    c = jax.nn.sigmoid(f + 1.0) * c + jax.nn.sigmoid(i) * jnp.tanh(j)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _check_meta_params(meta_params, like):
    got, want = jax.tree.structure(meta_params), jax.tree.structure(like)
    if got != want:
        raise ValueError(f"meta_params must be those of this optimizer's init:\n  got  {got}\n  want {want}")
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(meta_params), jax.tree.leaves(like), strict=True):
        if jnp.shape(x) != y.shape:
            raise ValueError(
                f"meta_params{jax.tree_util.keystr(path)} must have the shape {y.shape} of this optimizer's init, got "
                f"{jnp.shape(x)}; were they made with other settings of p or hidden?"
            )
    checks.floating("meta_params", meta_params)
