"""Curves and bars: what grows, falls, or is more than another."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metajax._arguments import PositiveFloat, checked, shown
from metajax.plot._axes import (
    COLOURS,
    axes_or_new,
    check_axes,
    check_some,
    hide_frame,
    legend,
    line_style,
    new_figure,
    numbers,
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
    check_some("losses", losses)
    ax = axes_or_new(ax)
    for i, (name, values) in enumerate(losses.items()):
        values = np.atleast_2d(numbers(f"losses[{name!r}]", values)).astype(np.float64)
        mean = values.mean(0)
        error = _standard_error(values)
        steps = np.arange(len(mean))

        style = line_style(i)
        # The first is what the picture is about.
        style["linewidth"] = 2.2 if i == 0 else 1.5
        ax.plot(steps, mean, label=name, **style)

        low = mean - 2 * error
        high = mean + 2 * error
        # What is never negative, such as an accuracy, has no band below 0.
        low = np.maximum(low, np.fmin.reduce(values, axis=None, initial=0))
        # Nor one above 1, where nothing is.
        if (
            np.fmax.reduce(values, axis=None) <= 1
            and np.fmin.reduce(values, axis=None) >= 0
        ):
            high = np.minimum(high, 1)
        # A logarithmic axis has no place for a band that reaches 0.
        if log:
            low = np.maximum(low, 0.1 * mean)
        band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
        ax.fill_between(steps, low, high, **band)

    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_yscale("log" if log else "linear")
    legend(ax)
    return hide_frame(ax)


def _standard_error(values: np.ndarray) -> np.ndarray:
    count = len(values)
    if count == 1:
        return np.zeros(values.shape[1])
    return values.std(0, ddof=1) / count**0.5


@checked
def estimators(diagnoses: Mapping[str, Any], axes: Any = None) -> Any:
    """How good estimators are and what they cost: bias, noise, cosine and inner steps.

    The bias comes with two standard errors; the noise is the standard deviation of a sample over
    the length of the mean, the root of ``1 / snr``.

    Args:
      diagnoses: name -> `metajax.Diagnosis`, as `metajax.diagnose` gives it.
      axes: four axes to draw on; new ones by default.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(2), horizon=4)
    >>> rate, key = jax.numpy.float32(0.01), jax.random.key(0)
    >>> diagnosis = mx.diagnose(mx.bptt(loop, 2), key, rate, inner=loop, samples=4)
    >>> [ax.get_xlabel() for ax in mx.plot.estimators({"bptt": diagnosis})]
    ['relative bias', 'deviation over mean', 'cosine', 'cost (inner steps)']
    """
    names = list(diagnoses)
    rows = list(diagnoses.values())
    if not rows or not all(hasattr(row, "inner_steps") for row in rows):
        raise TypeError(
            f"diagnoses must be a dict of name -> metajax.Diagnosis, got {shown(diagnoses)}"
        )
    if axes is None:
        height = 0.3 * len(names) + 1
        figure = new_figure((8, height))
        axes = figure.subplots(1, 4, sharey=True)
    if not isinstance(axes, (Sequence, np.ndarray)) or len(axes) != 4:
        raise TypeError(f"axes must be four axes to draw on, got {shown(axes)}")
    for i, ax in enumerate(axes):
        check_axes(f"axes[{i}]", ax)
    bias_axes, noise_axes, cosine_axes, cost_axes = axes

    biases = [row.bias for row in rows]
    errors = [2 * row.bias_error for row in rows]
    _bars(bias_axes, names, biases, "relative bias", errors)

    noises = [row.snr**-0.5 if row.snr else np.inf for row in rows]
    _bars(noise_axes, names, noises, "deviation over mean")
    _log_axis(noise_axes, noises)

    cosines = [row.cosine for row in rows]
    _bars(cosine_axes, names, cosines, "cosine")

    costs = [row.inner_steps for row in rows]
    _bars(cost_axes, names, costs, "cost (inner steps)")
    _log_axis(cost_axes, costs)
    return axes


def _log_axis(ax: Any, values: list[float]) -> None:
    """A logarithmic axis that begins at a power of ten, where all values have a place on it."""
    if not np.isfinite(values).all() or min(values) <= 0:
        return
    power = np.floor(np.log10(min(values)))
    ax.set_xscale("log")
    ax.set_xlim(left=10.0**power)
    ax.xaxis.set_minor_formatter(lambda *_: "")


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
    hide_frame(ax)


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
    check_some("values", values)
    ax = axes_or_new(ax)
    for i, (name, y) in enumerate(values.items()):
        style = line_style(i)
        style["linewidth"] = 1.5
        style["marker"] = _MARKERS[i % len(_MARKERS)]
        style["markersize"] = 4
        y = numbers(f"values[{name!r}]", y)
        if y.shape != (len(x),):
            raise ValueError(
                f"values[{name!r}] must be a number for each of x, {len(x)}, got {list(y.shape)}"
            )
        ax.plot(x, y, label=name, **style)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set(xscale="log", yscale="log")
    ax.set_xticks(list(x), [f"{v:g}" for v in x])
    ax.set_xticks([], minor=True)
    legend(ax)
    return hide_frame(ax)
