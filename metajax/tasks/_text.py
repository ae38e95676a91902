"""Tasks drawn from a text."""

import jax
import jax.numpy as jnp

from metajax._arguments import PositiveInt, checked
from metajax._rehearsal import drawn_from
from metajax.tasks._minibatches import stream
from metajax.types import Array, Data, Tasks


@checked
def text(
    batch_size: PositiveInt, length: PositiveInt, test_size: PositiveInt = 64
) -> Tasks:
    """Windows, drawn with replacement, of ``data = {"text": [M], ...}``, e.g. `metajax.data.sums`.

    Batches are ``{"text": [B, length + 1]}``, int32: ``length`` symbols to read, each with the next
    to predict, for `metajax.problems.character_gru`. Every task is the whole text, as with
    `minibatches`.

    Args:
      batch_size: windows in a training batch.
      length: predictions in a window.
      test_size: windows in the test batch.

    Raises:
      ValueError: a text shorter than a window.

    >>> import jax, metajax as mx
    >>> batch = mx.tasks.text(5, length=20).train(jax.random.key(0), mx.data.sums(), ())
    >>> batch["text"].shape
    (5, 21)
    """

    def draw(key, data, task, size):
        symbols = _symbols(data)
        if len(symbols) <= length:
            raise ValueError(
                f'length is {length}, but data["text"] has {len(symbols)} symbols and must have '
                f"more"
            )
        start = jax.random.randint(key, (size, 1), 0, len(symbols) - length)
        windows = symbols[start + jnp.arange(length + 1)[None]].astype(jnp.int32)
        return {"text": drawn_from(data["text"], windows)}

    return stream(lambda key, data: (), draw, batch_size, test_size)


def _symbols(data: Data) -> Array:
    if not isinstance(data, dict) or jnp.ndim(data.get("text", 0)) != 1:
        raise TypeError(
            'data must be a dict with "text" [M], as metajax.data.sums gives it'
        )
    symbols = jnp.asarray(data["text"])
    if not jnp.issubdtype(symbols.dtype, jnp.integer):
        raise TypeError(
            f'data["text"] must be of an integer dtype, got {symbols.dtype}'
        )
    return symbols
