"""Pictures; needs matplotlib (``pip install 'metajax[plot]'``). Each function returns its matplotlib axes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# Okabe & Ito's colours, told apart with any colour vision; black first, for what the picture is about.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (5, 5)))


def curves(
    losses: Mapping[str, Any], ax: Any = None, *, xlabel: str = "inner step", ylabel: str = "loss", log: bool = True
) -> Any:
    """Learning curves: the mean over tasks, with a band of two standard errors.

    Args:
      losses: name -> ``[num_tasks, steps]``, e.g. the ``loss`` of `metajax.compare`.
      ax: the axes to draw on; new ones by default.
      xlabel: label of the horizontal axis.
      ylabel: label of the vertical axis, with its unit.
      log: logarithmic vertical axis.

    >>> import numpy as np, metajax as mx
    >>> ax = mx.plot.curves({"ours": np.exp(-np.linspace(0, 3, 50)) * np.ones((4, 1))})
    >>> ax.get_xlabel()
    'inner step'
    """
    ax = _axes() if ax is None else ax
    for i, (name, values) in enumerate(losses.items()):
        values = np.atleast_2d(np.asarray(values, np.float64))
        steps, mean = np.arange(values.shape[1]), values.mean(0)
        error = values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.zeros_like(mean)
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]
        ax.plot(steps, mean, color=colour, linestyle=style, linewidth=2.2 if i == 0 else 1.5, label=name)
        low = mean - 2 * error if not log else np.maximum(mean - 2 * error, mean * 0.1)
        ax.fill_between(steps, low, mean + 2 * error, color=colour, alpha=0.15, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def episode(support: Mapping[str, Any], query: Mapping[str, Any], predicted: Any, ax: Any = None) -> Any:
    """A few-shot episode, a row for each class: its support images, then its query images with what was predicted.

    Right predictions have a thin frame, wrong ones a thick one, and the class that was predicted instead.

    Args:
      support: ``{"image": [N * K, height, width, channels], "label": [N * K]}``, as `metajax.tasks.episodes` gives it;
        one channel or three, uint8 or in [0, 1].
      query: likewise.
      predicted: ``[N * Q]``, the predicted label of each query image.
      ax: the axes to draw on; new ones by default.

    Raises:
      ValueError: images of another shape, or not one prediction a query image.

    >>> import jax, metajax as mx
    >>> data, tasks = mx.data.few_shot("digits", "train"), mx.tasks.episodes(5, shots=2, queries=3)
    >>> task = tasks.sample(jax.random.key(0), data)
    >>> support, query = tasks.train(jax.random.key(1), data, task, 0), tasks.test(jax.random.key(2), data, task)
    >>> ax = mx.plot.episode(support, query, predicted=query["label"])
    >>> ax.get_title()
    '15 of 15 right'
    """
    predicted, label = np.asarray(predicted), np.asarray(query["label"])
    if predicted.shape != label.shape:
        raise ValueError(
            f"predicted must be one label a query image, {list(label.shape)}, got {list(predicted.shape)}; "
            f"for logits give logits.argmax(-1)"
        )
    shots, queries = (_by_label(name, part) for name, part in (("support", support), ("query", query)))
    columns, more = (max(len(images) for images, _ in part.values()) for part in (shots, queries))
    classes, width, none = sorted(shots.keys() | queries.keys()), columns + more + 0.5, ((), ())
    ax = _axes((0.6 * width + 0.6, 0.6 * len(classes) + 0.8)) if ax is None else ax
    for row, c in enumerate(classes):
        ax.text(-0.15, row + 0.5, str(c), ha="right", va="center", fontsize=9)
        for x, image in enumerate(shots.get(c, none)[0]):
            _picture(ax, image, x, row)
        for x, (image, i) in enumerate(zip(*queries.get(c, none), strict=True)):
            right = predicted[i] == c
            _picture(ax, image, columns + 0.5 + x, row, COLOURS[3] if right else COLOURS[4], 1.2 if right else 3.0)
            if not right:
                ax.text(columns + 1.4 + x, row + 0.9, str(predicted[i]), color=COLOURS[4], **_WRONG)
    for x, text in ((columns / 2, "support"), (columns + 0.5 + more / 2, "queries")):
        ax.text(x, -0.1, text, ha="center", va="bottom", fontsize=9)
    ax.set(xlim=(-0.5, width), ylim=(len(classes), -0.4), aspect="equal", xticks=[], yticks=[])
    ax.set_title(f"{(predicted == label).sum()} of {label.size} right", fontsize=9)
    ax.spines[:].set_visible(False)
    return ax


_WRONG = {"fontsize": 9, "fontweight": "bold", "ha": "right", "va": "bottom"}
_WRONG |= {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.8}}


def _by_label(name: str, part: Mapping[str, Any]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    # label -> its images as matplotlib takes them, and their places in the batch
    image, label = np.asarray(part["image"]), np.asarray(part["label"])
    if image.ndim != 4 or image.shape[3] not in (1, 3) or label.shape != image.shape[:1] or not label.size:
        raise ValueError(
            f'{name}["image"] must be [B, height, width, 1 or 3] with one label each, got {list(image.shape)} and '
            f"{list(label.shape)} labels"
        )
    image = image[..., 0] if image.shape[3] == 1 else image
    return {int(c): (image[label == c], np.flatnonzero(label == c)) for c in np.unique(label)}


def _picture(ax, image, x, y, colour="#BBBBBB", width=0.8) -> None:
    top = 255 if image.dtype == np.uint8 else 1
    ax.imshow(image, extent=(x + 0.05, x + 0.95, y + 0.95, y + 0.05), cmap="gray", vmin=0, vmax=top)
    ax.plot(
        [x + 0.05, x + 0.95, x + 0.95, x + 0.05, x + 0.05],
        [y + 0.05, y + 0.05, y + 0.95, y + 0.95, y + 0.05],
        color=colour,
        linewidth=width,
    )


def _axes(size: tuple[float, float] = (5, 3.6)) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError("metajax.plot needs matplotlib: pip install 'metajax[plot]'") from e
    return Figure(figsize=size, layout="constrained").add_subplot()
