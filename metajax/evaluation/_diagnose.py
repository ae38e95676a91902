"""How good an estimator is: bias, variance, direction, and what it costs."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from metajax import _checks, _trees
from metajax._arguments import PositiveInt, checked
from metajax._inner import unroll
from metajax._rehearsal import Rehearsal, run_episode
from metajax._trees import clone_keys
from metajax.types import Array, Estimator, Inner, PyTree


class Diagnosis(NamedTuple):
    """What `diagnose` measures.

    A sample is the mean of the ``windows`` consecutive estimates of one episode.

    Attributes:
      bias: ``|E g - r| / |r|``, the samples' mean against the reference, with the part of the
        distance that sampling noise explains taken off; NaN without a reference.
      bias_error: the standard error of that distance, so that a bias within two of it is none.
      variance: trace of the covariance of a sample.
      snr: ``|E g|^2 / variance``, the signal-to-noise ratio of a sample.
      cosine: mean cosine between a sample and the reference (or the samples' mean, without one).
      norm: ``|E g|``.
      inner_steps: what a sample costs, in forward inner steps of one task; NaN without ``inner``.
      seconds: run time of a sample.
      compile_seconds: trace and compile time.
      temporary_bytes: memory the compiled program needs beside its arguments and results.
    """

    bias: float
    bias_error: float
    variance: float
    snr: float
    cosine: float
    norm: float
    inner_steps: float
    seconds: float
    compile_seconds: float
    temporary_bytes: int


@checked
def diagnose(
    estimator: Estimator,
    key: Array,
    meta_params: PyTree,
    data: PyTree = (),
    *,
    reference: PyTree | None = None,
    inner: Inner | None = None,
    samples: PositiveInt = 64,
    windows: PositiveInt = 1,
) -> Diagnosis:
    """Measures an estimator at one point, by independent repetitions of it from fresh states.

    Args:
      estimator: what is measured.
      key: a single typed key.
      meta_params: the point.
      data: handed to the tasks.
      reference: the exact gradient there, a tree like ``meta_params``; see `mean_gradient`.
      inner: give it to have the cost in inner steps.
      samples: independent repetitions.
      windows: estimates that make up one episode: horizon over truncation, 1 for whole episodes.
        Episodes that are staggered are cut short at first, and that is measured too: give
        ``stagger=False``.

    Raises:
      ValueError: a reference that is zero, or a bad argument.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic(), second_order=True)
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=4)
    >>> rate = jax.numpy.float32(0.01)
    >>> exact = mx.mean_gradient(mx.bptt(loop, 64), jax.random.key(0), rate, samples=64)
    >>> mx.diagnose(mx.bptt(loop, 4), jax.random.key(1), rate, reference=exact, samples=32).snr > 0
    True
    """
    if samples < 2:
        raise ValueError("samples must be at least 2: a variance needs two")
    wanted = None if reference is None else _flat_reference(reference, meta_params)

    _check_inputs(estimator, key, meta_params, data)
    draw = _sampler(estimator, samples, windows)
    begin = time.perf_counter()
    program = draw.lower(key, meta_params, data).compile()
    compile_seconds = time.perf_counter() - begin

    gradients, seconds = _timed(program, key, meta_params, data)
    gradients = np.asarray(gradients, np.float64)
    seconds /= samples
    mean = gradients.mean(0)
    variance = gradients.var(0, ddof=1).sum()

    target = mean
    bias = math.nan
    bias_error = math.nan
    if wanted is not None:
        target = wanted
        bias, bias_error = _bias(mean, target, variance / samples)

    inner_steps = math.nan
    if inner is not None:
        inner_steps = seconds / step_seconds(inner, key, meta_params, data)

    return Diagnosis(
        bias=bias,
        bias_error=bias_error,
        variance=float(variance),
        snr=float(mean @ mean / variance) if variance else math.inf,
        cosine=_mean_cosine(gradients, target),
        norm=float(np.linalg.norm(mean)),
        inner_steps=inner_steps,
        seconds=seconds,
        compile_seconds=compile_seconds,
        temporary_bytes=_temporary_bytes(program),
    )


def _flat_reference(reference: PyTree, meta_params: PyTree) -> np.ndarray:
    floating, _ = _trees.partition(meta_params)
    _checks.same_structure("reference", reference, floating, "meta_params")
    flat, _ = ravel_pytree(reference)
    if not np.any(flat):
        raise ValueError("reference is zero: a bias relative to it has no meaning")
    return np.asarray(flat, np.float64)


def _bias(mean: np.ndarray, target: np.ndarray, noise: float) -> tuple[float, float]:
    """The relative bias of ``mean`` and its standard error.

    ``noise`` is the squared distance that an unbiased mean is expected to have.
    """
    scale = np.linalg.norm(target)
    squared_distance = np.sum((mean - target) ** 2)
    explained = np.maximum(0.0, squared_distance - noise)
    bias = np.sqrt(explained) / scale
    error = np.sqrt(noise) / scale
    return float(bias), float(error)


def _mean_cosine(gradients: np.ndarray, target: np.ndarray) -> float:
    norms = np.linalg.norm(gradients, axis=1)
    norms *= np.linalg.norm(target)
    norms = np.where(norms == 0, 1.0, norms)
    cosines = gradients @ target / norms
    return float(cosines.mean())


def _temporary_bytes(program: Any) -> int:
    memory = program.memory_analysis()
    # Not all backends tell.
    if memory is None:
        return 0
    return int(memory.temp_size_in_bytes)


@checked
def mean_gradient(
    estimator: Estimator,
    key: Array,
    meta_params: PyTree,
    data: PyTree = (),
    *,
    samples: PositiveInt = 64,
    windows: PositiveInt = 1,
) -> PyTree:
    """The mean of many estimates.

    With full `metajax.bptt`, the exact gradient up to the sampling of tasks.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=4)
    >>> rate = jax.numpy.float32(0.01)
    >>> mx.mean_gradient(mx.bptt(loop, 8), jax.random.key(0), rate, samples=4).shape
    ()
    """
    _check_inputs(estimator, key, meta_params, data)
    draw = _sampler(estimator, samples, windows)
    gradients = draw(key, meta_params, data)
    floating, _ = _trees.partition(meta_params)
    _, unravel = ravel_pytree(floating)
    return unravel(gradients.mean(0))


def _check_inputs(
    estimator: Estimator, key: Array, meta_params: PyTree, data: PyTree
) -> None:
    _checks.learnable("meta_params", meta_params)
    _checks.finite("meta_params", meta_params)
    _checks.finite("data", data)

    def first_run(key, meta_params, data):
        if estimator.inner is not None:
            return run_episode(estimator.inner, key, meta_params, data)
        init_key, run_key = jax.random.split(key)
        state = estimator.init(init_key, meta_params, data)
        return estimator.estimate(run_key, meta_params, state, data)

    Rehearsal(first_run)(key, meta_params, data=data)


def _sampler(estimator: Estimator, samples: int, windows: int) -> Any:
    """``(key, meta_params, data) -> [samples, num_meta_params]``, compiled."""

    @jax.jit
    def draw(key, meta_params, data):
        def window(state, key):
            estimate, state = estimator.estimate(key, meta_params, state, data)
            flat, _ = ravel_pytree(estimate.updates)
            return state, flat

        def sample(key):
            init_key, run_key = jax.random.split(key)
            state = estimator.init(init_key, meta_params, data)
            keys = jax.random.split(run_key, windows)
            _, estimates = lax.scan(window, state, keys)
            return estimates.mean(0)

        # One after the other: side by side, all would need their memory at once.
        keys = jax.random.split(key, samples)
        return lax.map(sample, keys)

    return draw


def step_seconds(inner: Inner, key: Array, meta_params: PyTree, data: PyTree) -> float:
    """The run time of one forward inner step of one task, the median of a few runs."""
    num_tasks = 16
    num_runs = 9

    @jax.jit
    def episodes(key, meta_params, data):
        def episode(key):
            state = inner.init(key, meta_params, data)
            _, loss, _ = unroll(inner, meta_params, state, data, inner.horizon)
            return loss

        keys = jax.random.split(key, num_tasks)
        return lax.map(episode, keys)

    times = [_timed(episodes, key, meta_params, data)[1] for _ in range(num_runs)]
    return float(np.median(times)) / num_tasks / inner.horizon


def _timed(run: Callable, *args: Any) -> tuple[Any, float]:
    # Once before, to compile and to warm up.
    jax.block_until_ready(run(*clone_keys(args)))
    begin = time.perf_counter()
    result = jax.block_until_ready(run(*clone_keys(args)))
    return result, time.perf_counter() - begin
