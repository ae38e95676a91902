"""Layers: how grids of cells are wired together."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax.types import Array


class Layer(NamedTuple):
    """How the units below a grid of cells are wired to those above it.

    Attributes: positions: P, the number of places that share what they have learned, 1 if there is
      but one. inputs: A, the inputs at a position. outputs: B, the outputs at a position. units:
      the units below; the units above are ``positions * outputs``. split: ``(messages [R, units,
      K]) -> [R, P, A, K]``. merge: ``(messages [R, P, A, K]) -> [R, units, K]``, the mean over the
      positions that a unit is an input of.
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
    >>> mx.cells.dense(784, 10).positions
    1
    """
    inputs, outputs = (
        _checks.positive_int("inputs", inputs),
        _checks.positive_int("outputs", outputs),
    )
    return Layer(1, inputs, outputs, inputs, lambda x: x[:, None], lambda x: x[:, 0])


def convolution(
    shape: tuple[int, int, int], channels: int, *, kernel: int = 3, stride: int = 2
) -> Layer:
    """A convolution: cells ``[kernel * kernel * C, channels]`` at every position of an image
    ``shape = (H, W, C)``.

    Padded as ``"SAME"``: ``ceil(H / stride)`` by ``ceil(W / stride)`` positions.

    >>> import metajax as mx
    >>> layer = mx.cells.convolution((28, 28, 1), channels=8)
    >>> layer.positions, layer.inputs, layer.outputs
    (196, 9, 8)
    """
    if len(shape) != 3:
        raise ValueError(f"shape must be (height, width, channels), got {shape}")
    height, width, depth = (_checks.positive_int("shape", n) for n in shape)
    _checks.positive_int(channels=channels, kernel=kernel, stride=stride)
    # Which unit each input of each position is; one that lies outside the image is the unit after
    # the last.
    units = height * width * depth
    index = np.full((height + kernel, width + kernel, depth), units)
    rows, columns = math.ceil(height / stride), math.ceil(width / stride)
    before_h = max((rows - 1) * stride + kernel - height, 0) // 2
    before_w = max((columns - 1) * stride + kernel - width, 0) // 2
    index[before_h : before_h + height, before_w : before_w + width] = np.arange(units).reshape(
        height, width, depth
    )
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
