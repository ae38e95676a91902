"""Learned optimizers: functions of meta-parameters that give optax gradient transformations.

Each is a `metajax.LearnedOptimizer`, and they compose as optax does. Groups of parameters, each
with an optimizer of its own, are `optax.multi_transform`; both are meta-trained together:

>>> import jax, jax.numpy as jnp, metajax as mx, optax
>>> matrices = mx.optim.lstm()
>>> vectors = mx.optim.rnnprop(hidden=(8,))
>>> def kind(params):
...     return jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "vector", params)
>>> def make_tx(meta_params):
...     matrix_tx = matrices.tx(meta_params["matrix"])
...     vector_tx = vectors.tx(meta_params["vector"])
...     return optax.multi_transform({"matrix": matrix_tx, "vector": vector_tx}, kind)
>>> learner = mx.l2l(make_tx, mx.problems.mlp((64, 20, 10)))
>>> meta_params = {
...     "matrix": matrices.init(jax.random.key(0)),
...     "vector": vectors.init(jax.random.key(1)),
... }

Weight decay after a learned optimizer is `decay_weights`, decoupled as in AdamW:

>>> tx = optax.chain(matrices.tx(meta_params["matrix"]), mx.optim.decay_weights(1e-4))
"""

from metajax.optim._adafactor_mlp import adafactor_mlp
from metajax.optim._celo import celo
from metajax.optim._celo2 import by_fan_in, celo2, celo2_base
from metajax.optim._decay import decay_weights
from metajax.optim._differentiable import differentiable
from metajax.optim._features import time_features
from metajax.optim._leafwise import leafwise
from metajax.optim._lstm import PRESETS, lstm
from metajax.optim._mlp import mlp
from metajax.optim._nadam import nadam
from metajax.optim._ntm_bfgs import ntm_bfgs
from metajax.optim._preprocessing import log_and_sign
from metajax.optim._rates import rates
from metajax.optim._rnnprop import rnnprop
from metajax.optim._schedules import mlp_schedule, piecewise_schedule

__all__ = [
    "PRESETS",
    "adafactor_mlp",
    "by_fan_in",
    "celo",
    "celo2",
    "celo2_base",
    "decay_weights",
    "differentiable",
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
