"""Tasks that need no data."""

import jax

from metajax import checks
from metajax.types import Tasks


def quadratics(size: int) -> Tasks:
    """Random quadratics ``|W x - y|^2``, ``W [n, n]`` and ``y [n]`` standard normal (Andrychowicz et al. 2016, 3.1).

    The batch is the task itself: there is no sampling noise.

    >>> import jax, metajax as mx
    >>> mx.tasks.quadratics(10).sample(jax.random.key(0), ())["W"].shape
    (10, 10)
    """
    size = checks.positive_int("size", size)

    def sample(key, data):
        k_w, k_y = jax.random.split(key)
        return {"W": jax.random.normal(k_w, (size, size)), "y": jax.random.normal(k_y, (size,))}

    return Tasks(sample, lambda key, data, task, t: task, lambda key, data, task: task)
