"""Estimators side by side: how good each is at one point, and what it costs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from metajax._arguments import PositiveInt, check, checked, shown
from metajax.estimators._bptt import bptt
from metajax.evaluation._diagnose import (
    Diagnosis,
    diagnose,
    mean_gradient,
    step_seconds,
)
from metajax.types import Array, Estimator, Inner, PyTree

_REFERENCE_TASKS = 64


class EstimatorComparison(NamedTuple):
    """What `compare_estimators` returns; printed, a table in the order of the estimators.

    Attributes:
      diagnoses: of each estimator, e.g. for `metajax.plot.estimators`.
      reference: what they were held against, a tree like the floating meta-parameters.
    """

    diagnoses: dict[str, Diagnosis]
    reference: PyTree

    def __str__(self) -> str:
        width = max(map(len, ["estimator", *self.diagnoses]))
        header = (
            f"{'estimator':<{width}}  {'relative bias':>15}  {'variance':>8}  {'cosine':>6}  "
            f"{'inner steps':>11}  {'ms':>7}  {'MiB':>7}"
        )
        rows = [f"{name:<{width}}  {_figures(x)}" for name, x in self.diagnoses.items()]
        return "\n".join([header, *rows])


def _figures(x: Diagnosis) -> str:
    bias = f"{x.bias:.3f} ± {x.bias_error:.3f}"
    milliseconds = 1e3 * x.seconds
    megabytes = x.temporary_bytes / 2**20
    return (
        f"{bias:>15}  {x.variance:>8.2g}  {x.cosine:>6.3f}  "
        f"{x.inner_steps:>11,.0f}  {milliseconds:>7.2f}  {megabytes:>7.2f}"
    )


@checked
def compare_estimators(
    estimators: Mapping[str, Any],
    inner: Inner,
    key: Array,
    meta_params: PyTree,
    data: PyTree = (),
    *,
    windows: Mapping[str, Any] | None = None,
    reference: PyTree | None = None,
    samples: PositiveInt = 64,
) -> EstimatorComparison:
    """Measures estimators of one meta-gradient at one point: `diagnose` of each, from one key.

    Args:
      estimators: name -> estimator, all of the mean meta-loss over episodes of ``inner``.
      inner: the inner loop that they differentiate.
      key: a single typed key.
      meta_params: the point.
      data: handed to the tasks.
      windows: of those that are truncated, name -> estimates that make up one episode: horizon over
        truncation; such estimators must not be staggered.
      reference: the exact gradient there, a tree like ``meta_params``; by default the mean of
        `metajax.bptt` through whole episodes, as many samples of 64 tasks.
      samples: independent repetitions of each estimator, at least 2.

    Raises:
      ValueError: ``windows`` of an estimator that is not there, a reference that is zero, or a bad
        argument.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic(), second_order=True)
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=4)
    >>> estimators = {"whole": mx.bptt(loop, 4), "truncated": mx.bptt(loop, 4, truncation=2)}
    >>> found = mx.compare_estimators(estimators, loop, jax.random.key(0), jax.numpy.float32(0.01),
    ...                               windows={"truncated": 2})
    >>> found.diagnoses["whole"].bias < found.diagnoses["truncated"].bias
    True
    >>> print(found)                                                     # doctest: +SKIP
    """
    _check_estimators(estimators)
    windows = {} if windows is None else windows
    _check_windows(windows, estimators)
    reference_key, step_key, sample_key = jax.random.split(key, 3)
    if reference is None:
        exact = bptt(inner, _REFERENCE_TASKS)
        reference = mean_gradient(
            exact, reference_key, meta_params, data, samples=samples
        )

    # One step for all, so that costs compare as times do.
    step = step_seconds(inner, step_key, meta_params, data)
    diagnoses = {}
    for name, estimator in estimators.items():
        found = diagnose(
            estimator,
            jax.random.clone(sample_key),
            meta_params,
            data,
            reference=reference,
            samples=samples,
            windows=windows.get(name, 1),
        )
        diagnoses[name] = found._replace(inner_steps=found.seconds / step)
    return EstimatorComparison(diagnoses, reference)


def _check_estimators(estimators: Any) -> None:
    if not isinstance(estimators, Mapping) or not estimators:
        raise TypeError(
            f"estimators must be a dict of name -> estimator with at least one entry, got "
            f"{shown(estimators)}"
        )
    for name, estimator in estimators.items():
        check(Estimator, **{f"estimators[{name!r}]": estimator})


def _check_windows(windows: Any, estimators: Mapping[str, Any]) -> None:
    if not isinstance(windows, Mapping):
        raise TypeError(
            f"windows must be a dict of name -> windows of an episode, got {shown(windows)}"
        )
    for name, count in windows.items():
        if name not in estimators:
            raise ValueError(
                f"windows[{name!r}]: there is no such estimator, only {', '.join(estimators)}"
            )
        check(PositiveInt, **{f"windows[{name!r}]": count})
