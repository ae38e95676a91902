"""Celo2: a learned direction, a rate of the user's (Moudgil et al. 2026, arXiv 2602.19142)."""

import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from metajax import _checks
from metajax._arguments import NonNegative, PositiveFloat, check, checked
from metajax.optim import _flat, _networks
from metajax.optim._celo_rule import (
    NUM_INPUTS,
    init_moments,
    inputs,
    move_leaves,
)
from metajax.optim._leaf_moments import Moments, inverse_size, normalized, seen
from metajax.optim._learned import learned_optimizer
from metajax.optim._orthogonalize import orthogonalize
from metajax.types import Array, LearnedOptimizer, PyTree

Rate = PositiveFloat | Array | optax.Schedule
IsMatrix = Callable[[tuple[Any, ...], Array], bool]
Scale = Callable[[tuple[int, ...]], float]

SIZES = (NUM_INPUTS, 8, 8, 1)


def has_two_axes(path: tuple[Any, ...], leaf: Array) -> bool:
    """Whether a leaf is a matrix, or several."""
    del path
    return jnp.ndim(leaf) >= 2


def unit(shape: tuple[int, ...]) -> float:
    """Steps of one root mean square for all matrices."""
    del shape
    return 1.0


def by_fan_in(shape: tuple[int, ...]) -> float:
    """Steps of matrices ``[..., in, out]`` over the root of their inputs, as in Muon.

    The inputs of a kernel are those at all its places. A layer's outputs then move as much whatever
    its width is, and one rate serves narrow and wide networks (Yang, Simon & Bernstein 2023, "A
    Spectral Condition for Feature Learning", arXiv 2310.17813): an orthogonal step has the largest
    singular value ``rate * max(1, sqrt(out / in))``.

    >>> import metajax as mx
    >>> mx.optim.by_fan_in((64, 10)), mx.optim.by_fan_in((2, 2, 16, 32))
    (0.125, 0.125)
    """
    shape = _checks.positive_ints("shape", shape, like=(64, 10), any_length=True)
    return math.prod(shape[:-1]) ** -0.5


@checked
def celo2_base(rate: Rate = 1e-3, weight_decay: NonNegative = 0.0) -> LearnedOptimizer:
    """Celo2-base of Moudgil et al. 2026: a learned direction for every leaf, of length 1.

    A network 30-8-8-1 with ReLU, shared by all coordinates, sees the gradient, the parameter, three
    momenta, the second moment, those of rows and columns, and quotients of these, each over its
    root mean square over the last two axes. So is its output, and the step is ``-rate * (d +
    weight_decay * params)``: that of each matrix, whatever its size, has the root mean square
    ``rate``. A vector is normalised as a whole and has the first 15 inputs; kernels are taken to be
    ``[height, width, in, out]``. Nothing shrinks near a minimum: a schedule that ends at 0 does.

    Averages, features and constants are those of the authors' code. Their network has two outputs
    more, 18 of its 347 numbers, which are without effect and left out here. It needs the
    parameters, ``tx.update(updates, state, params)``, and computes in float32 or wider; four
    numbers a coordinate are its state. Leaves of one shape are moved by one program.

    Args:
      rate: the length of a step: a number, an array, or a schedule of optax.
      weight_decay: decoupled, times the rate, as in AdamW.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> opt = mx.optim.celo2_base(optax.cosine_decay_schedule(1e-3, decay_steps=100))
    >>> meta_params = opt.init(jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(meta_params))
    329
    >>> tx = opt.tx(meta_params)
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    >>> jnp.sqrt((updates["w"] ** 2).mean()).round(5)
    Array(0.001, dtype=float32)
    """
    _check_rate(rate)

    def tx(network) -> optax.GradientTransformation:
        return _steps(_learned_direction(network, _unchanged, unit), rate, weight_decay)

    return learned_optimizer(_init, tx)


