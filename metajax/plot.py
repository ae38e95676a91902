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


def _axes() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError("metajax.plot needs matplotlib: pip install 'metajax[plot]'") from e
    return Figure(figsize=(5, 3.6), layout="constrained").add_subplot()
