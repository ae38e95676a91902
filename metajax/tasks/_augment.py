"""Task distributions made from others: each task gets a transformation of its own, drawn with it
and kept.

They compose: ``unit_spread(project(classification(5), 32))``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax._random import draw_flat
from metajax.types import PyTree, Tasks


class Augmented(NamedTuple):
    """A task and what was drawn to transform its batches."""

    task: PyTree
    own: PyTree


def augment(tasks: Tasks, sample: Callable[..., PyTree], apply: Callable[..., PyTree]) -> Tasks:
    """Transforms the batches of each task, training and test alike, by something drawn once for the
    task.

    Args: tasks: where tasks and batches come from. sample: ``(key, batch) -> own``, drawn when the
      task is; ``batch`` is a test batch of the task, for its shapes and its statistics (what is not
      used of it is not computed in compiled programs). apply: ``(own, batch) -> batch``.

    Returns:
      Tasks that are `Augmented`: the task and ``own``.

    >>> import jax, metajax as mx
    >>> def brighten(tasks):                        # each task has a brightness
    ...     return mx.tasks.augment(tasks, lambda key, batch: jax.random.uniform(key),
    ...                             lambda own, batch: {**batch, "image": own * batch["image"]})
    >>> tasks = brighten(mx.tasks.prototypes(5, (16,)))
    >>> tasks.sample(jax.random.key(0), ()).own.shape
    ()
    """
    _checks.instance(Tasks, tasks=tasks)
    _checks.function(sample=sample, apply=apply)

    def sample_task(key, data):
        k_task, k_batch, k_own = jax.random.split(key, 3)
        task = tasks.sample(k_task, data)
        return Augmented(task, sample(k_own, tasks.test(k_batch, data, task)))

    return Tasks(
        sample_task,
        lambda key, data, task, t: apply(task.own, tasks.train(key, data, task.task, t)),
        lambda key, data, task: apply(task.own, tasks.test(key, data, task.task)),
    )


def _images(tasks: Tasks, sample: Callable[..., PyTree], apply: Callable[..., Any]) -> Tasks:
    # As augment, on images alone: sample (key, images), apply (own, images).
    return augment(
        tasks,
        lambda key, batch: sample(key, batch["image"]),
        lambda own, batch: {**batch, "image": apply(own, batch["image"])},
    )


def flatten(tasks: Tasks) -> Tasks:
    """Images as vectors ``[B, F]``.

    >>> import jax, metajax as mx
    >>> tasks = mx.tasks.flatten(mx.tasks.sum_sign((28, 28, 1)))
    >>> tasks.test(jax.random.key(0), (), tasks.sample(jax.random.key(1), ()))["image"].shape
    (256, 784)
    """
    return _images(tasks, lambda key, image: (), lambda own, image: image.reshape(len(image), -1))


def project(tasks: Tasks, size: int) -> Tasks:
    """Each task sees its images, flattened, through a random matrix of its own: ``[B, F] -> [B,
    size]``.

    Its entries are uniform in ``±sqrt(6 / (2 F))`` (Kirsch & Schmidhuber 2021, section 4.2),
    variance ``1 / F``: what comes out has the mean square of what went in. See `unit_spread` for
    images that are not standardised.

    >>> import jax, metajax as mx
    >>> tasks = mx.tasks.project(mx.tasks.prototypes(5, (4, 4)), 32)
    >>> tasks.sample(jax.random.key(0), ()).own.shape
    (16, 32)
    """
    _checks.positive_int(size=size)

    def sample(key, image):
        fan_in = image[0].size
        limit = (6 / (2 * fan_in)) ** 0.5
        return draw_flat(
            key, (fan_in, size), jax.random.uniform, dtype=image.dtype, minval=-limit, maxval=limit
        )

    return _images(tasks, sample, lambda own, image: image.reshape(len(image), -1) @ own)


def permute_pixels(tasks: Tasks) -> Tasks:
    """Each task sees its images with the values at permuted places; the shape stays.

    >>> import jax, metajax as mx
    >>> tasks = mx.tasks.permute_pixels(mx.tasks.prototypes(5, (4, 4)))
    >>> tasks.sample(jax.random.key(0), ()).own.shape
    (16,)
    """
    return _images(
        tasks,
        lambda key, image: jax.random.permutation(key, image[0].size),
        lambda own, image: image.reshape(len(image), -1)[:, own].reshape(image.shape),
    )


def permute_labels(tasks: Tasks, num_classes: int) -> Tasks:
    """Each task means something else by its labels: ``label -> permutation[label]``, over
    ``num_classes`` labels.

    A label outside ``0..num_classes - 1`` becomes ``num_classes``, on which learners report a loss
    of NaN.

    >>> import jax, metajax as mx
    >>> tasks = mx.tasks.permute_labels(mx.tasks.sum_sign((16,)), num_classes=10)
    >>> sorted(tasks.sample(jax.random.key(0), ()).own.tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    _checks.positive_int(num_classes=num_classes)

    def apply(own, batch):
        label = batch["label"]
        known = (label >= 0) & (label < num_classes)
        return {**batch, "label": jnp.where(known, own[label], num_classes).astype(label.dtype)}

    return augment(tasks, lambda key, batch: jax.random.permutation(key, num_classes), apply)


def standardize(tasks: Tasks, mean: Any, std: Any) -> Tasks:
    """``(image - mean) / std`` with constants: numbers, or arrays that broadcast against an image,
    as one a channel.

    >>> import jax, metajax as mx
    >>> data = mx.data.by_class(mx.data.load("digits"))
    >>> x = data["image"] / 255
    >>> tasks = mx.tasks.standardize(mx.tasks.classification(10), x.mean(), x.std())
    >>> batch = tasks.test(jax.random.key(0), data, tasks.sample(jax.random.key(1), data))
    >>> abs(float(batch["image"].std()) - 1) < 0.1
    True
    """
    _checks.finite("mean", mean)
    _checks.finite("std", std)
    if not (np.asarray(std) > 0).all():
        raise ValueError(f"std must be greater than 0, got {std}")

    def apply(own, image):
        dtype = image.dtype if jnp.issubdtype(image.dtype, jnp.floating) else jnp.float32
        return ((image - mean) / std).astype(dtype)

    return _images(tasks, lambda key, image: (), apply)


def unit_spread(tasks: Tasks) -> Tasks:
    """Each task standardises its images by their own mean and deviation over all values, taken from
    a test batch.

    >>> import jax, metajax as mx
    >>> tasks = mx.tasks.unit_spread(mx.tasks.project(mx.tasks.classification(5), 32))
    >>> data = mx.data.by_class(mx.data.load("digits"))
    >>> batch = tasks.test(jax.random.key(0), data, tasks.sample(jax.random.key(1), data))
    >>> batch["image"].shape, abs(float(batch["image"].std()) - 1) < 0.1
    ((256, 32), True)
    """

    def sample(key, image):
        std = image.std()
        return image.mean(), jnp.where(std > 0, std, 1)  # constant images become 0

    return _images(tasks, sample, lambda own, image: (image - own[0]) / own[1])
