"""Task distributions."""

from metajax.tasks._augment import (
    augment,
    flatten,
    permute_labels,
    permute_pixels,
    project,
    ragged,
    standardize,
    unit_spread,
)
from metajax.tasks._biased import biased
from metajax.tasks._episodes import episodes
from metajax.tasks._finite import finite
from metajax.tasks._minibatches import minibatches
from metajax.tasks._signals import signals
from metajax.tasks._streams import classification, prototypes, random_images, sum_sign
from metajax.tasks._synthetic import linear_regressions, quadratics, sinusoids
from metajax.tasks._text import text
from metajax.tasks._with_query import with_query

__all__ = [
    "augment",
    "biased",
    "classification",
    "episodes",
    "finite",
    "flatten",
    "linear_regressions",
    "minibatches",
    "permute_labels",
    "permute_pixels",
    "project",
    "prototypes",
    "quadratics",
    "ragged",
    "random_images",
    "signals",
    "sinusoids",
    "standardize",
    "sum_sign",
    "text",
    "unit_spread",
    "with_query",
]
