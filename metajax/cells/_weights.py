"""Cells that hold a weight and a bias in the first two features of their state."""

import math

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax._arguments import checked, shown
from metajax._random import draw_flat
from metajax.cells._cell import Cell
from metajax.types import Array, PyTree


@checked
def with_weights(cell: Cell) -> Cell:
    """The cell with weights ``N(0, 1 / A)``, biases 0, and no other memory between examples.

    What else a cell holds is cleared when the upward sweep of the next example begins. States that
    nobody looks at would drift: in networks of LSTMs that keep them, some had run away after ten
    thousand examples.

    >>> import jax, metajax as mx
    >>> cell = mx.cells.with_weights(mx.cells.lstm(16, slots=1, reduce="sum"))
    >>> learner = mx.vsml((64, 10), cell, backward_pass=True)
    >>> w, b = mx.cells.recall(learner.init(jax.random.key(0), (), ()).cells[0])
    >>> w.shape
    (1, 1, 64, 10)
    """

    def state(key, shape):
        w = draw_flat(key, shape) / shape[-2] ** 0.5
        blank = jax.tree.map(jnp.zeros_like, cell.state(key, shape))
        return store(blank, w, jnp.zeros(shape))

    def step(params, state, forward, backward):
        is_upward_sweep = backward.shape[-1] == 0  # there is no error yet
        if is_upward_sweep:
            w, b = recall(state)
            state = store(jax.tree.map(jnp.zeros_like, state), w, b)
        return cell.step(params, state, forward, backward)

    return cell._replace(state=state, step=step)


@checked
def store(cells: PyTree, w: Array, b: Array) -> PyTree:
    """Puts ``w`` and ``b`` into the first two features of the first of the states.

    They are like the states without their last axis.

    >>> import jax.numpy as jnp, metajax as mx
    >>> cells = mx.cells.store((jnp.zeros((3, 1, 1, 4)),), jnp.ones(3), jnp.full(3, 2.0))
    >>> cells[0][0, 0, 0].tolist()
    [1.0, 2.0, 0.0, 0.0]
    """
    _check_features(cells)
    (first, *others), structure = jax.tree.flatten(cells)
    if not w.size == b.size == math.prod(first.shape[:-1]):
        raise ValueError(
            f"w and b must be like cells without their last axis, {list(first.shape[:-1])}, got "
            f"{list(w.shape)} and {list(b.shape)}"
        )
    pair = jnp.stack([w, b], -1).reshape(*first.shape[:-1], 2)
    return jax.tree.unflatten(structure, [first.at[..., :2].set(pair), *others])


@checked
def recall(cells: PyTree) -> tuple[Array, Array]:
    """The weights and biases that cells hold, as `store` put them there or learning changed them.

    >>> import jax.numpy as jnp, metajax as mx
    >>> cells = mx.cells.store((jnp.zeros((2, 3, 4)),), jnp.ones((2, 3)), jnp.zeros((2, 3)))
    >>> w, b = mx.cells.recall(cells)
    >>> w.shape
    (2, 3)
    """
    _check_features(cells)
    first, *_ = jax.tree.leaves(cells)
    return first[..., 0], first[..., 1]


def _check_features(cells: PyTree) -> None:
    _checks.floating("cells", cells)
    leaves = jax.tree.leaves(cells)
    if not leaves or jnp.shape(leaves[0])[-1:] < (2,):
        got = _checks.describe(leaves[0]) if leaves else shown(cells)
        raise ValueError(
            f"cells must have states [..., N] of at least 2 features, got {got}"
        )
