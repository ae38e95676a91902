"""What sits at every crossing of a VSML network's grid."""

from collections.abc import Callable
from typing import NamedTuple

from metajax.types import Array, Key, Params, PyTree


class Cell(NamedTuple):
    """A tiny recurrent network at the crossing of an input and an output, and what it tells others.

    The last axis of a message are its slots. Where fewer are given or asked for than there are, the
    rest are not computed.

    Attributes:
      init: ``(key) -> params``, shared by all cells.
      state: ``(key, shape [..., A, B]) -> state``, a pytree of ``[..., A, B, N]``.
      step: ``(params, state, forward [..., A, K], backward [..., B, L]) -> state``.
      forward: ``(params, state, slots) -> [..., B, slots]``, the messages upwards, reduced over the
        inputs.
      backward: ``(params, state, slots) -> [..., A, slots]``, the messages downwards, reduced over
        the outputs.
      slots: the size of a message.
    """

    init: Callable[[Key], Params]
    state: Callable[[Key, tuple[int, ...]], PyTree]
    step: Callable[[Params, PyTree, Array, Array], PyTree]
    forward: Callable[[Params, PyTree, int], Array]
    backward: Callable[[Params, PyTree, int], Array]
    slots: int
