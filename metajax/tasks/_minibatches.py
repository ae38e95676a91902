"""Tasks drawn from labelled images."""

from typing import Any

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax.data._arrange import labelled_images
from metajax.types import Array, Tasks


def minibatches(batch_size: int, test_size: int = 256) -> Tasks:
    """Minibatches, drawn with replacement, of ``data = {"image": [M, ...], "label": [M]}``.

    Every task is the whole data set; tasks differ by what the learner draws (its initialisation)
    and by the order of the examples. Images of dtype uint8 are scaled to [0, 1] as they are drawn,
    so that the data stay small in memory.

    Args:
      batch_size: examples in a training batch.
      test_size: examples in the test batch.

    Raises:
      TypeError, ValueError: sizes below 1, or data of another form.

    >>> import jax, metajax as mx
    >>> data = mx.data.load("digits")
    >>> batch = mx.tasks.minibatches(32).train(jax.random.key(0), data, (), 0)
    >>> batch["image"].shape, batch["label"].shape
    ((32, 8, 8, 1), (32,))
    """
    _checks.positive_int(batch_size=batch_size, test_size=test_size)

    def draw(key, data, size):
        labelled_images(data)
        index = jax.random.randint(key, (size,), 0, len(data["label"]))
        return {"image": examples(data, index), "label": jnp.asarray(data["label"])[index]}

    return Tasks(
        sample=lambda key, data: (),
        train=lambda key, data, task, t: draw(key, data, batch_size),
        test=lambda key, data, task: draw(key, data, test_size),
    )


def examples(data: dict[str, Any], index: Array) -> Array:
    """The images at ``index [B]``, those of dtype uint8 scaled to [0, 1]."""
    image = jnp.asarray(data["image"])[index]
    return image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image
