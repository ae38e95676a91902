"""The gradient of an inner loss, which an outer loop differentiates once more.

Its Jacobian is symmetric, and reverse mode does not know that: over `jax.grad` it writes down all
that the forward and the backward pass of the loss have made. The same product with a vector is one
directional derivative of the gradient, forward over reverse, which keeps what the backward pass
needs anyway (Kemaev et al. 2025, "Scalable Meta-Learning via Mixed-Mode Differentiation", arXiv
2505.00793).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from metajax._arguments import checked
from metajax._closures import hoisted
from metajax._inner import INNER_GRADIENT
from metajax._trees import clone_keys, packing
from metajax.types import Array, Params, PyTree


@checked
def value_and_grad(loss: Callable, has_aux: bool = False) -> Callable:
    """`jax.value_and_grad` for the steps of a learner: cheaper to differentiate once more.

    Values, gradients and their derivatives are those of JAX, to rounding, in reverse and in forward
    mode, under any transformation; what the loss closes over takes part. It saves memory and time
    where the loss keeps much more than the parameters (large batches, deep or recurrent networks),
    above all where it has loops or checkpoints of its own. Estimators that rematerialise inner
    steps keep the gradient, of the size of the parameters, instead of making it again.

    Args:
      loss: ``(params, *args) -> loss``, or ``(loss, aux)`` with ``has_aux``.
      has_aux: whether the loss comes with more, such as metrics.

    Returns:
      ``(params, *args) -> (loss, grads)`` or ``((loss, aux), grads)``.

    Raises:
      TypeError: on differentiating a third time; `jax.value_and_grad` can be.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> def inner_loss(params, rate):
    ...     return jnp.sum(rate * params**3)
    >>> def after_a_step(rate):
    ...     _, grads = mx.value_and_grad(inner_loss)(jnp.ones(2), rate)
    ...     return inner_loss(1.0 - 0.1 * grads, rate)
    >>> round(float(jax.grad(after_a_step)(1.0)), 3)
    -0.196
    """

    def run(params, *args):
        def with_aux(params):
            result = loss(params, *args)
            return result if has_aux else (result, ())

        (value, aux), grads = _differentiated(_program(with_aux, params), params)
        return ((value, aux) if has_aux else value), _named(grads)

    return run


def first_order_value_and_grad(loss: Callable, has_aux: bool = False) -> Callable:
    """`value_and_grad` whose gradient is taken for a constant."""

    def run(params):
        result, grads = jax.value_and_grad(loss, has_aux=has_aux)(params)
        return result, _named(lax.stop_gradient(grads))

    return run


def _named(grads: Params) -> Params:
    pack, unpack = packing(grads)
    return unpack([checkpoint_name(x, INNER_GRADIENT) for x in pack(grads)])


class _Program(NamedTuple):
    """A loss as a function of all that it reads.

    Attributes:
      call: ``(params, closed, fixed) -> (values, others)``: the floating outputs, the loss first,
        and those that are not, such as counts.
      closed: the floating arrays that it closes over; derivatives flow into them.
      fixed: those that are not floating, such as labels and keys.
      result: ``(values, others) -> (loss, aux)``.
      ones: cotangents of the values: one of the loss, and zeros.
    """

    call: Callable[..., tuple[list[Array], list[Array]]]
    closed: list[Array]
    fixed: list[Array]
    result: Callable[[list[Array], list[Array]], PyTree]
    ones: list[np.ndarray]


def _program(loss: Callable, params: Params) -> _Program:
    run, constants, shapes = hoisted(loss, params)
    outputs, tree = jax.tree.flatten(shapes)

    def call(params, closed, fixed):
        arrays = _interleaved(constants, closed, fixed)
        return _parted(jax.tree.leaves(run(arrays, params)))

    def result(values, others):
        return jax.tree.unflatten(tree, _interleaved(outputs, values, others))

    # NumPy's: an array of JAX's would be a tracer of the scan that this is in.
    values, _ = _parted(outputs)
    ones = [np.full(x.shape, i == 0, x.dtype) for i, x in enumerate(values)]
    return _Program(call, *_parted(constants), result, ones)


def _differentiated(program: _Program, params: Params) -> tuple[PyTree, Params]:
    """The outputs of a program, and the gradient of its loss by the parameters."""

    def primal(params, closed, fixed):
        call = partial(program.call, closed=closed, fixed=fixed)
        values, pull, others = jax.vjp(call, params, has_aux=True)
        (grads,) = pull(program.ones)
        return (values, grads), others

    def tangent(primals, tangents):
        params, closed, fixed = primals
        moved = tangents[:2]  # of the parameters, and of what is closed over
        found, others = run(params, closed, fixed)
        params, closed = _for_the_last_time((params, closed))

        def forward(moved, fixed):
            _, change = jax.jvp(
                lambda p, c: primal(p, c, fixed)[0], (params, closed), moved
            )
            return change

        def backward(cotangents, fixed):
            """The transpose of ``forward``, by one forward derivative of the pull-back."""
            of_values, of_grads = cotangents

            def pull(params, seed):
                call = partial(program.call, fixed=fixed)
                _, pull_back = jax.vjp(lambda p, c: call(p, c)[0], params, closed)
                return pull_back(seed)

            _, change = jax.jvp(pull, (params, program.ones), (of_grads, of_values))
            return change

        def both(pair, fixed):
            return backward(pair[1], fixed), forward(pair[0], fixed)

        zeros = jax.tree.map(jnp.zeros_like, found)
        _, change = _self_adjoint(both, (moved, zeros), fixed)
        no_change = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), others)
        return (found, others), (change, no_change)

    run = jax.custom_jvp(primal)
    run.defjvp(tangent)
    (values, grads), others = run(params, program.closed, program.fixed)
    return program.result(values, others), grads


def _self_adjoint(f: Callable, pair: PyTree, fixed: list[Array]) -> PyTree:
    """``f(pair, fixed)``, where ``(u, w) -> (backward w, forward u)`` is its own transpose.

    JAX may be told so of a linear solve, and of nothing else that knows `jax.vmap`: this map is the
    "inverse" of the identity. The half that nobody asks for is dead code, and is dropped.
    """
    left, right = pair
    # All of the right-hand side must be linear in what is differentiated, or nothing of it; XLA
    # drops the sum.
    leaves = jax.tree.leaves(left)
    tie = sum((jnp.where(False, x.sum(), 0) for x in leaves), jnp.zeros(()))
    linear = jax.tree.map(
        lambda x: x + jnp.where(False, tie.astype(x.dtype), 0), (left, right)
    )

    # The same keys in the program itself, here and in the transpose.
    here, in_transpose = clone_keys(fixed), clone_keys(fixed)
    return lax.custom_linear_solve(
        lambda x: x,
        linear,
        lambda _, pair: f(pair, here),
        lambda _, pair: f(pair, in_transpose),
    )


@jax.custom_jvp
def _for_the_last_time(tree: PyTree) -> PyTree:
    return tree


@_for_the_last_time.defjvp
def _refuse(primals, tangents):
    del primals, tangents
    raise TypeError(
        "metajax.value_and_grad can be differentiated once more, and was twice; take "
        "jax.value_and_grad where third derivatives are wanted"
    )


def _is_floating(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _parted(arrays: list[Any]) -> tuple[list[Any], list[Any]]:
    """Those that are floating, and the others."""
    floating = [x for x in arrays if _is_floating(x)]
    others = [x for x in arrays if not _is_floating(x)]
    return floating, others


def _interleaved(like: list[Any], floating: list[Any], others: list[Any]) -> list[Any]:
    """Back in the order of ``like``."""
    sources = {True: iter(floating), False: iter(others)}
    return [next(sources[_is_floating(x)]) for x in like]
