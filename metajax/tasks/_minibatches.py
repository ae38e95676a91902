"""Tasks drawn from labelled images."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax._arguments import PositiveInt, checked
from metajax._rehearsal import drawn_from
from metajax.data._arrange import labelled_images
from metajax.types import Array, Batch, Data, Key, Task, Tasks


@checked
def minibatches(batch_size: PositiveInt, test_size: PositiveInt = 256) -> Tasks:
    """Minibatches, drawn with replacement, of ``data = {"image": [M, ...], "label": [M]}``.

    Every task is the whole data set; tasks differ by what the learner draws (its initialisation)
    and by the order of the examples. Images of dtype uint8 are scaled to [0, 1] as they are drawn,
    so that the data stay small in memory.

    Args:
      batch_size: examples in a training batch.
      test_size: examples in the test batch.

    >>> import jax, metajax as mx
    >>> batch = mx.tasks.minibatches(32).train(jax.random.key(0), mx.data.load("digits"), ())
    >>> batch["image"].shape, batch["label"].shape
    ((32, 8, 8, 1), (32,))
    """

    def draw(key, data, task, size):
        labelled_images(data)
        index = jax.random.randint(key, (size,), 0, len(data["label"]))
        label = jnp.asarray(data["label"])[index]
        return {
            "image": examples(data, index),
            "label": drawn_from(data["label"], label),
        }

    return stream(lambda key, data: (), draw, batch_size, test_size)


@checked
def stream(
    sample: Callable[[Key, Data], Task],
    draw: Callable[[Key, Data, Task, int], Batch],
    batch_size: PositiveInt,
    test_size: PositiveInt,
) -> Tasks:
    """Tasks that draw each batch anew: ``draw(key, data, task, size)``."""

    def train(key, data, task):
        return draw(key, data, task, batch_size)

    def test(key, data, task):
        return draw(key, data, task, test_size)

    return Tasks(sample, train, test)


def examples(data: dict[str, Any], index: Array) -> Array:
    """The images at ``index [B]``, those of dtype uint8 scaled to [0, 1]."""
    image = jnp.asarray(data["image"])[index]
    if image.dtype == jnp.uint8:
        return image.astype(jnp.float32) / 255
    return image
