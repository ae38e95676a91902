"""Text by rule."""

from typing import Literal

import numpy as np

from metajax._arguments import PositiveInt, checked
from metajax.io import Arrays

_SMALL = [
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
]
_SMALL += ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen"]
_SMALL += ["seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]

_ALPHABET = b" -.abcdefghijklmnopqrstuvwxyz"


@checked
def sums(split: Literal["train", "test"] = "train", limit: PositiveInt = 50) -> Arrays:
    """All sums of two numbers below ``limit`` in English words: a text for small language models.

    Four fifths of the sums are the training split, the others the test split. They come in a random
    order, which is always the same.

    Args:
      split: ``"train"`` or ``"test"``.
      limit: at most 100.

    Returns:
      ``text``, uint8 ``[M]``, the places of the characters in ``alphabet``, uint8 ``[S]``, which
      holds their ASCII codes.

    >>> import metajax as mx
    >>> data = mx.data.sums()
    >>> bytes(data["alphabet"][data["text"]][:41]).decode()
    'thirty-seven plus eleven is forty-eight. '
    >>> data["text"].shape, len(data["alphabet"])
    ((76719,), 29)
    """
    if limit > 100:
        raise ValueError(f"limit must be at most 100, got {limit}")

    num_sums = limit**2
    num_train = num_sums * 4 // 5
    order = np.random.default_rng(0).permutation(num_sums)
    chosen = order[:num_train] if split == "train" else order[num_train:]

    sentences = []
    for i in chosen:
        a, b = divmod(int(i), limit)
        sentences.append(f"{_in_words(a)} plus {_in_words(b)} is {_in_words(a + b)}. ")
    text = "".join(sentences)

    codes = np.frombuffer(text.encode(), np.uint8)
    alphabet = np.frombuffer(_ALPHABET, np.uint8)
    place_of_code = np.zeros(256, np.uint8)
    place_of_code[alphabet] = np.arange(len(alphabet))
    return {"text": place_of_code[codes], "alphabet": alphabet}


def _in_words(n: int) -> str:
    """A number below 200."""
    if n < 20:
        return _SMALL[n]
    if n == 100:
        return "one hundred"
    if n > 100:
        return f"one hundred {_in_words(n - 100)}"
    tens, ones = divmod(n, 10)
    word = _TENS[tens - 2]
    if ones == 0:
        return word
    return f"{word}-{_SMALL[ones]}"
