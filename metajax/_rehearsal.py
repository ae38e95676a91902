"""A rehearsal: a program traced with the data as they are, before it is compiled for any.

Inside a compiled program data are tracers, and nothing can look at what is in them: a class with
too few images, a label that the network has no output for. In a rehearsal they are the arrays
themselves, and a check that looks at them is an error before anything is compiled.
"""

import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from metajax._trees import clone_keys
from metajax.types import Array, Data, Inner, Key, MetaParams

_under_way = ContextVar("rehearsal", default=False)


class Rehearsal:
    """Traces ``program(*args, data)``, once for the same data, and computes nothing.

    Data that are traced already, as within `jax.jit`, cannot be looked at and are let through.
    """

    def __init__(self, program: Callable[..., Any]):
        self.program = program
        self._seen: list[Callable[[], Any]] | None = None

    def __call__(self, *args: Any, data: Data) -> None:
        leaves = jax.tree.leaves(data)
        if any(isinstance(x, jax.core.Tracer) for x in leaves) or self._knows(leaves):
            return
        token = _under_way.set(True)
        try:
            jax.eval_shape(lambda *args: self.program(*args, data), *clone_keys(args))
        finally:
            _under_way.reset(token)
        self._seen = [_reference(x) for x in leaves]

    def _knows(self, leaves: list[Any]) -> bool:
        if self._seen is None or len(self._seen) != len(leaves):
            return False
        return all(seen() is x for seen, x in zip(self._seen, leaves, strict=True))


def run_episode(inner: Inner, key: Key, meta_params: MetaParams, data: Data) -> Any:
    """One inner step and the test: whatever looks at data has seen them then."""
    state = inner.init(key, meta_params, data)
    state, _ = inner.step(meta_params, state, data)
    return inner.test(meta_params, state, data)


def _reference(x: Any) -> Callable[[], Any]:
    """A way back to an array that does not keep it in memory."""
    return (lambda: x) if np.isscalar(x) else weakref.ref(x)


def is_under_way() -> bool:
    """Whether what runs is traced for a rehearsal."""
    return _under_way.get()


def drawn_from(values: ArrayLike, drawn: Array) -> Array:
    """What was ``drawn`` from the integers ``values``; in a rehearsal, the ends of their range.

    With those, whoever takes labels can check them: they are no tracers, as what is drawn is.
    """
    if not is_under_way() or isinstance(values, jax.core.Tracer):
        return drawn
    values = np.asarray(values)
    ends = np.array([values.max(), values.min()])
    with jax.ensure_compile_time_eval():
        return jnp.asarray(np.resize(ends, drawn.shape), drawn.dtype)
