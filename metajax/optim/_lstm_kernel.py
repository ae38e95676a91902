"""One step of the LSTM optimizer as one kernel of a GPU.

XLA makes a kernel of each product and of what lies between, and writes out what passes from one to
the next. Here a block of coordinates stays on the chip from its gradient to its update: states are
read and written once, in place, and nothing else is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.nets import _kernels
from metajax.nets._kernels import Kernel
from metajax.optim import _networks
from metajax.optim._networks import Layer, LSTMState
from metajax.optim._preprocessing import preprocess, rows
from metajax.types import Array, PyTree

Step = Callable[[PyTree, Array, LSTMState], tuple[Array, LSTMState]]

_NUM_GATES = 4
_COLUMNS = 64  # coordinates in a block


def check_kernel(kernel: Kernel, averaged: int) -> None:
    """The ``kernel`` must be able to run here, and to do what is asked."""
    _kernels.check_device(kernel)
    if kernel != "xla" and averaged:
        raise ValueError(
            f"averaged is {averaged}, but blocks of coordinates know nothing of each other: leave "
            f"kernel out"
        )


def step(kernel: Kernel, p: float | None, averaged: int) -> Step:
    """``(meta_params, grad [P], state) -> (outputs [P], state)``."""
    if kernel == "xla":
        return partial(xla_step, p, averaged)
    return partial(pallas_step, p, kernel == "interpreted")


def xla_step(
    p: float | None,
    averaged: int,
    meta_params: PyTree,
    grad: Array,
    state: LSTMState,
) -> tuple[Array, LSTMState]:
    """The outputs ``[P]`` for a gradient ``[P]``, and the states after it."""
    x = preprocess(grad, p)
    x, state = _networks.lstm(meta_params["lstm"], x, state, averaged)
    return _networks.linear(meta_params["out"], x), state


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def pallas_step(
    p: float | None,
    interpret: bool,
    meta_params: PyTree,
    grad: Array,
    state: LSTMState,
) -> tuple[Array, LSTMState]:
    """As `xla_step`, whose derivatives it has: they compute the step anew."""
    if not grad.size:
        return xla_step(p, 0, meta_params, grad, state)
    out = meta_params["out"]
    weights = (
        _padded(meta_params["lstm"]),
        _kernels.pad(out["w"], (0,)),
        out["b"][None],
    )
    states = [*state.h, *state.c]
    operands, structure = jax.tree.flatten((weights, grad, states))

    sizes = [h.shape[0] for h in state.h]
    first_state = len(operands) - len(states)
    output, *new = _kernels.call(
        partial(_kernel, structure, sizes, p),
        grid=(-(-grad.size // _COLUMNS),),
        like=[grad, *states],
        in_place={first_state + i: 1 + i for i in range(len(states))},
        interpret=interpret,
    )(*operands)
    num_layers = len(sizes)
    return output, LSTMState(tuple(new[:num_layers]), tuple(new[num_layers:]))


@pallas_step.defjvp
def _derivative(p: float | None, interpret: bool, primals: tuple, tangents: tuple):
    outputs = pallas_step(p, interpret, *primals)
    _, tangents = jax.jvp(partial(xla_step, p, 0), primals, tangents)
    return outputs, tangents


class _PaddedLayer(NamedTuple):
    """Weights by gates, with as many rows and columns as products want; what is added is 0.

    Then what is computed of them stays 0: `_networks.lstm_step` takes 0 to 0.

    Attributes:
      of_inputs: of the first layer the columns ``[4, F, H]``, of others ``[4, H, F]``.
      of_states: ``[4, H, H]``.
      bias: ``[4, H]``.
    """

    of_inputs: Array
    of_states: Array
    bias: Array


def _padded(layers: list[Layer]) -> list[_PaddedLayer]:
    padded = []
    for k, layer in enumerate(layers):
        w = layer["w"].reshape(_NUM_GATES, -1, layer["w"].shape[1])
        units = w.shape[1]
        of_inputs, of_states = jnp.split(w, [w.shape[2] - units], axis=2)
        columns = _kernels.pad(of_inputs.mT, (2,))
        matrices = _kernels.pad(of_inputs, (1, 2))
        bias = layer["b"].reshape(_NUM_GATES, units)
        padded.append(
            _PaddedLayer(
                columns if k == 0 else matrices,
                _kernels.pad(of_states, (1, 2)),
                _kernels.pad(bias, (1,)),
            )
        )
    return padded


def _kernel(structure: Any, sizes: list[int], p: float | None, *refs: Any) -> None:
    """For a block of columns. The references are those of the inputs and those of the outputs."""
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    weights, grad_ref, states = structure.unflatten(refs[: structure.num_leaves])
    output_ref, *new_states = refs[structure.num_leaves :]
    columns = pallas.program_id(0) * _COLUMNS + jnp.arange(_COLUMNS)
    is_inside = columns < grad_ref.shape[-1]

    def place(ref, size):
        units = jnp.arange(_kernels.block(size))[:, None]
        inside = (units < size) & is_inside[None, :]
        return ref.at[units, columns[None, :]], inside

    def read(ref, size, dtype):
        at, inside = place(ref, size)
        return triton.load(at, mask=inside, other=0.0).astype(dtype)

    def write(ref, size, x):
        at, inside = place(ref, size)
        triton.store(at, x.astype(ref.dtype), mask=inside)

    grad = triton.load(grad_ref.at[columns], mask=is_inside, other=0.0)
    layers, out_weights, out_bias = weights
    num_layers = len(sizes)

    # The first layer's inputs are rows, the others' the states of the layer below.
    x: Any = rows(grad, p)
    for k, (layer, size) in enumerate(zip(layers, sizes, strict=True)):
        h = read(states[k], size, grad.dtype)
        c = read(states[num_layers + k], size, grad.dtype)
        h, c = _lstm_step(layer, x, h, c)
        write(new_states[k], size, h)
        write(new_states[num_layers + k], size, c)
        x = h

    output = (out_weights[...][:, None] * x).sum(0) + out_bias[0]
    triton.store(output_ref.at[columns], output, mask=is_inside)


def _lstm_step(layer: _PaddedLayer, x: Any, h: Array, c: Array) -> tuple[Array, Array]:
    """`_networks.lstm_step`, from references to the weights."""
    gates = []
    for gate in range(_NUM_GATES):
        total = _kernels.product(layer.of_states[gate], h) + layer.bias[gate][:, None]
        if isinstance(x, tuple):
            for j, row in enumerate(x):
                total += layer.of_inputs[gate, j][:, None] * row[None, :]
        else:
            total += _kernels.product(layer.of_inputs[gate], x)
        gates.append(total)
    i, j, f, o = gates
    c = jax.nn.sigmoid(f + 1.0) * c + jax.nn.sigmoid(i) * jnp.tanh(j)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c
