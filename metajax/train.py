"""The outer loop: an estimator, an optax transformation, and a run that reports what it does."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from metajax import checks
from metajax.estimators._episodes import all_finite
from metajax.progress import Progress
from metajax.types import Array, Estimator, PyTree, Trainer, TrainState


def trainer(estimator: Estimator, tx: optax.GradientTransformation) -> Trainer:
    """Joins an estimator and the optax transformation that applies its estimates.

    A step whose meta-gradient or result is not finite leaves ``meta_params`` and the optimizer's state as they were
    and counts up ``skipped``; the metrics say so.

    Raises:
      TypeError: arguments of another type, or meta-parameters that are not floating-point.

    >>> import jax, metajax as mx, optax
    >>> loop = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), horizon=10)
    >>> trainer = mx.trainer(mx.bptt(loop, num_tasks=4), optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> state, metrics = jax.jit(trainer.step)(state)
    >>> sorted(metrics)
    ['loss', 'skipped', 'update_norm']
    """
    checks.instance("estimator", estimator, Estimator, "metajax.bptt or another estimator")
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(f"tx must be an optax.GradientTransformation, e.g. optax.adam(1e-3), got {type(tx).__name__}")

    def init(key, meta_params, data=()):
        checks.key(key)
        checks.floating("meta_params", meta_params)
        checks.finite("meta_params", meta_params)
        checks.finite("data", data)
        k_estimator, key = jax.random.split(key)
        meta_params = _strong(meta_params)
        estimator_state = estimator.init(k_estimator, meta_params, data)
        zero = jnp.int32(0)
        return _strong(TrainState(key, zero, meta_params, tx.init(meta_params), estimator_state, zero))

    def step(state, data=()):
        checks.instance("state", state, TrainState, "trainer.init")
        key = jax.random.fold_in(state.key, state.step)
        estimate, estimator_state = estimator.estimate(key, state.meta_params, state.estimator, data)
        updates, opt_state = tx.update(estimate.updates, state.opt_state, state.meta_params)
        meta_params = optax.apply_updates(state.meta_params, updates)
        ok = all_finite((estimate.loss, estimate.updates, meta_params))
        meta_params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old), (meta_params, opt_state), (state.meta_params, state.opt_state)
        )
        skipped = jnp.where(ok, 0, state.skipped + 1)
        metrics = {"loss": estimate.loss, "update_norm": optax.tree.norm(estimate.updates), "skipped": skipped}
        new = TrainState(state.key, state.step + 1, meta_params, opt_state, estimator_state, skipped)
        return _strong(new), metrics | estimate.metrics

    return Trainer(init, step)


class Fit(NamedTuple):
    """What `fit` returns: the final state and the history, each metric as a NumPy array ``[num_steps]``."""

    state: TrainState
    history: dict[str, np.ndarray]


def fit(
    trainer: Trainer,
    state: TrainState,
    data: PyTree = (),
    *,
    num_steps: int,
    chunk: int = 10,
    max_skipped: int = 10,
    progress: bool = True,
    label: str = "meta-training",
) -> Fit:
    """Runs ``num_steps`` meta-steps, ``chunk`` of them a compiled call, showing steps, loss, rate and time left.

    Args:
      trainer: from `metajax.trainer`.
      state: from ``trainer.init``, or from an earlier `fit` to go on.
      data: handed to the tasks.
      num_steps: meta-steps to run.
      chunk: meta-steps between two looks at the metrics.
      max_skipped: stop after so many non-finite meta-gradients in a row.
      progress: show a progress bar, or plain lines where the output is no terminal.
      label: what the progress bar is called.

    Raises:
      FloatingPointError: too many non-finite meta-gradients in a row; the message says at which step.
      TypeError, ValueError: bad arguments.

    >>> import jax, metajax as mx, optax
    >>> loop = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), horizon=10)
    >>> trainer = mx.trainer(mx.bptt(loop, num_tasks=4), optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> state, history = mx.fit(trainer, state, num_steps=20, progress=False)
    >>> int(state.step), history["loss"].shape
    (20, (20,))
    """
    checks.instance("trainer", trainer, Trainer, "metajax.trainer")
    checks.instance("state", state, TrainState, "trainer.init")
    num_steps = checks.positive_int("num_steps", num_steps)
    chunk = checks.positive_int("chunk", chunk)
    max_skipped = checks.positive_int("max_skipped", max_skipped)
    checks.finite("data", data)
    state = jax.tree.map(jnp.copy, state)  # the run donates its buffers; the caller's stay alive
    history: list[dict[str, np.ndarray]] = []
    done = 0
    with Progress(num_steps, label, show=progress) as bar:
        while done < num_steps:
            n = min(chunk, num_steps - done)
            state, metrics = _chunk(trainer, chunk, state, data, n)
            history.append({name: np.asarray(values)[:n] for name, values in metrics.items()})
            done += n
            bar.update(n, loss=float(history[-1]["loss"][-1]))
            if int(state.skipped) >= max_skipped:
                raise FloatingPointError(
                    f"the meta-gradient was not finite for {int(state.skipped)} steps in a row, up to meta-step "
                    f"{int(state.step)}; the parameters before that were kept. Lower the learning rate, clip with "
                    f"optax.clip_by_global_norm, or shorten the horizon"
                )
    return Fit(state, {name: np.concatenate([h[name] for h in history]) for name in history[0]})


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _chunk(trainer: Trainer, size: int, state: TrainState, data: PyTree, n: int):
    # A loop of a length that is known only at run time: one compilation serves the last, shorter chunk too.
    _, shapes = jax.eval_shape(trainer.step, state, data)
    metrics = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), shapes)

    def body(i, carry):
        state, metrics = carry
        state, new = trainer.step(state, data)
        return state, jax.tree.map(lambda buffer, x: buffer.at[i].set(x), metrics, new)

    return lax.fori_loop(0, n, body, (state, metrics))


def _strong(tree: PyTree) -> PyTree:
    """Strips weak types, so that the first step and the later ones share one trace."""

    def f(x: Array) -> Array:
        x = jnp.asarray(x)
        return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else lax.convert_element_type(x, x.dtype)

    return jax.tree.map(f, tree)
