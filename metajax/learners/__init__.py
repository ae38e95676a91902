"""Inner algorithms, and the parts some of them are made of."""

from metajax.learners.cloning import clone_backprop, recall, store, with_weights
from metajax.learners.grid import Cell, Layer, convolution, dense, lstm_cell, rnn_cell
from metajax.learners.l2l import l2l
from metajax.learners.minimal_vsml import minimal_vsml, shared_matrix
from metajax.learners.vsml import vsml

__all__ = [
    "Cell",
    "Layer",
    "clone_backprop",
    "convolution",
    "dense",
    "l2l",
    "lstm_cell",
    "minimal_vsml",
    "recall",
    "rnn_cell",
    "shared_matrix",
    "store",
    "vsml",
    "with_weights",
]
