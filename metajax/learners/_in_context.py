"""Learners that learn in their activations: predict, take the label in, predict the next."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from metajax import _checks
from metajax._arguments import checked
from metajax._losses import (
    at_least_float32,
    blank_masked,
    cross_entropy_and_accuracy,
)
from metajax.types import Array, Key, Learner, MetaParams, State

Predict = Callable[[MetaParams, State, Array], tuple[Array, State]]
Learn = Callable[[MetaParams, State, Array, Array, Array], State]
Take = Callable[[MetaParams, State, Array, Array, Array | None], tuple[Array, State]]
Answer = Callable[[MetaParams, State, Array], Array]


@checked
def in_context(
    meta: Callable[[Key], MetaParams],
    start: Callable[[Key, MetaParams], State],
    predict: Predict,
    learn: Learn,
    sizes: tuple[int, int],
) -> Learner:
    """An online classifier from a function that predicts and one that learns, for one example each.

    A batch ``{"image": [B, ...], "label": [B]}`` of several examples is a piece of the stream: they
    are taken in order, and each is predicted before its own label is seen. The test predicts every
    example of a batch from the one state. Images are flattened. No gradient is taken anywhere.

    Args:
      meta: ``(key) -> meta_params``.
      start: ``(key, meta_params) -> state``, before the first example.
      predict: ``(meta_params, state, x [F]) -> (logits [C], state)``.
      learn: ``(meta_params, state, x [F], error [C], label [C]) -> state``, where ``state`` is what
        ``predict`` gave, the label is one-hot and the error, ``softmax(logits) - label``, is the
        gradient of the cross-entropy.
      sizes: ``(F, C)``, values of an image and classes.

    Raises:
      ValueError: from the learner, images of another size, logits of another shape or labels out of
        range (compiled programs, which cannot raise, report a loss of NaN for those).

    Here is the nearest class mean, its temperature meta-learned:

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> def predict(temperature, state, x):
    ...     mean = state["sum"] / jnp.maximum(state["count"], 1)[:, None]
    ...     return -((mean - x) ** 2).sum(1) / temperature, state
    >>> def learn(temperature, state, x, error, label):
    ...     return {"sum": state["sum"] + label[:, None] * x, "count": state["count"] + label}
    >>> def start(key, temperature):
    ...     return {"sum": jnp.zeros((5, 16)), "count": jnp.zeros(5)}
    >>> nearest = mx.in_context(lambda key: jnp.ones(()), start, predict, learn, sizes=(16, 5))
    >>> loop = mx.inner(nearest, mx.tasks.prototypes(5, (16,)), horizon=40)
    >>> meta_params = nearest.meta(jax.random.key(1))
    >>> curves = mx.evaluate(loop, jax.random.key(0), meta_params, num_tasks=8)
    >>> bool(curves.metrics["accuracy"][:, -10:].mean() > 0.9)
    True
    """
    num_inputs, num_classes = _checks.positive_ints("sizes", sizes, like=(64, 10))

    def logits_of(meta_params, state, x):
        logits, state = predict(meta_params, state, x)
        if logits.shape != (num_classes,):
            raise ValueError(
                f"predict must give logits [{num_classes}], got {list(logits.shape)}"
            )
        return at_least_float32(logits), state

    def take(meta_params, state, images, targets, mask):
        def one_example(state, example):
            x, target, counts = example
            logits, seen = logits_of(meta_params, state, x)
            error = jax.nn.softmax(logits).astype(x.dtype) - target
            learned = learn(meta_params, seen, x, error, target)
            if counts is not None:  # what does not count leaves no trace
                learned = jax.tree.map(
                    lambda new, old: jnp.where(counts, new, old), learned, state
                )
            return learned, logits

        state, logits = lax.scan(one_example, state, (images, targets, mask))
        return logits, state

    def answer(meta_params, state, images):
        return jax.vmap(lambda x: logits_of(meta_params, state, x)[0])(images)

    return by_pieces(meta, start, take, answer, (num_inputs, num_classes))


def by_pieces(
    meta: Callable[[Key], MetaParams],
    start: Callable[[Key, MetaParams], State],
    take: Take,
    answer: Answer,
    sizes: tuple[int, int],
) -> Learner:
    """As `in_context`, from functions of whole batches, the pieces of a stream.

    Args:
      meta: ``(key) -> meta_params``.
      start: ``(key, meta_params) -> state``, before the first example.
      take: ``(meta_params, state, x [B, F], targets [B, C], mask) -> (logits [B, C], state)``:
        each example is predicted from those before it, with their one-hot targets; where a mask
        ``[B]`` is False, it is no part of the stream.
      answer: ``(meta_params, state, x [B, F]) -> logits [B, C]``, each from the one state.
      sizes: ``(F, C)``.
    """
    num_inputs, num_classes = sizes

    def init(key, meta_params, task):
        del task
        return start(key, meta_params)

    def step(key, meta_params, state, batch):
        del key
        batch = blank_masked(batch, "image", "label")
        images = _flattened(meta_params, batch["image"], num_inputs)
        labels = batch["label"]
        mask = batch.get("mask")
        targets = jax.nn.one_hot(labels, num_classes, dtype=images.dtype)
        logits, state = take(meta_params, state, images, targets, mask)
        loss, metrics = cross_entropy_and_accuracy(logits, labels, mask)
        return state, loss, metrics

    def predict(key, meta_params, state, inputs):
        del key
        images = _flattened(meta_params, inputs, num_inputs)
        return answer(meta_params, state, images)

    def test(key, meta_params, state, batch):
        batch = blank_masked(batch, "image", "label")
        logits = predict(key, meta_params, state, batch["image"])
        return cross_entropy_and_accuracy(logits, batch["label"], batch.get("mask"))

    return Learner(init, step, test, predict, meta)


def _flattened(meta_params: MetaParams, images: Array, num_inputs: int) -> Array:
    """Images as ``[B, F]``, of the dtype of the meta-parameters."""
    x = images.reshape(len(images), -1)
    if x.shape[1] != num_inputs:
        raise ValueError(
            f"the learner was made for {num_inputs} inputs, but an image {list(images.shape[1:])} "
            f"has {x.shape[1]} values; see metajax.tasks.project"
        )
    return x.astype(jnp.result_type(float, *jax.tree.leaves(meta_params)))
