"""What a cell of a network meets while the network learns."""

import jax
import jax.numpy as jnp

from metajax import checks
from metajax.types import Tasks


def signals(num_cells: int, spread: float = 0.5) -> Tasks:
    """What single cells meet in a network that learns by backpropagation: tasks for `metajax.learners.clone_backprop`.

    Weights and biases ``N(0, spread^2)``; inputs ``N(0, 1)`` times a scale for each cell, from 0.1 to 10; errors
    between -2 and 2, most of them small, as those of a softmax are. Wider than what a network usually sends, since a
    cell that is sent what it never met may run away. Batches are ``{"x": [M], "e": [M]}``.

    >>> import jax, metajax as mx
    >>> mx.tasks.signals(5).sample(jax.random.key(0), ())["w"].shape
    (5,)
    """
    num_cells = checks.positive_int("num_cells", num_cells)
    spread = checks.positive_float("spread", spread)

    def sample(key, data):
        k_w, k_b, k_scale = jax.random.split(key, 3)
        return {
            "w": spread * jax.random.normal(k_w, (num_cells,)),
            "b": spread * jax.random.normal(k_b, (num_cells,)),
            "scale": 10 ** jax.random.uniform(k_scale, (num_cells,), minval=-1.0),
        }

    def draw(key, task):
        k_x, k_e, k_sign = jax.random.split(key, 3)
        size = 2 * jax.random.uniform(k_e, (num_cells,)) ** 4
        return {
            "x": task["scale"] * jax.random.normal(k_x, (num_cells,)),
            "e": jnp.where(jax.random.bernoulli(k_sign, 0.5, (num_cells,)), size, -size),
        }

    return Tasks(sample, lambda key, data, task, t: draw(key, task), lambda key, data, task: draw(key, task))
