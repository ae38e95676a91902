"""Pictures of what was learned; each function returns its matplotlib axes.

They need matplotlib: ``pip install 'metajax[plot]'``.
"""

from metajax.plot._axes import COLOURS, STYLES
from metajax.plot._curves import curves, estimators, scaling
from metajax.plot._episode import episode
from metajax.plot._learned import messages, state_map, update_rule

__all__ = [
    "COLOURS",
    "STYLES",
    "curves",
    "episode",
    "estimators",
    "messages",
    "scaling",
    "state_map",
    "update_rule",
]
