"""Inner algorithms."""

from metajax.learners.fast_weights import fast_weight_memory, hebbian
from metajax.learners.in_context import in_context
from metajax.learners.l2l import l2l
from metajax.learners.memory import external_memory
from metajax.learners.recurrent import meta_rnn

__all__ = ["external_memory", "fast_weight_memory", "hebbian", "in_context", "l2l", "meta_rnn"]
