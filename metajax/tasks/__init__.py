"""Task distributions."""

from metajax.tasks.augment import augment, flatten, permute_labels, permute_pixels, project, standardize, unit_spread
from metajax.tasks.few_shot import episodes
from metajax.tasks.images import minibatches
from metajax.tasks.query import with_query
from metajax.tasks.signals import signals
from metajax.tasks.streams import classification, prototypes, random_images, sum_sign
from metajax.tasks.synthetic import linear_regressions, quadratics, sinusoids
from metajax.tasks.text import text

__all__ = [
    "augment",
    "classification",
    "episodes",
    "flatten",
    "linear_regressions",
    "minibatches",
    "permute_labels",
    "permute_pixels",
    "project",
    "prototypes",
    "quadratics",
    "random_images",
    "signals",
    "sinusoids",
    "standardize",
    "sum_sign",
    "text",
    "unit_spread",
    "with_query",
]
