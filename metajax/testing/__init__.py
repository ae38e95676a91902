"""What every learner and every estimator keeps, as checks of your own ones.

Each runs small programs and raises an AssertionError that says what does not hold.
"""

from metajax.testing._estimator import check_estimator
from metajax.testing._learner import check_learner

__all__ = ["check_estimator", "check_learner"]
