"""A trainer: an estimator joined to the optax transformation that applies its estimates."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from metajax import _checks, _trees
from metajax._arguments import PositiveInt, check, checked
from metajax._rehearsal import Rehearsal, run_episode
from metajax.types import Array, Estimator, PyTree, Trainer, TrainState

_NAMES_OF_A_RUN = ("loss", "update_norm", "skipped", "step", "validation")


@checked
def trainer(
    estimator: Estimator,
    tx: optax.GradientTransformation,
    *,
    chunk: PositiveInt = 10,
    max_skipped: PositiveInt = 10,
) -> Trainer:
    """Joins an estimator and the optax transformation that applies its estimates.

    Integers, booleans and keys among the meta-parameters, such as tables of indices, stay as they
    are; the optimizer does not see them.

    A step whose meta-gradient or result is not finite leaves ``meta_params`` and the optimizer's
    state as they were and counts up ``skipped``; the metrics say so.

    The transformation also gets the meta-loss as ``value`` and the estimate as ``grad``, for those
    that look at them, such as `optax.contrib.reduce_on_plateau`.

    Args:
      estimator: from `metajax.bptt` or another estimator.
      tx: gradient clipping, schedules and all.
      chunk: meta-steps in a compiled call, between two looks at the metrics.
      max_skipped: a run ends after so many skipped steps in a row.

    Raises:
      TypeError: from ``init``, meta-parameters none of which is floating-point, or one that is no
        array.
      ValueError: from ``init`` and ``run``, before anything is compiled, data that the tasks cannot
        use, or labels that a learner has no output for.
      ValueError: from ``step``, a state of another trainer, or a metric called ``loss``,
        ``update_norm``, ``skipped``, ``step`` or ``validation``, as a run calls its own.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=10)
    >>> trainer = mx.trainer(mx.bptt(loop, num_tasks=4), optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> state, metrics = jax.jit(trainer.step)(state)
    >>> sorted(metrics)
    ['diverged', 'loss', 'skipped', 'update_norm']
    """
    tx = optax.with_extra_args_support(tx)

    def init(key, meta_params, data=()):
        _checks.learnable("meta_params", meta_params)
        _checks.finite("meta_params", meta_params)
        _checks.finite("data", data)
        state = start(key, meta_params, data)
        rehearse(state, data=data)
        return state

    # One program: a hundred small ones would take a newcomer's first seconds.
    @jax.jit
    def start(key, meta_params, data):
        estimator_key, key = jax.random.split(key)
        meta_params = _without_weak_types(meta_params)
        floating, _ = _trees.partition(meta_params)
        state = TrainState(
            key=key,
            step=jnp.int32(0),
            meta_params=meta_params,
            opt_state=tx.init(floating),
            estimator=estimator.init(estimator_key, meta_params, data),
            skipped=jnp.int32(0),
        )
        return _without_weak_types(state)

    def step(state, data=()):
        check(TrainState, state=state)
        like = jax.eval_shape(start, state.key, state.meta_params, data)
        _check_maker("estimator", state.estimator, like.estimator, "estimator")
        _check_maker("opt_state", state.opt_state, like.opt_state, "tx")
        return _step(estimator, tx, state, data)

    def first_run(state, data):
        if estimator.inner is None:
            return step(state, data)
        return run_episode(estimator.inner, state.key, state.meta_params, data)

    rehearse = Rehearsal(first_run)
    run_chunk = chunked(step, chunk, max_skipped)

    def run(state, data, n):
        rehearse(state, data=data)
        return run_chunk(state, data, n)

    return Trainer(init, step, run, chunk, max_skipped)


def chunked(
    step: Callable[..., Any], chunk: int, max_skipped: int
) -> Callable[..., Any]:
    """Makes the ``run`` of a `metajax.Trainer` from its ``step``.

    The compiled program belongs to the function that is returned, and goes when that goes.
    """

    @partial(jax.jit, donate_argnums=0)
    def run(state, data, n):
        # Traced once, for the shapes and for the loop.
        traced_step = jax.jit(step)
        _, metrics = jax.eval_shape(traced_step, state, data)
        buffers = jax.tree.map(partial(_buffer, chunk), metrics)
        num_steps = jnp.minimum(n, chunk)

        def goes_on(carry):
            i, state, _ = carry
            return (i < num_steps) & (state.skipped < max_skipped)

        def body(carry):
            i, state, buffers = carry
            state, metrics = traced_step(state, data)
            buffers = jax.tree.map(
                lambda buffer, x: buffer.at[i].set(x), buffers, metrics
            )
            return i + 1, state, buffers

        # A length known only at run time: one program serves the last, shorter chunk too.
        start = (jnp.int32(0), state, buffers)
        _, state, buffers = lax.while_loop(goes_on, body, start)
        return state, buffers

    return run


def _buffer(chunk: int, metric: jax.ShapeDtypeStruct) -> Array:
    shape = (chunk, *metric.shape)
    return jnp.zeros(shape, metric.dtype)


def _step(
    estimator: Estimator,
    tx: optax.GradientTransformationExtraArgs,
    state: TrainState,
    data: PyTree,
) -> tuple[TrainState, dict[str, Array]]:
    key = jax.random.fold_in(state.key, state.step)
    result = estimator.estimate(key, state.meta_params, state.estimator, data)
    _checks.returned("estimator.estimate", result, "estimate, state")
    estimate, estimator_state = result
    _checks.unused_names("a run", estimate.metrics, _NAMES_OF_A_RUN)

    before, others = _trees.partition(state.meta_params)
    try:
        updates, opt_state = tx.update(
            estimate.updates,
            state.opt_state,
            before,
            value=estimate.loss,
            grad=estimate.updates,
        )
    except TypeError as e:
        if "value_fn" not in str(e):
            raise
        raise TypeError(
            "tx asks for the loss at other points (value_fn), as line searches do; an outer loop "
            "has only estimates of it: take another transformation here, and that one inside"
        ) from e
    after = optax.apply_updates(before, updates)

    finite = _trees.all_finite((estimate.loss, estimate.updates, after))
    finite &= _trees.stays_finite(opt_state, state.opt_state)
    after, opt_state = jax.tree.map(
        partial(jnp.where, finite),
        (after, opt_state),
        (before, state.opt_state),
    )
    skipped = jnp.where(finite, 0, state.skipped + 1)

    new_state = TrainState(
        key=state.key,
        step=state.step + 1,
        meta_params=_trees.combine(after, others),
        opt_state=opt_state,
        estimator=estimator_state,
        skipped=skipped,
    )
    metrics = {
        "loss": estimate.loss,
        "update_norm": optax.tree.norm(estimate.updates),
        "skipped": skipped,
    }
    return _without_weak_types(new_state), metrics | estimate.metrics


def _check_maker(name: str, got: PyTree, want: PyTree, maker: str) -> None:
    """``state.name`` must have the structure, shapes and dtypes that this trainer gives it."""
    same_structure = jax.tree.structure(got) == jax.tree.structure(want)
    kinds = [_checks.describe(x) for x in jax.tree.leaves(got)]
    wanted_kinds = [_checks.describe(x) for x in jax.tree.leaves(want)]
    if same_structure and kinds == wanted_kinds:
        return
    raise ValueError(
        f"state.{name} is not as the {maker} of this trainer makes it: the state is of another "
        f"trainer. To go on from its meta-parameters, begin with "
        f"trainer.init(key, state.meta_params, data)"
    )


def _without_weak_types(tree: PyTree) -> PyTree:
    """The first step and the later ones shall share one trace."""

    def strip(x: Any) -> Array:
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        return lax.convert_element_type(x, x.dtype)

    return jax.tree.map(strip, tree)
