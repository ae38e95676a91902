"""What the pictures have in common."""

from typing import Any

import numpy as np

from metajax._arguments import shown

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


def new_figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError(
            "metajax.plot needs matplotlib: pip install 'metajax[plot]'"
        ) from e
    return Figure(figsize=size, layout="constrained")


def axes_or_new(ax: Any, size: tuple[float, float] = (5, 3.6)) -> Any:
    """``ax``, or if that is None, axes on a new figure of ``size`` inches."""
    if ax is None:
        return new_figure(size).add_subplot()
    check_axes("ax", ax)
    return ax


def check_some(name: str, values: Any) -> None:
    if len(values) == 0:
        raise ValueError(f"{name} is empty: there is nothing to draw")


def check_axes(name: str, ax: Any) -> None:
    if not hasattr(ax, "imshow"):
        raise TypeError(f"{name} must be matplotlib axes, got {shown(ax)}")


def numbers(name: str, values: Any) -> np.ndarray:
    """Numbers as an array."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        array = np.empty(0, object)
    if array.dtype.kind in "OSUMmc":
        raise TypeError(f"{name} must be an array of real numbers, got {shown(values)}")
    return array


def line_style(i: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": STYLES[i % len(STYLES)],
    }


def diverging(values: np.ndarray) -> dict[str, Any]:
    """Two colours, for above and below 0."""
    largest = np.abs(values).max() or 1.0
    return {"cmap": "PuOr", "vmin": -largest, "vmax": largest}


def legend(ax: Any) -> None:
    ax.legend(frameon=False, fontsize=8)


def hide_frame(ax: Any) -> Any:
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def hide_axes(ax: Any) -> Any:
    """For images side by side: no axes, and units of one length in both directions."""
    ax.set(aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax
