"""NTM-BFGS: LSTMs that share a memory, room for an inverse Hessian (Andrychowicz et al. 2016, arXiv
1606.04474).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import _checks
from metajax.optim import _flat
from metajax.optim._lstm import (
    LSTMState,
    check_averaged,
    check_hidden,
    check_p,
    init_layers,
    init_state,
    log_and_sign,
    normal,
    run_layers,
)
from metajax.types import Array, LearnedOptimizer


class Memory(NamedTuple):
    """What was written in the last ``T`` steps by ``W`` heads: ``M = I + sum over both of left
    right^T / P``.

    Attributes:
      left: ``[T, W, P]``, the oldest step first.
      right: ``[T, W, P]``.
    """

    left: Array
    right: Array


class NTMState(NamedTuple):
    """The states of the controllers, and the memory: a matrix ``[P, P]`` or a `Memory` of the last
    writes.
    """

    lstm: LSTMState
    memory: Array | Memory


def ntm_bfgs(
    *,
    memory: int | None = None,
    reads: int = 1,
    writes: int = 3,
    p: float | None = 10.0,
    scale: float = 0.1,
    hidden: tuple[int, ...] = (20, 20),
    averaged: int = 1,
    state_dtype: jax.typing.DTypeLike | None = None,
) -> LearnedOptimizer:
    """LSTM+GAC controllers, one a coordinate, with an external memory ``M [P, P]`` (section 2.1 and
    the appendix).

    The memory takes the place of the inverse Hessian of BFGS: it is read by a product with a
    vector, changed by low-rank updates only, and every vector that goes in or out has one value for
    each controller. BFGS reads one vector
    and writes three outer products a step: the defaults. A step, all maps shared by all
      coordinates:

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

    Args: memory: None for the matrix, which costs ``P^2`` numbers; or how many steps' writes are
      kept, older ones being forgotten: the paper's NTM-L-BFGS, of ``2 * writes * memory`` numbers a
      coordinate, equal to the matrix as long as nothing is forgotten. `leafwise` gives one matrix a
      leaf. reads: read heads. writes: write heads, the rank of a step's change. p: parameter of
      `log_and_sign`, at most 80, or None for the raw gradient. scale: factor on the output. hidden:
      units of each layer. averaged: how many of the units of each layer are averaged over all
      coordinates. state_dtype: dtype in which states and memory are kept between steps, as in
      `lstm`.

    Raises:
      TypeError, ValueError: as `lstm`.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> opt = mx.optim.ntm_bfgs()
    >>> tx = opt.tx(opt.init(jax.random.key(0)))
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> updates, state = tx.update(params, tx.init(params))
    >>> state.memory.shape
    (8, 8)
    """
    if memory is not None:
        _checks.positive_int(memory=memory)
    _checks.positive_int(reads=reads, writes=writes)
    p = check_p(p)
    scale, hidden = _checks.positive_float("scale", scale), check_hidden(hidden)
    averaged = check_averaged(averaged, hidden)
    _flat.check_state_dtype(state_dtype)
    inputs, last = 1 if p is None else 2, hidden[-1]

    def init(key: Array):
        _checks.key(key)
        *keys, k_read, k_write, k_out = jax.random.split(key, 2 * len(hidden) + 3)
        return {
            "read": {
                "w": normal(k_read, (reads, inputs + last), inputs + last),
                "b": jnp.zeros(reads),
            },
            "lstm": init_layers(keys, inputs + reads, hidden),
            "write": {"w": normal(k_write, (2 * writes, last), last), "b": jnp.zeros(2 * writes)},
            "out": {"w": normal(k_out, (last,), last), "b": jnp.zeros(())},
        }

    like = jax.eval_shape(init, jax.random.key(0))

    def tx(meta_params) -> optax.GradientTransformation:
        _flat.check_meta_params(meta_params, like)

        def init_fn(params) -> NTMState:
            _checks.floating("params", params)
            lstm, size = init_state(hidden, params, state_dtype), _flat.size(params)
            dtype = lstm.h[0].dtype
            if memory is None:
                return NTMState(lstm, jnp.eye(size, dtype=dtype))
            nothing = jnp.zeros((memory, writes, size), dtype)
            return NTMState(lstm, Memory(nothing, nothing))

        def update_fn(updates, state, params=None):
            del params
            h = state.lstm.h[-1]
            _flat.check_updates(updates, h.shape[-1])
            grad = _flat.ravel(updates)
            x = grad[None] if p is None else log_and_sign(grad, p)
            address = _linear(meta_params["read"], jnp.concatenate([x, h.astype(x.dtype)]))
            top, lstm = run_layers(
                meta_params["lstm"],
                jnp.concatenate([x, read(state.memory, address)]),
                state.lstm,
                averaged,
            )
            left, right = jnp.split(_linear(meta_params["write"], top), 2)
            new = scale * (meta_params["out"]["w"] @ top + meta_params["out"]["b"])
            return _flat.unravel(new, updates), NTMState(lstm, write(state.memory, left, right))

        return optax.GradientTransformation(init_fn, update_fn)

    return LearnedOptimizer(init, tx)


def read(memory: Array | Memory, address: Array) -> Array:
    """``M i`` for each row ``i`` of ``address [R, P]``."""
    if isinstance(memory, Memory):
        left, right = (x.astype(address.dtype) for x in memory)
        found = jnp.einsum("twp,rp->rtw", right, address) / max(address.shape[-1], 1)
        return address + jnp.einsum("rtw,twp->rp", found, left)
    return address @ memory.astype(address.dtype).T


def write(memory: Array | Memory, left: Array, right: Array) -> Array | Memory:
    """Adds ``a b^T / P`` for each row ``a`` of ``left [W, P]`` and ``b`` of ``right [W, P]``; keeps
    the dtype.
    """
    if isinstance(memory, Memory):
        return jax.tree.map(
            lambda m, x: jnp.concatenate([m[1:], x[None].astype(m.dtype)]),
            memory,
            Memory(left, right),
        )
    return (memory.astype(left.dtype) + left.T @ right / max(left.shape[-1], 1)).astype(
        memory.dtype
    )


def _linear(layer: dict[str, Array], x: Array) -> Array:
    return layer["w"] @ x + layer["b"][:, None]
