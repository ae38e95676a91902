"""Functions of others made fit for `jax.vmap`: what it makes slow is computed in another way."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from metajax._arguments import checked
from metajax.nets._convolutions import convolve
from metajax.types import Array


@checked
def for_vmap(f: Callable) -> Callable:
    """The same function, made to be compiled under `jax.vmap` over weights and keys.

    There a convolution becomes a grouped one, which took a network of a user 4.5 times the time on
    a CPU: here it is a product of patches and weights, as `metajax.nets.conv`. And an initializer
    that draws ``[3, 3, 8, 16]`` numbers takes XLA 20 s to compile: here they are drawn in a row.
    The results are the same, to rounding those of convolutions and to the last bit those of draws.

    The adapters `metajax.problems.nnx`, `metajax.problems.linen` and `metajax.problems.equinox` do
    this by themselves. Convolutions of several groups or of a dilated input, such as transposed
    ones, stay as they are.

    Args:
      f: the ``init`` or the ``apply`` of a network, a function of trees of arrays to such.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> def apply(w, images):
    ...     x = jax.lax.conv_general_dilated(images, w, (2, 2), "SAME",
    ...                                      dimension_numbers=("NHWC", "HWIO", "NHWC"))
    ...     return x.mean((1, 2))
    >>> problem = mx.problems.classifier(
    ...     mx.nets.for_vmap(lambda key: jax.random.normal(key, (3, 3, 1, 10))),
    ...     mx.nets.for_vmap(apply))
    >>> params, _ = problem.init(jax.random.key(0), ())
    >>> problem.predict(jax.random.key(1), params, (), jnp.ones((2, 8, 8, 1))).shape
    (2, 10)
    """

    def run(*args):
        program, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
        rewritten = program.replace(jaxpr=_rewritten(program.jaxpr))
        outputs = core.jaxpr_as_fun(rewritten)(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return run


def _rewritten(program: core.Jaxpr) -> core.Jaxpr:
    """The program with other operations in the place of those that have one, loops included."""
    return program.replace(eqns=[_rewritten_equation(eqn) for eqn in program.eqns])


def _rewritten_equation(eqn: core.JaxprEqn) -> core.JaxprEqn:
    name = eqn.primitive.name
    if name == "conv_general_dilated" and _is_plain(**eqn.params):
        return _calling(_convolution, eqn)
    if name == "random_bits" and len(eqn.params["shape"]) > 1:
        return _calling(_draw, eqn)
    if name.startswith("custom_"):  # with a derivative of its own
        return eqn
    params = {name: _rewritten_programs(x) for name, x in eqn.params.items()}
    return eqn.replace(params=params)


def _rewritten_programs(x: Any) -> Any:
    """A parameter of an operation; those of loops, branches and calls are programs."""
    if isinstance(x, core.Jaxpr):
        return _rewritten(x)
    if isinstance(x, core.ClosedJaxpr):
        return x.replace(jaxpr=_rewritten(x.jaxpr))
    if isinstance(x, tuple) and any(isinstance(y, core.ClosedJaxpr) for y in x):
        return tuple(map(_rewritten_programs, x))
    return x


def _calling(f: Callable, eqn: core.JaxprEqn) -> core.JaxprEqn:
    """The operation as a call of ``f(operation, *inputs)``."""
    avals: list[Any] = [x.aval for x in eqn.invars]
    inputs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    with jax.disable_jit(False):
        program = jax.make_jaxpr(jax.jit(lambda *inputs: f(eqn, *inputs)))(*inputs)
    (call,) = program.jaxpr.eqns
    return eqn.replace(primitive=call.primitive, params=call.params)


def _is_plain(
    *,
    padding: Any,
    lhs_dilation: Any,
    feature_group_count: int,
    batch_group_count: int,
    **others: Any,
) -> bool:
    """Whether a convolution is a product of patches and weights."""
    del others
    groups = feature_group_count, batch_group_count
    return (
        groups == (1, 1)
        and all(step == 1 for step in lhs_dilation)
        and all(pad >= 0 for pair in padding for pad in pair)
    )


def _convolution(eqn: core.JaxprEqn, x: Array, w: Array) -> Array:
    params = eqn.params
    batch, channels, *places = params["dimension_numbers"].lhs_spec
    outputs, inputs, *kernel = params["dimension_numbers"].rhs_spec
    product = convolve(
        x.transpose(batch, *places, channels),
        w.transpose(*kernel, inputs, outputs),
        params["window_strides"],
        params["padding"],
        params["rhs_dilation"],
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    # The axes of the product are the batch, the positions and the filters.
    batch, filters, *places = params["dimension_numbers"].out_spec
    order = sorted(range(x.ndim), key=[batch, *places, filters].__getitem__)
    return product.transpose(order)


def _draw(eqn: core.JaxprEqn, key: Array) -> Array:
    shape = eqn.params["shape"]
    params = eqn.params | {"shape": (math.prod(shape),)}
    return eqn.primitive.bind(key, **params).reshape(*key.shape, *shape)
