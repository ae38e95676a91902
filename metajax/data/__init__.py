"""Real data as arrays: `tensorflow_datasets` in, ``{"image": uint8, "label": int32}`` out."""

from metajax.data._arrange import by_class, columns, resize, rotations
from metajax.data._few_shot import FEW_SHOT, few_shot
from metajax.data._prepared import NAMES, load
from metajax.data._sums import sums

__all__ = [
    "FEW_SHOT",
    "NAMES",
    "by_class",
    "columns",
    "few_shot",
    "load",
    "resize",
    "rotations",
    "sums",
]
