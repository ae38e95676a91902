"""Few-shot classification without gradient steps: an embedding is meta-learned, and its classifier
is computed.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metajax import _checks
from metajax._losses import cross_entropy_and_accuracy
from metajax.types import Array, Learner


class Prototypes(NamedTuple):
    """For each class the sum of its embeddings, ``[ways, size]``, and their number, ``[ways]``."""

    total: Array
    count: Array


def protonet(embed: Callable[..., Array], ways: int, size: int) -> Learner:
    """Prototypical networks (Snell et al. 2017): the class whose mean embedding is nearest.

    Logits are negative squared Euclidean distances (eq. 2). A step adds the support batch to the
    prototypes; before the first, all classes are equally likely. The prototype of a class without
    examples is 0. One step does; take ``horizon=1`` and ``meta_loss="heldout"``. The
    meta-parameters are those of ``embed``.

    Args:
      embed: ``(params, images [B, ...]) -> [B, size]``.
      ways: number of classes; labels are ``0 .. ways - 1``.
      size: of an embedding.

    Raises:
      TypeError, ValueError: an embedding that is no function or of another shape, sizes below 1.

    >>> import jax, metajax as mx, optax
    >>> learner, data = mx.protonet(lambda w, x: x.reshape(len(x), -1) @ w, ways=10, size=4), mx.data.load("digits")
    >>> loop = mx.inner(learner, mx.tasks.minibatches(50), horizon=1, meta_loss="heldout")
    >>> trainer = mx.trainer(mx.bptt(loop, num_tasks=4), optax.adam(1e-2))
    >>> state = trainer.init(jax.random.key(0), jax.random.normal(jax.random.key(1), (64, 4)) / 8, data)
    >>> result = mx.fit(trainer, state, data, num_steps=20, progress=False)
    >>> bool(result.history["test_accuracy"][-1] > 0.5)
    True
    """
    embed = _embedding(embed, size)
    _checks.positive_int(ways=ways)

    def init(key, meta_params, task):
        dtype = jnp.result_type(float)
        return Prototypes(jnp.zeros((ways, size), dtype), jnp.zeros(ways, dtype))

    def learn(meta_params, state, batch):
        member = jax.nn.one_hot(batch["label"], ways, dtype=state.total.dtype)
        total = jnp.einsum(
            "bw,bs->ws", member, embed(meta_params, batch["image"]), precision=lax.Precision.HIGHEST
        )
        return Prototypes(
            state.total + total.astype(state.total.dtype), state.count + member.sum(0)
        )

    def logits(meta_params, state, batch):
        prototypes = state.total / jnp.maximum(state.count, 1)[:, None]
        return -jnp.sum((embed(meta_params, batch["image"])[:, None] - prototypes) ** 2, -1)

    return _classifier(init, learn, logits)


class Head(NamedTuple):
    """A linear classifier of embeddings, ``[size + 1, ways]``; the last row is the bias."""

    weights: Array


def ridge(embed: Callable[..., Array], ways: int, size: int) -> Learner:
    """R2-D2 (Bertinetto et al. 2019): ridge regression from embeddings to one-hot labels, and
    through its solution.

    ``W = X^T (X X^T + lam I)^{-1} Y``, a system as large as the support batch, with a column of
    ones in ``X`` for the bias; logits are ``scale * X W`` (the paper's shift, the same for all
    classes, cancels in the softmax). A step computes ``W`` from its batch alone; before the first,
    all classes are equally likely. Take ``horizon=1`` and ``meta_loss="heldout"``. The
    meta-parameters are those of `with_ridge`.

    Args:
      embed: ``(params, images [B, ...]) -> [B, size]``.
      ways: number of classes; labels are ``0 .. ways - 1``.
      size: of an embedding.

    Raises:
      TypeError, ValueError: an embedding that is no function or of another shape, sizes below 1.

    >>> import jax, metajax as mx
    >>> learner = mx.ridge(lambda w, x: x.reshape(len(x), -1) @ w, ways=10, size=16)
    >>> loop = mx.inner(learner, mx.tasks.minibatches(50), horizon=1, meta_loss="heldout")
    >>> meta_params = mx.with_ridge(jax.random.normal(jax.random.key(1), (64, 16)) / 8)
    >>> curves = mx.evaluate(loop, jax.random.key(0), meta_params, mx.data.load("digits"))
    >>> bool(curves.test_metrics["accuracy"].mean() > 0.5)
    True
    """
    embed = _embedding(embed, size)
    _checks.positive_int(ways=ways)

    def features(meta_params, batch):
        _checks.entries("meta_params", meta_params, ("params", "log_lam", "scale"), "with_ridge")
        x = embed(meta_params["params"], batch["image"])
        return jnp.concatenate([x, jnp.ones_like(x[:, :1])], 1)

    def init(key, meta_params, task):
        return Head(jnp.zeros((size + 1, ways), jnp.result_type(float)))

    def learn(meta_params, state, batch):
        x = features(meta_params, batch)
        gram = jnp.matmul(x, x.T, precision=lax.Precision.HIGHEST)
        system = gram + jnp.exp(meta_params["log_lam"]) * jnp.eye(len(x), dtype=x.dtype)
        dual = jax.scipy.linalg.solve(
            system, jax.nn.one_hot(batch["label"], ways, dtype=x.dtype), assume_a="pos"
        )
        return Head(
            jnp.matmul(x.T, dual, precision=lax.Precision.HIGHEST).astype(state.weights.dtype)
        )

    def logits(meta_params, state, batch):
        return meta_params["scale"] * (features(meta_params, batch) @ state.weights)

    return _classifier(init, learn, logits)


def with_ridge(params, lam: float = 1.0, scale: float = 1.0) -> dict:
    """Meta-parameters for `ridge`: ``{"params", "log_lam", "scale"}``, the penalty as a logarithm
    to keep it above 0.

    Raises:
      TypeError, ValueError: ``lam`` or ``scale`` not above 0.

    >>> import jax.numpy as jnp, metajax as mx
    >>> round(float(mx.with_ridge(jnp.zeros(3), lam=2.0)["log_lam"]), 3)
    0.693
    """
    log_lam = jnp.log(jnp.asarray(_checks.positive_float("lam", lam)))
    return {
        "params": params,
        "log_lam": log_lam,
        "scale": jnp.asarray(_checks.positive_float("scale", scale)),
    }


def _classifier(init: Callable, learn: Callable, logits: Callable) -> Learner:
    """A learner whose step predicts its batch and then learns from it."""

    def test(meta_params, state, batch):
        return cross_entropy_and_accuracy(logits(meta_params, state, batch), batch["label"])

    def step(key, meta_params, state, batch):
        return learn(meta_params, state, batch), *test(meta_params, state, batch)

    def loss(key, meta_params, state, batch):
        return test(meta_params, state, batch)[0]

    def metrics(key, meta_params, state, batch):
        return test(meta_params, state, batch)[1]

    return Learner(init, step, loss, metrics)


def _embedding(embed: Callable[..., Array], size: int) -> Callable[..., Array]:
    _checks.function(embed=embed)
    _checks.positive_int(size=size)

    def checked(params, images):
        x = embed(params, images)
        if x.shape != (images.shape[0], size):
            raise ValueError(
                f"embed must give [batch, size] = {[images.shape[0], size]}, got {list(x.shape)}"
            )
        return x

    return checked
