"""Minimal VSML (Kirsch & Schmidhuber 2021, section 3, eq. 4 to 6): one step, and the same step as
one large RNN.
"""

from collections.abc import Callable

import jax.numpy as jnp

from metajax.types import Array


def minimal_vsml(w: Array, c: Array, state: Array, activation: Callable = jnp.tanh) -> Array:
    """One step of eq. 4, ``s[a,b] <- activation(s[a,b] W + sum_a' s[a',a] C)``, as message passing
    (view B).

    An input ``a`` that is no output (``a >= B``) is sent nothing.

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
    inputs, outputs, features = _sizes(w, c, state)
    message = state.sum(0)[:inputs] @ c
    message = jnp.zeros((inputs, features), state.dtype).at[: min(inputs, outputs)].set(message)
    return activation(state @ w + message[:, None])


def shared_matrix(w: Array, c: Array, inputs: int, outputs: int) -> Array:
    """The weights of eq. 6: the same step as one large recurrent network (view A), ``s <-
    activation(s W~)``.

    ``W~[(c,d,i), (a,b,j)]`` is ``C[i,j]`` where ``d = a``, plus ``W[i,j]`` where ``(c,d) = (a,b)``,
    else 0: out of ``(A B N)^2`` entries there are ``2 N^2`` free ones. It is for understanding and
    for tests; the message passing never builds it.

    Returns:
      ``[A * B * N, A * B * N]``.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> w, c = jax.random.normal(jax.random.key(0), (2, 4, 4))
    >>> state = jax.random.normal(jax.random.key(1), (3, 2, 4))
    >>> large = jnp.tanh(state.ravel() @ mx.cells.shared_matrix(w, c, 3, 2)).reshape(3, 2, 4)
    >>> bool(jnp.allclose(large, mx.cells.minimal_vsml(w, c, state), atol=1e-5))
    True
    """
    _, _, features = _sizes(w, c, jnp.zeros((inputs, outputs, len(w))))
    size = inputs * outputs * features
    same = jnp.einsum("ca,db->cdab", jnp.eye(inputs), jnp.eye(outputs))
    arrives = jnp.broadcast_to(
        jnp.eye(outputs, inputs)[None, :, :, None], (inputs, outputs, inputs, outputs)
    )
    large = jnp.einsum("cdab,ij->cdiabj", same, w) + jnp.einsum("cdab,ij->cdiabj", arrives, c)
    return large.reshape(size, size)


def _sizes(w: Array, c: Array, state: Array) -> tuple[int, ...]:
    if state.ndim != 3 or w.shape != c.shape or w.shape != (state.shape[-1],) * 2:
        raise ValueError(
            f"want w [N, N], c [N, N] and a state [A, B, N], got {list(w.shape)}, {list(c.shape)}, {list(state.shape)}"
        )
    return state.shape
