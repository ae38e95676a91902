"""NTM-BFGS: LSTMs that share a memory (Andrychowicz et al. 2016, arXiv 1606.04474)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import _checks
from metajax._arguments import NonNegativeInt, PositiveFloat, PositiveInt, checked
from metajax._arrays import matmul
from metajax.optim import _flat, _networks
from metajax.optim._learned import learned_optimizer
from metajax.optim._networks import LSTMState
from metajax.optim._preprocessing import check_p, num_inputs, preprocess
from metajax.types import Array, LearnedOptimizer, PyTree


class Memory(NamedTuple):
    """What ``W`` heads wrote in the last ``T`` steps.

    It stands for the matrix ``I + sum of left right^T / P`` over both.

    Attributes:
      left: ``[T, W, P]``, the oldest step first.
      right: ``[T, W, P]``.
    """

    left: Array
    right: Array


class NTMState(NamedTuple):
    """The states of the controllers, and the memory.

    Attributes:
      lstm: a column for each controller.
      memory: a matrix ``[P, P]``, or a `Memory` of the last writes.
    """

    lstm: LSTMState
    memory: Array | Memory


@checked
def ntm_bfgs(
    *,
    memory: PositiveInt | None = None,
    reads: PositiveInt = 1,
    writes: PositiveInt = 3,
    p: float | None = 10.0,
    scale: PositiveFloat = 0.1,
    hidden: tuple[int, ...] = (20, 20),
    averaged: NonNegativeInt = 1,
    state_dtype: jax.typing.DTypeLike | None = None,
) -> LearnedOptimizer:
    """LSTM+GAC controllers, one a coordinate, with a memory ``M [P, P]`` (section 2.1, appendix).

    The memory takes the place of the inverse Hessian of BFGS: it is read by a product with a
    vector, changed by low-rank updates only, and every vector that goes in or out has one value for
    each controller. BFGS reads one vector and writes three outer products a step: the defaults. A
    step, all maps shared by all coordinates:

    1. address: each read head makes ``i [P]``, linear in the preprocessed gradient and the last
       hidden state;
    2. read: ``r = M i``;
    3. control: the layers of `lstm` on the preprocessed gradient and ``r``;
    4. write: ``M + sum of a b^T / P``, each head's ``a [P]`` and ``b [P]`` linear in the new hidden
       state;
    5. update: the linear output of `lstm`, times ``scale``.

    The parts are the paper's. Of their wiring these are this package's own choices: that reading
    comes before control; that heads are linear; that ``M`` starts as the identity; and the ``1 /
    P``, without which what is read would grow with the number of parameters.

    Args:
      memory: None for the matrix, which costs ``P^2`` numbers; or how many steps' writes are kept,
        older ones being forgotten: the paper's NTM-L-BFGS, of ``2 * writes * memory`` numbers a
        coordinate, equal to the matrix as long as nothing is forgotten. `leafwise` gives one matrix
        a leaf.
      reads: read heads.
      writes: write heads, the rank of a step's change.
      p: parameter of `log_and_sign`, at most 80, or None for the raw gradient.
      scale: factor on the output.
      hidden: units of each layer.
      averaged: how many of the units of each layer are averaged over all coordinates.
      state_dtype: dtype in which states and memory are kept between steps, as in `lstm`.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> opt = mx.optim.ntm_bfgs()
    >>> tx = opt.tx(opt.init(jax.random.key(0)))
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> updates, state = tx.update(params, tx.init(params))
    >>> state.memory.shape
    (8, 8)
    """
    check_p(p)
    hidden = _checks.positive_ints("hidden", hidden, like=(20,))
    _networks.check_averaged(averaged, hidden)
    _flat.check_state_dtype(state_dtype)

    def init(key):
        num_keys = 2 * len(hidden) + 3
        *layer_keys, k_read, k_write, k_out = jax.random.split(key, num_keys)
        inputs = num_inputs(p)
        last = hidden[-1]
        return {
            "read": _networks.init_linear(k_read, (reads, inputs + last)),
            "lstm": _networks.init_lstm(layer_keys, inputs + reads, hidden),
            "write": _networks.init_linear(k_write, (2 * writes, last)),
            "out": _networks.init_linear(k_out, (last,)),
        }

    def tx(meta_params) -> optax.GradientTransformation:
        def init_fn(params) -> NTMState:
            _checks.floating("params", params)
            lstm = _networks.init_lstm_state(hidden, params, state_dtype)
            return NTMState(lstm, init_memory(params, memory, writes, state_dtype))

        def update_fn(updates, state, params=None):
            del params
            _flat.check_trees(state.lstm.h[0].shape[-1], updates=updates)
            grad, unravel = _flat.ravel(updates)
            x = preprocess(grad, p)

            found = _read_heads(meta_params["read"], x, state)
            x = jnp.concatenate([x, found])
            x, lstm = _networks.lstm(meta_params["lstm"], x, state.lstm, averaged)
            heads = _networks.linear(meta_params["write"], x)
            left, right = jnp.split(heads, 2)
            new_memory = write(state.memory, left, right)
            output = _networks.linear(meta_params["out"], x)
            return unravel(scale * output), NTMState(lstm, new_memory)

        return optax.GradientTransformation(init_fn, update_fn)

    return learned_optimizer(init, tx)


def _read_heads(
    layer: _networks.Layer,
    x: Array,
    state: NTMState,
) -> Array:
    # What each head reads, [R, P].
    last_hidden = state.lstm.h[-1].astype(x.dtype)
    known = jnp.concatenate([x, last_hidden])
    address = _networks.linear(layer, known)
    return read(state.memory, address)


def init_memory(
    params: PyTree,
    length: int | None,
    writes: int,
    state_dtype: jax.typing.DTypeLike | None,
) -> Array | Memory:
    """The identity: a matrix, or a `Memory` of ``length`` steps in which nothing was written."""
    if length is None:
        ones = 1 + _flat.zeros(params, state_dtype=state_dtype)
        return jnp.diag(ones)
    nothing = _flat.zeros(params, length, writes, state_dtype=state_dtype)
    return Memory(nothing, nothing)


def read(memory: Array | Memory, address: Array) -> Array:
    """``M i`` for each row ``i`` of ``address [R, P]``."""
    if not isinstance(memory, Memory):
        return matmul(address, memory.astype(address.dtype).T)
    left = memory.left.astype(address.dtype)
    right = memory.right.astype(address.dtype)
    overlap = jnp.einsum("twp,rp->rtw", right, address, precision="highest")
    overlap = overlap / _num_coordinates(address)
    found = jnp.einsum("rtw,twp->rp", overlap, left, precision="highest")
    return address + found


def write(
    memory: Array | Memory,
    left: Array,
    right: Array,
) -> Array | Memory:
    """Adds ``a b^T / P`` for each row ``a`` of ``left [W, P]`` and ``b`` of ``right [W, P]``.

    The memory keeps its dtype.
    """
    if isinstance(memory, Memory):
        return Memory(
            left=_append(memory.left, left),
            right=_append(memory.right, right),
        )
    change = matmul(left.T, right) / _num_coordinates(left)
    new_memory = memory.astype(change.dtype) + change
    return new_memory.astype(memory.dtype)


def _append(steps: Array, newest: Array) -> Array:
    # The oldest step is forgotten.
    newest = newest.astype(steps.dtype)
    return jnp.concatenate([steps[1:], newest[None]])


def _num_coordinates(x: Array) -> int:
    # A tree may have none, and divides by this.
    return max(x.shape[-1], 1)
