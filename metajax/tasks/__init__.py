"""Task distributions."""

from metajax.tasks.augment import augment, flatten, permute_labels, permute_pixels, project, standardize, unit_spread
from metajax.tasks.images import minibatches
from metajax.tasks.streams import classification, prototypes, random_images, sum_sign
from metajax.tasks.synthetic import quadratics

__all__ = [
    "augment",
    "classification",
    "flatten",
    "minibatches",
    "permute_labels",
    "permute_pixels",
    "project",
    "prototypes",
    "quadratics",
    "random_images",
    "standardize",
    "sum_sign",
    "unit_spread",
]
