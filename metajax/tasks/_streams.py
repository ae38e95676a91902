"""Classification as a stream of examples, for learners that learn online.

Batches are ``{"image": [B, ...], "label": [B]}``.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax._arguments import PositiveFloat, PositiveInt, checked
from metajax._random import draw_flat
from metajax._rehearsal import drawn_from
from metajax.data._arrange import sorted_by_class
from metajax.tasks._minibatches import examples, stream
from metajax.types import Tasks


@checked
def classification(
    num_classes: PositiveInt, batch_size: PositiveInt = 1, test_size: PositiveInt = 256
) -> Tasks:
    """Random classes of ``data = mx.data.by_class(...)`` in random order.

    A task is ``{"classes": [num_classes]}``: the label ``k`` stands for the class ``classes[k]``,
    so that also with all classes of the data tasks differ in what the labels mean. Examples are
    drawn uniformly, with replacement, from those of the task's classes; a draw costs the same
    however large the data. For the labels as they are in the data, take `minibatches`.

    Args:
      num_classes: classes of a task.
      batch_size: examples in a training batch; 1 is online learning.
      test_size: examples in the test batch.

    Raises:
      ValueError: data not sorted by class, or with fewer classes than a task needs.

    >>> import jax, metajax as mx
    >>> data = mx.data.by_class(mx.data.load("digits"))
    >>> tasks = mx.tasks.classification(num_classes=5)
    >>> task = tasks.sample(jax.random.key(0), data)
    >>> batch = tasks.train(jax.random.key(1), data, task)
    >>> task["classes"].shape, batch["image"].shape, batch["label"].shape
    ((5,), (1, 8, 8, 1), (1,))
    """
    _check_classes(num_classes)

    def sample(key, data):
        sorted_by_class(data)
        count = len(data["start"]) - 1
        if count < num_classes:
            raise ValueError(
                f"num_classes is {num_classes}, but the data has {count} classes"
            )
        return {"classes": jax.random.permutation(key, count)[:num_classes]}

    def draw(key, data, task, size):
        start = jnp.asarray(data["start"])
        first = start[task["classes"]]
        count = start[task["classes"] + 1] - first

        # A place among the examples of the task's classes, and the class that it is in.
        end = count.cumsum()
        place = jax.random.randint(key, (size,), 0, end[-1], end.dtype)
        label = jnp.searchsorted(end, place, side="right", method="compare_all")
        label = label.astype(jnp.int32)
        offset = first - (end - count)
        image = examples(data, offset[label] + place)
        return {"image": image, "label": drawn_from(range(num_classes), label)}

    return stream(sample, draw, batch_size, test_size)


@checked
def prototypes(
    num_classes: PositiveInt,
    shape: Sequence[int],
    noise: PositiveFloat = 0.5,
    batch_size: PositiveInt = 1,
    test_size: PositiveInt = 256,
) -> Tasks:
    """Gaussian clusters: each class is a standard normal image, its examples that image plus noise.

    The noise is normal. It needs no data. A task is ``{"prototype": [num_classes, *shape]}``;
    labels are uniform.

    Args:
      num_classes: classes of a task.
      shape: of an image, e.g. ``(16,)``.
      noise: standard deviation of the examples around their prototype.
      batch_size: examples in a training batch.
      test_size: examples in the test batch.

    >>> import jax, metajax as mx
    >>> tasks = mx.tasks.prototypes(num_classes=5, shape=(16,))
    >>> task = tasks.sample(jax.random.key(0), ())
    >>> tasks.train(jax.random.key(1), (), task)["image"].shape
    (1, 16)
    """
    _check_classes(num_classes)
    shape = _checks.positive_ints("shape", shape, like=(28, 28, 1), any_length=True)

    def sample(key, data):
        return {"prototype": draw_flat(key, (num_classes, *shape))}

    def draw(key, data, task, size):
        k_label, k_noise = jax.random.split(key)
        label = jax.random.randint(k_label, (size,), 0, num_classes, jnp.int32)
        image = task["prototype"][label] + noise * draw_flat(k_noise, (size, *shape))
        return {"image": image, "label": drawn_from(range(num_classes), label)}

    return stream(sample, draw, batch_size, test_size)


@checked
def random_images(
    shape: Sequence[int],
    num_images: PositiveInt = 20,
    num_classes: PositiveInt = 10,
    batch_size: PositiveInt = 1,
    test_size: PositiveInt = 256,
) -> Tasks:
    """A few standard normal images with random labels: nothing but memory helps.

    Kirsch & Schmidhuber 2021, section 4.4. It needs no data. A task is ``{"image": [num_images,
    *shape], "label": [num_images]}``, of which batches are drawn with replacement. For one such set
    that all tasks share, give it as data to `minibatches`.

    Args:
      shape: of an image, e.g. ``(28, 28, 1)``.
      num_images: images of a task; the paper's *Random* has 20.
      num_classes: labels are uniform over ``0..num_classes - 1``.
      batch_size: examples in a training batch.
      test_size: examples in the test batch.

    >>> import jax, metajax as mx
    >>> tasks = mx.tasks.random_images((28, 28, 1))
    >>> tasks.sample(jax.random.key(0), ())["image"].shape
    (20, 28, 28, 1)
    """
    shape = _checks.positive_ints("shape", shape, like=(28, 28, 1), any_length=True)
    _check_classes(num_classes)

    def sample(key, data):
        k_image, k_label = jax.random.split(key)
        return {
            "image": draw_flat(k_image, (num_images, *shape)),
            "label": jax.random.randint(
                k_label, (num_images,), 0, num_classes, jnp.int32
            ),
        }

    def draw(key, data, task, size):
        index = jax.random.randint(key, (size,), 0, num_images)
        label = task["label"][index]
        return {
            "image": task["image"][index],
            "label": drawn_from(range(num_classes), label),
        }

    return stream(sample, draw, batch_size, test_size)


@checked
def sum_sign(
    shape: Sequence[int], batch_size: PositiveInt = 1, test_size: PositiveInt = 256
) -> Tasks:
    """Is the sum of the values positive? Two classes (Kirsch & Schmidhuber 2021, 4.4).

    Each image has a mean of its own, uniform in [-1, 1], around which its values are standard
    normal, truncated at two standard deviations; its label is 1 where they sum to 0 or more. It
    needs no data and all tasks are the same: see `permute_labels`.

    Args:
      shape: of an image, e.g. ``(28, 28, 1)``.
      batch_size: examples in a training batch.
      test_size: examples in the test batch.

    >>> import jax, metajax as mx
    >>> batch = mx.tasks.sum_sign((28, 28, 1)).test(jax.random.key(0), (), ())
    >>> batch["image"].shape, float(batch["label"].mean().round(1))
    ((256, 28, 28, 1), 0.5)
    """
    shape = _checks.positive_ints("shape", shape, like=(28, 28, 1), any_length=True)

    def draw(key, data, task, size):
        k_mean, k_value = jax.random.split(key)
        mean = jax.random.uniform(k_mean, (size, *[1] * len(shape)), minval=-1.0)
        values = draw_flat(
            k_value, (size, *shape), jax.random.truncated_normal, lower=-2.0, upper=2.0
        )
        image = mean + values
        label = (image.reshape(size, -1).sum(-1) >= 0).astype(jnp.int32)
        return {"image": image, "label": drawn_from(range(2), label)}

    return stream(lambda key, data: (), draw, batch_size, test_size)


@checked
def _check_classes(num_classes: PositiveInt) -> None:
    if num_classes < 2:
        raise ValueError(
            "num_classes must be at least 2: with one class there is nothing to learn"
        )
