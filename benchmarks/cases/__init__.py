"""The cases, found by name: those in ``CASES`` of each module here, functions ``Setting -> list of
Row``.
"""

import importlib
import pkgutil
from collections.abc import Callable

from benchmarks.table import Row, Setting


def cases() -> dict[str, Callable[[Setting], list[Row]]]:
    """All cases by name."""
    modules = (
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    )
    return {case.__name__: case for module in modules for case in module.CASES}
