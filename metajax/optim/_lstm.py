"""The coordinatewise LSTM optimizer (Andrychowicz et al. 2016, arXiv 1606.04474)."""

import jax
import optax

from metajax import _checks
from metajax._arguments import NonNegativeInt, PositiveFloat, checked
from metajax.nets._kernels import Kernel
from metajax.optim import _flat, _lstm_kernel, _networks
from metajax.optim._learned import learned_optimizer
from metajax.optim._networks import LSTMState
from metajax.optim._preprocessing import check_p, num_inputs
from metajax.types import LearnedOptimizer

# The settings of the paper (appendix A and section 3) and those of its published code.
PRESETS = {
    "paper": {"p": 10.0, "scale": 0.1},
    "repository": {"p": 5.0, "scale": 0.01},
}


@checked
def lstm(
    *,
    p: float | None = 10.0,
    scale: PositiveFloat = 0.1,
    hidden: tuple[int, ...] = (20, 20),
    averaged: NonNegativeInt = 0,
    state_dtype: jax.typing.DTypeLike | None = None,
    kernel: Kernel = "xla",
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

    Args:
      p: parameter of `log_and_sign`, at most 80; None feeds the raw gradient, as the paper does for
        quadratics.
      scale: factor on the output.
      hidden: units of each layer.
      averaged: how many of the units of each layer, the first ones, are averaged over all
        coordinates.
      state_dtype: dtype in which states are kept between steps, by default that of the parameters,
        at least float32; arithmetic is in float32 or wider.
      kernel: ``"pallas"`` makes a step one kernel of a GPU, which reads and writes the states once
        and keeps nothing beside them; its derivatives are those of ``"xla"``. With
        ``"interpreted"`` the same runs anywhere, slowly, to test with.

    Raises:
      ValueError: ``"pallas"`` where JAX has no GPU; either with ``averaged`` units.

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
    check_p(p)
    hidden = _checks.positive_ints("hidden", hidden, like=(20,))
    _networks.check_averaged(averaged, hidden)
    _flat.check_state_dtype(state_dtype)
    _lstm_kernel.check_kernel(kernel, averaged)
    step = _lstm_kernel.step(kernel, p, averaged)

    def init(key):
        num_keys = 2 * len(hidden) + 1
        *layer_keys, k_out = jax.random.split(key, num_keys)
        return {
            "lstm": _networks.init_lstm(layer_keys, num_inputs(p), hidden),
            "out": _networks.init_linear(k_out, (hidden[-1],)),
        }

    def tx(meta_params) -> optax.GradientTransformation:
        def init_fn(params) -> LSTMState:
            _checks.floating("params", params)
            return _networks.init_lstm_state(hidden, params, state_dtype)

        def update_fn(updates, state, params=None):
            del params
            _flat.check_trees(state.h[0].shape[-1], updates=updates)
            grad, unravel = _flat.ravel(updates)

            output, state = step(meta_params, grad, state)
            return unravel(scale * output), state

        return optax.GradientTransformation(init_fn, update_fn)

    return learned_optimizer(init, tx)
