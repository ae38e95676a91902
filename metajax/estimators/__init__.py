"""Ways of differentiating an unrolled inner loop."""

from metajax.estimators.ask_tell import ask_tell
from metajax.estimators.bptt import bptt

__all__ = ["ask_tell", "bptt"]
