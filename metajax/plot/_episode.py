"""An episode of few-shot learning, image by image."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from metajax import _checks
from metajax._arguments import checked
from metajax.plot._axes import COLOURS, axes_or_new, hide_axes, numbers


@checked
def episode(
    support: Mapping[str, Any],
    query: Mapping[str, Any],
    predicted: Any,
    ax: Any = None,
) -> Any:
    """A few-shot episode: a row for each class, with its support images and its query images.

    Right predictions have a thin frame, wrong ones a thick one, and the class that was predicted
    instead.

    Args:
      support: ``{"image": [N * K, height, width, channels], "label": [N * K]}``, as
        `metajax.tasks.episodes` gives it; one channel or three, uint8 or in [0, 1].
      query: likewise.
      predicted: ``[N * Q]``, the predicted label of each query image.
      ax: the axes to draw on; new ones by default.

    >>> import jax, metajax as mx
    >>> data, tasks = mx.data.few_shot("digits", "train"), mx.tasks.episodes(5, shots=2, queries=3)
    >>> task = tasks.sample(jax.random.key(0), data)
    >>> support = tasks.train(jax.random.key(1), data, task)
    >>> query = tasks.test(jax.random.key(2), data, task)
    >>> ax = mx.plot.episode(support, query, predicted=query["label"])
    >>> ax.get_title()
    '15 of 15 right'
    """
    support_images = _by_class("support", support)
    query_images = _by_class("query", query)
    predicted = numbers("predicted", predicted)
    truth = np.asarray(query["label"])
    _check_predictions(predicted, truth)
    classes = sorted({*support_images, *query_images})

    # Images are squares of size 1, with a gap between support and queries.
    shots = _largest_count(support_images)
    queries = _largest_count(query_images)
    left = shots + 0.5
    right = left + queries

    width = 0.6 * right + 0.6
    height = 0.6 * len(classes) + 0.8
    ax = axes_or_new(ax, (width, height))

    name = {"ha": "right", "va": "center", "fontsize": 9}
    for row, label in enumerate(classes):
        ax.text(-0.15, row + 0.5, str(label), **name)
        for column, image in enumerate(support_images[label]):
            _draw_image(ax, image.pixels, column, row)
        for column, image in enumerate(query_images[label]):
            answer = predicted[image.place]
            correct = answer == label
            _draw_answer(ax, image.pixels, left + column, row, answer, correct)

    heading = {"ha": "center", "va": "bottom", "fontsize": 9}
    ax.text(shots / 2, -0.1, "support", **heading)
    ax.text(left + queries / 2, -0.1, "queries", **heading)
    count = (predicted == truth).sum()
    ax.set_title(f"{count} of {truth.size} right", fontsize=9)
    ax.set_xlim(-0.5, right)
    ax.set_ylim(len(classes), -0.4)
    return hide_axes(ax)


class _Image(NamedTuple):
    """An image as matplotlib takes it, and its place in the batch."""

    pixels: np.ndarray
    place: int


_ByClass = defaultdict[int, list[_Image]]


def _by_class(name: str, batch: Mapping[str, Any]) -> _ByClass:
    _checks.entries(name, batch, ("image", "label"), "tasks of labelled images")
    images = numbers(f"{name}['image']", batch["image"])
    labels = numbers(f"{name}['label']", batch["label"])
    _check_images(name, images, labels)
    if images.shape[3] == 1:
        images = images[..., 0]

    by_class = defaultdict(list)
    for place, label in enumerate(labels):
        image = _Image(images[place], place)
        by_class[int(label)].append(image)
    return by_class


def _largest_count(by_class: _ByClass) -> int:
    return max(map(len, by_class.values()))


def _check_predictions(predicted: np.ndarray, truth: np.ndarray) -> None:
    if predicted.shape != truth.shape or predicted.dtype.kind not in "iu":
        raise ValueError(
            f"predicted must be one label a query image, {list(truth.shape)}, got "
            f"{predicted.dtype}{list(predicted.shape)}; for logits give logits.argmax(-1)"
        )


def _check_images(name: str, images: np.ndarray, labels: np.ndarray) -> None:
    fits = images.ndim == 4
    fits = fits and images.shape[3] in (1, 3)
    fits = fits and labels.shape == images.shape[:1]
    if not fits or not labels.size:
        raise ValueError(
            f'{name}["image"] must be [B, height, width, 1 or 3] with one label each, got '
            f"{list(images.shape)} and {list(labels.shape)} labels"
        )


def _draw_answer(
    ax: Any,
    pixels: np.ndarray,
    x: float,
    y: float,
    answer: int,
    correct: bool,
) -> None:
    """A query image in a frame that says whether the answer is correct."""
    if correct:
        _draw_image(ax, pixels, x, y, COLOURS[3], 1.2)
        return
    _draw_image(ax, pixels, x, y, COLOURS[4], 3.0)
    ax.text(
        x + 0.9,
        y + 0.9,
        str(answer),
        ha="right",
        va="bottom",
        color=COLOURS[4],
        fontsize=9,
        fontweight="bold",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
    )


def _draw_image(
    ax: Any,
    pixels: np.ndarray,
    x: float,
    y: float,
    colour: str = "#BBBBBB",
    width: float = 0.8,
) -> None:
    """An image in a frame, within the square of size 1 whose upper left corner is ``(x, y)``."""
    white = 255 if pixels.dtype == np.uint8 else 1
    left = x + 0.05
    right = x + 0.95
    top = y + 0.05
    bottom = y + 0.95
    ax.imshow(
        pixels,
        extent=(left, right, bottom, top),
        cmap="gray",
        vmin=0,
        vmax=white,
    )
    frame_x = [left, right, right, left, left]
    frame_y = [top, top, bottom, bottom, top]
    ax.plot(frame_x, frame_y, color=colour, linewidth=width)
