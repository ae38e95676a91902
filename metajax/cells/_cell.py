"""What sits at every crossing of a VSML network's grid."""

from collections.abc import Callable
from typing import NamedTuple

from metajax.types import Array, PyTree


class Cell(NamedTuple):
    """What sits at every crossing of an input and an output: a tiny recurrent network and what it
    tells the others.

    The last axis of a message are its slots. Where fewer are given or asked for than there are, the
    rest are not computed.

    Attributes: init: ``(key) -> params``, shared by all cells. state: ``(key, shape [..., A, B]) ->
      state``, a pytree of ``[..., A, B, N]``. step: ``(params, state, forward [..., A, K], backward
      [..., B, L]) -> state``. forward: ``(params, state, slots) -> [..., B, slots]``, the messages
      upwards, reduced over the inputs. backward: ``(params, state, slots) -> [..., A, slots]``, the
      messages downwards, reduced over the outputs. slots: the size of a message.
    """

    init: Callable[..., PyTree]
    state: Callable[..., PyTree]
    step: Callable[..., PyTree]
    forward: Callable[..., Array]
    backward: Callable[..., Array]
    slots: int
