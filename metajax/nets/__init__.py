"""Networks of the few-shot literature, as pairs of functions.

They are made to run under `jax.vmap` over per-task weights. Parameters are ``{"body": [layer, ...],
"head": layer}``: the head is the last, linear layer that gives the logits, the body all before it.
Methods that adapt only a part pick it by name: ANIL (Raghu et al. 2020) adapts the head, BOIL (Oh
et al. 2021) the body. Any other pair ``(init, apply)``, of `flax.linen` say, can take the place of
these.

Normalisation is a function that is passed in, since what it may look at decides what is measured:
`transductive_batch_norm`, the choice of MAML and iMAML, looks at all query images of a task
together; `layer_norm` at one image at a time.
"""

from metajax.nets._for_vmap import for_vmap
from metajax.nets._layers import conv, layer_norm, max_pool, transductive_batch_norm
from metajax.nets._networks import GLOROT, Net, conv4, dense4, resnet12

__all__ = [
    "GLOROT",
    "Net",
    "conv",
    "conv4",
    "dense4",
    "for_vmap",
    "layer_norm",
    "max_pool",
    "resnet12",
    "transductive_batch_norm",
]
