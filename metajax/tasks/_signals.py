"""What a cell of a network meets while the network learns."""

import jax
import jax.numpy as jnp

from metajax._arguments import PositiveFloat, PositiveInt, checked
from metajax.types import Array, Key, Tasks


@checked
def signals(num_cells: PositiveInt, spread: PositiveFloat = 1.0) -> Tasks:
    """What single cells meet in a network that learns by backpropagation.

    Tasks for `metajax.clone_backprop`. Each cell has scales of its own: weights and biases ``N(0,
    s^2)``, ``s`` log-uniform from ``spread / 20`` to ``spread``; inputs ``N(0, c^2)``, ``c``
    log-uniform from 0.1 to 4. Errors lie in ±1.5, most of them near 0: those of a softmax are below
    1, what it sends down to hidden units is not. Batches are ``{"x": [M], "e": [M]}``.

    >>> import jax, metajax as mx
    >>> mx.tasks.signals(5).sample(jax.random.key(0), ())["w"].shape
    (5,)
    """
    shape = (num_cells,)

    def sample(key, data):
        k_spread, k_w, k_b, k_scale = jax.random.split(key, 4)
        own_spread = _log_uniform(k_spread, shape, spread / 20, spread)
        return {
            "w": own_spread * jax.random.normal(k_w, shape),
            "b": own_spread * jax.random.normal(k_b, shape),
            "scale": _log_uniform(k_scale, shape, 0.1, 4.0),
        }

    def draw(key, data, task):
        k_x, k_e, k_sign = jax.random.split(key, 3)
        size = 1.5 * jax.random.uniform(k_e, shape) ** 4
        is_positive = jax.random.bernoulli(k_sign, 0.5, shape)
        return {
            "x": task["scale"] * jax.random.normal(k_x, shape),
            "e": jnp.where(is_positive, size, -size),
        }

    return Tasks(sample, train=draw, test=draw)


def _log_uniform(key: Key, shape: tuple[int, ...], low: float, high: float) -> Array:
    return low * (high / low) ** jax.random.uniform(key, shape)
