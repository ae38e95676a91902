"""Pictures; needs matplotlib (``pip install 'metajax[plot]'``). Each function returns its
matplotlib axes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Okabe & Ito's colours, told apart with any colour vision; black first, for what the picture is
# about.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (5, 5)))


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
    ax = _axes() if ax is None else ax
    for i, (name, values) in enumerate(losses.items()):
        values = np.atleast_2d(np.asarray(values, np.float64))
        steps, mean = np.arange(values.shape[1]), values.mean(0)
        error = (
            values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.zeros_like(mean)
        )
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]
        ax.plot(
            steps, mean, color=colour, linestyle=style, linewidth=2.2 if i == 0 else 1.5, label=name
        )
        low = mean - 2 * error if not log else np.maximum(mean - 2 * error, mean * 0.1)
        ax.fill_between(steps, low, mean + 2 * error, color=colour, alpha=0.15, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def estimators(diagnoses: Mapping[str, Any], axes: Any = None) -> Any:
    """How good estimators are and what they cost: bias with two standard errors, cosine, inner
    steps.

    Args:
      diagnoses: name -> `metajax.Diagnosis`, as `metajax.diagnose` gives it.
      axes: three axes to draw on; new ones by default.

    >>> import jax, metajax as mx, optax
    >>> loop = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(2), horizon=4)
    >>> rate, key = jax.numpy.float32(0.01), jax.random.key(0)
    >>> found = {"bptt": mx.diagnose(mx.bptt(loop, 2), key, rate, inner=loop, samples=4)}
    >>> [ax.get_xlabel() for ax in mx.plot.estimators(found)]
    ['relative bias', 'cosine to the exact gradient', 'cost (forward inner steps)']
    """
    names, rows = list(diagnoses), list(diagnoses.values())
    axes = _figure((7, 0.3 * len(names) + 1)).subplots(1, 3, sharey=True) if axes is None else axes
    panels = {
        "bias": "relative bias",
        "cosine": "cosine to the exact gradient",
        "inner_steps": "cost (forward inner steps)",
    }
    for ax, (field, label) in zip(axes, panels.items(), strict=True):
        values = [getattr(row, field) for row in rows]
        error = [2 * row.bias_error for row in rows] if field == "bias" else None
        ax.barh(
            range(len(names)), values, xerr=error, color=COLOURS[2], ecolor=COLOURS[0], capsize=2
        )
        ax.set(
            yticks=range(len(names)), yticklabels=names, xlabel=label, ylim=(len(names) - 0.5, -0.5)
        )
        if field == "inner_steps" and np.isfinite(values).all():
            ax.set(xscale="log", xlim=(10.0 ** np.floor(np.log10(min(values))), None))
            ax.xaxis.set_minor_formatter(lambda *_: "")
        _tidy(ax, 8)
    return axes


def update_rule(
    tx: Any,
    ax: Any = None,
    *,
    largest: float = 1.0,
    past: Sequence[float] = (-1.0, 0.0, 1.0),
    steps: int = 10,
) -> Any:
    """What an optimizer does to a coordinate: its update against the gradient, for several
    histories of it.

    Args: tx: an `optax.GradientTransformation`, e.g. ``optimizer.tx(meta_params)``, that treats
      coordinates alike. ax: the axes to draw on; new ones by default. largest: gradients are drawn
      from minus to plus this. past: in each of the histories the gradient has had this value.
      steps: for so many steps.

    >>> import metajax as mx, optax
    >>> ax = mx.plot.update_rule(optax.sgd(0.1, momentum=0.9), past=[-1.0, 1.0])
    >>> ax.get_xlabel(), len(ax.lines)
    ('gradient', 2)
    """
    import jax.numpy as jnp

    ax = _axes() if ax is None else ax
    gradient = jnp.linspace(-largest, largest, 201)
    for i, value in enumerate(past):
        params = jnp.zeros_like(gradient)
        state = tx.init(params)
        for _ in range(steps):
            _, state = tx.update(jnp.full_like(gradient, value), state, params)
        update, _ = tx.update(gradient, state, params)
        label = f"{steps} gradients of {value:g} before"
        ax.plot(
            gradient,
            update,
            color=COLOURS[i % len(COLOURS)],
            linestyle=STYLES[i % len(STYLES)],
            label=label,
        )
    ax.set(xlabel="gradient", ylabel="update")
    ax.legend(frameon=False, fontsize=8)
    return _tidy(ax)


def state_map(states: Any, shape: tuple[int, int], ax: Any = None) -> Any:
    """One feature of all cells of a VSML layer over an image: for each output, an image of the
    cells of its inputs.

    Args:
      states: ``[A, B]``, one feature of the cells of a dense layer.
      shape: height and width of the image that the A inputs are the pixels of.
      ax: the axes to draw on; new ones by default.

    Raises:
      ValueError: a shape that does not have A pixels.

    >>> import jax, metajax as mx
    >>> net = mx.vsml((64, 10))
    >>> state = net.learner.init(jax.random.key(0), net.init(jax.random.key(1)), ())
    >>> c, h = state.cells[0]                            # [replicas, positions, A, B, N]
    >>> ax = mx.plot.state_map(c[0, 0, :, :, 0], (8, 8))
    """
    states = np.asarray(states)
    if states.ndim != 2 or states.shape[0] != shape[0] * shape[1]:
        raise ValueError(
            f"states must be [{shape[0] * shape[1]}, B] for the shape {shape}, got {list(states.shape)}"
        )
    outputs = states.shape[1]
    ax = _axes((0.8 * outputs + 1, 1.4)) if ax is None else ax
    top = np.abs(states).max() or 1.0
    for b in range(outputs):
        left = 1.1 * b
        extent = (left, left + 1, 0, 1)
        drawn = ax.imshow(
            states[:, b].reshape(shape), extent=extent, cmap="PuOr", vmin=-top, vmax=top
        )
        ax.text(left + 0.5, -0.1, str(b), ha="center", va="top", fontsize=8)
    ax.set(
        xlim=(0, 1.1 * outputs),
        ylim=(-0.3, 1),
        aspect="equal",
        xticks=[],
        yticks=[],
        xlabel="output",
    )
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(drawn, ax=ax, fraction=0.02, pad=0.01).ax.tick_params(labelsize=7)
    return ax


def messages(values: Any, labels: Any = None, ax: Any = None, *, name: str = "message") -> Any:
    """What flows through a network as it learns: a row for each unit, a column for each example.

    Args:
      values: ``[steps, units]``, e.g. the logits, or the errors that were sent back.
      labels: ``[steps]``, marked in their rows.
      ax: the axes to draw on; new ones by default.
      name: label of the colours.

    >>> import numpy as np, metajax as mx
    >>> ax = mx.plot.messages(np.random.default_rng(0).normal(size=(50, 10)), labels=np.arange(50) % 10)
    >>> ax.get_ylabel()
    'unit'
    """
    values = np.asarray(values)
    if values.ndim != 2:
        raise ValueError(f"values must be [steps, units], got {list(values.shape)}")
    ax = _axes((6, 2.4)) if ax is None else ax
    top = np.abs(values).max() or 1.0
    drawn = ax.imshow(
        values.T, aspect="auto", cmap="PuOr", vmin=-top, vmax=top, interpolation="nearest"
    )
    if labels is not None:
        ax.plot(np.arange(len(values)), np.asarray(labels), ".", color=COLOURS[0], markersize=3)
    ax.set(xlabel="example", ylabel="unit")
    ax.figure.colorbar(drawn, ax=ax, label=name)
    return ax


def scaling(
    x: Sequence[float],
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
    ax = _axes() if ax is None else ax
    for i, (name, y) in enumerate(values.items()):
        style = {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": STYLES[i % len(STYLES)],
            "marker": "os^Dv<>*"[i % 8],
        }
        ax.plot(x, np.asarray(y), markersize=4, linewidth=1.5, label=name, **style)
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    ax.set_xticks(list(x), [f"{v:g}" for v in x])
    ax.set_xticks([], minor=True)
    ax.legend(frameon=False, fontsize=8)
    return _tidy(ax)


def episode(
    support: Mapping[str, Any], query: Mapping[str, Any], predicted: Any, ax: Any = None
) -> Any:
    """A few-shot episode, a row for each class: its support images, then its query images with what
    was predicted.

    Right predictions have a thin frame, wrong ones a thick one, and the class that was predicted
    instead.

    Args: support: ``{"image": [N * K, height, width, channels], "label": [N * K]}``, as
      `metajax.tasks.episodes` gives it; one channel or three, uint8 or in [0, 1]. query: likewise.
      predicted: ``[N * Q]``, the predicted label of each query image. ax: the axes to draw on; new
      ones by default.

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
    shots, queries = (
        _by_label(name, part) for name, part in (("support", support), ("query", query))
    )
    columns, more = (max(len(images) for images, _ in part.values()) for part in (shots, queries))
    classes, width, none = sorted(shots.keys() | queries.keys()), columns + more + 0.5, ((), ())
    ax = _axes((0.6 * width + 0.6, 0.6 * len(classes) + 0.8)) if ax is None else ax
    for row, c in enumerate(classes):
        ax.text(-0.15, row + 0.5, str(c), ha="right", va="center", fontsize=9)
        for x, image in enumerate(shots.get(c, none)[0]):
            _picture(ax, image, x, row)
        for x, (image, i) in enumerate(zip(*queries.get(c, none), strict=True)):
            right = predicted[i] == c
            _picture(
                ax,
                image,
                columns + 0.5 + x,
                row,
                COLOURS[3] if right else COLOURS[4],
                1.2 if right else 3.0,
            )
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
    if (
        image.ndim != 4
        or image.shape[3] not in (1, 3)
        or label.shape != image.shape[:1]
        or not label.size
    ):
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
    return _figure(size).add_subplot()


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError("metajax.plot needs matplotlib: pip install 'metajax[plot]'") from e
    return Figure(figsize=size, layout="constrained")


def _tidy(ax: Any, size: float | None = None) -> Any:
    ax.spines[["top", "right"]].set_visible(False)
    if size is not None:
        ax.tick_params(labelsize=size)
        ax.xaxis.label.set_fontsize(size)
    return ax
