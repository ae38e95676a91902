"""Optimizers side by side on one problem, each hand-made one with a searched learning rate."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from metajax import _checks
from metajax._inner import inner
from metajax.evaluation._evaluate import Curves, evaluate
from metajax.learners._l2l import l2l
from metajax.types import Array, Problem, PyTree, Tasks

BASELINES: dict[str, Callable[..., optax.GradientTransformation]] = {
    "SGD": optax.sgd,
    "RMSprop": optax.rmsprop,
    "NAG": partial(optax.sgd, momentum=0.9, nesterov=True),
    "Adam": optax.adam,
}
RATES = tuple(10.0 ** (k / 4) for k in range(-16, 5))  # 1e-4 to 10, four a decade


class Comparison(NamedTuple):
    """What `compare` returns.

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
        """A table: rate, final loss and its standard error over tasks, best first and what diverged
        last.
        """
        width = max(len("optimizer"), *map(len, self.final))
        rows = [f"{'optimizer':<{width}}  {'rate':>8}  {'final loss':>18}  {'mean loss':>9}"]
        for name in sorted(
            self.final, key=lambda n: np.nan_to_num(np.mean(self.final[n]), nan=np.inf)
        ):
            x, rate = self.final[name], self.rate[name]
            error = x.std(ddof=1) / len(x) ** 0.5 if len(x) > 1 else float("nan")
            shown = "-" if rate is None else f"{rate:.3g}"
            rows.append(
                f"{name:<{width}}  {shown:>8}  {x.mean():>9.4f} ± {error:.4f}  {self.loss[name].mean():>9.4f}"
            )
        return "\n".join(rows)


def compare(
    optimizers: Mapping[str, Any],
    problem: Problem,
    tasks: Tasks,
    key: Array,
    data: PyTree = (),
    *,
    steps: int,
    num_tasks: int = 16,
    rates: Sequence[float] = RATES,
    score: Callable[[Curves], Array] | None = None,
) -> Comparison:
    """Trains ``problem`` with each optimizer on the same fresh tasks.

    The learning rate of an optimizer that is given as a function of it is searched for the best
    *final* loss (the mean over the last tenth of the steps) or another ``score``, on as many other
    tasks as are reported: choosing and reporting never share a task. A best rate at the edge of
    ``rates`` is warned of.

    Args: optimizers: name -> an `optax.GradientTransformation`, taken as it is, or a function
      ``rate -> transformation``, searched; ``metajax.BASELINES`` holds the usual four. problem:
      what is minimised. tasks: where tasks and batches come from. key: a single typed key. data:
      handed to the tasks. steps: inner steps. num_tasks: tasks reported on. rates: the grid. score:
      ``(Curves) -> scalar``, what the rate is to make small, by default the final loss. Of an
      online learner, e.g., the errors on the way: ``lambda curves:
      -curves.metrics["accuracy"].mean()``.

    Raises:
      TypeError, ValueError: bad arguments, or an optimizer that diverges at every rate.

    >>> import jax, metajax as mx, optax
    >>> result = mx.compare({"SGD": optax.sgd, "Adam at 0.1": optax.adam(0.1)}, mx.problems.quadratic(),
    ...                     mx.tasks.quadratics(3), jax.random.key(0), steps=20, num_tasks=4)
    >>> result.loss["SGD"].shape, result.rate["Adam at 0.1"]
    ((4, 20), None)
    """
    if not isinstance(optimizers, Mapping) or not optimizers:
        raise TypeError(
            f"optimizers must be a dict of name -> optimizer with at least one entry, got {optimizers!r}"
        )
    if np.ndim(rates) != 1:
        raise TypeError(f"rates must be a sequence of learning rates, got {rates!r}")
    rates = [_checks.positive_float("rates", rate) for rate in rates]
    if not rates:
        raise ValueError("rates is empty: give at least one learning rate")
    _checks.key(key)
    if score is not None:
        _checks.function(score=score)
    _checks.positive_int(steps=steps)
    k_search, k_report = jax.random.split(key)
    tail = max(1, steps // 10)
    result = Comparison({}, {}, {}, {})

    def final(curves: Curves) -> Array:
        return curves.loss[:, -tail:].mean()

    for name, optimizer in optimizers.items():
        fixed = hasattr(optimizer, "init") and hasattr(optimizer, "update")
        if not fixed and not callable(optimizer):
            raise TypeError(
                f"optimizers[{name!r}] must be an optax.GradientTransformation or a function of the learning rate, got "
                f"{type(optimizer).__name__}; of a learned optimizer give optimizer.tx(meta_params)"
            )
        make_tx: Any = (lambda _, tx=optimizer: tx) if fixed else optimizer
        loop = inner(l2l(make_tx, problem), tasks, steps)

        @jax.jit  # searching and reporting share one program, a rate at a time
        def curves(key, rate, data, loop=loop):
            curves = evaluate(loop, key, rate, data, num_tasks=num_tasks, steps=steps)
            scored = final(curves) if score is None else score(curves)
            _checks.scalar("what score returns", scored)
            return curves.loss, curves.metrics, scored

        rate = None
        if not fixed:
            scores = np.asarray([curves(k_search, rate, data)[2] for rate in rates], np.float64)
            if not np.isfinite(scores).any():
                raise ValueError(
                    f"optimizers[{name!r}] diverged at every rate from {rates[0]} to {rates[-1]}"
                )
            i = int(np.nanargmin(np.where(np.isfinite(scores), scores, np.nan)))
            rate = rates[i]
            if len(rates) > 1 and rate in (min(rates), max(rates)):
                warnings.warn(
                    f"the best rate of {name}, {rate}, is at the edge of rates: widen it",
                    stacklevel=2,
                )
        loss, metrics, _ = jax.tree.map(
            np.asarray, curves(k_report, float("nan") if fixed else rate, data)
        )
        result.loss[name], result.final[name] = loss, loss[:, -tail:].mean(1)
        diverged = int((~np.isfinite(result.final[name])).sum())
        if diverged:
            warnings.warn(
                f"{name} diverged on {diverged} of {num_tasks} tasks: its mean is not finite",
                stacklevel=2,
            )
        result.rate[name], result.metrics[name] = rate, metrics
    return result
