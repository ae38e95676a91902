"""Meta-trained parameters that come with the package, each with a card.

No download, no pickle, Apache-2.0. A card says what a set was trained on and how, what it reached,
and where it fails.
"""

from metajax.pretrained._sets import card, list, load, params, read

__all__ = ["card", "list", "load", "params", "read"]
