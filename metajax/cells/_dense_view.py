"""Minimal VSML (Kirsch & Schmidhuber 2021, section 3, eq. 4 to 6), looked at in two ways."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp

from metajax._arguments import PositiveInt, checked
from metajax._arrays import matmul
from metajax.types import Array


@checked
def minimal_vsml(
    w: Array, c: Array, state: Array, activation: Callable = jnp.tanh
) -> Array:
    """One step of eq. 4 as message passing (view B).

    ``s[a,b] <- activation(s[a,b] W + sum_a' s[a',a] C)``. An input ``a`` that is no output
    (``a >= B``) is sent nothing.

    Args:
      w: ``[N, N]``, from a cell to itself.
      c: ``[N, N]``, from all cells that end in ``a`` to those that begin there.
      state: ``[A, B, N]``.
      activation: elementwise.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> state = jax.random.normal(jax.random.key(0), (3, 3, 4))
    >>> mx.cells.minimal_vsml(jnp.eye(4), jnp.eye(4), state).shape
    (3, 3, 4)
    """
    _check_shapes(w, c, state)
    inputs, outputs, features = state.shape
    received = matmul(state.sum(0)[:inputs], c)
    message = jnp.zeros((inputs, features), state.dtype)
    message = message.at[: min(inputs, outputs)].set(received)
    return activation(matmul(state, w) + message[:, None])


@checked
def shared_matrix(
    w: Array, c: Array, inputs: PositiveInt, outputs: PositiveInt
) -> Array:
    """The weights of eq. 6: the same step as one large recurrent network (view A).

    ``s <- activation(s W~)``, where ``W~[(c,d,i), (a,b,j)]`` is ``C[i,j]`` where ``d = a``, plus
    ``W[i,j]`` where ``(c,d) = (a,b)``, else 0: out of ``(A B N)^2`` entries there are ``2 N^2``
    free ones. It is for understanding and for tests; the message passing never builds it.

    Returns:
      ``[A * B * N, A * B * N]``.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> w, c = jax.random.normal(jax.random.key(0), (2, 4, 4))
    >>> state = jax.random.normal(jax.random.key(1), (3, 2, 4))
    >>> large = jnp.tanh(state.ravel() @ mx.cells.shared_matrix(w, c, 3, 2)).reshape(3, 2, 4)
    >>> bool(jnp.allclose(large, mx.cells.minimal_vsml(w, c, state), atol=1e-5))
    True
    """
    features = w.shape[-1] if w.ndim else 0
    _check_shapes(w, c, jnp.zeros((inputs, outputs, features)))

    einsum = partial(jnp.einsum, precision="highest")
    same_cell = einsum("ca,db->cdab", jnp.eye(inputs), jnp.eye(outputs))
    ends_where_it_begins = jnp.broadcast_to(
        jnp.eye(outputs, inputs)[None, :, :, None], (inputs, outputs, inputs, outputs)
    )
    matrix = einsum("cdab,ij->cdiabj", same_cell, w)
    matrix += einsum("cdab,ij->cdiabj", ends_where_it_begins, c)
    size = inputs * outputs * features
    return matrix.reshape(size, size)


def _check_shapes(w: Array, c: Array, state: Array) -> None:
    features = state.shape[-1] if state.ndim else 0
    if state.ndim != 3 or w.shape != (features, features) or c.shape != w.shape:
        raise ValueError(
            f"w and c must be [N, N] and state [A, B, N], got {list(w.shape)}, {list(c.shape)}, "
            f"{list(state.shape)}"
        )
