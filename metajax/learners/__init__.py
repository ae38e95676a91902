"""Inner algorithms, and the parts some of them are made of."""

from metajax.learners.cloning import clone_backprop, recall, store, with_weights
from metajax.learners.fast_weights import fast_weight_memory, hebbian
from metajax.learners.grid import Cell, Layer, convolution, dense, lstm_cell, rnn_cell
from metajax.learners.imaml import imaml, imaml_diagnosed
from metajax.learners.imitation import imitate
from metajax.learners.in_context import in_context
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
from metajax.learners.memory import external_memory
from metajax.learners.metric import protonet, ridge, with_ridge
from metajax.learners.minimal_vsml import minimal_vsml, shared_matrix
from metajax.learners.recurrent import meta_rnn
from metajax.learners.vsml import vsml

__all__ = [
    "Cell",
    "Layer",
    "adapt",
    "anil",
    "boil",
    "clone_backprop",
    "convolution",
    "dense",
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
    "lstm_cell",
    "maml",
    "maml_plus_plus",
    "meta_rnn",
    "meta_sgd",
    "minimal_vsml",
    "multi_step",
    "protonet",
    "recall",
    "reptile",
    "ridge",
    "rnn_cell",
    "shared_matrix",
    "step_weights",
    "store",
    "vsml",
    "with_rates",
    "with_ridge",
    "with_step_rates",
    "with_weights",
]
