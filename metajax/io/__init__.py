"""Parameters in files: npz or safetensors, never pickle, so that loading runs no code."""

from metajax.io._arrays import Arrays, Shapes, digest
from metajax.io._files import load_arrays, write
from metajax.io._trees import load, save

__all__ = ["Arrays", "Shapes", "digest", "load", "load_arrays", "save", "write"]
