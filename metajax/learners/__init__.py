"""Inner algorithms."""

from metajax.learners.l2l import l2l

__all__ = ["l2l"]
