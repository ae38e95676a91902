"""Text by rule."""

import numpy as np

from metajax import _checks

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
_ONES += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def sums(split: str = "train", limit: int = 50) -> dict[str, np.ndarray]:
    """All sums of two numbers below ``limit`` in English words, in random order: a text for small
    language models.

    Four fifths of the sums are the training split, the others the test split; the order is always
    the same.

    Args:
      split: ``"train"`` or ``"test"``.
      limit: at most 100.

    Returns: ``text``, uint8 ``[M]``, the places of the characters in ``alphabet``, uint8 ``[S]``,
      which holds their ASCII codes.

    Raises:
      TypeError, ValueError: an unknown split, or a limit out of range.

    >>> import metajax as mx
    >>> data = mx.data.sums()
    >>> bytes(data["alphabet"][data["text"]][:41]).decode()
    'thirty-seven plus eleven is forty-eight. '
    >>> data["text"].shape, len(data["alphabet"])
    ((76719,), 29)
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    _checks.positive_int(limit=limit)
    if limit > 100:
        raise ValueError(f"limit must be at most 100, got {limit}")
    order = np.random.default_rng(0).permutation(limit**2)
    kept = order[: len(order) * 4 // 5] if split == "train" else order[len(order) * 4 // 5 :]
    pairs = (divmod(int(i), limit) for i in kept)
    text = "".join(f"{_words(a)} plus {_words(b)} is {_words(a + b)}. " for a, b in pairs)
    alphabet = np.frombuffer(b" -." + bytes(range(ord("a"), ord("z") + 1)), np.uint8)
    place = np.zeros(256, np.uint8)
    place[alphabet] = np.arange(len(alphabet))
    return {"text": place[np.frombuffer(text.encode(), np.uint8)], "alphabet": alphabet}


def _words(n: int) -> str:
    if n < 20:
        return _ONES[n]
    if n < 100:
        return _TENS[n // 10 - 2] + (f"-{_ONES[n % 10]}" if n % 10 else "")
    return "one hundred" + (f" {_words(n - 100)}" if n > 100 else "")
