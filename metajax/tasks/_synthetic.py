"""Tasks that need no data."""

import jax
import jax.numpy as jnp

from metajax._arguments import NonNegative, PositiveFloat, PositiveInt, checked
from metajax._random import draw_flat
from metajax.types import Array, Tasks


@checked
def quadratics(size: PositiveInt) -> Tasks:
    """Random quadratics ``|W x - y|^2`` (Andrychowicz et al. 2016, section 3.1).

    ``W [n, n]`` and ``y [n]`` are standard normal. The batch is the task itself: there is no
    sampling noise.

    >>> import jax, metajax as mx
    >>> mx.tasks.quadratics(10).sample(jax.random.key(0), ())["W"].shape
    (10, 10)
    """

    def sample(key, data):
        k_w, k_y = jax.random.split(key)
        return {"W": draw_flat(k_w, (size, size)), "y": jax.random.normal(k_y, (size,))}

    def same_task(key, data, task):
        return task

    return Tasks(sample, same_task, same_task)


@checked
def sinusoids(shots: PositiveInt = 10, queries: PositiveInt = 10) -> Tasks:
    """Sinusoid regression (Finn et al. 2017, section 5.1): ``y = a sin(x - p)`` from a few points.

    Amplitude ``a`` uniform on [0.1, 5], phase ``p`` on [0, pi], inputs on [-5, 5]. A task's points
    are drawn once: each inner step sees the same ``shots``. Batches are ``{"x": [K, 1], "y": [K,
    1]}``, for `metajax.problems.regressor`.

    Args:
      shots: points to adapt to.
      queries: points of the test batch.

    >>> import jax, metajax as mx
    >>> tasks = mx.tasks.sinusoids(5, queries=100)
    >>> task = tasks.sample(jax.random.key(0), ())
    >>> tasks.train(jax.random.key(1), (), task)["x"].shape
    (5, 1)
    """

    def sample(key, data):
        k_amplitude, k_phase, k_x = jax.random.split(key, 3)
        amplitude = jax.random.uniform(k_amplitude, (), minval=0.1, maxval=5.0)
        phase = jax.random.uniform(k_phase, (), maxval=jnp.pi)
        x = jax.random.uniform(k_x, (shots + queries, 1), minval=-5.0, maxval=5.0)
        y = amplitude * jnp.sin(x - phase)
        return {"amplitude": amplitude, "phase": phase, **_split_points(x, y, shots)}

    return Tasks(sample, _support, _query)


@checked
def linear_regressions(
    size: PositiveInt,
    shots: PositiveInt,
    queries: PositiveInt,
    *,
    condition: PositiveFloat = 1.0,
    noise: NonNegative = 0.0,
    spread: PositiveFloat = 1.0,
) -> Tasks:
    """Linear regression ``y = w x + noise``, where adaptation has a closed form.

    So has its meta-gradient. The kind of problem on which Rajeswaran et al. 2019 (section 4, first
    experiment) measure the error of meta-gradients; the distribution is this package's own. ``w
    [n]`` is normal with standard deviation ``spread``, the inputs are normal, and the standard
    deviation of coordinate ``i`` falls geometrically from 1 to ``condition ** -0.5``: ``E[x x^T]``,
    half the expected Hessian of the mean squared error, has this condition number. Batches are
    ``{"x": [K, n], "y": [K, 1]}``, for `metajax.problems.regressor`.

    Args:
      size: inputs ``n``.
      shots: points to adapt to.
      queries: points of the test batch.
      condition: condition number of the inputs' second moments, at least 1.
      noise: standard deviation of the noise on ``y``.
      spread: standard deviation of ``w`` over the tasks.

    >>> import jax, metajax as mx
    >>> tasks = mx.tasks.linear_regressions(3, shots=20, queries=20, condition=50.0)
    >>> tasks.sample(jax.random.key(0), ())["w"].shape
    (3,)
    """
    if condition < 1:
        raise ValueError(f"condition must be at least 1, got {condition}")
    points = shots + queries

    def sample(key, data):
        k_w, k_x, k_noise = jax.random.split(key, 3)
        w = spread * jax.random.normal(k_w, (size,))
        deviations = condition ** -jnp.linspace(0, 0.5, size)
        x = draw_flat(k_x, (points, size)) * deviations[None]
        y = x @ w[:, None] + noise * jax.random.normal(k_noise, (points, 1))
        return {"w": w, **_split_points(x, y, shots)}

    return Tasks(sample, _support, _query)


def _split_points(x: Array, y: Array, shots: int) -> dict[str, dict[str, Array]]:
    return {
        "support": {"x": x[:shots], "y": y[:shots]},
        "query": {"x": x[shots:], "y": y[shots:]},
    }


def _support(key, data, task):
    return task["support"]


def _query(key, data, task):
    return task["query"]
