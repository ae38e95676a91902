"""The LSTM cell of VSML (Kirsch & Schmidhuber 2021)."""

import jax
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax._random import draw_flat
from metajax._trees import copy_per_episode
from metajax.cells._cell import Cell


def lstm(
    hidden: int = 16,
    slots: int = 8,
    *,
    ticks: int = 2,
    reduce: str = "mean",
    layer_norm: bool = False,
) -> Cell:
    """The LSTM of Kirsch & Schmidhuber 2021 (section 3.2, eq. 7) with the settings of their
    published configuration.

    ``gates = [forward, backward, h] W + b`` with a forget gate ``sigmoid(f + 5)`` and an input gate
    ``sigmoid(i - 5)``: a fresh cell keeps what it holds. A message is a linear map of ``h``, one
    for each direction. State: ``(c, h)``.

    Args: hidden: N, features of a cell. slots: size of a message. ticks: steps of the LSTM under
      the same messages. reduce: ``"mean"`` (published code) or ``"sum"`` (paper, eq. 7) of the
      messages of a row or column. layer_norm: normalise each cell's message, over its slots, before
      it is reduced.

    >>> import jax, metajax as mx
    >>> cell = mx.cells.lstm()
    >>> sum(x.size for x in jax.tree.leaves(cell.init(jax.random.key(0))))
    2384
    """
    _checks.positive_int(hidden=hidden, slots=slots)
    if layer_norm and slots == 1:
        raise ValueError(
            "layer_norm needs slots of at least 2: a single number, normalised, is always 0"
        )
    _checks.positive_int(ticks=ticks)
    if reduce not in ("mean", "sum"):
        raise ValueError(f"reduce must be 'mean' or 'sum', got {reduce!r}")

    def matrix(key, fan_in, shape):
        return draw_flat(key, shape, jax.random.truncated_normal, lower=-2, upper=2) / fan_in**0.5

    def init(key):
        k_gates, k_forward, k_backward = jax.random.split(key, 3)
        gates = matrix(k_gates, 2 * slots + hidden, (2 * slots + hidden, 4 * hidden))
        parts = dict(
            zip(
                ("forward", "backward", "hidden"), jnp.split(gates, [slots, 2 * slots]), strict=True
            )
        )
        return {
            "gates": {**parts, "b": jnp.zeros(4 * hidden)},
            "forward": messenger(k_forward),
            "backward": messenger(k_backward),
        }

    def messenger(key):
        linear = {"w": matrix(key, hidden, (hidden, slots)), "b": jnp.zeros(slots)}
        return (
            {**linear, "scale": jnp.ones(slots), "offset": jnp.zeros(slots)}
            if layer_norm
            else linear
        )

    def state(key, shape):
        first = (*shape, (hidden + 1) // 2)
        c = jnp.zeros((*shape, hidden)).at[..., : first[-1]].set(matrix(key, shape[-2], first))
        return c, jnp.zeros_like(c)

    # sigmoid(x) = (1 + tanh(x / 2)) / 2: with the halves in the weights all gates are one tanh over
    # contiguous numbers.
    scale, shift = np.repeat([0.5, 1.0, 0.5, 0.5], hidden), np.repeat([-5.0, 0.0, 5.0, 0.0], hidden)

    def step(params, state, forward, backward):
        b = params["gates"]["b"]
        gates = {
            name: scale.astype(b.dtype) * w
            for name, w in {**params["gates"], "b": b + shift.astype(b.dtype)}.items()
        }
        # The bias as one more slot keeps this a product where there is a single slot: XLA would
        # multiply within the loop over the cells, and with it whatever the image is computed from.
        constant = jnp.ones((*forward.shape[:-1], 1), forward.dtype)
        up = jnp.concatenate([forward, constant], -1) @ jnp.vstack(
            [gates["forward"][: forward.shape[-1]], gates["b"]]
        )
        down = backward @ gates["backward"][: backward.shape[-1]]
        drive = up[..., :, None, :] + down[..., None, :, :]
        c, h = state
        w = copy_per_episode(gates["hidden"], h) if h.size >= 128 * hidden else gates["hidden"]
        for _ in range(ticks):
            # In two dimensions, or XLA turns the derivatives of all gates around for that of the
            # weights.
            from_hidden = (h.reshape(-1, hidden) @ w).reshape(*h.shape[:-1], 4 * hidden)
            i, g, f, o = jnp.split(jnp.tanh(drive + from_hidden), 4, axis=-1)
            c = (0.5 + 0.5 * f) * c + (0.5 + 0.5 * i) * g
            h = (0.5 + 0.5 * o) * jnp.tanh(c)
        return c, h

    def mean_over_inputs(h):
        # As a product: XLA fuses a sum with what h is computed from, and BPTT takes a tenth longer.
        *lead, inputs, outputs, _ = h.shape
        weights = copy_per_episode(jnp.full((*lead, 1, inputs), 1 / inputs, h.dtype), h)
        rows = h.reshape(*lead, inputs, outputs * hidden)
        return jnp.matmul(weights, rows, precision="highest").reshape(*lead, outputs, hidden)

    def message(params, state, slots, axis):
        h = state[1]
        if layer_norm:
            x = h @ params["w"] + params["b"]
            x = params["scale"] * jax.nn.standardize(x, epsilon=1e-5) + params["offset"]
            x = x[..., :slots].mean(axis)
        else:  # the mean of a linear map is the map of the mean
            mean = mean_over_inputs(h) if axis == -3 else h.mean(axis)
            x = mean @ params["w"][:, :slots] + params["b"][:slots]
        return x * h.shape[axis] if reduce == "sum" else x

    return Cell(
        init,
        state,
        step,
        lambda params, state, slots: message(params["forward"], state, slots, -3),
        lambda params, state, slots: message(params["backward"], state, slots, -2),
        slots,
    )
