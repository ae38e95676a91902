"""Pictures of what was learned; each function returns its matplotlib axes.

They need matplotlib: ``pip install 'metajax[plot]'``.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from metajax import _checks
from metajax._arguments import PositiveFloat, PositiveInt, checked, shown

# The colours of Okabe & Ito, which can be told apart with any colour vision; black first, for what
# the picture is about.
COLOURS = (
    "#000000",  # black
    "#E69F00",  # orange
    "#56B4E9",  # sky blue
    "#009E73",  # green
    "#D55E00",  # vermilion
    "#CC79A7",  # purple
    "#0072B2",  # blue
    "#F0E442",  # yellow
)
STYLES = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1)),
    (0, (1, 1)),
    (0, (3, 1, 1, 1)),
    (0, (5, 5)),
)
_MARKERS = "os^Dv<>*"


@checked
def curves(
    losses: Mapping[str, Any],
    ax: Any = None,
    *,
    xlabel: str = "inner step",
    ylabel: str = "loss",
    log: bool = True,
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
    _check_some("losses", losses)
    ax = _axes(ax)
    for i, (name, values) in enumerate(losses.items()):
        values = np.atleast_2d(_array(f"losses[{name!r}]", values)).astype(np.float64)
        mean = values.mean(0)
        error = _standard_error(values)
        steps = np.arange(len(mean))

        style = _line_style(i)
        # The first is what the picture is about.
        style["linewidth"] = 2.2 if i == 0 else 1.5
        ax.plot(steps, mean, label=name, **style)

        low = mean - 2 * error
        high = mean + 2 * error
        # What is never negative, such as an accuracy, has no band below 0.
        low = np.maximum(low, np.fmin.reduce(values, axis=None, initial=0))
        # A logarithmic axis has no place for a band that reaches 0.
        if log:
            low = np.maximum(low, 0.1 * mean)
        band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
        ax.fill_between(steps, low, high, **band)

    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_yscale("log" if log else "linear")
    _legend(ax)
    return _hide_frame(ax)


def _standard_error(values: np.ndarray) -> np.ndarray:
    count = len(values)
    if count == 1:
        return np.zeros(values.shape[1])
    return values.std(0, ddof=1) / count**0.5


@checked
def estimators(diagnoses: Mapping[str, Any], axes: Any = None) -> Any:
    """How good estimators are and what they cost: bias, cosine and inner steps.

    The bias comes with two standard errors.

    Args:
      diagnoses: name -> `metajax.Diagnosis`, as `metajax.diagnose` gives it.
      axes: three axes to draw on; new ones by default.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(2), horizon=4)
    >>> rate, key = jax.numpy.float32(0.01), jax.random.key(0)
    >>> diagnosis = mx.diagnose(mx.bptt(loop, 2), key, rate, inner=loop, samples=4)
    >>> [ax.get_xlabel() for ax in mx.plot.estimators({"bptt": diagnosis})]
    ['relative bias', 'cosine to the exact gradient', 'cost (forward inner steps)']
    """
    names = list(diagnoses)
    rows = list(diagnoses.values())
    if not rows or not all(hasattr(row, "inner_steps") for row in rows):
        raise TypeError(
            f"diagnoses must be a dict of name -> metajax.Diagnosis, got {shown(diagnoses)}"
        )
    if axes is None:
        height = 0.3 * len(names) + 1
        figure = _figure((7, height))
        axes = figure.subplots(1, 3, sharey=True)
    if not isinstance(axes, (Sequence, np.ndarray)) or len(axes) != 3:
        raise TypeError(f"axes must be three axes to draw on, got {shown(axes)}")
    for i, ax in enumerate(axes):
        _check_axes(f"axes[{i}]", ax)
    bias_axes, cosine_axes, cost_axes = axes

    biases = [row.bias for row in rows]
    errors = [2 * row.bias_error for row in rows]
    _bars(bias_axes, names, biases, "relative bias", errors)

    cosines = [row.cosine for row in rows]
    _bars(cosine_axes, names, cosines, "cosine to the exact gradient")

    costs = [row.inner_steps for row in rows]
    _bars(cost_axes, names, costs, "cost (forward inner steps)")
    if np.isfinite(costs).all():
        power = np.floor(np.log10(min(costs)))
        cost_axes.set_xscale("log")
        cost_axes.set_xlim(left=10.0**power)
        cost_axes.xaxis.set_minor_formatter(lambda *_: "")
    return axes


def _bars(
    ax: Any,
    names: list[str],
    values: list[float],
    label: str,
    errors: list[float] | None = None,
) -> None:
    rows = range(len(names))
    ax.barh(
        rows,
        values,
        xerr=errors,
        capsize=2,
        color=COLOURS[2],
        ecolor=COLOURS[0],
    )
    ax.set_xlabel(label)
    ax.set_yticks(rows, names)
    # The first name on top.
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(labelsize=8)
    ax.xaxis.label.set_fontsize(8)
    _hide_frame(ax)


@checked
def update_rule(
    tx: optax.GradientTransformation,
    ax: Any = None,
    *,
    largest: PositiveFloat = 1.0,
    past: Sequence[float] = (-1.0, 0.0, 1.0),
    steps: PositiveInt = 10,
) -> Any:
    """What an optimizer does to a coordinate: its update against the gradient.

    A line for each of several histories of the gradient.

    Args:
      tx: an `optax.GradientTransformation`, e.g. ``optimizer.tx(meta_params)``, that treats
        coordinates alike.
      ax: the axes to draw on; new ones by default.
      largest: gradients are drawn from minus to plus this.
      past: in each of the histories the gradient has had this value.
      steps: for so many steps.

    >>> import metajax as mx, optax
    >>> ax = mx.plot.update_rule(optax.sgd(0.1, momentum=0.9), past=[-1.0, 1.0])
    >>> ax.get_xlabel(), len(ax.lines)
    ('gradient', 2)
    """
    _check_some("past", past)
    ax = _axes(ax)
    gradient = jnp.linspace(-largest, largest, 201)
    params = jnp.zeros_like(gradient)
    for i, value in enumerate(past):
        state = tx.init(params)
        for _ in range(steps):
            before = jnp.full_like(gradient, value)
            _, state = tx.update(before, state, params)
        update, _ = tx.update(gradient, state, params)

        label = f"{steps} gradients of {value:g} before"
        style = _line_style(i)
        ax.plot(gradient, update, label=label, **style)
    ax.set(xlabel="gradient", ylabel="update")
    _legend(ax)
    return _hide_frame(ax)


@checked
def state_map(states: Any, shape: tuple[int, int], ax: Any = None) -> Any:
    """One feature of all cells of a VSML layer: for each output, an image of its cells.

    The pixel of an input shows the cell that joins it to the output.

    Args:
      states: ``[A, B]``, one feature of the cells of a dense layer.
      shape: height and width of the image that the A inputs are the pixels of.
      ax: the axes to draw on; new ones by default.

    >>> import jax, metajax as mx
    >>> learner, key = mx.vsml((64, 10)), jax.random.key(0)
    >>> state = learner.init(key, learner.meta(key), ())
    >>> c, h = state.cells[0]                            # [replicas, positions, A, B, N]
    >>> ax = mx.plot.state_map(c[0, 0, :, :, 0], (8, 8))
    """
    states = _array("states", states)
    height, width = _checks.positive_ints("shape", shape, like=(8, 8))
    inputs = height * width
    got = list(states.shape)
    if states.ndim != 2 or got[0] != inputs:
        raise ValueError(
            f"states must be [{inputs}, B] for the shape {shape}, got {got}"
        )

    outputs = states.shape[1]
    ax = _axes(ax, (0.8 * outputs + 1, 1.4))
    colours = _diverging(states)
    number = {"ha": "center", "va": "top", "fontsize": 8}
    for output in range(outputs):
        left = 1.1 * output
        right = left + 1
        image = states[:, output].reshape(shape)
        mappable = ax.imshow(image, extent=(left, right, 0, 1), **colours)
        ax.text(left + 0.5, -0.1, str(output), **number)

    ax.set_xlim(0, 1.1 * outputs)
    ax.set_ylim(-0.3, 1)
    ax.set_xlabel("output")
    _hide_axes(ax)
    place = {"fraction": 0.02, "pad": 0.01}
    colourbar = ax.figure.colorbar(mappable, ax=ax, **place)
    colourbar.ax.tick_params(labelsize=7)
    return ax


@checked
def messages(
    values: Any,
    labels: Any = None,
    ax: Any = None,
    *,
    name: str = "message",
) -> Any:
    """What flows through a network as it learns: a row for each unit, a column for each example.

    Args:
      values: ``[steps, units]``, e.g. the logits, or the errors that were sent back.
      labels: ``[steps]``, marked in their rows.
      ax: the axes to draw on; new ones by default.
      name: label of the colours.

    >>> import numpy as np, metajax as mx
    >>> values = np.random.default_rng(0).normal(size=(50, 10))
    >>> ax = mx.plot.messages(values, labels=np.arange(50) % 10)
    >>> ax.get_ylabel()
    'unit'
    """
    values = _array("values", values)
    if values.ndim != 2:
        raise ValueError(f"values must be [steps, units], got {list(values.shape)}")

    ax = _axes(ax, (6, 2.4))
    colours = _diverging(values)
    mappable = ax.imshow(
        values.T,
        aspect="auto",
        interpolation="nearest",
        **colours,
    )
    if labels is not None:
        labels = _array("labels", labels)
        if labels.shape != values.shape[:1]:
            raise ValueError(
                f"labels must be one a step, {list(values.shape[:1])}, got {list(labels.shape)}"
            )
        steps = np.arange(len(values))
        dots = {"color": COLOURS[0], "markersize": 3}
        ax.plot(steps, labels, ".", **dots)
    ax.set(xlabel="example", ylabel="unit")
    ax.figure.colorbar(mappable, ax=ax, label=name)
    return ax


@checked
def scaling(
    x: Sequence[PositiveFloat],
    values: Mapping[str, Any],
    ax: Any = None,
    *,
    xlabel: str = "inner steps",
    ylabel: str = "temporary memory (MiB)",
) -> Any:
    """What grows with what, e.g. memory with the number of inner steps: lines on logarithmic axes.

    Args:
      x: the values measured at, all above 0.
      values: name -> one number for each of them.
      ax: the axes to draw on; new ones by default.
      xlabel: label of the horizontal axis.
      ylabel: label of the vertical axis, with its unit.

    >>> import metajax as mx
    >>> ax = mx.plot.scaling([1, 2, 4], {"MAML": [10, 20, 40], "iMAML": [15, 15, 15]})
    >>> ax.get_xscale(), ax.get_yscale()
    ('log', 'log')
    """
    _check_some("values", values)
    ax = _axes(ax)
    for i, (name, y) in enumerate(values.items()):
        style = _line_style(i)
        style["linewidth"] = 1.5
        style["marker"] = _MARKERS[i % len(_MARKERS)]
        style["markersize"] = 4
        y = _array(f"values[{name!r}]", y)
        if y.shape != (len(x),):
            raise ValueError(
                f"values[{name!r}] must be a number for each of x, {len(x)}, got {list(y.shape)}"
            )
        ax.plot(x, y, label=name, **style)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set(xscale="log", yscale="log")
    ax.set_xticks(list(x), [f"{v:g}" for v in x])
    ax.set_xticks([], minor=True)
    _legend(ax)
    return _hide_frame(ax)


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
    predicted = _array("predicted", predicted)
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
    ax = _axes(ax, (width, height))

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
    return _hide_axes(ax)


class _Image(NamedTuple):
    """An image as matplotlib takes it, and its place in the batch."""

    pixels: np.ndarray
    place: int


_ByClass = defaultdict[int, list[_Image]]


def _by_class(name: str, batch: Mapping[str, Any]) -> _ByClass:
    _checks.entries(name, batch, ("image", "label"), "tasks of labelled images")
    images = _array(f"{name}['image']", batch["image"])
    labels = _array(f"{name}['label']", batch["label"])
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


# What the pictures have in common


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError(
            "metajax.plot needs matplotlib: pip install 'metajax[plot]'"
        ) from e
    return Figure(figsize=size, layout="constrained")


def _axes(ax: Any, size: tuple[float, float] = (5, 3.6)) -> Any:
    """``ax``, or if that is None, axes on a new figure of ``size`` inches."""
    if ax is None:
        return _figure(size).add_subplot()
    _check_axes("ax", ax)
    return ax


def _check_some(name: str, values: Any) -> None:
    if len(values) == 0:
        raise ValueError(f"{name} is empty: there is nothing to draw")


def _check_axes(name: str, ax: Any) -> None:
    if not hasattr(ax, "imshow"):
        raise TypeError(f"{name} must be matplotlib axes, got {shown(ax)}")


def _array(name: str, values: Any) -> np.ndarray:
    """Numbers as an array."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        array = np.empty(0, object)
    if array.dtype.kind in "OSUMmc":
        raise TypeError(f"{name} must be an array of real numbers, got {shown(values)}")
    return array


def _line_style(i: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": STYLES[i % len(STYLES)],
    }


def _diverging(values: np.ndarray) -> dict[str, Any]:
    """Two colours, for above and below 0."""
    largest = np.abs(values).max() or 1.0
    return {"cmap": "PuOr", "vmin": -largest, "vmax": largest}


def _legend(ax: Any) -> None:
    ax.legend(frameon=False, fontsize=8)


def _hide_frame(ax: Any) -> Any:
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _hide_axes(ax: Any) -> Any:
    """For images side by side: no axes, and units of one length in both directions."""
    ax.set(aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax
