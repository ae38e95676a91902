"""Optimizers side by side on one problem, each hand-made one with a searched learning rate."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from metajax import _checks
from metajax._arguments import (
    PositiveFloat,
    PositiveInt,
    check,
    checked,
    is_transformation,
)
from metajax._inner import inner
from metajax._rehearsal import Rehearsal, run_episode
from metajax.evaluation._evaluate import Curves, evaluate
from metajax.learners._l2l import l2l
from metajax.sharding import _hosts as hosts
from metajax.training._display import make_display, waiting
from metajax.training._warnings import warn
from metajax.types import Array, Inner, Problem, PyTree, Tasks

BASELINES: dict[str, Callable[..., optax.GradientTransformation]] = {
    "SGD": optax.sgd,
    "RMSprop": optax.rmsprop,
    "NAG": partial(optax.sgd, momentum=0.9, nesterov=True),
    "Adam": optax.adam,
}
# From 1e-4 to 10, four a decade.
RATES = tuple(10.0 ** (k / 4) for k in range(-16, 5))


def _last_tenth(loss: Any) -> Any:
    """The part of ``loss [num_tasks, steps]`` whose mean is the final loss."""
    steps = loss.shape[1]
    count = max(1, steps // 10)
    return loss[:, -count:]


def _final_loss(curves: Curves) -> Array:
    return _last_tenth(curves.loss).mean()


class RateSearch(NamedTuple):
    """How `compare` searches for the learning rate of an optimizer.

    Attributes:
      rates: the grid; by default from 1e-4 to 10, four a decade.
      score: ``(Curves) -> scalar``, what the rate is to make small; by default the mean loss over
        the last tenth of the steps. Of an online learner, e.g., the errors on the way: ``lambda
        curves: -curves.metrics["accuracy"].mean()``.
    """

    rates: Sequence[float] = RATES
    score: Callable[[Curves], Array] = _final_loss


class Comparison(NamedTuple):
    """What `compare` returns; printed, a table with the best optimizer first.

    Attributes:
      loss: for each optimizer ``[num_tasks, steps]``, all on the same tasks.
      final: for each optimizer ``[num_tasks]``, the mean over the last tenth of the steps.
      rate: the learning rate that was found, None for an optimizer that has none to search.
      metrics: for each optimizer those of the problem, each ``[num_tasks, steps]``.
    """

    loss: dict[str, np.ndarray]
    final: dict[str, np.ndarray]
    rate: dict[str, float | None]
    metrics: dict[str, dict[str, np.ndarray]]

    def __str__(self) -> str:
        names = sorted(self.final, key=self._rank)
        width = max(map(len, ["optimizer", *names]))
        header = (
            f"{'optimizer':<{width}}  {'rate':>8}  {'final loss':>18}  {'mean loss':>9}"
        )
        rows = [f"{name:<{width}}  {self._figures(name)}" for name in names]
        return "\n".join([header, *rows])

    def _rank(self, name: str) -> float:
        mean = self.final[name].mean()
        # What diverged comes last.
        return math.inf if np.isnan(mean) else mean

    def _figures(self, name: str) -> str:
        """The rate, the final loss with its standard error over tasks, and the mean loss."""
        rate = self.rate[name]
        rate = "-" if rate is None else f"{rate:.3g}"
        final = self.final[name]
        error = ""
        if len(final) > 1:
            error = f" ± {final.std(ddof=1) / len(final) ** 0.5:.4f}"
        mean_loss = self.loss[name].mean()
        return f"{rate:>8}  {final.mean():>9.4f}{error:<9}  {mean_loss:>9.4f}"


@checked
def compare(
    optimizers: Mapping[str, Any],
    problem: Problem,
    tasks: Tasks,
    key: Array,
    data: PyTree = (),
    *,
    steps: PositiveInt,
    num_tasks: PositiveInt = 16,
    at_once: PositiveInt | None = None,
    search: RateSearch = RateSearch(),  # noqa: B008
) -> Comparison:
    """Trains ``problem`` with each optimizer on the same fresh tasks.

    The learning rate of an optimizer that is given as a function of it is searched for the best
    *final* loss (the mean over the last tenth of the steps), on as many other tasks as are
    reported: choosing and reporting never share a task. A best rate at the edge of the grid is
    warned of.

    Args:
      optimizers: name -> an `optax.GradientTransformation`, taken as it is, or a function ``rate ->
        transformation``, searched; ``metajax.BASELINES`` holds the usual four.
      problem: what is minimised.
      tasks: where tasks and batches come from.
      key: a single typed key.
      data: handed to the tasks.
      steps: inner steps.
      num_tasks: tasks reported on.
      at_once: how many of them run side by side, by default all.
      search: other rates than 1e-4 to 10, four a decade, or another score than the final loss.

    Raises:
      ValueError: an optimizer that diverges at every rate, or a bad argument.

    >>> import jax, metajax as mx, optax
    >>> optimizers = {"SGD": optax.sgd, "Adam at 0.1": optax.adam(0.1)}
    >>> result = mx.compare(optimizers, mx.problems.quadratic(), mx.tasks.quadratics(3),
    ...                     jax.random.key(0), steps=20, num_tasks=4)
    >>> result.loss["SGD"].shape, result.rate["Adam at 0.1"]
    ((4, 20), None)
    """
    _check_optimizers(optimizers)
    _check_search(search)
    _checks.finite("data", data)
    search_key, report_key = jax.random.split(key)
    result = Comparison({}, {}, {}, {})

    # What is wrong with the data is so under any optimizer.
    still = inner(l2l(lambda _: optax.identity(), problem), tasks, steps)
    rehearse = Rehearsal(partial(run_episode, still))
    rehearse(key, (), data=data)

    with contextlib.closing(_Progress(optimizers, search)) as progress:
        for name, optimizer in optimizers.items():
            make_tx = optimizer
            fixed = is_transformation(optimizer)
            if fixed:
                make_tx = partial(_ignore_rate, optimizer)
            loop = inner(l2l(make_tx, problem), tasks, steps)
            run = _runner(loop, num_tasks, at_once, search.score)
            run = progress.follow(name, run)

            # Searching and reporting share one program: a fixed optimizer has a rate that it
            # ignores.
            rate = math.nan
            if not fixed:
                scores = []
                for rate in search.rates:
                    _, _, score = run(jax.random.clone(search_key), rate, data)
                    scores.append(score)
                rate = _best_rate(name, search.rates, scores)
            loss, metrics, _ = run(jax.random.clone(report_key), rate, data)

            result.loss[name] = np.asarray(loss)
            result.final[name] = _last_tenth(result.loss[name]).mean(1)
            result.rate[name] = None if fixed else rate
            result.metrics[name] = jax.tree.map(np.asarray, metrics)
            _warn_of_divergence(name, result.final[name])
    return result


class _Progress:
    """Shows how many runs are done: one for each rate of each optimizer, and one to report."""

    def __init__(self, optimizers: Mapping[str, Any], search: RateSearch):
        searched = [x for x in optimizers.values() if not is_transformation(x)]
        num_runs = len(optimizers) + len(searched) * len(search.rates)
        self.num_done = 0
        self.display = None
        if hosts.is_first():
            self.display = make_display("comparison", 0, num_runs, "run")

    def follow(self, name: str, run: Callable) -> Callable:
        """The same function, whose calls are shown."""
        display = self.display
        if display is None:
            return run
        what = f"compiling and running {name} for the first time"
        first = iter([waiting(display.say, what)])

        def followed(*args):
            with next(first, contextlib.nullcontext()):
                result = jax.block_until_ready(run(*args))
            self.num_done += 1
            display.show(self.num_done, {"optimizer": name}, "")
            return result

        return followed

    def close(self) -> None:
        if self.display is not None:
            self.display.close()


def _ignore_rate(
    tx: optax.GradientTransformation, rate: Array
) -> optax.GradientTransformation:
    del rate
    return tx


def _runner(
    loop: Inner, num_tasks: int, at_once: int | None, score: Callable
) -> Callable:
    """``(key, rate, data) -> (loss, metrics, score)``, compiled once for all rates."""

    @jax.jit
    def run(key, rate, data):
        curves = evaluate(loop, key, rate, data, num_tasks=num_tasks, at_once=at_once)
        value = score(curves)
        _checks.scalar("what score returns", value)
        return curves.loss, curves.metrics, value

    return run


def _best_rate(name: str, rates: Sequence[float], scores: Any) -> float:
    scores = np.asarray(scores, np.float64)
    finite = np.isfinite(scores)
    if not finite.any():
        raise ValueError(
            f"optimizers[{name!r}] diverged at every rate from {rates[0]} to {rates[-1]}"
        )
    best = np.argmin(np.where(finite, scores, np.inf))
    rate = rates[int(best)]

    at_the_edge = rate in (min(rates), max(rates))
    if at_the_edge and len(rates) > 1:
        message = f"the best rate of {name}, {rate}, is at the edge of rates: widen it"
        warn(message, UserWarning)
    return rate


def _warn_of_divergence(name: str, final: np.ndarray) -> None:
    diverged = np.sum(~np.isfinite(final))
    if diverged:
        message = f"{name} diverged on {diverged} of {len(final)} tasks: its mean is not finite"
        warn(message, UserWarning)


def _check_optimizers(optimizers: Any) -> None:
    if not isinstance(optimizers, Mapping) or not optimizers:
        raise TypeError(
            f"optimizers must be a dict of name -> optimizer with at least one entry, got "
            f"{optimizers!r}"
        )
    for name, optimizer in optimizers.items():
        if not is_transformation(optimizer) and not callable(optimizer):
            got = type(optimizer).__name__
            raise TypeError(
                f"optimizers[{name!r}] must be an optax.GradientTransformation or a function of "
                f"the learning rate, got {got}; of a learned optimizer give "
                f"optimizer.tx(meta_params)"
            )


def _check_search(search: Any) -> None:
    if not isinstance(search, RateSearch):
        raise TypeError(
            f"search must be a metajax.RateSearch, e.g. metajax.RateSearch([0.01, 0.1]), got "
            f"{search!r}"
        )
    if np.ndim(search.rates) != 1 or len(search.rates) == 0:
        raise ValueError(
            f"rates must be a sequence of at least one learning rate, got {search.rates!r}"
        )
    for rate in search.rates:
        check(PositiveFloat, rates=rate)
    check(Callable, score=search.score)
