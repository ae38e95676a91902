"""Arrays made ready for tasks: resized, and sorted by class."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax._arguments import PositiveInt, check, checked, shown
from metajax.io import Arrays


@checked
def resize(data: Arrays, size: PositiveInt) -> Arrays:
    """Scales images ``[M, H, W, C]`` to ``size`` by ``size`` pixels; uint8 stays uint8.

    Linearly and with antialiasing.

    >>> import metajax as mx
    >>> mx.data.resize(mx.data.load("digits"), 4)["image"].shape
    (1197, 4, 4, 1)
    """
    labelled_images(data)
    image = np.asarray(data["image"])
    if image.ndim != 4:
        got = list(image.shape)
        raise ValueError(
            f'data["image"] must be [M, height, width, channels], got {got}'
        )

    # A part at a time: floats take four times the memory.
    num_parts = max(1, len(image) // 10_000)
    parts = np.array_split(image, num_parts)
    scaled = [_resize_images(part, size) for part in parts]
    return {**data, "image": np.concatenate(scaled)}


@checked
def columns(data: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation over the examples, of each value of an image by itself.

    For tables, whose columns have units of their own, and as the arguments of
    `metajax.tasks.standardize`. Give it the training part alone. The deviation of what is constant
    is given as 1, and uint8 counts as in [0, 1], as tasks give it.

    Args:
      data: ``{"image": [M, ...], "label": [M]}``.

    Returns:
      ``(mean, std)``, each of the shape of an image.

    >>> import metajax as mx, numpy as np
    >>> table = np.array([[1.0, 3e5], [3.0, 1e5]])
    >>> mean, std = mx.data.columns({"image": table, "label": np.array([0, 1])})
    >>> mean.tolist(), std.tolist()
    ([2.0, 200000.0], [1.0, 100000.0])
    """
    labelled_images(data)
    image = np.asarray(data["image"])
    scale = 255 if image.dtype == np.uint8 else 1
    mean = image.mean(0, dtype=np.float64)
    std = image.std(0, dtype=np.float64)
    constant = image.max(0) == image.min(
        0
    )  # whose deviation may be rounding, and not 0
    return mean / scale, np.where(constant, scale, std) / scale


@checked
def by_class(data: Arrays) -> Arrays:
    """Sorts examples by class, so that compiled tasks can draw from some of the classes.

    Returns:
      ``image [M, ...]`` and ``label [M]`` in the order of the classes, labels renumbered
      ``0..C-1``, and ``start [C + 1]``: class ``c`` is ``image[start[c]:start[c + 1]]``.

    >>> import metajax as mx
    >>> data = mx.data.by_class(mx.data.load("digits"))
    >>> data["start"].shape, data["label"][:3].tolist()
    ((11,), [0, 0, 0])
    """
    labelled_images(data)
    image = np.asarray(data["image"])
    label = np.asarray(data["label"])
    _, label, count = np.unique(label, return_inverse=True, return_counts=True)
    order = np.argsort(label, kind="stable")
    start = np.append(0, count.cumsum())
    return {
        "image": image[order],
        "label": label[order].astype(np.int32),
        "start": start.astype(np.int32),
    }


@checked
def rotations(data: Arrays) -> Arrays:
    """Rotations by 0, 90, 180 and 270 degrees as classes of their own.

    After Santoro et al. 2016, section 4.1. Rotate after the classes have been split, as here: then
    no class has a rotated copy in another part.

    Args:
      data: sorted `by_class`, its images ``[M, size, size, ...]``.

    Returns:
      The same with four times the images and classes; class ``c`` turned by ``90 r`` degrees is
      class ``c + r C``.

    >>> import metajax as mx
    >>> data = mx.data.rotations(mx.data.few_shot("digits", "train"))
    >>> data["image"].shape, data["start"].shape
    ((3604, 8, 8, 1), (21,))
    """
    sorted_by_class(data)
    image = np.asarray(data["image"])
    label = np.asarray(data["label"])
    start = np.asarray(data["start"])
    if image.ndim < 3 or image.shape[1] != image.shape[2]:
        got = list(image.shape)
        raise ValueError(
            f'data["image"] must be square, [M, size, size, ...], got {got}'
        )

    size = len(image)
    num_classes = len(start) - 1
    turned = [np.rot90(image, r, axes=(1, 2)) for r in range(4)]
    turn = np.arange(4, dtype=np.int32)[:, None]
    labels = label + turn * num_classes
    starts = start[:-1] + turn * size
    return {
        "image": np.concatenate(turned),
        "label": labels.ravel(),
        "start": np.append(starts, np.int32(4 * size)),
    }


def labelled_images(data: Any) -> None:
    """``data`` must be labelled images, as `metajax.data.load` gives them."""
    if not isinstance(data, dict) or not {"image", "label"} <= data.keys():
        got = f"keys {sorted(data)}" if isinstance(data, dict) else shown(data)
        if isinstance(data, tuple) and not data:
            got = "none"
        elif isinstance(data, (tuple, list)):
            got += "; of several, one a chunk, give metajax.fit iter(data)"
        raise TypeError(
            f'data must be a dict with "image" and "label" of metajax.data, got {got}'
        )
    check(jax.Array, **{'data["image"]': data["image"], 'data["label"]': data["label"]})
    image = list(np.shape(data["image"]))
    label = list(np.shape(data["label"]))
    if len(label) != 1 or image[:1] != label:
        raise ValueError(
            f'data must have one label an image: "image" {image}, "label" {label}'
        )
    if label == [0]:
        raise ValueError('data["label"] is empty: give at least one example')
    dtype = jnp.result_type(data["label"])
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f'data["label"] must be of an integer dtype, got {dtype}')


def sorted_by_class(data: Any) -> None:
    """``data`` must be labelled images that `by_class` has sorted."""
    labelled_images(data)
    if "start" not in data:
        raise TypeError(
            'data has no "start": sort it by class with metajax.data.by_class(data)'
        )
    _checks.integers('data["start"]', data["start"])
    if isinstance(data["start"], jax.core.Tracer):
        return
    start = np.asarray(data["start"])
    size = len(data["label"])
    rises = start.ndim == 1 and (np.diff(start) >= 0).all()
    if not rises or start[:1] != 0 or start[-1:] != size:
        raise ValueError(
            f'data["start"] must rise from 0 to the {size} examples, as metajax.data.by_class '
            f"makes it, got {start.tolist()}"
        )


def _resize_images(image: np.ndarray, size: int) -> np.ndarray:
    num_images, _, _, channels = image.shape
    shape = (num_images, size, size, channels)
    floats = image.astype(np.float32)
    scaled = np.asarray(jax.image.resize(floats, shape, "linear"))
    if image.dtype != np.uint8:
        return scaled
    scaled = scaled.round().clip(0, 255)
    return scaled.astype(np.uint8)
