"""The parts of a VSML network: cells that live on a grid of inputs and outputs, and layers that wire grids together."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import checks
from metajax._drawn import drawn
from metajax._unshared import unshared
from metajax.types import Array, PyTree


class Cell(NamedTuple):
    """What sits at every crossing of an input and an output: a tiny recurrent network and what it tells the others.

    The last axis of a message are its slots. Where fewer are given or asked for than there are, the rest are not
    computed.

    Attributes:
      init: ``(key) -> params``, shared by all cells.
      state: ``(key, shape [..., A, B]) -> state``, a pytree of ``[..., A, B, N]``.
      step: ``(params, state, forward [..., A, K], backward [..., B, L]) -> state``.
      forward: ``(params, state, slots) -> [..., B, slots]``, the messages upwards, reduced over the inputs.
      backward: ``(params, state, slots) -> [..., A, slots]``, the messages downwards, reduced over the outputs.
      slots: the size of a message.
    """

    init: Callable[..., PyTree]
    state: Callable[..., PyTree]
    step: Callable[..., PyTree]
    forward: Callable[..., Array]
    backward: Callable[..., Array]
    slots: int


def lstm_cell(
    hidden: int = 16, slots: int = 8, *, ticks: int = 2, reduce: str = "mean", layer_norm: bool = False
) -> Cell:
    """The LSTM of Kirsch & Schmidhuber 2021 (section 3.2, eq. 7) with the settings of their published configuration.

    ``gates = [forward, backward, h] W + b`` with a forget gate ``sigmoid(f + 5)`` and an input gate ``sigmoid(i - 5)``:
    a fresh cell keeps what it holds. A message is a linear map of ``h``, one for each direction. State: ``(c, h)``.

    Args:
      hidden: N, features of a cell.
      slots: size of a message.
      ticks: steps of the LSTM under the same messages.
      reduce: ``"mean"`` (published code) or ``"sum"`` (paper, eq. 7) of the messages of a row or column.
      layer_norm: normalise each cell's message, over its slots, before it is reduced.

    >>> import jax, metajax as mx
    >>> cell = mx.learners.lstm_cell()
    >>> sum(x.size for x in jax.tree.leaves(cell.init(jax.random.key(0))))
    2384
    """
    hidden = checks.positive_int("hidden", hidden)
    slots = checks.positive_int("slots", slots)
    if layer_norm and slots == 1:
        raise ValueError("layer_norm needs slots of at least 2: a single number, normalised, is always 0")
    ticks = checks.positive_int("ticks", ticks)
    if reduce not in ("mean", "sum"):
        raise ValueError(f"reduce must be 'mean' or 'sum', got {reduce!r}")

    def matrix(key, fan_in, shape):
        return drawn(key, shape, jax.random.truncated_normal, lower=-2, upper=2) / fan_in**0.5

    def init(key):
        k_gates, k_forward, k_backward = jax.random.split(key, 3)
        gates = matrix(k_gates, 2 * slots + hidden, (2 * slots + hidden, 4 * hidden))
        parts = dict(zip(("forward", "backward", "hidden"), jnp.split(gates, [slots, 2 * slots]), strict=True))
        return {
            "gates": {**parts, "b": jnp.zeros(4 * hidden)},
            "forward": messenger(k_forward),
            "backward": messenger(k_backward),
        }

    def messenger(key):
        linear = {"w": matrix(key, hidden, (hidden, slots)), "b": jnp.zeros(slots)}
        return {**linear, "scale": jnp.ones(slots), "offset": jnp.zeros(slots)} if layer_norm else linear

    def state(key, shape):
        first = (*shape, (hidden + 1) // 2)
        c = jnp.zeros((*shape, hidden)).at[..., : first[-1]].set(matrix(key, shape[-2], first))
        return c, jnp.zeros_like(c)

    # sigmoid(x) = (1 + tanh(x / 2)) / 2: with the halves in the weights all gates are one tanh over contiguous numbers.
    scale, shift = np.repeat([0.5, 1.0, 0.5, 0.5], hidden), np.repeat([-5.0, 0.0, 5.0, 0.0], hidden)

    def step(params, state, forward, backward):
        b = params["gates"]["b"]
        gates = {
            name: scale.astype(b.dtype) * w for name, w in {**params["gates"], "b": b + shift.astype(b.dtype)}.items()
        }
        # The bias as one more slot keeps this a product where there is a single slot: XLA would multiply within the
        # loop over the cells, and with it whatever the image is computed from.
        constant = jnp.ones((*forward.shape[:-1], 1), forward.dtype)
        up = jnp.concatenate([forward, constant], -1) @ jnp.vstack([gates["forward"][: forward.shape[-1]], gates["b"]])
        down = backward @ gates["backward"][: backward.shape[-1]]
        drive = up[..., :, None, :] + down[..., None, :, :]
        c, h = state
        w = unshared(gates["hidden"], h) if h.size >= 128 * hidden else gates["hidden"]
        for _ in range(ticks):
            # In two dimensions, or XLA turns the derivatives of all gates around for that of the weights.
            from_hidden = (h.reshape(-1, hidden) @ w).reshape(*h.shape[:-1], 4 * hidden)
            i, g, f, o = jnp.split(jnp.tanh(drive + from_hidden), 4, axis=-1)
            c = (0.5 + 0.5 * f) * c + (0.5 + 0.5 * i) * g
            h = (0.5 + 0.5 * o) * jnp.tanh(c)
        return c, h

    def mean_over_inputs(h):
        # As a product: XLA fuses a sum with what h is computed from, and BPTT takes a tenth longer.
        *lead, inputs, outputs, _ = h.shape
        weights = unshared(jnp.full((*lead, 1, inputs), 1 / inputs, h.dtype), h)
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


def rnn_cell(hidden: int, activation: Callable = jnp.tanh) -> Cell:
    """The minimal cell of Kirsch & Schmidhuber 2021, eq. 4: ``s <- activation(s W + forward C + backward D)``.

    Cells tell each other their whole state, summed: there are no messengers, and ``slots = hidden``. Eq. 4 itself has
    no messages downwards; it is this with ``D = 0``.

    >>> import jax, metajax as mx
    >>> net = mx.vsml((4, 3), mx.learners.rnn_cell(8))
    >>> sum(x.size for x in jax.tree.leaves(net.init(jax.random.key(0))))
    192
    """
    hidden = checks.positive_int("hidden", hidden)
    checks.function("activation", activation)

    def init(key):
        keys = jax.random.split(key, 3)
        return {name: drawn(k, (hidden, hidden)) / hidden**0.5 for name, k in zip("WCD", keys, strict=True)}

    def state(key, shape):
        return drawn(key, (*shape, hidden)) / shape[-2] ** 0.5

    def step(params, state, forward, backward):
        up, down = forward @ params["C"][: forward.shape[-1]], backward @ params["D"][: backward.shape[-1]]
        return activation(state @ params["W"] + up[..., :, None, :] + down[..., None, :, :])

    return Cell(
        init,
        state,
        step,
        lambda params, state, slots: state[..., :slots].sum(-3),
        lambda params, state, slots: state[..., :slots].sum(-2),
        hidden,
    )


class Layer(NamedTuple):
    """How the units below a grid of cells are wired to those above it.

    Attributes:
      positions: P, the number of places that share what they have learned, 1 if there is but one.
      inputs: A, the inputs at a position.
      outputs: B, the outputs at a position.
      units: the units below; the units above are ``positions * outputs``.
      split: ``(messages [R, units, K]) -> [R, P, A, K]``.
      merge: ``(messages [R, P, A, K]) -> [R, units, K]``, the mean over the positions that a unit is an input of.
    """

    positions: int
    inputs: int
    outputs: int
    units: int
    split: Callable[..., Array]
    merge: Callable[..., Array]


def dense(inputs: int, outputs: int) -> Layer:
    """Every unit below meets every unit above in a cell of its own.

    >>> import metajax as mx
    >>> mx.learners.dense(784, 10).positions
    1
    """
    inputs, outputs = checks.positive_int("inputs", inputs), checks.positive_int("outputs", outputs)
    return Layer(1, inputs, outputs, inputs, lambda x: x[:, None], lambda x: x[:, 0])


def convolution(shape: tuple[int, int, int], channels: int, *, kernel: int = 3, stride: int = 2) -> Layer:
    """A convolution: cells ``[kernel * kernel * C, channels]`` at every position of an image ``shape = (H, W, C)``.

    Padded as ``"SAME"``: ``ceil(H / stride)`` by ``ceil(W / stride)`` positions.

    >>> import metajax as mx
    >>> layer = mx.learners.convolution((28, 28, 1), channels=8)
    >>> layer.positions, layer.inputs, layer.outputs
    (196, 9, 8)
    """
    if len(shape) != 3:
        raise ValueError(f"shape must be (height, width, channels), got {shape}")
    height, width, depth = (checks.positive_int("shape", n) for n in shape)
    channels = checks.positive_int("channels", channels)
    kernel, stride = checks.positive_int("kernel", kernel), checks.positive_int("stride", stride)

    # Which unit each input of each position is; one that lies outside the image is the unit after the last.
    units = height * width * depth
    index = np.full((height + kernel, width + kernel, depth), units)
    rows, columns = math.ceil(height / stride), math.ceil(width / stride)
    before_h = max((rows - 1) * stride + kernel - height, 0) // 2
    before_w = max((columns - 1) * stride + kernel - width, 0) // 2
    index[before_h : before_h + height, before_w : before_w + width] = np.arange(units).reshape(height, width, depth)
    index = np.stack(
        [
            index[r * stride : r * stride + kernel, c * stride : c * stride + kernel].ravel()
            for r in range(rows)
            for c in range(columns)
        ]
    )
    count = np.maximum(np.bincount(index.ravel(), minlength=units + 1), 1)[:units, None]

    def split(x):
        return jnp.pad(x, ((0, 0), (0, 1), (0, 0)))[:, index]

    def merge(x):
        total = jnp.zeros((x.shape[0], units + 1, x.shape[-1]), x.dtype).at[:, index].add(x)
        return total[:, :units] / count

    return Layer(len(index), kernel * kernel * depth, channels, units, split, merge)
