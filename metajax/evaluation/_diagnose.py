"""How good an estimator is: bias, variance, direction, and what it costs."""

import time
from typing import NamedTuple

import jax
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from metajax import _checks
from metajax._inner import unroll
from metajax.types import Array, Estimator, Inner, PyTree


class Diagnosis(NamedTuple):
    """What `diagnose` measures. A sample is the mean of the ``windows`` consecutive estimates of
    one episode.

    Attributes: bias: ``|E g - r| / |r|``, the samples' mean against the reference, with the part of
      the distance that sampling noise explains taken off; NaN without a reference. bias_error: the
      standard error of that distance, so that a bias within two of it is none. variance: trace of
      the covariance of a sample. snr: ``|E g|^2 / variance``, the signal-to-noise ratio of a
      sample. cosine: mean cosine between a sample and the reference (or the samples' mean, without
      one). norm: ``|E g|``. inner_steps: what a sample costs, in forward inner steps of one task;
      NaN without ``inner``. seconds: run time of a sample. compile_seconds: trace and compile time.
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


def diagnose(
    estimator: Estimator,
    key: Array,
    meta_params: PyTree,
    data: PyTree = (),
    *,
    reference: PyTree | None = None,
    inner: Inner | None = None,
    samples: int = 64,
    windows: int = 1,
) -> Diagnosis:
    """Measures an estimator at one point, by independent repetitions of it from fresh states.

    Args: estimator: what is measured. key: a single typed key. meta_params: the point. data: handed
      to the tasks. reference: the exact gradient there, a tree like ``meta_params``; see
      `mean_gradient`. inner: give it to have the cost in inner steps. samples: independent
      repetitions. windows: estimates that make up one episode: horizon over truncation, 1 for whole
      episodes. Episodes that are staggered are cut short at first, and that is measured too: give
      ``stagger=False``.

    Raises:
      TypeError, ValueError: bad counts, a reference of another tree, or one that is zero.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic(), second_order=True)
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=4)
    >>> rate = jax.numpy.float32(0.01)
    >>> exact = mx.mean_gradient(mx.bptt(loop, 64), jax.random.key(0), rate, samples=64)
    >>> mx.diagnose(mx.bptt(loop, 4), jax.random.key(1), rate, reference=exact, samples=32).snr > 0
    True
    """
    _checks.instance(Estimator, estimator=estimator)
    if inner is not None:
        _checks.instance(Inner, inner=inner)
    _checks.positive_int(samples=samples)
    if samples < 2:
        raise ValueError("samples must be at least 2: a variance needs two")
    begin = time.perf_counter()
    run = _sampler(estimator, samples, windows).lower(key, meta_params, data).compile()
    compile_seconds = time.perf_counter() - begin
    g, seconds = _timed(run, key, meta_params, data)
    g = np.asarray(g, np.float64)

    mean, variance = g.mean(0), float(g.var(0, ddof=1).sum())
    target = mean
    bias = error = float("nan")
    if reference is not None:
        _checks.same_structure("reference", reference, meta_params, "meta_params")
        target = np.asarray(ravel_pytree(reference)[0], np.float64)
        scale = np.linalg.norm(target)
        if scale == 0:
            raise ValueError("reference is zero: a bias relative to it has no meaning")
        noise = variance / samples  # the squared distance that an unbiased mean is expected to have
        bias = float(np.sqrt(np.maximum(0.0, np.sum((mean - target) ** 2) - noise)) / scale)
        error = float(np.sqrt(noise) / scale)
    norms = np.linalg.norm(g, axis=1) * np.linalg.norm(target)
    cosine = float(np.mean(g @ target / np.where(norms == 0, 1.0, norms)))
    memory = run.memory_analysis()
    return Diagnosis(
        bias=bias,
        bias_error=error,
        variance=variance,
        snr=float(mean @ mean / variance) if variance else float("inf"),
        cosine=cosine,
        norm=float(np.linalg.norm(mean)),
        inner_steps=float("nan")
        if inner is None
        else seconds / samples / _step_seconds(inner, key, meta_params, data),
        seconds=seconds / samples,
        compile_seconds=compile_seconds,
        temporary_bytes=0 if memory is None else int(memory.temp_size_in_bytes),
    )


def mean_gradient(
    estimator: Estimator,
    key: Array,
    meta_params: PyTree,
    data: PyTree = (),
    *,
    samples: int = 64,
    windows: int = 1,
) -> PyTree:
    """The mean of many estimates: with full `metajax.bptt`, the exact gradient up to the sampling
    of tasks.

    >>> import jax, metajax as mx, optax
    >>> loop = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), horizon=4)
    >>> mx.mean_gradient(mx.bptt(loop, 8), jax.random.key(0), jax.numpy.float32(0.01), samples=4).shape
    ()
    """
    _checks.instance(Estimator, estimator=estimator)
    g = _sampler(estimator, _checks.positive_int("samples", samples), windows)(
        key, meta_params, data
    )
    return ravel_pytree(meta_params)[1](g.mean(0))


def _sampler(estimator: Estimator, samples: int, windows: int):
    _checks.positive_int(windows=windows)

    @jax.jit
    def run(key, meta_params, data):
        _checks.key(key)
        _checks.floating("meta_params", meta_params)

        def sample(key):
            k_init, k_run = jax.random.split(key)

            def body(state, key):
                estimate, state = estimator.estimate(key, meta_params, state, data)
                return state, ravel_pytree(estimate.updates)[0]

            state = estimator.init(k_init, meta_params, data)
            return lax.scan(body, state, jax.random.split(k_run, windows))[1].mean(0)

        return lax.map(sample, jax.random.split(key, samples))

    return run


def _step_seconds(inner: Inner, key, meta_params, data) -> float:
    tasks = 16

    def episode(key):
        return unroll(inner, meta_params, inner.init(key, meta_params, data), data, inner.horizon)[
            1
        ]

    run = jax.jit(lambda key, data: lax.map(episode, jax.random.split(key, tasks)))
    return _timed(run, key, data)[1] / tasks / inner.horizon


def _timed(run, *args):
    jax.block_until_ready(run(*args))
    begin = time.perf_counter()
    result = jax.block_until_ready(run(*args))
    return result, time.perf_counter() - begin
