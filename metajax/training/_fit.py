"""The outer loop: an estimator, an optax transformation, and a run that reports what it does."""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from metajax import _checks
from metajax._trees import all_finite, stays_finite
from metajax.sharding import _hosts as hosts
from metajax.training._checkpoints import Checkpoints, Snapshot
from metajax.training._logs import Log, Record, Rows
from metajax.training._progress import Plateau, Progress
from metajax.types import Array, Estimator, PyTree, Trainer, TrainState


def trainer(estimator: Estimator, tx: optax.GradientTransformation) -> Trainer:
    """Joins an estimator and the optax transformation that applies its estimates.

    A step whose meta-gradient or result is not finite leaves ``meta_params`` and the optimizer's
    state as they were and counts up ``skipped``; the metrics say so.

    Raises: TypeError: arguments of another type, or meta-parameters that are not floating-point.
      ValueError: from ``step``, a state of another trainer, or a metric called ``loss``,
      ``update_norm``, ``skipped``, ``step`` or ``validation``, as a run calls its own.

    >>> import jax, metajax as mx, optax
    >>> loop = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), horizon=10)
    >>> trainer = mx.trainer(mx.bptt(loop, num_tasks=4), optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> state, metrics = jax.jit(trainer.step)(state)
    >>> sorted(metrics)
    ['loss', 'skipped', 'update_norm']
    """
    _checks.instance(Estimator, estimator=estimator)
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(
            f"tx must be an optax.GradientTransformation, e.g. optax.adam(1e-3), got {type(tx).__name__}"
        )

    def init(key, meta_params, data=()):
        _checks.key(key)
        _checks.floating("meta_params", meta_params)
        _checks.finite("meta_params", meta_params)
        _checks.finite("data", data)
        return start(key, meta_params, data)

    @jax.jit  # one program: a hundred small ones would take a newcomer's first seconds
    def start(key, meta_params, data):
        k_estimator, key = jax.random.split(key)
        meta_params = _strong(meta_params)
        estimator_state = estimator.init(k_estimator, meta_params, data)
        zero = jnp.int32(0)
        return _strong(
            TrainState(key, zero, meta_params, tx.init(meta_params), estimator_state, zero)
        )

    def step(state, data=()):
        _checks.instance(TrainState, state=state)
        own = jax.eval_shape(start, state.key, state.meta_params, data)
        for part, maker in (("estimator", "estimator"), ("opt_state", "tx")):
            if not _alike(getattr(state, part), getattr(own, part)):
                raise ValueError(
                    f"state.{part} is not as the {maker} of this trainer makes it: the state is of another trainer. To "
                    f"go on from its meta-parameters, begin with trainer.init(key, state.meta_params, data)"
                )
        key = jax.random.fold_in(state.key, state.step)
        result = estimator.estimate(key, state.meta_params, state.estimator, data)
        _checks.returned("estimator.estimate", result, "estimate, state")
        estimate, estimator_state = result
        updates, opt_state = tx.update(estimate.updates, state.opt_state, state.meta_params)
        meta_params = optax.apply_updates(state.meta_params, updates)
        ok = all_finite((estimate.loss, estimate.updates, meta_params)) & stays_finite(
            opt_state, state.opt_state
        )
        meta_params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old),
            (meta_params, opt_state),
            (state.meta_params, state.opt_state),
        )
        skipped = jnp.where(ok, 0, state.skipped + 1)
        metrics = {
            "loss": estimate.loss,
            "update_norm": optax.tree.norm(estimate.updates),
            "skipped": skipped,
        }
        _checks.unused_names("a run", estimate.metrics, (*metrics, "step", "validation"))
        new = TrainState(
            state.key, state.step + 1, meta_params, opt_state, estimator_state, skipped
        )
        return _strong(new), metrics | estimate.metrics

    return Trainer(init, step)


class Validation(NamedTuple):
    """How a run is judged on the way, made by `metajax.validation`."""

    loss: Callable[[Array, PyTree, PyTree], Any]
    key: Array
    data: PyTree
    every: int
    patience: int | None
    min_delta: float


