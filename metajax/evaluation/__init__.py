"""Looking at what was learned: learning curves, comparisons, how good an estimator is."""

from metajax.evaluation._compare import BASELINES, Comparison, RateSearch, compare
from metajax.evaluation._compare_estimators import (
    EstimatorComparison,
    compare_estimators,
)
from metajax.evaluation._diagnose import Diagnosis, diagnose, mean_gradient
from metajax.evaluation._evaluate import Curves, evaluate

__all__ = [
    "BASELINES",
    "Comparison",
    "Curves",
    "Diagnosis",
    "EstimatorComparison",
    "RateSearch",
    "compare",
    "compare_estimators",
    "diagnose",
    "evaluate",
    "mean_gradient",
]
