"""What was learned: an optimizer's rule, a network's states and messages."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from metajax import _checks
from metajax._arguments import PositiveFloat, PositiveInt, checked
from metajax.plot._axes import (
    COLOURS,
    axes_or_new,
    check_some,
    diverging,
    hide_axes,
    hide_frame,
    legend,
    line_style,
    numbers,
)


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
    check_some("past", past)
    ax = axes_or_new(ax)
    gradient = jnp.linspace(-largest, largest, 201)
    params = jnp.zeros_like(gradient)
    for i, value in enumerate(past):
        state = tx.init(params)
        for _ in range(steps):
            before = jnp.full_like(gradient, value)
            _, state = tx.update(before, state, params)
        update, _ = tx.update(gradient, state, params)

        label = f"{steps} gradients of {value:g} before"
        style = line_style(i)
        ax.plot(gradient, update, label=label, **style)
    ax.set(xlabel="gradient", ylabel="update")
    legend(ax)
    return hide_frame(ax)


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
    states = numbers("states", states)
    height, width = _checks.positive_ints("shape", shape, like=(8, 8))
    inputs = height * width
    got = list(states.shape)
    if states.ndim != 2 or got[0] != inputs:
        raise ValueError(
            f"states must be [{inputs}, B] for the shape {shape}, got {got}"
        )

    outputs = states.shape[1]
    ax = axes_or_new(ax, (0.8 * outputs + 1, 1.4))
    colours = diverging(states)
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
    hide_axes(ax)
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
    values = numbers("values", values)
    if values.ndim != 2:
        raise ValueError(f"values must be [steps, units], got {list(values.shape)}")

    ax = axes_or_new(ax, (6, 2.4))
    colours = diverging(values)
    mappable = ax.imshow(
        values.T,
        aspect="auto",
        interpolation="nearest",
        **colours,
    )
    if labels is not None:
        labels = numbers("labels", labels)
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
