"""Inner algorithms: learned optimizers, learning in activations, few-shot learners."""

from metajax.learners._cloning import clone_backprop
from metajax.learners._delta_rule import delta_rule
from metajax.learners._external_memory import external_memory
from metajax.learners._fast_weights import fast_weight_memory, hebbian
from metajax.learners._gpicl import gpicl
from metajax.learners._imaml import imaml, imaml_diagnosed
from metajax.learners._imitate import imitate
from metajax.learners._in_context import in_context
from metajax.learners._l2l import l2l
from metajax.learners._learned_loss import learned_loss
from metajax.learners._maml import (
    adapt,
    anil,
    boil,
    finetune,
    fomaml,
    maml,
    meta_sgd,
    reptile,
)
from metajax.learners._maml_plus_plus import maml_plus_plus, multi_step, step_weights
from metajax.learners._metric import protonet, ridge
from metajax.learners._recurrent import meta_rnn
from metajax.learners._value_and_grad import value_and_grad
from metajax.learners._vsml import vsml

__all__ = [
    "adapt",
    "anil",
    "boil",
    "clone_backprop",
    "delta_rule",
    "external_memory",
    "fast_weight_memory",
    "finetune",
    "fomaml",
    "gpicl",
    "hebbian",
    "imaml",
    "imaml_diagnosed",
    "imitate",
    "in_context",
    "l2l",
    "learned_loss",
    "maml",
    "maml_plus_plus",
    "meta_rnn",
    "meta_sgd",
    "multi_step",
    "protonet",
    "reptile",
    "ridge",
    "step_weights",
    "value_and_grad",
    "vsml",
]
