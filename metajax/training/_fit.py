"""A run of a trainer to its end, resumed where it was stopped."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from metajax import _checks
from metajax._arguments import PositiveInt, checked
from metajax.sharding import _hosts as hosts
from metajax.training._checkpoints import Checkpoints
from metajax.training._progress import Progress
from metajax.training._record import Rows
from metajax.training._run import Run
from metajax.training._saver import Saver
from metajax.training._signals import Signals
from metajax.training._source import Source
from metajax.training._troubles import Troubles
from metajax.training._validation import (
    Validation,
    is_out_of_patience,
    restart_if_by_another,
    validate_if_due,
)
from metajax.training._warnings import warn
from metajax.types import PyTree, Trainer, TrainState

_REMEDY = (
    "Lower the learning rate, clip with optax.clip_by_global_norm, or shorten the horizon; if no "
    "step was finite, look for labels that the network has no output for, and for a root, a norm "
    "or a quotient at exactly 0, which has no derivative (of an optax transformation "
    "metajax.optim.differentiable mends it)"
)


class Fit(NamedTuple):
    """What `fit` returns.

    Attributes:
      state: the final state.
      history: each metric as a NumPy array ``[num_steps]``, from the first step of the run, resumed
        or not.
      best: the meta-parameters with the lowest finite validation loss, the final ones where there
        is none.
      validation: ``step`` and ``loss``, NumPy arrays ``[number of validations]``.
    """

    state: TrainState
    history: dict[str, np.ndarray]
    best: PyTree
    validation: dict[str, np.ndarray]


@checked
def fit(
    trainer: Trainer,
    state: TrainState,
    data: PyTree | Iterable[PyTree] = (),
    *,
    num_steps: PositiveInt,
    validate: Validation | None = None,
    checkpoint: Checkpoints | None = None,
    callbacks: Sequence[Callable[[Rows], None]] = (),
    progress: str | None = "meta-training",
) -> Fit:
    """Trains until meta-step ``num_steps``, and survives what happens to long runs.

    ``num_steps`` is a total: the same script, run again, goes on from its last checkpoint and ends
    at the same place, bit for bit as if nothing had happened. To train for longer, give a larger
    ``num_steps``. Gradient clipping and schedules are optax's, as in the example.

    - With ``checkpoint`` the whole run is saved: the state with its keys, which also say what data
      comes next; the history; the validations and the best meta-parameters. SIGTERM and Ctrl-C end
      it at the end of a chunk, saved.
    - A meta-gradient that is not finite is skipped and counted. After ``trainer.max_skipped`` in a
      row the run stops and saves its state, with the parameters as they were before the first of
      them. What is not finite is never saved.
    - A full disk costs checkpoints, not the run: it is warned of, and the checkpoints on disk stay
      as they are.
    - On several hosts all call it with the same arguments. The first alone writes, reports and
      calls ``callbacks``; a signal that one of them gets stops all of them, saved, at the same
      step.
    - Metrics of inner loops that say that an implicit gradient is not to be trusted are warned of,
      once each: ``inner_diverged``, ``negative_curvature``, ``residual`` and those of
      `metajax.implicit.newton`. So are meta-gradients that are exactly 0.

    Args:
      trainer: from `metajax.trainer`.
      state: from ``trainer.init``, or from an earlier `fit` to go on.
      data: handed to the tasks. Or an iterable of such, all of one shape, that has no end: a
        generator, a loader; each chunk (``trainer.chunk`` meta-steps, fewer before what is due) is
        given the next item, and ``trainer.init`` one of them. A run that is taken up again passes
        over as many items as it has had: bit for bit the same, if the iterable begins as before.
      num_steps: the meta-step to train to, counted by ``state.step``.
      validate: from `metajax.validation`, a loss on fresh tasks that chooses ``best`` and may end
        the run early.
      checkpoint: from `metajax.checkpoints`. What it holds takes precedence over ``state``.
      callbacks: each, such as `metajax.log` and `metajax.tensorboard`, is called after every chunk
        with its rows, ``[{"step": 1, "loss": ...}, ...]``. In a run with validations each row has
        ``validation`` too, None where there was none. After an error in one of them, a run that
        goes on gives those rows again. A callback with a method ``resume(rows)`` is told first,
        before any step, all rows that the run has already, none if it is new.
      progress: what the progress bar is called, or the plain lines where the output is no terminal;
        None for silence.

    Raises:
      FloatingPointError: too many non-finite meta-gradients in a row; the message says where and
        what.
      KeyboardInterrupt, SystemExit: after Ctrl-C and SIGTERM with a ``checkpoint``, once all is
        saved.
      ValueError: a checkpoint of another run, or an iterable of ``data`` that has ended.
      RuntimeError: another process uses the folder of ``checkpoint``.

    >>> import jax, metajax as mx, optax, tempfile
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=10)
    >>> schedule = optax.cosine_decay_schedule(1e-2, decay_steps=20)
    >>> outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    >>> trainer = mx.trainer(mx.bptt(loop, num_tasks=4), outer)
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> store = mx.checkpoints(tempfile.mkdtemp(), every=10)
    >>> result = mx.fit(trainer, state, num_steps=20, checkpoint=store, progress=None)
    >>> int(result.state.step), result.history["loss"].shape
    (20, (20,))
    >>> again = mx.fit(trainer, state, num_steps=20, checkpoint=store, progress=None)
    >>> bool((again.history["loss"] == result.history["loss"]).all())  # nothing was left to do
    True
    """
    _checks.finite("state.meta_params", state.meta_params)
    source = Source(data)
    periods = [trainer.chunk]
    periods += [part.every for part in (validate, checkpoint) if part is not None]

    troubles = Troubles()
    signals = Signals(checkpoint is not None, progress or "meta-training")
    with signals, Saver(checkpoint) as saver:
        run = saver.restore_run(state) or Run.new(state)
        _check_something_is_left(run, num_steps)
        source.skip(run.num_items)
        with Progress(progress, run.step, num_steps) as bar, saver.on_error(run):
            if run.resumed:
                bar.say(
                    f"resumed at meta-step {run.step} of {num_steps} from {saver.where}"
                )
            if run.step < num_steps:
                restart_if_by_another(run, validate)

            while True:
                # What is due at this step ...
                with bar.first_time("the first validation"):
                    validate_if_due(run, validate)
                bar.show(run)
                _report(run, callbacks)
                _give_up_if_hopeless(run, trainer.max_skipped, saver)
                is_decided = is_out_of_patience(run.record, validate)
                ends = is_decided or run.step >= num_steps or signals.agreed() > 0
                saver.save_if_due(run, ends)
                if ends:
                    break
                # ... and the way to the next at which something is.
                before = run.step
                until = _next_step(run.step, num_steps, periods)
                with bar.first_time("the first meta-steps"):
                    run.advance(trainer, source, until)
                troubles.look(run.record.history(before), run.step)

            _say_if_early(bar, run.step, num_steps, is_decided)
        saver.finish()
        _warn_if_skipping(run)
        _warn_if_nothing_is_best(run)
        signals.leave(f"at meta-step {run.step} of {num_steps}; {saver.status()}")
    return Fit(run.state, run.record.history(), run.best, run.record.validation())


def _next_step(step: int, num_steps: int, periods: Sequence[int]) -> int:
    """The next meta-step at which something is due.

    Absolute multiples of the periods: they do not depend on where the run was resumed.
    """
    multiples = [step - step % period + period for period in periods]
    return min(num_steps, *multiples)


def _say_if_early(bar: Progress, step: int, num_steps: int, is_decided: bool) -> None:
    if is_decided and step < num_steps:
        bar.say(
            f"stopped early at meta-step {step}: validation found no new best any more"
        )


def _report(run: Run, callbacks: Sequence[Callable[[Rows], None]]) -> None:
    """Gives the callbacks of the first host the rows that they have not had yet."""
    record = run.record
    if hosts.is_first():
        for callback in callbacks:
            resume = getattr(callback, "resume", None)
            if resume is not None and run.step == run.first_step:
                resume(record.rows(record.start))
        for callback in callbacks:
            if run.step > record.reported:
                callback(record.rows(record.reported))
    record.reported = run.step


def _give_up_if_hopeless(run: Run, max_skipped: int, saver: Saver) -> None:
    """Saves the state, which has the last good parameters, and says where and why it ends."""
    num_skipped = int(run.state.skipped)
    if num_skipped < max_skipped:
        return
    run.reset_skipped()
    saver.save(run)
    saver.finish()

    saved = ""
    if saver.saved is not None:
        saved = f" and saved at meta-step {saver.saved} in {saver.where}"
    last_values = [
        f"{name} {values[-1]:.4g}"
        for name, values in run.record.history().items()
        if name in ("loss", "update_norm") and values.size
    ]
    raise FloatingPointError(
        f"the meta-gradient was not finite for {num_skipped} steps in a row, up to meta-step "
        f"{run.step}; the parameters before that were kept{hosts.agreed(saved)}. The last step had "
        f"{', '.join(last_values)}. {_REMEDY}"
    )


def _warn_if_skipping(run: Run) -> None:
    num_skipped = int(run.state.skipped)
    if num_skipped:
        warn(
            f"the last {num_skipped} meta-steps, up to {run.step}, were skipped: their "
            f"meta-gradients were not finite. {_REMEDY}"
        )


def _warn_if_nothing_is_best(run: Run) -> None:
    validations = run.record.validations
    if validations and not np.isfinite(run.record.best_validation()):
        warn(
            f"none of the {len(validations)} validations was finite, so that best are the final "
            f"meta-parameters; look at what validate gives"
        )


def _check_something_is_left(run: Run, num_steps: int) -> None:
    # A run that was saved at its end may be read again.
    if run.step < num_steps or (run.resumed and run.step == num_steps):
        return
    holder = "the checkpoint" if run.resumed else "state"
    raise ValueError(
        f"num_steps is the total to train to, {num_steps}, but {holder} is already at meta-step "
        f"{run.step}; give a larger num_steps"
    )
