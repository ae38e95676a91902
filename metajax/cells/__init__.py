"""Cells and layers, the parts of a VSML network: see `metajax.vsml`."""

from metajax.cells._cell import Cell
from metajax.cells._dense_view import minimal_vsml, shared_matrix
from metajax.cells._layers import Layer, convolution, dense
from metajax.cells._lstm import lstm
from metajax.cells._rnn import rnn
from metajax.cells._weights import recall, store, with_weights

__all__ = [
    "Cell",
    "Layer",
    "convolution",
    "dense",
    "lstm",
    "minimal_vsml",
    "recall",
    "rnn",
    "shared_matrix",
    "store",
    "with_weights",
]
