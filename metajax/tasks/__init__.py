"""Task distributions."""

from metajax.tasks.images import minibatches
from metajax.tasks.signals import signals
from metajax.tasks.synthetic import quadratics

__all__ = ["minibatches", "quadratics", "signals"]
