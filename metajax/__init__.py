"""metajax: programs that learn how to learn, as pure functions over pytrees."""

from metajax import data, optim, plot, problems, sharding, tasks
from metajax.comparison import BASELINES, Comparison, compare
from metajax.diagnosis import Diagnosis, diagnose, mean_gradient
from metajax.estimators import ask_tell, bptt, es, forward, guided_es, mix, noise_reuse_es, pes
from metajax.inner import Curves, evaluate, inner, unroll
from metajax.io import load, save
from metajax.learners import l2l
from metajax.train import Fit, fit, trainer
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
    "Tasks",
    "TrainState",
    "Trainer",
    "ask_tell",
    "bptt",
    "compare",
    "data",
    "diagnose",
    "es",
    "evaluate",
    "fit",
    "forward",
    "guided_es",
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
    "trainer",
    "unroll",
]
