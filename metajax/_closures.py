"""A function and the arrays that it closes over, apart."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from metajax.types import Array, PyTree


def hoisted(f: Callable, *args: Any) -> tuple[Callable, list[Array], PyTree]:
    """``call``, ``constants`` and the shapes of the results; ``call(constants, *args)`` is ``f``.

    A rule of differentiation of one's own may close over no traced value, and must give each a
    cotangent. `jax.make_jaxpr` makes arguments of all that is closed over.
    """
    jaxpr, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
    outputs = jax.tree.structure(shapes)

    def call(constants, *args):
        run = jaxpr_as_fun(ClosedJaxpr(jaxpr.jaxpr, constants))
        return jax.tree.unflatten(outputs, run(*jax.tree.leaves(args)))

    return call, [jnp.asarray(x) for x in jaxpr.consts], shapes
