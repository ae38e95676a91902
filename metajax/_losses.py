"""How good predictions are: means over the examples of a batch that count."""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax._arguments import check
from metajax._arrays import lift
from metajax.types import Array, Batch, Metrics, PyTree


def at_least_float32(tree: PyTree) -> PyTree:
    """The leaves of fewer bits, such as bfloat16, as float32: of a mean they leave two digits."""

    def widen(x):
        dtype = jnp.result_type(x)
        if not jnp.issubdtype(dtype, jnp.floating):
            return x
        return jnp.asarray(x, jnp.promote_types(dtype, jnp.float32))

    return jax.tree.map(widen, tree)


def masked_mean(values: Array, mask: Array | None = None) -> Array:
    """The mean of ``values [B, ...]`` over the examples with a true ``mask [B]``, 0 if none has."""
    values = at_least_float32(values)
    if mask is None:
        return values.mean()
    check_mask(mask, len(values))
    per_example = values.reshape(len(mask), -1).mean(1)
    # Not a product: what does not count may be NaN.
    counted = jnp.where(mask, per_example, 0)
    return counted.sum() / jnp.maximum(mask.sum(), 1)


def cross_entropy_and_accuracy(
    logits: Array, label: Array, mask: Array | None = None
) -> tuple[Array, Metrics]:
    """The mean cross-entropy in nats of ``logits [B, ..., C]``, and their accuracy.

    A ``label [B, ...]`` that is out of range is an error or, where it is traced, a loss of NaN.
    """
    logits = at_least_float32(logits)
    num_classes = logits.shape[-1]
    check_labels(label, num_classes, mask)
    in_range = (label >= 0) & (label < num_classes)

    # By comparison with each class: reading by index has a derivative that writes by index, which
    # accelerators do apart from everything else.
    classes = jnp.arange(num_classes)
    is_label = label[..., None] == lift(classes, logits)
    logit_of_label = jnp.where(is_label, logits, 0).sum(-1)
    losses = jax.nn.logsumexp(logits, -1) - logit_of_label
    losses = jnp.where(in_range, losses, jnp.nan)
    hits = (logits.argmax(-1) == label).astype(logits.dtype)
    hits = jnp.where(jnp.isnan(losses), jnp.nan, hits)  # argmax takes NaN for a class
    return masked_mean(losses, mask), {"accuracy": masked_mean(hits, mask)}


def check_labels(
    label: Array, num_classes: int, mask: Array | None = None, name: str = "label"
) -> None:
    """The labels that count must be in ``0..num_classes - 1``; traced ones pass."""
    if mask is not None:
        check_mask(mask, len(label))
    _checks.integers(name, label)
    if isinstance(label, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
        return
    counted = np.asarray(label)  # on the host, also under jit
    if mask is not None:
        counted = counted[np.asarray(mask)]
    wrong = np.unique(counted[(counted < 0) | (counted >= num_classes)])
    if wrong.size:
        raise ValueError(
            f"{name} must be in 0..{num_classes - 1}, got {wrong.tolist()}; renumber, or give the "
            f"network as many outputs"
        )


def check_mask(mask: Array, num_examples: int) -> None:
    """A mask says of each example whether it counts."""
    dtype = jnp.result_type(mask)
    if dtype != jnp.bool_ or jnp.shape(mask) != (num_examples,):
        raise ValueError(
            f"mask must be bool[{num_examples}], one for each example of the batch, got {dtype}"
            f"{list(jnp.shape(mask))}"
        )


def blank_masked(batch: Batch, *names: str) -> Batch:
    """The batch with zeros in the place of the examples whose ``mask [B]`` is False.

    Those may hold anything. A NaN would spoil what is differentiated: 0 times NaN is NaN. The
    batch must be a dict with arrays of these ``names``.
    """
    _checks.entries("batch", batch, names, "tasks that go with the learner")
    for name in names:
        check(jax.Array, **{f"batch[{name!r}]": batch[name]})
    if "label" in names:
        _checks.integers("batch['label']", batch["label"])
    if "mask" not in batch:
        return batch

    def blank(x):
        check_mask(batch["mask"], len(x))
        counts = batch["mask"].reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(counts, x, 0)

    return {name: x if name == "mask" else blank(x) for name, x in batch.items()}
