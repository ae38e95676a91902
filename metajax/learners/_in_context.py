"""Learners that learn in their activations: predict an example, take its label in, predict the
next.
"""

from collections.abc import Callable

import jax
import jax.core
import jax.numpy as jnp
from jax import lax

from metajax import _checks
from metajax._losses import cross_entropy_and_accuracy
from metajax.types import InContext, Learner


def in_context(
    init: Callable, start: Callable, predict: Callable, learn: Callable, sizes: tuple[int, int]
) -> InContext:
    """An online classifier from a function that predicts and one that learns, for one example each.

    A batch of several examples is a piece of the stream: they are taken in order, and each is
    predicted before its own label is seen. Images are flattened. No gradient is taken anywhere.

    Args: init: ``(key) -> meta_params``. start: ``(key, meta_params) -> state``, before the first
      example. predict: ``(meta_params, state, x [F]) -> (logits [C], state)``. learn:
      ``(meta_params, state, x [F], error [C], label [C]) -> state``, where ``state`` is what
      ``predict`` gave, the label is one-hot and the error, ``softmax(logits) - label``, is the
      gradient of the cross-entropy. sizes: ``(F, C)``, values of an image and classes.

    Raises: TypeError, ValueError: arguments of another type; and, from the learner, images of
      another size, logits of another shape or labels out of range (compiled programs, which cannot
      raise, report a loss of NaN for those).

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
    >>> loop = mx.inner(nearest.learner, mx.tasks.prototypes(5, (16,)), horizon=40)
    >>> curves = mx.evaluate(loop, jax.random.key(0), nearest.init(jax.random.key(1)), num_tasks=8)
    >>> bool(curves.metrics["accuracy"][:, -10:].mean() > 0.9)
    True
    """
    for name, value in {"init": init, "start": start, "predict": predict, "learn": learn}.items():
        _checks.function(name, value)
    if not isinstance(sizes, tuple) or len(sizes) != 2:
        raise TypeError(f"sizes must be a pair (values of an image, classes), got {sizes!r}")
    num_inputs, num_classes = (_checks.positive_int("sizes", n) for n in sizes)

    def init_params(key):
        _checks.key(key)
        return init(key)

    def read(meta_params, batch):
        x = batch["image"].reshape(len(batch["label"]), -1)
        if x.shape[1] != num_inputs:
            raise ValueError(
                f"the learner was made for {num_inputs} inputs, but an image {list(batch['image'].shape[1:])} has "
                f"{x.shape[1]} values; see metajax.tasks.project"
            )
        return x.astype(jnp.result_type(float, *jax.tree.leaves(meta_params)))

    def guess(meta_params, state, x):
        logits, state = predict(meta_params, state, x)
        if logits.shape != (num_classes,):
            raise ValueError(f"predict must give logits [{num_classes}], got {list(logits.shape)}")
        return logits, state

    def step(key, meta_params, state, batch):
        def one(state, example):
            x, label = example
            logits, state = guess(meta_params, state, x)
            target = jax.nn.one_hot(label, num_classes, dtype=logits.dtype)
            return learn(meta_params, state, x, jax.nn.softmax(logits) - target, target), logits

        state, logits = lax.scan(one, state, (read(meta_params, batch), batch["label"]))
        return state, *cross_entropy_and_accuracy(logits, batch["label"])

    def test(meta_params, state, batch):
        logits = jax.vmap(lambda x: guess(meta_params, state, x)[0])(read(meta_params, batch))
        return cross_entropy_and_accuracy(logits, batch["label"])

    return InContext(
        init_params,
        Learner(
            init=lambda key, meta_params, task: start(key, meta_params),
            step=step,
            loss=lambda key, meta_params, state, batch: test(meta_params, state, batch)[0],
            metrics=lambda key, meta_params, state, batch: test(meta_params, state, batch)[1],
        ),
    )
