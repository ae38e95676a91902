"""What inner optimizers minimise."""

from metajax.problems._basic import (
    autoencoder,
    character_gru,
    classifier,
    convnet,
    logistic,
    mlp,
    quadratic,
    regressor,
)
from metajax.problems._families import Network, Scaled, random_mlp, random_scaling
from metajax.problems._neural_art import gram, load_vgg, neural_art, vgg

__all__ = [
    "Network",
    "Scaled",
    "autoencoder",
    "character_gru",
    "classifier",
    "convnet",
    "gram",
    "load_vgg",
    "logistic",
    "mlp",
    "neural_art",
    "quadratic",
    "random_mlp",
    "random_scaling",
    "regressor",
    "vgg",
]
