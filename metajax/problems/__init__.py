"""What inner optimizers minimise."""

from metajax.problems._basic import (
    autoencoder,
    character_gru,
    convnet,
    logistic,
    mlp,
    quadratic,
)
from metajax.problems._families import Network, random_mlp, random_scaling
from metajax.problems._frameworks import equinox, linen, nnx
from metajax.problems._neural_art import gram, load_vgg, neural_art, vgg
from metajax.problems._supervised import (
    classifier,
    cross_entropy,
    regressor,
    squared_error,
    stateless,
    supervised,
)

__all__ = [
    "Network",
    "autoencoder",
    "character_gru",
    "classifier",
    "convnet",
    "cross_entropy",
    "equinox",
    "gram",
    "linen",
    "load_vgg",
    "logistic",
    "mlp",
    "neural_art",
    "nnx",
    "quadratic",
    "random_mlp",
    "random_scaling",
    "regressor",
    "squared_error",
    "stateless",
    "supervised",
    "vgg",
]
