"""Layers: how grids of cells are wired together."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax._arguments import PositiveInt, checked
from metajax.types import Array


class Layer(NamedTuple):
    """How the units below a grid of cells are wired to those above it.

    Attributes:
      positions: P, the number of places that share what they have learned, 1 if there is but one.
      inputs: A, the inputs at a position.
      outputs: B, the outputs at a position.
      units: the units below; the units above are ``positions * outputs``.
      split: ``(messages [R, units, K]) -> [R, P, A, K]``.
      merge: ``(messages [R, P, A, K]) -> [R, units, K]``, the mean over the positions that a unit
        is an input of.
    """

    positions: int
    inputs: int
    outputs: int
    units: int
    split: Callable[[Array], Array]
    merge: Callable[[Array], Array]


@checked
def dense(inputs: PositiveInt, outputs: PositiveInt) -> Layer:
    """Every unit below meets every unit above in a cell of its own.

    >>> import metajax as mx
    >>> mx.cells.dense(784, 10).positions
    1
    """

    def split(messages):
        return messages[:, None]

    def merge(messages):
        return messages[:, 0]

    return Layer(1, inputs, outputs, inputs, split, merge)


@checked
def convolution(
    shape: tuple[int, int, int],
    channels: PositiveInt,
    *,
    kernel: PositiveInt = 3,
    stride: PositiveInt = 2,
) -> Layer:
    """Cells ``[kernel * kernel * C, channels]`` at every position of an image ``(H, W, C)``.

    Padded as ``"SAME"``: ``ceil(H / stride)`` by ``ceil(W / stride)`` positions.

    >>> import metajax as mx
    >>> layer = mx.cells.convolution((28, 28, 1), channels=8)
    >>> layer.positions, layer.inputs, layer.outputs
    (196, 9, 8)
    """
    height, width, depth = _checks.positive_ints("shape", shape, like=(28, 28, 1))
    units = height * width * depth
    index = _patches((height, width, depth), kernel, stride)

    # How many positions each unit is an input of; a stride above the kernel leaves some out.
    count = np.bincount(index.ravel(), minlength=units + 1)[:units, None]
    count = np.maximum(count, 1)[None]

    def split(messages):
        padded = jnp.pad(
            messages, ((0, 0), (0, 1), (0, 0))
        )  # the unit outside says nothing
        return padded[:, index]

    def merge(messages):
        replicas, _, _, slots = messages.shape
        total = (
            jnp.zeros((replicas, units + 1, slots), messages.dtype)
            .at[:, index]
            .add(messages)
        )
        return total[:, :units] / count

    return Layer(len(index), kernel * kernel * depth, channels, units, split, merge)


def _patches(shape: tuple[int, int, int], kernel: int, stride: int) -> np.ndarray:
    """Which unit each input of each position is, ``[P, A]``.

    One that lies outside the image is the unit after the last.
    """
    height, width, depth = shape
    units = height * width * depth
    rows = -(-height // stride)
    columns = -(-width // stride)
    top = max((rows - 1) * stride + kernel - height, 0) // 2
    left = max((columns - 1) * stride + kernel - width, 0) // 2

    padded = np.full((height + kernel, width + kernel, depth), units)
    padded[top : top + height, left : left + width] = np.arange(units).reshape(shape)

    patches = []
    for y in range(0, rows * stride, stride):
        for x in range(0, columns * stride, stride):
            patches.append(padded[y : y + kernel, x : x + kernel].ravel())
    return np.stack(patches)
