"""Ways of differentiating an unrolled inner loop."""

from metajax.estimators.ask_tell import ask_tell
from metajax.estimators.bptt import bptt
from metajax.estimators.evolution import es, guided_es, noise_reuse_es, pes
from metajax.estimators.forward import forward
from metajax.estimators.mix import mix

__all__ = ["ask_tell", "bptt", "es", "forward", "guided_es", "mix", "noise_reuse_es", "pes"]
