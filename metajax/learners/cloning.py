"""Learning-algorithm cloning: a cell that runs backpropagation forwards (Kirsch & Schmidhuber 2021, section 4.1).

A cell holds a weight ``w`` and a bias ``b`` in the first two features of its state. Cloning fits its parameters so that
an example ``x`` from below makes it send ``y = tanh(x) w + b`` upwards, and the error ``e`` from above makes it send
``e w (1 - tanh(x)^2)`` downwards and change ``w`` and ``b`` by a step of gradient descent. The fit is an inner loop
like any other, and any estimator does it; what comes out are the meta-parameters of a `metajax.vsml` network.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax import checks
from metajax._drawn import drawn
from metajax.learners.grid import Cell
from metajax.types import Array, InContext, Learner, PyTree


class CloneState(NamedTuple):
    """Cells, ``[M, 1, 1, N]``, and the weights and biases ``[M]`` that gradient descent itself has come to."""

    cells: PyTree
    w: Array
    b: Array


def clone_backprop(cell: Cell, rate: float) -> InContext:
    """Fits ``cell`` to backpropagation with the learning rate ``rate``; its tasks are `metajax.tasks.signals`.

    Each step is what happens to a cell of a network with ``backward_pass``: an upward sweep without error, a downward
    sweep with it. The loss is the mean squared error of what is sent upwards, of what is sent downwards, and of
    ``w`` and ``b`` after each of the two sweeps, in units of ``rate``. Errors are relative to what is wanted once that
    exceeds 1 (upwards), 0.3 (downwards) and 0.02 (updates): a network that has learned meets small errors most of the
    time, and whatever its cells do to weights that should stay adds up. With a horizon of 1 it is the error of a single
    step; with a longer one cells go on from what they have made of themselves. A last term keeps the states below 3 in
    size, where a tanh has long saturated. The metrics ``y``, ``e`` and ``update`` are not relative.

    The cell needs messages of one slot, so that what a layer sends is what the next one takes, ``reduce="sum"``, and
    two ticks, since one does not multiply; `with_weights` gives it the memory that it is to have in a network.

    >>> import jax, metajax as mx
    >>> cell = mx.learners.with_weights(mx.learners.lstm_cell(16, slots=1, reduce="sum"))
    >>> clone = mx.learners.clone_backprop(cell, rate=0.01)
    >>> loop = mx.inner(clone.learner, mx.tasks.signals(64), horizon=2)
    >>> curves = mx.evaluate(loop, jax.random.key(0), clone.init(jax.random.key(1)), num_tasks=4)
    >>> sorted(curves.metrics)
    ['drift', 'e', 'update', 'y']
    """
    checks.instance("cell", cell, Cell, "metajax.learners.lstm_cell")
    if cell.slots != 1:
        raise ValueError(f"cell must have messages of 1 slot to pass on what it computes, got {cell.slots}")
    rate = checks.positive_float("rate", rate)

    def init(key, meta_params, task):
        cells = cell.state(key, (len(task["w"]), 1, 1))
        return CloneState(store(jax.tree.map(jnp.zeros_like, cells), task["w"], task["b"]), task["w"], task["b"])

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
        total += sum(_relative(d, size, 0.02) for moved, size in ((still, 0.0), (update, e)) for d in moved)
        return CloneState(down, new_w, new_b), total + _excess(down), metrics

    def loss(key, meta_params, state, batch):
        return step(key, meta_params, state, batch)[1]

    return InContext(cell.init, Learner(init, step, loss))


def with_weights(cell: Cell) -> Cell:
    """The cell with weights ``N(0, 1 / A)`` and biases 0, and with no other memory from one example to the next.

    What else a cell holds is cleared when the upward sweep of the next example begins. States that nobody looks at
    would drift: in networks of LSTMs that keep them, some had run away after ten thousand examples.

    >>> import jax, metajax as mx
    >>> cell = mx.learners.with_weights(mx.learners.lstm_cell(16, slots=1, reduce="sum"))
    >>> net = mx.vsml((64, 10), cell, backward_pass=True)
    >>> w, b = mx.learners.recall(net.learner.init(jax.random.key(0), (), ()).cells[0])
    >>> w.shape
    (1, 1, 64, 10)
    """
    checks.instance("cell", cell, Cell, "metajax.learners.lstm_cell")

    def state(key, shape):
        w = drawn(key, shape) / shape[-2] ** 0.5
        return store(jax.tree.map(jnp.zeros_like, cell.state(key, shape)), w, jnp.zeros(shape))

    def step(params, state, forward, backward):
        if not backward.shape[-1]:  # no error yet: the upward sweep
            state = store(jax.tree.map(jnp.zeros_like, state), *recall(state))
        return cell.step(params, state, forward, backward)

    return cell._replace(state=state, step=step)


def store(cells: PyTree, w: Array, b: Array) -> PyTree:
    """Puts ``w`` and ``b``, like the states without their last axis, into the first two features of the first of them.

    >>> import jax.numpy as jnp, metajax as mx
    >>> cells = mx.learners.store((jnp.zeros((3, 1, 1, 4)),), jnp.ones(3), jnp.full(3, 2.0))
    >>> cells[0][0, 0, 0].tolist()
    [1.0, 2.0, 0.0, 0.0]
    """
    leaves, tree = jax.tree.flatten(cells)
    pair = jnp.stack([w, b], -1).reshape(*leaves[0].shape[:-1], 2)
    return jax.tree.unflatten(tree, [leaves[0].at[..., :2].set(pair), *leaves[1:]])


def recall(cells: PyTree) -> tuple[Array, Array]:
    """The weights and biases that cells hold, as `store` put them there or as learning has changed them.

    >>> import jax.numpy as jnp, metajax as mx
    >>> cells = mx.learners.store((jnp.zeros((2, 3, 4)),), jnp.ones((2, 3)), jnp.zeros((2, 3)))
    >>> w, b = mx.learners.recall(cells)
    >>> w.shape
    (2, 3)
    """
    first = jax.tree.leaves(cells)[0]
    return first[..., 0], first[..., 1]


def _offset(cells: PyTree, w: Array, b: Array) -> Array:
    return jnp.stack([got.reshape(w.shape) - want for got, want in zip(recall(cells), (w, b), strict=True)])


def _relative(error: Array, size: Array | float, floor: float) -> Array:
    return jnp.mean(error**2 / (size**2 + floor**2))


def _excess(cells: PyTree) -> Array:
    return sum(jnp.mean(jnp.maximum(jnp.abs(x) - 3, 0) ** 2) for x in jax.tree.leaves(cells)) + jnp.zeros(())
