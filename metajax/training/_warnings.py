"""Warnings that point to the line outside of the package that led to them."""

import contextlib
import sys
import warnings
from pathlib import Path

_INSIDE = (str(Path(__file__).parents[1]), contextlib.__file__)


def warn(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """A warning about the caller's line."""
    level = 2
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)
