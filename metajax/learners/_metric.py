"""Few-shot classification without gradient steps, by an embedding that is meta-learned."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax._arguments import PositiveFloat, PositiveInt, checked
from metajax._arrays import matmul
from metajax._losses import (
    at_least_float32,
    blank_masked,
    cross_entropy_and_accuracy,
)
from metajax.types import Array, Batch, Key, Learner, Params

Embed = Callable[[Params, Array], Array]


class Prototypes(NamedTuple):
    """For each class the sum of its embeddings, ``[ways, size]``, and their number, ``[ways]``."""

    total: Array
    count: Array


@checked
def protonet(
    net: tuple[Callable[[Key], Params], Embed], ways: PositiveInt, size: PositiveInt
) -> Learner:
    """Prototypical networks (Snell et al. 2017): the class whose mean embedding is nearest.

    Logits are negative squared Euclidean distances (eq. 2). A step adds the support batch to the
    prototypes; before the first, all classes are equally likely. The prototype of a class without
    examples is 0. One step does; take ``horizon=1`` and ``meta_loss="heldout"``. The
    meta-parameters are those of the network.

    Args:
      net: ``(init, apply)`` of the embedding, e.g. one of `metajax.nets`: ``(key) -> params`` and
        ``(params, images [B, ...]) -> [B, size]``.
      ways: number of classes; labels are ``0 .. ways - 1``.
      size: of an embedding.

    >>> import jax, metajax as mx, optax
    >>> net = mx.nets.dense4(ways=4, shape=(8, 8, 1), hidden=(16,))  # embeddings of 4 numbers
    >>> learner = mx.protonet(net, ways=10, size=4)
    >>> loop = mx.inner(learner, mx.tasks.minibatches(50), horizon=1, meta_loss="heldout")
    >>> meta_params, digits = learner.meta(jax.random.key(0)), mx.data.load("digits")
    >>> mx.evaluate(loop, jax.random.key(1), meta_params, digits, num_tasks=2).test_loss.shape
    (2,)
    """
    init_params, embed = _embedding(net, size)

    def init(key, meta_params, task):
        dtype = jnp.result_type(float)
        return Prototypes(jnp.zeros((ways, size), dtype), jnp.zeros(ways, dtype))

    def learn(meta_params, state, batch):
        member = one_hot(batch, ways, state.total.dtype)
        embedded = embed(meta_params, batch["image"])
        total = matmul(member.T, embedded)
        return Prototypes(
            state.total + total.astype(state.total.dtype),
            state.count + member.sum(0),
        )

    def logits(meta_params, state, images):
        prototypes = state.total / jnp.maximum(state.count, 1)[:, None]
        distances = embed(meta_params, images)[:, None] - prototypes[None]
        return -jnp.sum(distances**2, -1)

    return _classifier(init, learn, logits, init_params)


class Head(NamedTuple):
    """A linear classifier of embeddings, ``[size + 1, ways]``; the last row is the bias."""

    weights: Array


@checked
def ridge(
    net: tuple[Callable[[Key], Params], Embed],
    ways: PositiveInt,
    size: PositiveInt,
    *,
    lam: PositiveFloat = 1.0,
    scale: PositiveFloat = 1.0,
) -> Learner:
    """R2-D2 (Bertinetto et al. 2019): ridge regression from embeddings to one-hot labels.

    ``W = X^T (X X^T + lam I)^{-1} Y``, a system as large as the support batch, with a column of
    ones in ``X`` for the bias; logits are ``scale * X W`` (the paper's shift, the same for all
    classes, cancels in the softmax). Meta-gradients go through the solution. A step computes ``W``
    from its batch alone; before the first, all classes are equally likely. Take ``horizon=1`` and
    ``meta_loss="heldout"``. The meta-parameters are ``{"params", "log_lam", "scale"}``, the penalty
    as a logarithm to keep it above 0.

    Args:
      net: ``(init, apply)`` of the embedding, as for `protonet`.
      ways: number of classes; labels are ``0 .. ways - 1``.
      size: of an embedding.
      lam: penalty, before meta-training; ``n`` times that of the authors' code for a support batch
        of ``n`` images, since there ``X X^T`` is divided by ``n``.
      scale: of the logits, before meta-training.

    >>> import jax, metajax as mx
    >>> net = mx.nets.dense4(ways=16, shape=(8, 8, 1), hidden=(32,))
    >>> learner = mx.ridge(net, ways=10, size=16)
    >>> loop = mx.inner(learner, mx.tasks.minibatches(50), horizon=1, meta_loss="heldout")
    >>> meta_params, digits = learner.meta(jax.random.key(0)), mx.data.load("digits")
    >>> curves = mx.evaluate(loop, jax.random.key(1), meta_params, digits)
    >>> bool(curves.test_metrics["accuracy"].mean() > 0.5)
    True
    """
    init_params, embed = _embedding(net, size)

    def meta(key):
        params = init_params(key)
        return {
            "params": params,
            "log_lam": jnp.log(lam),
            "scale": jnp.asarray(scale, float),
        }

    def features(meta_params, images):
        names = ("params", "log_lam", "scale")
        _checks.entries(
            "meta_params", meta_params, names, "metajax.ridge(...).meta(key)"
        )
        x = embed(meta_params["params"], images)
        return jnp.concatenate([x, jnp.ones_like(x[:, :1])], 1)

    def init(key, meta_params, task):
        return Head(jnp.zeros((size + 1, ways), jnp.result_type(float)))

    def learn(meta_params, state, batch):
        x = features(meta_params, batch["image"])
        if "mask" in batch:  # a row of zeros has no part in the solution
            x = jnp.where(batch["mask"][:, None], x, 0)
        gram = matmul(x, x.T)
        system = gram + jnp.exp(meta_params["log_lam"]) * jnp.eye(len(x), dtype=x.dtype)
        targets = one_hot(batch, ways, x.dtype)
        dual = jax.scipy.linalg.solve(system, targets, assume_a="pos")
        weights = matmul(x.T, dual)
        return Head(weights.astype(state.weights.dtype))

    def logits(meta_params, state, images):
        x = features(meta_params, images)
        return meta_params["scale"] * matmul(x, state.weights)

    return _classifier(init, learn, logits, meta)


def one_hot(batch: Batch, ways: int, dtype: jnp.dtype) -> Array:
    """The labels as ``[B, ways]``, zero for examples that do not count."""
    labels = jax.nn.one_hot(batch["label"], ways, dtype=dtype)
    if "mask" not in batch:
        return labels
    return labels * batch["mask"][:, None].astype(dtype)


def _classifier(
    init: Callable, learn: Callable, logits: Callable, meta: Callable
) -> Learner:
    """A learner whose step predicts its batch and then learns from it."""

    def test(key, meta_params, state, batch):
        batch = blank_masked(batch, "image", "label")
        outputs = logits(meta_params, state, batch["image"])
        return cross_entropy_and_accuracy(outputs, batch["label"], batch.get("mask"))

    def step(key, meta_params, state, batch):
        loss, metrics = test(key, meta_params, state, batch)
        return (
            learn(meta_params, state, blank_masked(batch, "image", "label")),
            loss,
            metrics,
        )

    def predict(key, meta_params, state, inputs):
        return logits(meta_params, state, inputs)

    return Learner(init, step, test, predict, meta)


@checked
def _embedding(
    net: tuple[Callable, Callable], size: PositiveInt
) -> tuple[Callable, Embed]:
    if not isinstance(net, tuple) or len(net) != 2 or not all(map(callable, net)):
        got = _checks.describe(net)
        raise TypeError(
            f"net must be a pair (init, apply), e.g. metajax.nets.conv4(64), got {got}"
        )
    init, apply = net

    def embed(params, images):
        x = at_least_float32(apply(params, images))
        if x.shape != (images.shape[0], size):
            raise ValueError(
                f"net must give [batch, size] = {[images.shape[0], size]}, got {list(x.shape)}"
            )
        return x

    return init, embed
