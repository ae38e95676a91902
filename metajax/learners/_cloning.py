"""Learning-algorithm cloning: a cell that runs backpropagation forwards.

Kirsch & Schmidhuber 2021, section 4.1. A cell holds a weight ``w`` and a bias ``b`` in the first
two features of its state. Cloning fits its parameters so that an example ``x`` from below makes it
send ``y = tanh(x) w + b`` upwards, and the error ``e`` from above makes it send ``e w (1 -
tanh(x)^2)`` downwards and change ``w`` and ``b`` by a step of gradient descent. The fit is an inner
loop like any other, and any estimator does it; what comes out are the meta-parameters of a
`metajax.vsml` network.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax._arguments import PositiveFloat, checked
from metajax.cells import Cell, recall, store
from metajax.types import Array, Learner, PyTree

# Errors are relative once what is wanted is larger than these.
_UPWARD_FLOOR = 1.0
_DOWNWARD_FLOOR = 0.3
_UPDATE_FLOOR = 0.02
_LARGEST = 3.0  # of a state; a tanh has long saturated there


class CloneState(NamedTuple):
    """Cells, ``[M, 1, 1, N]``, and the weights and biases ``[M]`` of gradient descent itself."""

    cells: PyTree
    w: Array
    b: Array


@checked
def clone_backprop(cell: Cell, rate: PositiveFloat) -> Learner:
    """Fits ``cell`` to backpropagation with the learning rate ``rate``.

    Its tasks are `metajax.tasks.signals`. Each step is what happens to a cell of a network with
    ``backward_pass``: an upward sweep without error, a downward sweep with it. The loss is the mean
    squared error of what is sent upwards, of what is sent downwards, and of ``w`` and ``b`` after
    each of the two sweeps, in units of ``rate``. Errors are relative to what is wanted once that
    exceeds 1 (upwards), 0.3 (downwards) and 0.02 (updates): a network that has learned meets small
    errors most of the time, and whatever its cells do to weights that should stay adds up. With a
    horizon of 1 it is the error of a single step; with a longer one cells go on from what they have
    made of themselves. A last term keeps the states below 3 in size. The metrics ``y``, ``e`` and
    ``update`` are not relative.

    The cell needs messages of one slot, so that what a layer sends is what the next one takes,
    ``reduce="sum"``, and two ticks, since one does not multiply; `metajax.cells.with_weights` gives
    it the memory that it is to have in a network.

    >>> import jax, metajax as mx
    >>> cell = mx.cells.with_weights(mx.cells.lstm(16, slots=1, reduce="sum"))
    >>> learner = mx.clone_backprop(cell, rate=0.01)
    >>> loop = mx.inner(learner, mx.tasks.signals(64), horizon=2)
    >>> meta_params = learner.meta(jax.random.key(1))
    >>> curves = mx.evaluate(loop, jax.random.key(0), meta_params, num_tasks=4)
    >>> sorted(curves.metrics)
    ['drift', 'e', 'update', 'y']
    """
    if cell.slots != 1:
        raise ValueError(
            f"cell must have messages of 1 slot to pass on what it computes, got {cell.slots}"
        )

    def init(key, meta_params, task):
        blank = jax.tree.map(jnp.zeros_like, cell.state(key, (len(task["w"]), 1, 1)))
        return CloneState(store(blank, task["w"], task["b"]), task["w"], task["b"])

    def step(key, meta_params, state, batch):
        _checks.entries("batch", batch, ("x", "e"), "metajax.tasks.signals")
        x = batch["x"]
        e = batch["e"]

        # What the cell does: up without an error, then down with one.
        upward = x[:, None, None]
        error = e[:, None, None]
        up = cell.step(meta_params, state.cells, upward, error[..., :0])
        down = cell.step(meta_params, up, upward, error)
        sent_up = cell.forward(meta_params, up, 1)[:, 0, 0]
        sent_down = cell.backward(meta_params, down, 1)[:, 0, 0]

        # What backpropagation does.
        activation = jnp.tanh(x)
        target_up = activation * state.w + state.b
        target_down = e * state.w * (1 - activation**2)
        w = state.w - rate * e * activation
        b = state.b - rate * e

        up_error = sent_up - target_up
        down_error = sent_down - target_down
        moved = (
            _weight_errors(up, state.w, state.b) / rate
        )  # the upward sweep is to move nothing
        update = _weight_errors(down, w, b) / rate

        loss = _relative(up_error, target_up, _UPWARD_FLOOR)
        loss += _relative(down_error, target_down, _DOWNWARD_FLOOR)
        for weight_error in moved:
            loss += _relative(weight_error, 0.0, _UPDATE_FLOOR)
        for weight_error in update:
            loss += _relative(weight_error, e, _UPDATE_FLOOR)
        loss += _excess(down)

        update_error = jnp.mean(jnp.sum(update**2, 0))
        metrics = {
            "y": jnp.mean(up_error**2),
            "e": jnp.mean(down_error**2),
            "update": update_error,
            "drift": rate * jnp.sqrt(update_error),
        }
        return CloneState(down, w, b), loss, metrics

    def test(key, meta_params, state, batch):
        _, loss, metrics = step(key, meta_params, state, batch)
        return loss, metrics

    return Learner(init, step, test, meta=cell.init)


def _weight_errors(cells: PyTree, w: Array, b: Array) -> Array:
    """How far the weights and biases of the cells are from ``w`` and ``b``, ``[2, M]``."""
    held_w, held_b = recall(cells)
    return jnp.stack([held_w.reshape(w.shape) - w, held_b.reshape(b.shape) - b])


def _relative(error: Array, size: Array | float, floor: float) -> Array:
    return jnp.mean(error**2 / (size**2 + floor**2))


def _excess(cells: PyTree) -> Array:
    total = jnp.zeros(())
    for x in jax.tree.leaves(cells):
        total += jnp.mean(jnp.maximum(jnp.abs(x) - _LARGEST, 0) ** 2)
    return total
