"""The outer loop: a trainer, a run of it, and what a run reports and keeps."""

from metajax.training._checkpoints import Checkpoints, checkpoints
from metajax.training._fit import Fit, fit
from metajax.training._logs import log, tensorboard
from metajax.training._snapshot import Snapshot
from metajax.training._trainer import trainer
from metajax.training._validation import Validation, validation

__all__ = [
    "Checkpoints",
    "Fit",
    "Snapshot",
    "Validation",
    "checkpoints",
    "fit",
    "log",
    "tensorboard",
    "trainer",
    "validation",
]
