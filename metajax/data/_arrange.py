"""Arrays made ready for tasks: resized, and sorted by class."""

import jax
import jax.numpy as jnp
import numpy as np

from metajax import _checks

Arrays = dict[str, np.ndarray]


def resize(data: Arrays, size: int) -> Arrays:
    """Scales images ``[M, H, W, C]`` to ``size`` by ``size`` pixels, linearly and with
    antialiasing; uint8 stays uint8.

    >>> import metajax as mx
    >>> mx.data.resize(mx.data.load("digits"), 4)["image"].shape
    (1197, 4, 4, 1)
    """
    labelled_images(data)
    _checks.positive_int(size=size)
    image = np.asarray(data["image"])
    if image.ndim != 4:
        raise ValueError(
            f'data["image"] must be [M, height, width, channels], got {list(image.shape)}'
        )
    parts = []
    for part in np.array_split(
        image, max(1, len(image) // 10_000)
    ):  # a part at a time: floats are four times as large
        scaled = jax.image.resize(
            part.astype(np.float32), (len(part), size, size, image.shape[3]), "linear"
        )
        scaled = np.asarray(scaled)
        parts.append(
            scaled.round().clip(0, 255).astype(np.uint8) if image.dtype == np.uint8 else scaled
        )
    return {**data, "image": np.concatenate(parts)}


def by_class(data: Arrays) -> Arrays:
    """Sorts examples by class, so that tasks can draw from some of the classes inside a compiled
    program.

    Returns: ``image [M, ...]`` and ``label [M]`` in the order of the classes, labels renumbered
      ``0..C-1``, and ``start [C + 1]``: class ``c`` is ``image[start[c]:start[c + 1]]``.

    >>> import metajax as mx
    >>> data = mx.data.by_class(mx.data.load("digits"))
    >>> data["start"].shape, data["label"][:3].tolist()
    ((11,), [0, 0, 0])
    """
    labelled_images(data)
    label = np.asarray(data["label"])
    _, label, count = np.unique(label, return_inverse=True, return_counts=True)
    order = np.argsort(label, kind="stable")
    return {
        "image": np.asarray(data["image"])[order],
        "label": label[order].astype(np.int32),
        "start": np.concatenate([[0], count.cumsum()]).astype(np.int32),
    }


def rotations(data: Arrays) -> Arrays:
    """Rotations by 0, 90, 180 and 270 degrees as classes of their own (Santoro et al. 2016, section
    4.1).

    Rotate after the classes have been split, as here: then no class has a rotated copy in another
      part.

    Args:
      data: sorted `by_class`, its images ``[M, size, size, ...]``.

    Returns: The same with four times the images and classes; class ``c`` turned by ``90 r`` degrees
      is class ``c + r C``.

    >>> import metajax as mx
    >>> data = mx.data.rotations(mx.data.few_shot("digits", "train"))
    >>> data["image"].shape, data["start"].shape
    ((3604, 8, 8, 1), (21,))
    """
    sorted_by_class(data)
    image, label, start = (np.asarray(data[k]) for k in ("image", "label", "start"))
    if image.ndim < 3 or image.shape[1] != image.shape[2]:
        raise ValueError(
            f'data["image"] must hold square images [M, size, size, ...], got {list(image.shape)}'
        )
    classes, size = len(start) - 1, len(image)
    return {
        "image": np.concatenate([np.rot90(image, r, (1, 2)) for r in range(4)]),
        "label": np.concatenate([label + np.int32(r * classes) for r in range(4)]),
        "start": np.concatenate(
            [start[:-1] + np.int32(r * size) for r in range(4)] + [np.array([4 * size], np.int32)]
        ),
    }


def sorted_by_class(data) -> None:
    """Says what is wrong with ``data`` if it is not as made by `by_class`."""
    labelled_images(data)
    if "start" not in data:
        raise TypeError('data has no "start": sort it by class with metajax.data.by_class(data)')


def labelled_images(data) -> None:
    """Says what is wrong with ``data`` if it is not labelled images as made by
    `metajax.data.load`.
    """
    if not isinstance(data, dict) or not {"image", "label"} <= data.keys():
        got = f"keys {sorted(data)}" if isinstance(data, dict) else type(data).__name__
        raise TypeError(
            f'data must be a dict with "image" and "label", as metajax.data.load gives it, got {got}'
        )
    image, label = np.shape(data["image"]), np.shape(data["label"])
    if len(label) != 1 or image[:1] != label:
        raise ValueError(
            f'data must hold one label an image: "image" is {list(image)}, "label" {list(label)}'
        )
    if label[0] == 0:
        raise ValueError('data["label"] is empty: give at least one example')
    if not jnp.issubdtype(jnp.result_type(data["label"]), jnp.integer):
        raise TypeError(
            f'data["label"] must be of an integer dtype, got {jnp.result_type(data["label"])}'
        )
