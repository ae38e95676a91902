"""Inner algorithms."""

from metajax.learners._cloning import clone_backprop
from metajax.learners._external_memory import external_memory
from metajax.learners._fast_weights import fast_weight_memory, hebbian
from metajax.learners._imaml import imaml, imaml_diagnosed
from metajax.learners._imitate import imitate
from metajax.learners._in_context import in_context
from metajax.learners._l2l import l2l
from metajax.learners._maml import (
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
from metajax.learners._metric import protonet, ridge, with_ridge
from metajax.learners._recurrent import meta_rnn
from metajax.learners._vsml import vsml

__all__ = [
    "adapt",
    "anil",
    "boil",
    "clone_backprop",
    "external_memory",
    "fast_weight_memory",
    "finetune",
    "fomaml",
    "hebbian",
    "imaml",
    "imaml_diagnosed",
    "imitate",
    "in_context",
    "l2l",
    "maml",
    "maml_plus_plus",
    "meta_rnn",
    "meta_sgd",
    "multi_step",
    "protonet",
    "reptile",
    "ridge",
    "step_weights",
    "vsml",
    "with_rates",
    "with_ridge",
    "with_step_rates",
]
