"""Few-shot classification: episodes drawn inside the compiled program."""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from metajax._arguments import PositiveInt, checked
from metajax._rehearsal import drawn_from
from metajax.data._arrange import sorted_by_class
from metajax.tasks._minibatches import examples
from metajax.types import Array, Batch, Data, Key, Tasks


@checked
def episodes(
    ways: PositiveInt, shots: PositiveInt, queries: PositiveInt | None = None
) -> Tasks:
    """N-way K-shot classification (Vinyals et al. 2016, section 4).

    The data are sorted `metajax.data.by_class`. A task is ``ways`` classes in random order, whose
    places in it are their labels, and for each class ``shots`` images to adapt to, the support set,
    and ``queries`` others to be judged on. All are drawn without replacement, each ordered choice
    equally likely; the task holds their indices ``support [N, K]`` and ``query [N, Q]``, no images.
    Every inner step sees the whole support set ``{"image": [N * K, ...], "label": [N * K]}``,
    sorted by label, and ``test`` is the query set. Images of dtype uint8 are scaled to [0, 1].

    Args:
      ways: classes in a task.
      shots: support images of each class.
      queries: query images of each class; as many as ``shots`` by default, as in MAML's training.

    Raises:
      ValueError: fewer classes than ``ways``, or a class with fewer images than ``shots +
        queries``. The last cannot be known while `jax.jit` traces the data: in a program of your
        own, the images of such a class, unless they are integers other than uint8, are NaN instead,
        and so is the loss. `evaluate`, `compare`, ``trainer.init`` and `fit` look before.

    >>> import jax, metajax as mx
    >>> data = mx.data.few_shot("digits", "train")
    >>> tasks = mx.tasks.episodes(5, shots=1, queries=15)
    >>> task = tasks.sample(jax.random.key(0), data)
    >>> support = tasks.train(jax.random.key(1), data, task)
    >>> support["image"].shape, support["label"].tolist()
    ((5, 8, 8, 1), [0, 1, 2, 3, 4])
    >>> tasks.test(jax.random.key(2), data, task)["image"].shape
    (75, 8, 8, 1)
    """
    queries = shots if queries is None else queries
    images_a_class = shots + queries

    def sample(key, data):
        _check_sizes(data, ways, images_a_class)
        start = jnp.asarray(data["start"])
        k_classes, k_images = jax.random.split(key)
        classes = _draw_distinct(k_classes, len(start) - 1, ways)
        first = start[classes]
        size = start[classes + 1] - first
        keys = jax.random.split(k_images, ways)
        within = jax.vmap(_draw_distinct, (0, 0, None))(keys, size, images_a_class)

        # An index past the end marks a class that is too small, see `batch_at`.
        is_too_small = size[:, None] < images_a_class
        index = jnp.where(is_too_small, len(data["label"]), first[:, None] + within)
        index = index.astype(jnp.int32)
        return {"support": index[:, :shots], "query": index[:, shots:]}

    def train(key, data, task):
        return _batch_at(data, task["support"])

    def test(key, data, task):
        return _batch_at(data, task["query"])

    return Tasks(sample, train, test)


def _batch_at(data: Data, index: Array) -> Batch:
    """The images at ``index [N, K]``, labelled by its rows."""
    ways, images_a_class = index.shape
    label = jnp.repeat(jnp.arange(ways, dtype=jnp.int32), images_a_class)
    index = index.reshape(-1)
    image = examples(data, index)
    if jnp.issubdtype(image.dtype, jnp.floating):
        exists = index < len(data["label"])
        image = jnp.where(exists.reshape(-1, *[1] * (image.ndim - 1)), image, jnp.nan)
    return {"image": image, "label": drawn_from(range(ways), label)}


def _draw_distinct(key: Key, n: Array | int, k: int) -> Array:
    """``k`` different integers below ``n``, each ordered choice equally likely, in O(k^2).

    Floyd's algorithm (Bentley & Floyd 1987) draws the set, a permutation its order. ``n`` may be
    traced, and differ under `jax.vmap`.
    """
    k_set, k_order = jax.random.split(key)
    last = n - k + jnp.arange(k)
    candidates = jax.random.randint(k_set, (k,), 0, last + 1)

    def add(i, chosen):
        is_taken = (chosen == candidates[i]).any()
        return chosen.at[i].set(jnp.where(is_taken, last[i], candidates[i]))

    chosen = lax.fori_loop(0, k, add, jnp.full(k, -1))
    return jax.random.permutation(k_order, chosen)


def _check_sizes(data: Data, ways: int, images_a_class: int) -> None:
    sorted_by_class(data)
    classes = len(data["start"]) - 1
    if ways > classes:
        raise ValueError(
            f"ways is {ways} and the data have {classes} classes; take fewer, or other data"
        )
    if isinstance(data["start"], jax.core.Tracer):
        return
    start = np.asarray(data["start"], int)
    sizes = start[1:] - start[:-1]
    too_small = np.flatnonzero(sizes < images_a_class)
    if too_small.size:
        smallest = too_small[sizes[too_small].argmin()]
        raise ValueError(
            f"shots + queries is {images_a_class}, but {too_small.size} of {classes} classes have "
            f"fewer images, the smallest, class {smallest}, {sizes[smallest]}; take fewer, or "
            f"leave such classes out of the data"
        )
