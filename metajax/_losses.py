"""How good the logits of a classifier are."""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from metajax.types import Array


def cross_entropy_and_accuracy(logits: Array, label: Array) -> tuple[Array, dict[str, Array]]:
    """The mean cross-entropy of ``logits [B, C]`` in nats, NaN if a ``label [B]`` is out of range,
    and the accuracy.
    """
    num_classes = logits.shape[-1]
    if not isinstance(label, jax.core.Tracer):
        wrong = [
            k for k in np.unique(label).tolist() if not 0 <= k < num_classes
        ]  # on the host, also under jit
        if wrong:
            raise ValueError(f"label must be in 0..{num_classes - 1}, got {wrong}")
    known = (label >= 0) & (label < num_classes)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(known, label, 0))
    return jnp.where(known, losses, jnp.nan).mean(), {
        "accuracy": (logits.argmax(-1) == label).mean(dtype=logits.dtype)
    }
