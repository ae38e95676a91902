"""Task distributions."""

from metajax.tasks.few_shot import episodes
from metajax.tasks.images import minibatches
from metajax.tasks.signals import signals
from metajax.tasks.synthetic import linear_regressions, quadratics, sinusoids

__all__ = [
    "episodes",
    "linear_regressions",
    "minibatches",
    "quadratics",
    "signals",
    "sinusoids",
]
