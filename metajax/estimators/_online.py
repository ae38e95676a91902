"""Truncated windows without truncation bias: how the meta-parameters moved the state is carried on.

An episode is a chain of windows ``state, loss = window(meta_params, state)``. What backpropagation
through one of them leaves out is the influence that the meta-parameters have had on the state that
it begins with; real-time recurrent learning carries that forward, exactly or as an estimate.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from metajax import _trees
from metajax._arguments import PositiveInt, checked
from metajax._inner import unroll
from metajax.estimators import _episodes
from metajax.types import (
    Array,
    Estimate,
    Estimator,
    Inner,
    InnerState,
    PyTree,
)

_SMALL = 1e-7  # keeps the balance of norms away from 0 and infinity


class Online(NamedTuple):
    """Episodes under way, leaves ``[num_tasks, ...]``.

    Attributes:
      episodes: where they are.
      influence: how the meta-parameters have moved the learners' states.
    """

    episodes: InnerState
    influence: Any


class RankOne(NamedTuple):
    """An estimate of the influence: the outer product of the two.

    Attributes:
      of_state: like the floating leaves of the learner's state, as one vector.
      of_meta_params: like the meta-parameters, as one vector.
    """

    of_state: Array
    of_meta_params: Array


@checked
def rtrl(
    inner: Inner,
    num_tasks: PositiveInt,
    truncation: PositiveInt | None = None,
    *,
    stagger: bool = False,
) -> Estimator:
    """Real-time recurrent learning (Williams & Zipser 1989): `metajax.forward` without bias.

    The derivative of the learner's state by each meta-parameter is carried from window to window,
    so that the gradients of an episode's windows have its whole gradient for their mean, as long as
    the meta-parameters stay. Memory is that of ``num_tasks`` learner states a meta-parameter, so
    this is for few of them.

    Args:
      inner: the inner loop, with the meta-loss ``"online"`` if truncated. What it runs must have a
        forward mode.
      num_tasks: episodes run side by side, each on its own task.
      truncation: window length, a divisor of the horizon; the whole horizon by default.
      stagger: start the episodes a window apart, as in `metajax.bptt`; the influence of what came
        before is taken for zero.

    An episode whose loss or gradient is not finite is left out of the estimate, starts anew, and is
    counted by the metric ``diverged``.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic(), second_order=True)
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=10)
    >>> trainer = mx.trainer(mx.rtrl(loop, num_tasks=4, truncation=2), optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> state, metrics = jax.jit(trainer.step)(state)
    """

    def no_influence(meta_params, state):
        return jnp.zeros((len(meta_params), len(state)), state.dtype)

    def differentiate(run, key, meta_params, state, influence):
        del key
        identity = jnp.eye(len(meta_params), dtype=meta_params.dtype)

        def slopes(of_meta_params, of_state):
            primals = (meta_params, state)
            _, slopes, _ = jax.jvp(
                run, primals, (of_meta_params, of_state), has_aux=True
            )
            return slopes

        grad, influence = jax.vmap(slopes)(identity, influence)
        return grad, influence

    return _online(
        "rtrl", inner, num_tasks, truncation, stagger, no_influence, differentiate
    )


@checked
def uoro(
    inner: Inner,
    num_tasks: PositiveInt,
    truncation: PositiveInt | None = None,
    *,
    stagger: bool = False,
) -> Estimator:
    """Unbiased online recurrent optimization (Tallec & Ollivier 2017).

    The influence of the meta-parameters on the learner's state is estimated by the product of two
    vectors that are carried from window to window. Truncated windows then have the whole gradient
    of an episode in the mean, as with `metajax.pes`, for the memory of backpropagation through one
    window, whatever the number of meta-parameters; the price is variance.

    Args:
      inner: the inner loop, with the meta-loss ``"online"`` if truncated. What it runs must have a
        forward mode.
      num_tasks: episodes run side by side, each on its own task.
      truncation: window length, a divisor of the horizon; the whole horizon by default.
      stagger: start the episodes a window apart, as in `metajax.bptt`; the influence of what came
        before is taken for zero.

    An episode whose loss or gradient is not finite is left out of the estimate, starts anew, and is
    counted by the metric ``diverged``.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic(), second_order=True)
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=10)
    >>> trainer = mx.trainer(mx.uoro(loop, num_tasks=4, truncation=2), optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> state, metrics = jax.jit(trainer.step)(state)
    """

    def no_influence(meta_params, state):
        return RankOne(jnp.zeros_like(state), jnp.zeros_like(meta_params))

    def differentiate(run, key, meta_params, state, influence):
        # Along the carried direction of the state, and backwards to the meta-parameters.
        _, (slope, moved), _ = jax.jvp(
            lambda state: run(meta_params, state),
            (state,),
            (influence.of_state,),
            has_aux=True,
        )
        _, pull, _ = jax.vjp(lambda m: run(m, state), meta_params, has_aux=True)
        signs = jax.random.rademacher(key, state.shape, state.dtype)
        of_loss = (jnp.ones_like(slope), jnp.zeros_like(state))
        of_state = (jnp.zeros_like(slope), signs)
        cotangents = jax.tree.map(lambda *x: jnp.stack(x), of_loss, of_state)
        ((direct, new),) = jax.vmap(pull)(cotangents)
        grad = direct + slope * influence.of_meta_params

        # The sum of two outer products as one, in the mean over the signs; any balance will do, and
        # this one has the least variance (Tallec & Ollivier 2017, section 3.2).
        old_balance = _balance(influence.of_meta_params, moved)
        new_balance = _balance(new, signs)
        of_state = old_balance * moved + new_balance * signs
        of_meta_params = influence.of_meta_params / old_balance + new / new_balance
        return grad, RankOne(of_state, of_meta_params)

    return _online(
        "uoro", inner, num_tasks, truncation, stagger, no_influence, differentiate
    )


def _balance(a: Array, b: Array) -> Array:
    """The factor that makes ``b`` as long as ``a`` divided by it."""
    length_a = jnp.linalg.norm(a)
    length_b = jnp.linalg.norm(b)
    return jnp.sqrt((length_a + _SMALL) / (length_b + _SMALL))


def _online(
    who: str,
    inner: Inner,
    num_tasks: int,
    truncation: int | None,
    stagger: bool,
    no_influence: Callable[[Array, Array], PyTree],
    differentiate: Callable[..., tuple[Array, PyTree]],
) -> Estimator:
    """An estimator that carries ``influence`` along.

    ``differentiate(run, key, meta_params, state, influence)`` gives the gradient of a window and
    the influence after it, where ``run(meta_params, state) -> (loss, state), aux`` and all are
    vectors.
    """
    window = _episodes.window_length(inner, truncation)

    def init(key, meta_params, data):
        stride = window if stagger else 0
        episodes = _episodes.start(inner, key, meta_params, data, num_tasks, stride)
        floating, _ = _trees.partition(meta_params)
        flat, _ = ravel_pytree(floating)

        def influence(learner):
            return no_influence(flat, _trees.floating_vector(learner)[0])

        return Online(episodes, jax.vmap(influence)(episodes.learner))

    def episode(meta_params, key, online, data):
        k_restart, k_signs = jax.random.split(key)
        state, influence = online
        floating, others = _trees.partition(meta_params)
        flat, unravel = ravel_pytree(floating)
        vector, with_vector = _trees.floating_vector(state.learner)

        def run(flat, vector):
            meta_params = _trees.combine(unravel(flat), others)
            # The same window whenever it is run.
            before = _trees.clone_keys(state._replace(learner=with_vector(vector)))
            k = jax.random.clone(k_restart)
            begin = _episodes.restart(inner, k, meta_params, before, data, window)
            end, loss, metrics = unroll(inner, meta_params, begin, data, window)
            after, _ = _trees.floating_vector(end.learner)
            return (loss, after), (begin, end, metrics)

        # An episode that begins has no past.
        is_over = _episodes.has_ended(inner, state, window)
        influence = optax.tree.where(is_over, no_influence(flat, vector), influence)
        (loss, _), found = run(flat, vector)
        grad, influence = differentiate(run, k_signs, flat, vector, influence)
        return loss, found, unravel(grad), influence

    def estimate(key, meta_params, state, data):
        run = inner.vmap(episode, (None, 0, 0, None))
        keys = jax.random.split(key, num_tasks)
        losses, (begin, end, metrics), grads, influence = run(
            meta_params, keys, state, data
        )

        ok = jnp.isfinite(losses) & _trees.all_finite((grads, influence), batch=True)
        updates, loss, metrics = _episodes.mean_of_finite(ok, (grads, losses, metrics))
        metrics = _episodes.with_diverged(who, metrics, ok)
        episodes = _episodes.end_diverged(inner, begin, end, ok)
        return Estimate(updates, loss, metrics), Online(episodes, influence)

    return Estimator(init, estimate, inner)
