"""Inner algorithms, and the parts some of them are made of."""

from metajax.learners.cloning import clone_backprop, recall, store, with_weights
from metajax.learners.fast_weights import fast_weight_memory, hebbian
from metajax.learners.grid import Cell, Layer, convolution, dense, lstm_cell, rnn_cell
from metajax.learners.in_context import in_context
from metajax.learners.l2l import l2l
from metajax.learners.memory import external_memory
from metajax.learners.minimal_vsml import minimal_vsml, shared_matrix
from metajax.learners.recurrent import meta_rnn
from metajax.learners.vsml import vsml

__all__ = [
    "Cell",
    "Layer",
    "clone_backprop",
    "convolution",
    "dense",
    "external_memory",
    "fast_weight_memory",
    "hebbian",
    "in_context",
    "l2l",
    "lstm_cell",
    "meta_rnn",
    "minimal_vsml",
    "recall",
    "rnn_cell",
    "shared_matrix",
    "store",
    "vsml",
    "with_weights",
]
