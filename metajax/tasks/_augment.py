"""Task distributions made from others: each task transforms its batches in a way of its own.

They compose: ``unit_spread(project(classification(5), 32))``.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax._arguments import PositiveInt, checked
from metajax._arrays import lift
from metajax._losses import check_labels
from metajax._random import draw_flat
from metajax._rehearsal import drawn_from
from metajax.tasks._paired import paired
from metajax.types import Array, Batch, Key, PyTree, Tasks


@checked
def augment(
    tasks: Tasks,
    sample: Callable[[Key, Batch], PyTree],
    apply: Callable[[PyTree, Batch], Batch],
) -> Tasks:
    """Transforms the batches of each task by something drawn once for the task.

    Training and test batches alike. The tasks that come out are pairs of the ``task`` and its
    ``own``.

    Args:
      tasks: where tasks and batches come from.
      sample: ``(key, batch) -> own``, drawn when the task is; ``batch`` is a test batch of the
        task, for its shapes and its statistics (what is not used of it is not computed in compiled
        programs).
      apply: ``(own, batch) -> batch``.

    >>> import jax, metajax as mx
    >>> def brighten(tasks):                        # each task has a brightness
    ...     return mx.tasks.augment(tasks, lambda key, batch: jax.random.uniform(key),
    ...                             lambda own, batch: {**batch, "image": own * batch["image"]})
    >>> tasks = brighten(mx.tasks.prototypes(5, (16,)))
    >>> tasks.sample(jax.random.key(0), ()).own.shape
    ()
    """

    def draw(keys, data, task):
        k_batch, k_own = keys
        return sample(k_own, tasks.test(k_batch, data, task))

    return paired(tasks, draw, apply, num_keys=2)


def _augment_images(
    tasks: Tasks,
    apply: Callable[[PyTree, Array], Array],
    sample: Callable[[Key, Array], PyTree] = lambda key, images: (),
) -> Tasks:
    """As `augment`, on the images of a batch alone."""

    def apply_to_batch(own, batch):
        return batch | {"image": apply(own, batch["image"])}

    return augment(
        tasks, lambda key, batch: sample(key, batch["image"]), apply_to_batch
    )


def _flat(images: Array) -> Array:
    return images.reshape(len(images), -1)


@checked
def flatten(tasks: Tasks) -> Tasks:
    """Images as vectors ``[B, F]``.

    >>> import jax, metajax as mx
    >>> tasks = mx.tasks.flatten(mx.tasks.sum_sign((28, 28, 1)))
    >>> tasks.test(jax.random.key(0), (), tasks.sample(jax.random.key(1), ()))["image"].shape
    (256, 784)
    """
    return _augment_images(tasks, lambda own, images: _flat(images))


@checked
def project(tasks: Tasks, size: PositiveInt) -> Tasks:
    """Each task sees its images through a random matrix of its own: ``[B, F] -> [B, size]``.

    They are flattened first. The entries are uniform in ``±sqrt(6 / (2 F))`` (Kirsch & Schmidhuber
    2021, section 4.2), variance ``1 / F``: what comes out has the mean square of what went in. See
    `unit_spread` for images that are not standardised.

    >>> import jax, metajax as mx
    >>> tasks = mx.tasks.project(mx.tasks.prototypes(5, (4, 4)), 32)
    >>> tasks.sample(jax.random.key(0), ()).own.shape
    (16, 32)
    """

    def sample(key, images):
        fan_in = images[0].size
        limit = (6 / (2 * fan_in)) ** 0.5
        options = {"dtype": images.dtype, "minval": -limit, "maxval": limit}
        return draw_flat(key, (fan_in, size), jax.random.uniform, **options)

    def apply(matrix, images):
        return _flat(images) @ matrix

    return _augment_images(tasks, apply, sample)


@checked
def permute_pixels(tasks: Tasks) -> Tasks:
    """Each task sees its images with the values at permuted places; the shape stays.

    >>> import jax, metajax as mx
    >>> tasks = mx.tasks.permute_pixels(mx.tasks.prototypes(5, (4, 4)))
    >>> tasks.sample(jax.random.key(0), ()).own.shape
    (16,)
    """

    def sample(key, images):
        return jax.random.permutation(key, images[0].size)

    def apply(places, images):
        return _flat(images)[:, places].reshape(images.shape)

    return _augment_images(tasks, apply, sample)


@checked
def permute_labels(tasks: Tasks, num_classes: PositiveInt) -> Tasks:
    """Each task means something else by its labels: ``label -> permutation[label]``.

    The permutation is over ``num_classes`` labels. A label outside ``0..num_classes - 1`` is an
    error; where it is traced, it becomes ``num_classes``, on which learners report a loss of NaN.

    >>> import jax, metajax as mx
    >>> tasks = mx.tasks.permute_labels(mx.tasks.sum_sign((16,)), num_classes=10)
    >>> sorted(tasks.sample(jax.random.key(0), ()).own.tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def sample(key, batch):
        return jax.random.permutation(key, num_classes)

    def apply(permutation, batch):
        label = batch["label"]
        check_labels(label, num_classes)
        in_range = (label >= 0) & (label < num_classes)
        permuted = jnp.where(in_range, permutation[label], num_classes)
        permuted = permuted.astype(label.dtype)
        return batch | {"label": drawn_from(range(num_classes), permuted)}

    return augment(tasks, sample, apply)


@checked
def standardize(tasks: Tasks, mean: Any, std: Any) -> Tasks:
    """``(image - mean) / std`` with constants.

    They are numbers, or arrays that broadcast against an image, as one a channel.

    >>> import jax, metajax as mx
    >>> data = mx.data.by_class(mx.data.load("digits"))
    >>> x = data["image"] / 255
    >>> tasks = mx.tasks.standardize(mx.tasks.classification(10), x.mean(), x.std())
    >>> batch = tasks.test(jax.random.key(0), data, tasks.sample(jax.random.key(1), data))
    >>> abs(float(batch["image"].std()) - 1) < 0.1
    True
    """
    _checks.real("mean", mean)
    _checks.finite("mean", mean)
    _checks.positive("std", std)

    def apply(own, images):
        is_float = jnp.issubdtype(images.dtype, jnp.floating)
        dtype = images.dtype if is_float else jnp.float32
        standard = (images - lift(mean, images)) / lift(std, images)
        if standard.shape != images.shape:
            raise ValueError(
                f"mean and std must be numbers or fit an image {list(images.shape[1:])}, got "
                f"{list(np.shape(mean))} and {list(np.shape(std))}"
            )
        return standard.astype(dtype)

    return _augment_images(tasks, apply)


@checked
def unit_spread(tasks: Tasks) -> Tasks:
    """Each task standardises its images by their own mean and deviation.

    Both are over all values of a test batch.

    >>> import jax, metajax as mx
    >>> tasks = mx.tasks.unit_spread(mx.tasks.project(mx.tasks.classification(5), 32))
    >>> data = mx.data.by_class(mx.data.load("digits"))
    >>> batch = tasks.test(jax.random.key(0), data, tasks.sample(jax.random.key(1), data))
    >>> batch["image"].shape, abs(float(batch["image"].std()) - 1) < 0.1
    ((256, 32), True)
    """

    def sample(key, images):
        std = images.std()
        return images.mean(), jnp.where(std > 0, std, 1)  # constant images become 0

    def apply(statistics, images):
        mean, std = statistics
        return (images - mean) / std

    return _augment_images(tasks, apply, sample)


@checked
def ragged(tasks: Tasks, fewest: PositiveInt) -> Tasks:
    """Each task has a number of training examples of its own, from ``fewest`` to a whole batch.

    Which examples those are is drawn with the task; of the others the ``mask [B]`` of its training
    batch is False. For tasks whose training batch is the same at each step: `episodes`,
    `sinusoids`.

    >>> import jax, metajax as mx
    >>> tasks = mx.tasks.ragged(mx.tasks.sinusoids(shots=10), fewest=3)
    >>> batch = tasks.train(jax.random.key(0), (), tasks.sample(jax.random.key(1), ()))
    >>> batch["x"].shape, 3 <= int(batch["mask"].sum()) <= 10
    ((10, 1), True)
    """

    def draw(keys, data, task):
        k_batch, k_size, k_order = keys
        batch = jax.eval_shape(tasks.train, k_batch, data, task)
        size = len(jax.tree.leaves(batch)[0])
        if fewest > size:
            raise ValueError(
                f"fewest is {fewest}, but a training batch has {size} examples"
            )
        count = jax.random.randint(k_size, (), fewest, size + 1)
        return jax.random.permutation(k_order, size) < count

    both = paired(tasks, draw, lambda mask, batch: batch | {"mask": mask}, num_keys=3)

    def test(key, data, task):  # whole
        return tasks.test(key, data, task.task)

    return replace(both, test=test)
