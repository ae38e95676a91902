"""Few-shot classification: episodes drawn inside the compiled program."""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from metajax import _checks
from metajax.data._arrange import sorted_by_class
from metajax.tasks._minibatches import examples
from metajax.types import Tasks


def episodes(ways: int, shots: int, queries: int | None = None) -> Tasks:
    """N-way K-shot classification (Vinyals et al. 2016, section 4) from data sorted
    `metajax.data.by_class`.

    A task is ``ways`` classes in random order, whose places in it are their labels, and for each
    class ``shots`` images to adapt to, the support set, and ``queries`` others to be judged on. All
    are drawn without replacement, each ordered choice equally likely; the task holds their indices
    ``support [N, K]`` and ``query [N, Q]``, no images. Every inner step sees the whole support set
    ``{"image": [N * K, ...], "label": [N * K]}``, sorted by label, and ``test`` is the query set.
    Images of dtype uint8 are scaled to [0, 1].

    Args:
      ways: classes in a task.
      shots: support images of each class.
      queries: query images of each class; as many as ``shots`` by default, as in MAML's training.

    Raises: TypeError, ValueError: sizes below 1, data that are not by class, fewer classes than
      ``ways``, or a class with fewer images than ``shots + queries``. The last cannot be known
      while `jax.jit` traces the data: there, the images of such a class, unless they are integers
      other than uint8, are NaN instead, and so is the loss.

    >>> import jax, metajax as mx
    >>> data = mx.data.few_shot("digits", "train")
    >>> tasks = mx.tasks.episodes(5, shots=1, queries=15)
    >>> task = tasks.sample(jax.random.key(0), data)
    >>> support, query = tasks.train(jax.random.key(1), data, task, 0), tasks.test(jax.random.key(2), data, task)
    >>> support["image"].shape, support["label"].tolist(), query["image"].shape
    ((5, 8, 8, 1), [0, 1, 2, 3, 4], (75, 8, 8, 1))
    """
    _checks.positive_int(ways=ways, shots=shots)
    queries = shots if queries is None else _checks.positive_int("queries", queries)

    def sample(key, data):
        _enough(data, ways, shots + queries)
        start = jnp.asarray(data["start"])
        k_classes, k_images = jax.random.split(key)
        chosen = _distinct(k_classes, len(start) - 1, ways)
        first, size = start[chosen], start[chosen + 1] - start[chosen]
        within = jax.vmap(_distinct, (0, 0, None))(
            jax.random.split(k_images, ways), size, shots + queries
        )
        # An index past the end marks a class that is too small, see `batch`.
        index = jnp.where(
            size[:, None] < shots + queries, len(data["label"]), first[:, None] + within
        )
        index = index.astype(jnp.int32)
        return {"support": index[:, :shots], "query": index[:, shots:]}

    def batch(data, index):
        index, label = (
            index.reshape(-1),
            jnp.repeat(jnp.arange(ways, dtype=jnp.int32), index.shape[1]),
        )
        image = examples(data, index)
        if jnp.issubdtype(image.dtype, jnp.floating):
            known = (index < len(data["label"])).reshape(-1, *[1] * (image.ndim - 1))
            image = jnp.where(known, image, jnp.nan)
        return {"image": image, "label": label}

    return Tasks(
        sample,
        lambda key, data, task, t: batch(data, task["support"]),
        lambda key, data, task: batch(data, task["query"]),
    )


def _distinct(key, n, k):
    # k different integers below n, each ordered choice equally likely, in O(k^2): Floyd's algorithm
    # (Bentley & Floyd 1987) draws the set, a permutation its order. n may be traced, and differ
    # under vmap.
    k_set, k_order = jax.random.split(key)
    last = n - k + jnp.arange(k)
    drawn = jax.random.randint(k_set, (k,), 0, last + 1)

    def add(i, chosen):
        return chosen.at[i].set(jnp.where((chosen == drawn[i]).any(), last[i], drawn[i]))

    return jax.random.permutation(k_order, lax.fori_loop(0, k, add, jnp.full(k, -1)))


def _enough(data, ways, images):
    sorted_by_class(data)
    classes = len(data["start"]) - 1
    if ways > classes:
        raise ValueError(
            f"ways is {ways} and the data have {classes} classes; take fewer, or other data"
        )
    if isinstance(data["start"], jax.core.Tracer):
        return
    smallest = int(np.diff(np.asarray(data["start"])).min())
    if smallest < images:
        raise ValueError(
            f"shots + queries is {images} and the smallest class has {smallest} images; take fewer, or leave that "
            f"class out of the data"
        )
