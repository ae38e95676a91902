"""One step of the LSTM optimizer as one kernel of a GPU.

XLA makes a kernel of each product and of what lies between, and writes out what passes from one to
the next. Here a block of coordinates stays on the chip from its gradient to its update: states are
read and written once, in place, and nothing else is.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metajax.optim import _networks
from metajax.optim._networks import Layer, LSTMState
from metajax.optim._preprocessing import preprocess, rows
from metajax.types import Array, PyTree

Kernel = Literal["xla", "pallas", "interpreted"]
Step = Callable[[PyTree, Array, LSTMState], tuple[Array, LSTMState]]

_NUM_GATES = 4
_COLUMNS = 64  # coordinates in a block
_FEWEST_ROWS = 16  # of a product


def check_kernel(kernel: Kernel, averaged: int) -> None:
    """The ``kernel`` must be able to run here, and to do what is asked."""
    if kernel == "xla":
        return
    if averaged:
        raise ValueError(
            f"averaged is {averaged}, but blocks of coordinates know nothing of each other: leave "
            f"kernel out"
        )
    backend = jax.default_backend()
    if kernel == "pallas" and backend != "gpu":
        raise ValueError(
            f"kernel='pallas' needs a GPU, and JAX runs on the {backend} here: leave kernel out, "
            f"or take kernel='interpreted' to test with"
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
    weights = (_padded(meta_params["lstm"]), _pad(out["w"], (0,)), out["b"][None])
    states = [*state.h, *state.c]
    operands, structure = jax.tree.flatten((weights, grad, states))

    sizes = [h.shape[0] for h in state.h]
    first_state = len(operands) - len(states)
    output, *new = _pallas_call(
        partial(_kernel, structure, sizes, p),
        [grad, *states],
        aliases={first_state + i: 1 + i for i in range(len(states))},
        interpret=interpret,
    )(*operands)
    num_layers = len(sizes)
    return output, LSTMState(tuple(new[:num_layers]), tuple(new[num_layers:]))


@pallas_step.defjvp
def _derivative(p: float | None, interpret: bool, primals: tuple, tangents: tuple):
    outputs = pallas_step(p, interpret, *primals)
    _, tangents = jax.jvp(partial(xla_step, p, 0), primals, tangents)
    return outputs, tangents


def _pallas_call(
    kernel: Any, like: list[Array], aliases: dict[int, int], interpret: bool
) -> Any:
    """The kernel over all blocks of columns; ``like`` has the outputs' shapes."""
    # Here, since to import it takes a while.
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    num_columns = like[0].shape[-1]
    # As few columns a warp as keep what it works on in registers.
    return pallas.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like],
        grid=(pallas.cdiv(num_columns, _COLUMNS),),
        input_output_aliases=aliases,
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=1),
    )


def _kernel(structure: Any, sizes: list[int], p: float | None, *refs: Any) -> None:
    """For a block of columns. The references are those of the inputs and those of the outputs."""
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    weights, grad_ref, states = structure.unflatten(refs[: structure.num_leaves])
    output_ref, *new_states = refs[structure.num_leaves :]
    num_columns = grad_ref.shape[-1]
    columns = pallas.program_id(0) * _COLUMNS + jnp.arange(_COLUMNS)
    is_inside = columns < num_columns

    def place(ref, size):
        units = jnp.arange(_rows(size))[:, None]
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
        columns = _pad(of_inputs.mT, (2,))
        matrices = _pad(of_inputs, (1, 2))
        bias = layer["b"].reshape(_NUM_GATES, units)
        padded.append(
            _PaddedLayer(
                columns if k == 0 else matrices,
                _pad(of_states, (1, 2)),
                _pad(bias, (1,)),
            )
        )
    return padded


def _pad(x: Array, axes: Sequence[int]) -> Array:
    """With zeros at the end, to `_rows`."""
    widths = [(0, _rows(n) - n if i in axes else 0) for i, n in enumerate(x.shape)]
    return jnp.pad(x, widths)


def _rows(size: int) -> int:
    """A power of two, as blocks of Triton want."""
    return max(_FEWEST_ROWS, 2 ** (size - 1).bit_length())


def _lstm_step(layer: _PaddedLayer, x: Any, h: Array, c: Array) -> tuple[Array, Array]:
    """`_networks.lstm_step`, from references to the weights."""
    gates = []
    for gate in range(_NUM_GATES):
        total = _product(layer.of_states[gate], h) + layer.bias[gate][:, None]
        if isinstance(x, tuple):
            for j, row in enumerate(x):
                total += layer.of_inputs[gate, j][:, None] * row[None, :]
        else:
            total += _product(layer.of_inputs[gate], x)
        gates.append(total)
    i, j, f, o = gates
    c = jax.nn.sigmoid(f + 1.0) * c + jax.nn.sigmoid(i) * jnp.tanh(j)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _product(w: Array, x: Array) -> Array:
    return lax.dot(w, x, precision=lax.Precision.HIGHEST)
