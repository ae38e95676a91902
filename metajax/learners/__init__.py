"""Inner algorithms."""

from metajax.learners.imaml import imaml, imaml_diagnosed
from metajax.learners.l2l import l2l
from metajax.learners.maml import (
    adapt,
    anil,
    boil,
    finetune,
    fomaml,
    maml,
    maml_plus_plus,
    meta_sgd,
    multi_step,
    reptile,
    step_weights,
    with_rates,
    with_step_rates,
)
from metajax.learners.metric import protonet, ridge, with_ridge

__all__ = [
    "adapt",
    "anil",
    "boil",
    "finetune",
    "fomaml",
    "imaml",
    "imaml_diagnosed",
    "l2l",
    "maml",
    "maml_plus_plus",
    "meta_sgd",
    "multi_step",
    "protonet",
    "reptile",
    "ridge",
    "step_weights",
    "with_rates",
    "with_ridge",
    "with_step_rates",
]
