"""Task distributions."""

from metajax.tasks.images import minibatches
from metajax.tasks.query import with_query
from metajax.tasks.synthetic import quadratics

__all__ = ["minibatches", "quadratics", "with_query"]
