"""metajax: programs that learn how to learn, as pure functions over pytrees."""

from metajax import (
    cells,
    data,
    estimators,
    evaluation,
    implicit,
    learners,
    nets,
    optim,
    plot,
    pretrained,
    problems,
    sharding,
    tasks,
    testing,
    training,
    types,
)
from metajax._inner import inner, unroll
from metajax.estimators import *
from metajax.evaluation import *
from metajax.io import load, save
from metajax.learners import *
from metajax.training import *
from metajax.types import *

__version__ = "0.1.0"

__all__ = [
    "cells",
    "data",
    "implicit",
    "inner",
    "load",
    "nets",
    "optim",
    "plot",
    "pretrained",
    "problems",
    "save",
    "sharding",
    "tasks",
    "testing",
    "unroll",
]
__all__ += estimators.__all__
__all__ += evaluation.__all__
__all__ += learners.__all__
__all__ += training.__all__
__all__ += types.__all__
