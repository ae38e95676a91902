"""Learned optimizers: functions of meta-parameters that give optax gradient transformations.

Each is a `metajax.LearnedOptimizer`, and they compose as optax does. Groups of parameters, each
with an optimizer of its own, are `optax.multi_transform`; both are meta-trained together:

>>> import jax, jax.numpy as jnp, metajax as mx, optax
>>> matrices, vectors = mx.optim.lstm(), mx.optim.rnnprop(hidden=(8,))
>>> def make_tx(meta_params):
...     groups = {"matrix": matrices.tx(meta_params["matrix"]), "vector": vectors.tx(meta_params["vector"])}
...     return optax.multi_transform(
...         groups, lambda params: jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "vector", params))
>>> learner = mx.l2l(make_tx, mx.problems.mlp((64, 20, 10)))
>>> meta_params = {"matrix": matrices.init(jax.random.key(0)), "vector": vectors.init(jax.random.key(1))}
"""

from metajax.optim._adafactor_mlp import adafactor_mlp
from metajax.optim._leafwise import leafwise
from metajax.optim._lstm import PRESETS, log_and_sign, lstm
from metajax.optim._mlp import mlp, time_features
from metajax.optim._nadam import nadam
from metajax.optim._ntm_bfgs import ntm_bfgs
from metajax.optim._rates import mlp_schedule, piecewise_schedule, rates
from metajax.optim._rnnprop import rnnprop

__all__ = [
    "PRESETS",
    "adafactor_mlp",
    "leafwise",
    "log_and_sign",
    "lstm",
    "mlp",
    "mlp_schedule",
    "nadam",
    "ntm_bfgs",
    "piecewise_schedule",
    "rates",
    "rnnprop",
    "time_features",
]
