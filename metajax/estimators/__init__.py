"""Ways of differentiating an unrolled inner loop."""

from metajax.estimators._ask_tell import ask_tell
from metajax.estimators._bilevel import Batches, amigo, saba, soba
from metajax.estimators._bptt import bptt
from metajax.estimators._dice import dice
from metajax.estimators._evolution import es, noise_reuse_es, pes
from metajax.estimators._forward import forward
from metajax.estimators._forward_gradient import forward_gradient
from metajax.estimators._guided_es import guided_es
from metajax.estimators._mix import mix
from metajax.estimators._online import rtrl, uoro
from metajax.estimators._perturbations import Perturbation, gaussian, low_rank

__all__ = [
    "Batches",
    "Perturbation",
    "amigo",
    "ask_tell",
    "bptt",
    "dice",
    "es",
    "forward",
    "forward_gradient",
    "gaussian",
    "guided_es",
    "low_rank",
    "mix",
    "noise_reuse_es",
    "pes",
    "rtrl",
    "saba",
    "soba",
    "uoro",
]
