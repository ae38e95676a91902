"""How good the logits of a classifier are."""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from metajax.types import Array


def cross_entropy_and_accuracy(logits: Array, label: Array) -> tuple[Array, dict[str, Array]]:
    """The mean cross-entropy in nats of ``logits [B, C]`` for ``label [B]``, and the accuracy.

    A label out of range is an error where it is known, and makes the loss NaN where it is traced.
    """
    num_classes = logits.shape[-1]
    _check_known_labels(label, num_classes)

    in_range = (label >= 0) & (label < num_classes)
    safe_label = jnp.where(in_range, label, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, safe_label)
    loss = jnp.where(in_range, losses, jnp.nan).mean()

    is_correct = logits.argmax(axis=-1) == label
    return loss, {"accuracy": is_correct.mean(dtype=logits.dtype)}


def _check_known_labels(label: Array, num_classes: int) -> None:
    if isinstance(label, jax.core.Tracer):
        return
    values = np.unique(label)  # on the host, also under jit
    wrong = values[(values < 0) | (values >= num_classes)]
    if wrong.size:
        raise ValueError(f"label must be in 0..{num_classes - 1}, got {wrong.tolist()}")
