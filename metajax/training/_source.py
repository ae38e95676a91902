"""What each chunk of a run draws its tasks from: data, or the next item of an iterable of them."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from metajax import _checks
from metajax.types import Data


class Source:
    """Gives each chunk its data."""

    def __init__(self, data: Data | Iterable[Data]):
        self.is_stream = _is_stream(data)
        self.num_taken = 0
        self._first: Data = None
        if not self.is_stream:
            _checks.finite("data", data)
        self._items: Iterator[Data] = (
            iter(data) if self.is_stream else itertools.repeat(data)
        )

    def skip(self, num_items: int) -> None:
        """Passes over what a run had before it was taken up again."""
        if self.is_stream:
            for _ in itertools.islice(self._items, num_items):
                pass
            self.num_taken = num_items

    def take(self) -> Data:
        """The data of the next chunk."""
        if not self.is_stream:
            return next(self._items)
        name = f"data[{self.num_taken}]"
        try:
            item = next(self._items)
        except StopIteration:
            raise ValueError(
                f"data ended after {self.num_taken} items, one a chunk, before num_steps was "
                f"reached; give an iterable that goes on, such as itertools.cycle(data)"
            ) from None
        _checks.finite(name, item)
        if self._first is None:
            self._first = jax.eval_shape(lambda: item)
        _checks.same_structure(name, item, self._first, "the item before")
        self.num_taken += 1
        return item


def _is_stream(data: Any) -> bool:
    if isinstance(data, Iterator):
        return True
    is_leaf = jax.tree_util.all_leaves([data])
    return is_leaf and _checks.is_iterable_of_data(data)
