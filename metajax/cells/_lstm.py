"""The LSTM cell of VSML (Kirsch & Schmidhuber 2021)."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from metajax._arguments import PositiveInt, checked
from metajax._arrays import lift, matmul, standardise
from metajax._random import draw_flat
from metajax._trees import copy_per_episode
from metajax.cells import _lstm_kernel
from metajax.cells._cell import Cell
from metajax.nets import _kernels
from metajax.nets._kernels import Kernel
from metajax.types import Array, Key, Params

# Axes of a hidden state [..., A, B, N].
_INPUTS = -3
_OUTPUTS = -2

State = tuple[Array, Array]  # c and h

# With fewer rows than this one large product over all episodes is worth more than one for each.
_ROWS_FOR_COPIES = 128


@checked
def lstm(
    hidden: PositiveInt = 16,
    slots: PositiveInt = 8,
    *,
    ticks: PositiveInt = 2,
    reduce: Literal["mean", "sum"] = "mean",
    layer_norm: bool = False,
    kernel: Kernel = "xla",
) -> Cell:
    """The LSTM of Kirsch & Schmidhuber 2021 (section 3.2, eq. 7), set as published.

    ``gates = [forward, backward, h] W + b`` with a forget gate ``sigmoid(f + 5)`` and an input gate
    ``sigmoid(i - 5)``: a fresh cell keeps what it holds. A message is a linear map of ``h``, one
    for each direction. State: ``(c, h)``.

    Args:
      hidden: N, features of a cell.
      slots: size of a message.
      ticks: steps of the LSTM under the same messages.
      reduce: ``"mean"`` (published code) or ``"sum"`` (paper, eq. 7) of the messages of a row or
        column.
      layer_norm: normalise each cell's message, over its slots, before it is reduced.
      kernel: ``"pallas"`` makes all ticks one kernel of a GPU, which reads and writes the states
        once; its derivatives are those of ``"xla"``. With ``"interpreted"`` the same runs anywhere,
        slowly, to test with.

    Raises:
      ValueError: ``layer_norm`` of a single slot; ``"pallas"`` where JAX has no GPU.

    >>> import jax, metajax as mx
    >>> cell = mx.cells.lstm()
    >>> sum(x.size for x in jax.tree.leaves(cell.init(jax.random.key(0))))
    2384
    """
    if layer_norm and slots == 1:
        raise ValueError(
            "layer_norm needs slots of at least 2: a single number, normalised, is always 0"
        )

    _kernels.check_device(kernel)
    run = partial(_step, ticks)
    if kernel != "xla":
        run = partial(_step_of_one_kernel, ticks, kernel == "interpreted")

    def init(key):
        k_gates, k_forward, k_backward = jax.random.split(key, 3)
        return {
            "gates": _init_gates(k_gates, hidden, slots),
            "forward": _init_messenger(k_forward, hidden, slots, layer_norm),
            "backward": _init_messenger(k_backward, hidden, slots, layer_norm),
        }

    def state(key, shape):
        # The first half of the features is what replicas share; only it starts at random.
        half = (hidden + 1) // 2
        values = _truncated_normal(key, (*shape, half), fan_in=shape[-2])
        c = jnp.zeros((*shape, hidden)).at[..., :half].set(values)
        return c, jnp.zeros_like(c)

    def step(params, state, forward, backward):
        return run(params["gates"], state, forward, backward)

    def reduced(params, h, slots, axis):
        mean = _mean_message(params, h, slots, axis)
        return mean * h.shape[axis] if reduce == "sum" else mean

    def forward(params, state, slots):
        _, h = state
        return reduced(params["forward"], h, slots, _INPUTS)

    def backward(params, state, slots):
        _, h = state
        return reduced(params["backward"], h, slots, _OUTPUTS)

    return Cell(init, state, step, forward, backward, slots)


def _step(
    ticks: int, gates: Params, state: State, forward: Array, backward: Array
) -> State:
    _, h = state
    hidden = h.shape[-1]
    gates = _scaled_gates(gates, hidden)
    drive = _drive(gates, forward, backward)
    weights = gates["hidden"]
    if h.size >= _ROWS_FOR_COPIES * hidden:
        weights = copy_per_episode(weights, h)
    for _ in range(ticks):
        state = _tick(weights, drive, state)
    return state


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _step_of_one_kernel(
    ticks: int,
    interpret: bool,
    gates: Params,
    state: State,
    forward: Array,
    backward: Array,
) -> State:
    """As `_step`, whose derivatives it has: they compute the step anew."""
    gates = _scaled_gates(gates, state[0].shape[-1])
    return _lstm_kernel.ticked(ticks, interpret, gates, state, forward, backward)


@_step_of_one_kernel.defjvp
def _derivative(ticks: int, interpret: bool, primals: tuple, tangents: tuple):
    new = _step_of_one_kernel(ticks, interpret, *primals)
    _, tangent = jax.jvp(partial(_step, ticks), primals, tangents)
    return new, tangent


def _truncated_normal(key: Key, shape: tuple[int, ...], fan_in: int) -> Array:
    values = draw_flat(key, shape, jax.random.truncated_normal, lower=-2, upper=2)
    return values / fan_in**0.5


def _init_gates(key: Key, hidden: int, slots: int) -> Params:
    inputs = 2 * slots + hidden
    w = _truncated_normal(key, (inputs, 4 * hidden), fan_in=inputs)
    forward, backward, recurrent = jnp.split(w, [slots, 2 * slots])
    return {
        "forward": forward,
        "backward": backward,
        "hidden": recurrent,
        "b": jnp.zeros(4 * hidden),
    }


def _init_messenger(key: Key, hidden: int, slots: int, layer_norm: bool) -> Params:
    w = _truncated_normal(key, (hidden, slots), fan_in=hidden)
    linear = {"w": w, "b": jnp.zeros(slots)}
    if not layer_norm:
        return linear
    return linear | {"scale": jnp.ones(slots), "offset": jnp.zeros(slots)}


def _scaled_gates(gates: Params, hidden: int) -> Params:
    """The parameters with the halves of ``sigmoid(x) = (1 + tanh(x / 2)) / 2`` in them.

    All gates are then one tanh over contiguous numbers.
    """
    dtype = gates["b"].dtype
    scale = np.repeat([0.5, 1.0, 0.5, 0.5], hidden).astype(dtype)
    shift = np.repeat([-5.0, 0.0, 5.0, 0.0], hidden).astype(dtype)
    shifted = gates | {"b": gates["b"] + shift}
    return {name: lift(scale, w) * w for name, w in shifted.items()}


def _drive(gates: Params, forward: Array, backward: Array) -> Array:
    """What the messages add to the gates of each cell, ``[..., A, B, 4 N]``."""
    # The bias as one more slot keeps this a product where there is a single slot: XLA would
    # multiply within the loop over the cells, and with it whatever the image is computed from.
    ones = jnp.ones((*forward.shape[:-1], 1), forward.dtype)
    messages = jnp.concatenate([forward, ones], -1)
    weights = jnp.vstack([gates["forward"][: forward.shape[-1]], gates["b"]])
    up = matmul(messages, weights)
    down = matmul(backward, gates["backward"][: backward.shape[-1]])
    return up[..., :, None, :] + down[..., None, :, :]


def _tick(weights: Array, drive: Array, state: State) -> State:
    c, h = state
    hidden = h.shape[-1]
    # In two dimensions, or XLA turns the derivatives of all gates around for that of the weights.
    rows = matmul(h.reshape(-1, hidden), weights)
    pre_activation = drive + rows.reshape(*h.shape[:-1], 4 * hidden)
    i, g, f, o = jnp.split(jnp.tanh(pre_activation), 4, axis=-1)
    c = (0.5 + 0.5 * f) * c + (0.5 + 0.5 * i) * g
    h = (0.5 + 0.5 * o) * jnp.tanh(c)
    return c, h


def _mean_message(params: Params, h: Array, slots: int, axis: int) -> Array:
    if "scale" in params:  # normalised, cell by cell
        return _normalised_messages(params, h)[..., :slots].mean(axis)
    # The mean of a linear map is the map of the mean.
    mean = _mean_over_inputs(h) if axis == _INPUTS else h.mean(axis)
    w, b = params["w"][:, :slots], params["b"][:slots]
    # Shared, its derivative would be one product over all episodes, whose rows lie apart in
    # memory: XLA for GPUs merges their axes within the product and then finds no tiles for it.
    return _affine(mean, copy_per_episode(w, mean), b)


def _affine(x: Array, w: Array, b: Array) -> Array:
    y = matmul(x, w)
    return y + lift(b, y)


def _normalised_messages(params: Params, h: Array) -> Array:
    x = standardise(_affine(h, params["w"], params["b"]))
    return lift(params["scale"], x) * x + lift(params["offset"], x)


def _mean_over_inputs(h: Array) -> Array:
    """``h [..., A, B, N]`` averaged over A."""
    # As a product: XLA fuses a sum with what h is computed from, and BPTT takes a tenth longer.
    *lead, inputs, outputs, hidden = h.shape
    weights = jnp.full((*lead, 1, inputs), 1 / inputs, h.dtype)
    rows = h.reshape(*lead, inputs, outputs * hidden)
    mean = matmul(copy_per_episode(weights, h), rows)
    return mean.reshape(*lead, outputs, hidden)
