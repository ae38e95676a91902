"""The outer loop: a trainer, a run of it, and what a run reports and keeps."""

from metajax.training._checkpoints import Checkpoints, Snapshot, checkpoints
from metajax.training._fit import Fit, Validation, fit, trainer, validation
from metajax.training._logs import tensorboard

__all__ = [
    "Checkpoints",
    "Fit",
    "Snapshot",
    "Validation",
    "checkpoints",
    "fit",
    "tensorboard",
    "trainer",
    "validation",
]
