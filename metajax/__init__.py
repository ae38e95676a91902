"""metajax: programs that learn how to learn, as pure functions over pytrees."""

from metajax import data, implicit, optim, plot, problems, sharding, tasks
from metajax.checkpoint import Checkpoints, Snapshot, checkpoints
from metajax.comparison import BASELINES, Comparison, compare
from metajax.diagnosis import Diagnosis, diagnose, mean_gradient
from metajax.estimators import ask_tell, bptt, es, forward, guided_es, mix, noise_reuse_es, pes
from metajax.inner import Curves, evaluate, inner, unroll
from metajax.io import load, save
from metajax.learners import l2l
from metajax.logs import tensorboard
from metajax.train import Fit, Validation, fit, trainer, validation
from metajax.types import (
    Estimate,
    Estimator,
    Inner,
    InnerState,
    LearnedOptimizer,
    Learner,
    Problem,
    Tasks,
    Trainer,
    TrainState,
)

__version__ = "0.1.0"

__all__ = [
    "BASELINES",
    "Checkpoints",
    "Comparison",
    "Curves",
    "Diagnosis",
    "Estimate",
    "Estimator",
    "Fit",
    "Inner",
    "InnerState",
    "LearnedOptimizer",
    "Learner",
    "Problem",
    "Snapshot",
    "Tasks",
    "TrainState",
    "Trainer",
    "Validation",
    "ask_tell",
    "bptt",
    "checkpoints",
    "compare",
    "data",
    "diagnose",
    "es",
    "evaluate",
    "fit",
    "forward",
    "guided_es",
    "implicit",
    "inner",
    "l2l",
    "load",
    "mean_gradient",
    "mix",
    "noise_reuse_es",
    "optim",
    "pes",
    "plot",
    "problems",
    "save",
    "sharding",
    "tasks",
    "tensorboard",
    "trainer",
    "unroll",
    "validation",
]
