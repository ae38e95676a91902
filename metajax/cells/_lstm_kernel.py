"""All ticks of VSML's LSTM as one kernel of a GPU.

XLA writes out what the messages add to the gates, and the states after each tick. Here a block of
cells stays on the chip: it fetches its messages, ticks, and its states are read and written once,
in place.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from metajax.nets import _kernels
from metajax.types import Array, PyTree

State = tuple[Array, Array]  # c and h, [..., A, B, N]

_NUM_GATES = 4
_CELLS = 64  # in a block


def ticked(
    ticks: int,
    interpret: bool,
    gates: PyTree,
    state: State,
    forward: Array,
    backward: Array,
) -> State:
    """The states after all ticks, from parameters with the halves of the sigmoids in them."""
    *lead, inputs, outputs, hidden = state[0].shape
    if not state[0].size:
        return state
    cells = inputs * outputs

    def flat(x, *shape):
        return x.reshape(-1, *shape)

    states = [flat(x, cells, hidden) for x in state]
    messages = [flat(x, *x.shape[-2:]) for x in (forward, backward)]
    weights = _by_gates(gates, forward.shape[-1], backward.shape[-1], hidden)
    operands = [weights, *messages, *states]

    first_state = len(operands) - len(states)
    new = _kernels.call(
        partial(_kernel, ticks, outputs),
        grid=(len(states[0]), -(-cells // _CELLS)),
        like=states,
        in_place={first_state: 0, first_state + 1: 1},
        interpret=interpret,
    )(*operands)
    c, h = (x.reshape(*lead, inputs, outputs, hidden) for x in new)
    return c, h


def _by_gates(gates: PyTree, up: int, down: int, hidden: int) -> Array:
    """Weights and bias, ``[4, rows, N]``: those of upward messages, of downward ones, of states.

    Each begins at a `block`, and so does the bias. Zeros fill them, so that what is computed of
    features that do not exist stays 0. One array is one kernel to make.
    """
    parts = (
        gates["forward"][:up],
        gates["backward"][:down],
        gates["hidden"],
        gates["b"][None],
    )
    rows = jnp.concatenate([_kernels.pad(w, (0,)) for w in parts])
    by_gate = rows.reshape(-1, _NUM_GATES, hidden).swapaxes(0, 1)
    return _kernels.pad(by_gate, (2,))


def _kernel(ticks: int, outputs: int, *refs: Any) -> None:
    """For a block of cells of one grid."""
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    weights, forward_ref, backward_ref, c_ref, h_ref, new_c_ref, new_h_ref = refs
    grid = pallas.program_id(0)
    cells = pallas.program_id(1) * _CELLS + jnp.arange(_CELLS)
    is_inside = cells < c_ref.shape[1]

    def place(ref, indices):
        size = ref.shape[-1]
        features = jnp.arange(_kernels.block(size))[None, :]
        inside = is_inside[:, None] & (features < size)
        return ref.at[grid, indices[:, None], features], inside

    def read(ref, indices):
        at, inside = place(ref, indices)
        return triton.load(at, mask=inside, other=0.0)

    def write(ref, x):
        at, inside = place(ref, cells)
        triton.store(at, x, mask=inside)

    sizes = (forward_ref.shape[-1], backward_ref.shape[-1], c_ref.shape[-1])
    up_end, down_end, states_end = np.cumsum(list(map(_kernels.block, sizes)))

    # What the messages say is the same at each tick.
    forward = read(forward_ref, cells // outputs)
    backward = read(backward_ref, cells % outputs)
    drive = []
    for gate in range(_NUM_GATES):
        up = _kernels.product(forward, weights[gate, :up_end])
        down = _kernels.product(backward, weights[gate, up_end:down_end])
        bias = weights[gate, states_end]
        drive.append(up + down + bias[None, :])

    c = read(c_ref, cells)
    h = read(h_ref, cells)
    for _ in range(ticks):
        i, g, f, o = (
            jnp.tanh(
                drive[gate] + _kernels.product(h, weights[gate, down_end:states_end])
            )
            for gate in range(_NUM_GATES)
        )
        c = (0.5 + 0.5 * f) * c + (0.5 + 0.5 * i) * g
        h = (0.5 + 0.5 * o) * jnp.tanh(c)
    write(new_c_ref, c)
    write(new_h_ref, h)
