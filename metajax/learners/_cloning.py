"""Learning-algorithm cloning: a cell that runs backpropagation forwards (Kirsch & Schmidhuber 2021,
section 4.1).

A cell holds a weight ``w`` and a bias ``b`` in the first two features of its state. Cloning fits
its parameters so that an example ``x`` from below makes it send ``y = tanh(x) w + b`` upwards, and
the error ``e`` from above makes it send ``e w (1 - tanh(x)^2)`` downwards and change ``w`` and
``b`` by a step of gradient descent. The fit is an inner loop like any other, and any estimator does
it; what comes out are the meta-parameters of a `metajax.vsml` network.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax.cells import Cell, recall, store
from metajax.types import Array, InContext, Learner, PyTree


class CloneState(NamedTuple):
    """Cells, ``[M, 1, 1, N]``, and the weights and biases ``[M]`` that gradient descent itself has
    come to.
    """

    cells: PyTree
    w: Array
    b: Array


def clone_backprop(cell: Cell, rate: float) -> InContext:
    """Fits ``cell`` to backpropagation with the learning rate ``rate``; its tasks are
    `metajax.tasks.signals`.

    Each step is what happens to a cell of a network with ``backward_pass``: an upward sweep without
    error, a downward sweep with it. The loss is the mean squared error of what is sent upwards, of
    what is sent downwards, and of ``w`` and ``b`` after each of the two sweeps, in units of
    ``rate``. Errors are relative to what is wanted once that exceeds 1 (upwards), 0.3 (downwards)
    and 0.02 (updates): a network that has learned meets small errors most of the time, and whatever
    its cells do to weights that should stay adds up. With a horizon of 1 it is the error of a
    single step; with a longer one cells go on from what they have made of themselves. A last term
    keeps the states below 3 in size, where a tanh has long saturated. The metrics ``y``, ``e`` and
    ``update`` are not relative.

    The cell needs messages of one slot, so that what a layer sends is what the next one takes,
    ``reduce="sum"``, and two ticks, since one does not multiply; `with_weights` gives it the memory
    that it is to have in a network.

    >>> import jax, metajax as mx
    >>> cell = mx.cells.with_weights(mx.cells.lstm(16, slots=1, reduce="sum"))
    >>> clone = mx.clone_backprop(cell, rate=0.01)
    >>> loop = mx.inner(clone.learner, mx.tasks.signals(64), horizon=2)
    >>> curves = mx.evaluate(loop, jax.random.key(0), clone.init(jax.random.key(1)), num_tasks=4)
    >>> sorted(curves.metrics)
    ['drift', 'e', 'update', 'y']
    """
    _checks.instance(Cell, cell=cell)
    if cell.slots != 1:
        raise ValueError(
            f"cell must have messages of 1 slot to pass on what it computes, got {cell.slots}"
        )
    _checks.positive_float(rate=rate)

    def init(key, meta_params, task):
        cells = cell.state(key, (len(task["w"]), 1, 1))
        return CloneState(
            store(jax.tree.map(jnp.zeros_like, cells), task["w"], task["b"]), task["w"], task["b"]
        )

    def step(key, meta_params, state, batch):
        x, e = batch["x"], batch["e"]
        upward, error = x[:, None, None], e[:, None, None]
        w, b, slope = state.w, state.b, 1 - jnp.tanh(x) ** 2
        up = cell.step(meta_params, state.cells, upward, error[..., :0])
        y = cell.forward(meta_params, up, 1)[:, 0, 0]
        down = cell.step(meta_params, up, upward, error)
        back = cell.backward(meta_params, down, 1)[:, 0, 0]
        want_y, want_back = jnp.tanh(x) * w + b, e * w * slope
        new_w, new_b = w - rate * e * jnp.tanh(x), b - rate * e
        still, update = _offset(up, w, b) / rate, _offset(down, new_w, new_b) / rate
        metrics = {
            "y": jnp.mean((y - want_y) ** 2),
            "e": jnp.mean((back - want_back) ** 2),
            "update": jnp.mean(jnp.sum(update**2, 0)),
            "drift": rate * jnp.sqrt(jnp.mean(jnp.sum(update**2, 0))),
        }
        total = _relative(y - want_y, want_y, 1.0) + _relative(back - want_back, want_back, 0.3)
        total += sum(
            _relative(d, size, 0.02) for moved, size in ((still, 0.0), (update, e)) for d in moved
        )
        return CloneState(down, new_w, new_b), total + _excess(down), metrics

    def loss(key, meta_params, state, batch):
        return step(key, meta_params, state, batch)[1]

    return InContext(cell.init, Learner(init, step, loss))


def _offset(cells: PyTree, w: Array, b: Array) -> Array:
    return jnp.stack(
        [got.reshape(w.shape) - want for got, want in zip(recall(cells), (w, b), strict=True)]
    )


def _relative(error: Array, size: Array | float, floor: float) -> Array:
    return jnp.mean(error**2 / (size**2 + floor**2))


def _excess(cells: PyTree) -> Array:
    return sum(
        jnp.mean(jnp.maximum(jnp.abs(x) - 3, 0) ** 2) for x in jax.tree.leaves(cells)
    ) + jnp.zeros(())
