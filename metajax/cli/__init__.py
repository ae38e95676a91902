"""The command line: ``metajax demo``, ``train``, ``evaluate``, ``pretrained`` and ``data``."""

from metajax.cli._main import main

__all__ = ["main"]