@checked
def celo2(
    rate: Rate = 1e-3,
    weight_decay: NonNegative = 0.0,
    *,
    is_matrix: IsMatrix = has_two_axes,
    scale: Scale = unit,
    multiplier: PositiveFloat = 20.0,
    debias: bool = True,
) -> LearnedOptimizer:
    """Celo2 of Moudgil et al. 2026: orthogonal learned steps for matrices, and Adam for the rest.

    A matrix has the direction of `celo2_base`, made nearly orthogonal over its last two axes as in
    Muon, and normalised again. What is no matrix has `optax.adamw` with ``b1=0.9, b2=0.95`` and
    ``multiplier`` times the rate. The authors leave the multiplier to the user; they meta-train
    with 20 and with a variant of Adam that is not corrected for its start.

    Args:
      rate: of matrices: a number, an array, or a schedule of optax.
      weight_decay: decoupled, times the rate of the leaf.
      is_matrix: which leaves are under the learned rule, ``(path, leaf) -> bool``, by default those
        with at least two axes. The authors leave embeddings to Adam.
      scale: of a matrix's step by its shape: its root mean square is the rate times this. The
        authors' is 1, and their best rate falls with the width; `metajax.optim.by_fan_in` holds for
        all widths at rates about ten times theirs.
      multiplier: of the rate, for what is no matrix.
      debias: whether Adam's averages are corrected for their start at zero. If not, epsilon is
        within the root, as when the authors meta-train.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> opt = mx.optim.celo2(
    ...     1e-3, is_matrix=lambda path, x: x.ndim > 1 and "embed" not in jax.tree_util.keystr(path)
    ... )
    >>> tx = opt.tx(opt.init(jax.random.key(0)))
    >>> params = {"embed": jnp.ones((5, 2)), "w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    >>> updates["embed"][0].round(4)
    Array([-0.02, -0.02], dtype=float32)
    """
    _check_rate(rate)
    adam = optax.scale_by_adam(0.9, 0.95) if debias else _uncorrected_adam(0.9, 0.95)

    def kinds(params: PyTree) -> PyTree:
        def kind(path, leaf):
            return "matrix" if is_matrix(path, leaf) else "other"

        return jax.tree_util.tree_map_with_path(kind, params)

    def tx(network) -> optax.GradientTransformation:
        learned = _learned_direction(network, _orthogonalize_matrix, scale)
        steps: dict[Hashable, optax.GradientTransformation] = {
            "matrix": _steps(learned, rate, weight_decay),
            "other": _steps(adam, _times(multiplier, rate), weight_decay),
        }
        return optax.multi_transform(steps, kinds)

    return learned_optimizer(_init, tx)


def _init(key: Array) -> list[_networks.Layer]:
    return _networks.init_mlp(key, SIZES)


def _learned_direction(
    network: list[_networks.Layer],
    finish: Callable[[Array], Array],
    scale: Scale,
) -> optax.GradientTransformation:
    """The direction of a ``network``, up as the gradient is; of length 1 times ``scale``."""

    def direction(moments: Moments, grad: Array, theta: Array) -> Array:
        num_axes = min(grad.ndim, 2)
        x = seen(moments, grad, theta)
        x = normalized(partial(inputs, v_epsilon=1e-8), x, num_axes, 1e-9)
        [d] = _networks.mlp_of_arrays(network, x)
        d = finish(d)
        return d * inverse_size(d, num_axes, 1e-9) * scale(grad.shape)

    def update(updates, state, params=None):
        return move_leaves(direction, 0.95, updates, state, params)

    return optax.GradientTransformation(init_moments, update)


def _unchanged(d: Array) -> Array:
    return d


def _orthogonalize_matrix(d: Array) -> Array:
    # What the user takes for a matrix may be a vector.
    return orthogonalize(d) if d.ndim >= 2 else d


def _steps(
    direction: optax.GradientTransformation,
    rate: Any,  # which optax knows by a narrower type
    weight_decay: float,
) -> optax.GradientTransformation:
    """Steps of a rate down a direction, in float32 or wider, whatever the parameters are in."""
    steps = optax.chain(
        direction,
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(rate),
    )

    def init(params):
        _checks.floating("params", params)
        return steps.init(_widened(params))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("params are needed: tx.update(updates, state, params)")
        _checks.floating("updates", updates)
        _checks.floating("params", params)
        moves, state = steps.update(_widened(updates), state, _widened(params))
        return optax.tree.cast_like(moves, updates), state

    return optax.GradientTransformation(init, update)


def _widened(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.asarray(x, _flat.dtype(x)), tree)


class _Averages(NamedTuple):
    m: PyTree
    v: PyTree


def _uncorrected_adam(b1: float, b2: float) -> optax.GradientTransformation:
    """``m / sqrt(v + 1e-8)``, with averages that begin at zero and are not corrected for it."""

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return _Averages(zeros, zeros)

    def update(updates, state, params=None):
        del params
        m = optax.tree.update_moment(updates, state.m, b1, 1)
        v = optax.tree.update_moment(updates, state.v, b2, 2)
        direction = jax.tree.map(lambda m, v: m * lax.rsqrt(v + 1e-8), m, v)
        return direction, _Averages(m, v)

    return optax.GradientTransformation(init, update)


def _times(factor: float, rate: Rate) -> Rate:
    if callable(rate):
        return lambda count: factor * rate(count)
    return factor * rate


def _check_rate(rate: Rate) -> None:
    if isinstance(rate, jax.Array):
        _checks.scalar("rate", rate)
    elif not callable(rate):
        check(PositiveFloat, rate=rate)
