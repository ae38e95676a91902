"""The cases, found by name: those in ``CASES`` of each module here.

A case is a function ``Setting -> list of Row``.
"""

import importlib
import pkgutil
from collections.abc import Callable

from benchmarks.table import Row, Setting


def cases() -> dict[str, Callable[[Setting], list[Row]]]:
    """All cases by name."""
    found = {}
    modules = (info.name for info in pkgutil.iter_modules(__path__))
    for name in modules:
        if name.startswith("_"):
            continue
        module = importlib.import_module(f"{__name__}.{name}")
        for case in module.CASES:
            found[case.__name__] = case
    return found