def validation(
    loss: Callable[[Array, PyTree, PyTree], Any],
    key: Array,
    data: PyTree = (),
    *,
    every: int = 100,
    patience: int | None = None,
    min_delta: float = 0.05,
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

    Raises:
      TypeError, ValueError: bad arguments.

    >>> import jax, metajax as mx, optax
    >>> loop = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), horizon=10)
    >>> def loss(key, meta_params, data):
    ...     return mx.evaluate(loop, key, meta_params, data, num_tasks=8).loss.mean()
    >>> validate = mx.validation(loss, jax.random.key(1), every=10, patience=5)
    >>> trainer = mx.trainer(mx.bptt(loop, num_tasks=4), optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> result = mx.fit(trainer, state, num_steps=20, validate=validate, progress=False)
    >>> result.validation["step"]
    array([ 0, 10, 20])
    """
    _checks.function(loss=loss)
    _checks.key(key)
    _checks.finite("data", data)
    _checks.positive_int(every=every)
    if patience is not None:
        _checks.positive_int(patience=patience)
    return Validation(
        loss, key, data, every, patience, _checks.positive_float("min_delta", min_delta)
    )


_REMEDY = (
    "Lower the learning rate, clip with optax.clip_by_global_norm, or shorten the horizon; if no step was finite, look "
    "for labels that the network has no output for"
)


class Fit(NamedTuple):
    """What `fit` returns.

    Attributes: state: the final state. history: each metric as a NumPy array ``[num_steps]``, from
      the first step of the run, resumed or not. best: the meta-parameters with the lowest
      validation loss, the final ones where nothing was validated. validation: ``step`` and
      ``loss``, NumPy arrays ``[number of validations]``.
    """

    state: TrainState
    history: dict[str, np.ndarray]
    best: PyTree
    validation: dict[str, np.ndarray]


def fit(
    trainer: Trainer,
    state: TrainState,
    data: PyTree = (),
    *,
    num_steps: int,
    chunk: int = 10,
    max_skipped: int = 10,
    validate: Validation | None = None,
    checkpoint: Checkpoints | None = None,
    log: str | os.PathLike | None = None,
    callbacks: Sequence[Callable[[Rows], None]] = (),
    progress: bool = True,
    label: str = "meta-training",
) -> Fit:
    """Trains until meta-step ``num_steps``, and survives what happens to long runs.

    ``num_steps`` is a total: the same script, run again, goes on from its last checkpoint and ends
    at the same place, bit for bit as if nothing had happened. To train for longer, give a larger
    ``num_steps``. Gradient clipping and schedules are optax's, as in the example.

    - With ``checkpoint`` the whole run is saved: the state with its keys, which also say what data
      comes next; the history; the validations and the best meta-parameters. SIGTERM and Ctrl-C end
      it at the end of a chunk, saved.
    - A meta-gradient that is not finite is skipped and counted. After ``max_skipped`` in a row the
      run stops and saves its state, with the parameters as they were before the first of them. What
      is not finite is never saved.
    - A full disk costs checkpoints, not the run: it is warned of, and the checkpoints on disk stay
      as they are.
    - On several hosts all call it with the same arguments. The first alone writes, reports and
      calls ``callbacks``; a signal that one of them gets stops all of them, saved, at the same
      step.

    Args: trainer: from `metajax.trainer`. state: from ``trainer.init``, or from an earlier `fit` to
      go on. data: handed to the tasks. num_steps: the meta-step to train to, counted by
      ``state.step``. chunk: meta-steps in a compiled call, between two looks at the metrics.
      max_skipped: stop after so many non-finite meta-gradients in a row. validate: from
      `metajax.validation`, a loss on fresh tasks that chooses ``best`` and may end the run early.
      checkpoint: from `metajax.checkpoints`. What it holds takes precedence over ``state``. log: a
      ``.csv`` or ``.jsonl`` file with a row a meta-step. A resumed run cuts it back to where it
      resumes. callbacks: each is called after every chunk with its rows, ``[{"step": 1, "loss":
      ...}, ...]``; see `metajax.tensorboard`. After an error in one of them, a run that goes on
      gives those rows again. progress: show a progress bar, or plain lines where the output is no
      terminal. label: what the progress bar is called.

    Raises: FloatingPointError: too many non-finite meta-gradients in a row; the message says where
      and what. KeyboardInterrupt, SystemExit: after Ctrl-C and SIGTERM with a ``checkpoint``, once
      all is saved. TypeError, ValueError: bad arguments, or a checkpoint of another run.
      RuntimeError: another process uses the folder of ``checkpoint``.

    >>> import jax, metajax as mx, optax, tempfile
    >>> loop = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), horizon=10)
    >>> schedule = optax.cosine_decay_schedule(1e-2, decay_steps=20)
    >>> outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    >>> trainer = mx.trainer(mx.bptt(loop, num_tasks=4), outer)
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> store = mx.checkpoints(tempfile.mkdtemp(), every=10)
    >>> result = mx.fit(trainer, state, num_steps=20, checkpoint=store, progress=False)
    >>> int(result.state.step), result.history["loss"].shape
    (20, (20,))
    >>> again = mx.fit(trainer, state, num_steps=20, checkpoint=store, progress=False)  # nothing is left to do
    >>> bool((again.history["loss"] == result.history["loss"]).all())
    True
    """
    _checks.instance(Trainer, trainer=trainer)
    _checks.instance(TrainState, state=state)
    _checks.positive_int(num_steps=num_steps, chunk=chunk, max_skipped=max_skipped)
    if validate is not None:
        _checks.instance(Validation, validate=validate)
    if checkpoint is not None:
        _checks.instance(Checkpoints, checkpoint=checkpoint)
    if not isinstance(callbacks, Sequence):
        raise TypeError(
            f"callbacks must be a sequence of functions, got {type(callbacks).__name__}"
        )
    for callback in callbacks:
        _checks.function("each of callbacks", callback)
    _checks.finite("state.meta_params", state.meta_params)
    _checks.finite("data", data)
    file = Log(log) if log is not None and hosts.is_first() else None
    callbacks = callbacks if hosts.is_first() else ()
    strides = [chunk] + [x.every for x in (validate, checkpoint) if x is not None]

    with _Signals(enabled=checkpoint is not None) as signals, _Saver(checkpoint) as saver:
        run, resumed = saver.restore(state)
        if run.step > num_steps or (run.step == num_steps and not resumed):
            raise ValueError(
                f"num_steps is the total to train to, {num_steps}, but {'the checkpoint' if resumed else 'state'} is "
                f"already at meta-step {run.step}; give a larger num_steps"
            )
        with (
            Progress(num_steps, label, show=progress and hosts.is_first(), initial=run.step) as bar,
            saver.on_error(run),
        ):
            if resumed:
                bar.say(f"resumed at meta-step {run.step} of {num_steps} from {saver.where}")
            plateau, ended = Plateau(run.record.history().get("loss", ())), False
            metrics = None
            while True:
                # What is due at this step ...
                if validate is not None:
                    ended = _validate(run, validate)
                if metrics is not None:
                    bar.update(len(metrics["loss"]), plateau.note(), **_shown(metrics, run.record))
                if file is not None:
                    file.write(run.record, run.step, validate is not None)
                for callback in callbacks if run.step > run.record.reported else ():
                    callback(run.record.rows(run.record.reported, run.step))
                run.record.reported = run.step
                if int(run.state.skipped) >= max_skipped:
                    _give_up(run, saver)
                stopped = signals.agreed()
                ended = ended or run.step >= num_steps or stopped
                if ended or run.step % saver.every == 0:
                    saver.save(run)
                if ended:
                    break
                # ... and the way to the next at which something is. Absolute multiples: they do not
                # depend on where the run was resumed.
                stop = min(
                    num_steps, *(run.step - run.step % stride + stride for stride in strides)
                )
                metrics = _advance(run, trainer, chunk, data, stop - run.step, max_skipped)
                plateau.add(metrics["loss"])
            if run.step < num_steps and not stopped:
                bar.say(
                    f"stopped early at meta-step {run.step}: validation found no new best any more"
                )
        saver.finish()
        if int(run.state.skipped):
            warnings.warn(
                f"the last {int(run.state.skipped)} meta-steps, up to {run.step}, were skipped: their meta-gradients "
                f"were not finite. {_REMEDY}",
                RuntimeWarning,
                stacklevel=2,
            )
        signals.leave(label, f"at meta-step {run.step} of {num_steps}; {saver.status()}")
    return Fit(run.state, run.record.history(), run.best, run.record.validation())


_copy = jax.jit(partial(jax.tree.map, jnp.copy))  # one program, not one for each shape


class _Run:
    """What changes during a run; the state is a copy, since its buffers are donated."""

    def __init__(self, state: TrainState, best: PyTree, record: Record):
        self.state, self._best = _copy((state, best))
        self.record, self.step = record, int(state.step)

    @property
    def best(self) -> PyTree:
        return self._best if self.record.validations else self.state.meta_params

    def validated(self, loss: float) -> None:
        losses = [v for _, v in self.record.validations if np.isfinite(v)]
        if not self.record.validations or (
            np.isfinite(loss) and (not losses or loss < min(losses))
        ):
            self._best = _copy(self.state.meta_params)
        self.record.validations.append((self.step, loss))


def _validate(run: _Run, validate: Validation) -> bool:
    """Validates if it is due; returns whether patience is at its end."""
    done = run.record.validations
    if not done or (run.step % validate.every == 0 and done[-1][0] != run.step):
        loss = validate.loss(validate.key, run.state.meta_params, validate.data)
        _checks.scalar("the loss returned by validate.loss", loss)
        run.validated(
            hosts.agreed(float(loss))
        )  # hosts that differ by a rounding would stop at different steps
    losses = [loss if np.isfinite(loss) else np.inf for _, loss in run.record.validations]
    best = int(np.argmin(losses))
    if validate.patience is None or losses[best] == np.inf:
        return False
    first = next(loss for loss in losses if loss < np.inf)
    departed = losses[best] < first - validate.min_delta * abs(first)
    return departed and len(losses) - 1 - best >= validate.patience


def _advance(
    run: _Run, trainer: Trainer, chunk: int, data: PyTree, n: int, max_skipped: int
) -> dict[str, np.ndarray]:
    state, metrics = _chunk(trainer, chunk, run.state, data, n, max_skipped)
    n = int(state.step) - run.step
    metrics = {name: np.array(values)[:n] for name, values in metrics.items()}
    run.record.append(
        metrics
    )  # which refuses other metrics than before, so that nothing is saved that lacks them
    run.state, run.step = state, run.step + n
    return metrics


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _chunk(trainer: Trainer, size: int, state: TrainState, data: PyTree, n: int, max_skipped: int):
    # A loop of a length that is known only at run time: one compilation serves the last, shorter
    # chunk too.
    step = jax.jit(trainer.step)  # traced once, for the shapes and for the loop
    _, shapes = jax.eval_shape(step, state, data)
    metrics = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), shapes)

    def going(carry):
        i, state, _ = carry
        return (i < n) & (state.skipped < max_skipped)

    def body(carry):
        i, state, metrics = carry
        state, new = step(state, data)
        return i + 1, state, jax.tree.map(lambda buffer, x: buffer.at[i].set(x), metrics, new)

    return lax.while_loop(going, body, (jnp.int32(0), state, metrics))[1:]


def _shown(metrics: dict[str, np.ndarray], record: Record) -> dict[str, float]:
    losses = metrics["loss"][np.isfinite(metrics["loss"])]
    shown = {"loss": float(losses.mean()) if losses.size else float("nan")}
    if record.validations:
        shown["best"] = min(
            (loss for _, loss in record.validations if np.isfinite(loss)), default=float("nan")
        )
    return shown | ({"skipped": record.skipped} if record.skipped else {})


def _give_up(run: _Run, saver: "_Saver") -> None:
    """Saves the state, which has the last good parameters, ready to be tried again, and says where
    and why.
    """
    count = int(run.state.skipped)
    run.state = run.state._replace(skipped=jnp.zeros_like(run.state.skipped))
    saver.save(run)
    saver.finish()
    last = ", ".join(
        f"{name} {x[-1]:.4g}"
        for name, x in run.record.history().items()
        if name in ("loss", "update_norm") and x.size
    )
    kept = hosts.agreed(
        "" if saver.saved is None else f" and saved at meta-step {saver.saved} in {saver.where}"
    )
    raise FloatingPointError(
        f"the meta-gradient was not finite for {count} steps in a row, up to meta-step {run.step}; the parameters "
        f"before that were kept{kept}. The last step had {last}. {_REMEDY}"
    )


class _Saver:
    """Saves and restores runs; what goes wrong with a write is said, and costs no more than that
    write.
    """

    def __init__(self, checkpoint: Checkpoints | None):
        self.checkpoint = checkpoint
        self.every = sys.maxsize if checkpoint is None else checkpoint.every
        self.where = "" if checkpoint is None else checkpoint.where
        self.tried: int | None = None
        self.saved: int | None = None
        self.pending: int | None = None

    def __enter__(self) -> "_Saver":
        return self

    def __exit__(self, *exception) -> None:
        self.finish()
        if self.checkpoint is not None:
            self.checkpoint.close()

    def restore(self, state: TrainState) -> tuple[_Run, bool]:
        """The run as it was saved, or a new one that begins with ``state``."""
        self.first, self.key = int(state.step), np.array(jax.random.key_data(state.key))
        like = {"state": state, "best": state.meta_params}
        found = None if self.checkpoint is None else self.checkpoint.restore(like)
        if found is None:
            return _Run(state, state.meta_params, Record(self.first)), False
        if not np.array_equal(found.arrays["key"], self.key):
            raise ValueError(
                f"the checkpoints in {self.where} are of a run that began with another key; give another directory for "
                f"another seed"
            )
        self.saved = self.tried = self.first = found.step
        return _Run(found.tree["state"], found.tree["best"], Record(self.first, found.arrays)), True

    def save(self, run: _Run) -> None:
        """Begins to write, unless there is nothing new or it is not finite."""
        if self.checkpoint is None or run.step in (self.first, self.tried):
            return
        if any(x.is_deleted() for x in jax.tree.leaves(run.state)):
            return
        self.finish()
        self.tried = (
            run.step
        )  # and not whether it worked, which only the first of several hosts knows
        if not (all_finite(run.state.meta_params) & ~_any_nan(run.state.opt_state)):
            self._warn(run.step, "its meta-parameters or its optimizer's state are not finite")
            return
        tree = {"state": run.state, "best": run.best}
        try:
            self.checkpoint.save(Snapshot(run.step, tree, run.record.arrays() | {"key": self.key}))
            self.pending = run.step
        except Exception as e:
            self._warn(run.step, e)

    def finish(self) -> None:
        """Waits until what was begun is on the disk."""
        if self.checkpoint is None or self.pending is None:
            return
        try:
            self.checkpoint.wait()
            self.saved = self.pending
        except Exception as e:
            self._warn(self.pending, e)
        finally:
            self.pending = None

    @contextmanager
    def on_error(self, run: _Run) -> Iterator[None]:
        """Saves the run when something else fails, such as a callback; not on several hosts, for
        one may fail alone.
        """
        try:
            yield
        except Exception:
            if jax.process_count() == 1:
                self.save(run)
            raise

    def status(self) -> str:
        """How to go on from here."""
        if self.saved is None:
            return "nothing was saved yet: run the same script again to start anew"
        return (
            f"saved at meta-step {self.saved} in {self.where}: run the same script again to go on"
        )

    def _warn(self, step: int, why: Any) -> None:
        why = "No space left on device" if "No space left on device" in str(why) else str(why)[:300]
        last = (
            "there is none yet" if self.saved is None else f"the last is of meta-step {self.saved}"
        )
        warnings.warn(
            f"the checkpoint of meta-step {step} was not written to {self.where}: {why}. The run goes on; {last}",
            RuntimeWarning,
            stacklevel=2,
        )


class _Signals:
    """Notes SIGINT and SIGTERM instead of dying of them; a second Ctrl-C interrupts at once."""

    def __init__(self, enabled: bool):
        self.enabled, self.received = enabled, 0
        self.previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "_Signals":
        handled = self.enabled and threading.current_thread() is threading.main_thread()
        for number in (signal.SIGINT, signal.SIGTERM) if handled else ():
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self.previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def agreed(self) -> int:
        """The signal that one of the hosts has received, on all of them; 0 if there is none."""
        return hosts.maximum(self.received) if self.enabled else 0

    def leave(self, label: str, where: str) -> None:
        """Ends the program if a signal has asked for it."""
        number = self.agreed()
        if not number:
            return
        message = f"{label}: stopped by {signal.Signals(number).name} {hosts.agreed(where)}"
        if number == signal.SIGINT:
            raise KeyboardInterrupt(message)
        if hosts.is_first():
            print(message, file=sys.stderr, flush=True)
        raise SystemExit(128 + number)

    def _note(self, number, frame) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


def _alike(a: PyTree, b: PyTree) -> bool:
    """Whether two trees of arrays agree in structure, shapes and dtypes."""
    (of_a, tree_a), (of_b, tree_b) = jax.tree.flatten(a), jax.tree.flatten(b)
    return tree_a == tree_b and all(
        (x.shape, x.dtype) == (y.shape, y.dtype) for x, y in zip(of_a, of_b, strict=True)
    )


def _any_nan(tree: PyTree) -> Array:
    bad = [
        jnp.isnan(x).any() for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return jnp.stack(bad).any() if bad else jnp.array(False)


def _strong(tree: PyTree) -> PyTree:
    """Strips weak types, so that the first step and the later ones share one trace."""

    def f(x: Array) -> Array:
        x = jnp.asarray(x)
        return (
            x
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            else lax.convert_element_type(x, x.dtype)
        )

    return jax.tree.map(f, tree)
