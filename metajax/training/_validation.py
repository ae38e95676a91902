"""Validation on the way: a loss on fresh tasks that chooses the best and may end a run early."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax import _checks
from metajax._arguments import PositiveFloat, PositiveInt, checked
from metajax.sharding import _hosts as hosts
from metajax.training._record import Record
from metajax.training._run import Run
from metajax.training._warnings import warn
from metajax.types import Array, PyTree

_OTHER_MACHINE = 0.01  # by how much of itself a loss may differ on another


class Validation(NamedTuple):
    """How a run is judged on the way, made by `metajax.validation`."""

    loss: Callable[[Array, PyTree, PyTree], Any]
    key: Array
    data: PyTree
    every: int
    patience: int | None
    min_delta: float


@checked
def validation(
    loss: Callable[[Array, PyTree, PyTree], Any],
    key: Array,
    data: PyTree = (),
    *,
    every: PositiveInt = 100,
    patience: PositiveInt | None = None,
    min_delta: PositiveFloat = 0.05,
) -> Validation:
    """A loss on fresh tasks every ``every`` meta-steps; `fit` keeps the best meta-parameters by it.

    Each validation gets the same ``key``: the same tasks, not met in training, so that two values
    differ by their meta-parameters alone. The first takes place before the first step.

    Early stopping knows plateaus. Learning to learn often sits at the loss of a guess (``ln C``
    with C classes) for hundreds of steps before anything happens. ``patience`` therefore counts
    only once the best loss is more than ``min_delta`` times the size of the first below that first
    loss; a run that never leaves its plateau is ended by ``num_steps`` alone.

    Args:
      loss: ``(key, meta_params, data) -> scalar``, lower is better.
      key: a single typed key, another than that of the run.
      data: held-out data, handed to ``loss``.
      every: meta-steps between two validations.
      patience: stop after so many validations in a row without a new best; never by default.
      min_delta: the relative fall that ends the initial plateau.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=10)
    >>> def loss(key, meta_params, data):
    ...     return mx.evaluate(loop, key, meta_params, data, num_tasks=8).loss.mean()
    >>> validate = mx.validation(loss, jax.random.key(1), every=10, patience=5)
    >>> trainer = mx.trainer(mx.bptt(loop, num_tasks=4), optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> result = mx.fit(trainer, state, num_steps=20, validate=validate, progress=None)
    >>> result.validation["step"]
    array([ 0, 10, 20])
    """
    _checks.finite("data", data)
    return Validation(loss, key, data, every, patience, min_delta)


def validate_if_due(run: Run, validation: Validation | None) -> None:
    """Validates before the first step and at each multiple of ``every``, once."""
    if validation is None:
        return
    validations = run.record.validations
    is_due = run.step % validation.every == 0 and run.step not in validations
    if validations and not is_due:
        return
    run.add_validation(_loss_of(run.state.meta_params, validation))


def restart_if_by_another(run: Run, validation: Validation | None) -> None:
    """Validates the best of a resumed run once more, since another loss has another best.

    The record then goes on from the best alone, with its new loss.
    """
    recorded = run.record.best_validation()
    if validation is None or not run.resumed or not np.isfinite(recorded):
        return
    loss = _loss_of(run.best, validation)
    if np.isclose(loss, recorded, rtol=_OTHER_MACHINE, atol=0):
        return
    warn(
        f"validate gives the best meta-parameters so far the loss {loss:.4g}, the run that is "
        f"resumed has {recorded:.4g} for them: it validated by another loss, key or data. Its "
        f"other validations are left out; to keep them, give another directory for checkpoints"
    )
    run.record.restart_validations(loss)


def _loss_of(meta_params: PyTree, validation: Validation) -> float:
    key = jax.random.clone(validation.key)  # the same tasks each time
    loss = validation.loss(key, meta_params, validation.data)
    _checks.scalar("the loss returned by validate.loss", loss)
    # Hosts that differ by a rounding would stop at different steps.
    return hosts.agreed(float(loss))


def is_out_of_patience(record: Record, validation: Validation | None) -> bool:
    """Whether the run has left its initial plateau and found no new best for too long."""
    if validation is None or validation.patience is None:
        return False
    losses = record.validation()["loss"]
    finite = np.isfinite(losses)
    if not finite.any():
        return False
    first = losses[finite][0]
    best = record.best_validation()
    has_left_plateau = best < first - validation.min_delta * abs(first)

    index_of_best = np.flatnonzero(losses == best)[0]
    num_since = len(losses) - 1 - index_of_best
    return bool(has_left_plateau and num_since >= validation.patience)
