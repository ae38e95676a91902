"""Optimizers of optax with a rate, as people tune them."""

from typing import Any

import jax
import optax

from benchmarks.velodrome.training import Contender


def cosine(rate: Any, num_steps: int) -> optax.Schedule:
    """A rate that rises for 5 % of the steps, and falls to 0 by a cosine."""
    share = optax.warmup_cosine_decay_schedule(0.0, 1.0, num_steps // 20, num_steps)
    return lambda count: rate * share(count)


def _adam(rate: Any, num_steps: int) -> optax.GradientTransformation:
    """As in the published curves, which have an epsilon within the root too."""
    del num_steps
    return optax.adam(rate, eps=1e-8, eps_root=1e-8)


def _adamw(rate: Any, num_steps: int) -> optax.GradientTransformation:
    del num_steps
    return optax.adamw(rate)


def _nadam(rate: Any, num_steps: int) -> optax.GradientTransformation:
    del num_steps
    return optax.nadam(rate)


def _lion(rate: Any, num_steps: int) -> optax.GradientTransformation:
    del num_steps
    return optax.lion(rate)


def _muon(rate: Any, num_steps: int) -> optax.GradientTransformation:
    del num_steps
    return optax.contrib.muon(rate, muon_weight_dimension_numbers=_as_matrices)


def _as_matrices(params: Any) -> Any:
    """Kernels have a column an output; vectors are left to Adam."""

    def axes(x):
        *inputs, output = range(x.ndim)
        if not inputs:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(inputs), (output,))

    return jax.tree.map(axes, params)


def _schedule_free(rate: Any, num_steps: int) -> optax.GradientTransformation:
    del num_steps
    return optax.contrib.schedule_free_adamw(rate)


def _adamw_cosine(rate: Any, num_steps: int) -> optax.GradientTransformation:
    return optax.adamw(cosine(rate, num_steps))


def _muon_cosine(rate: Any, num_steps: int) -> optax.GradientTransformation:
    return _muon(cosine(rate, num_steps), num_steps)


BASELINES = {
    "Adam": Contender(_adam),
    "AdamW": Contender(_adamw),
    "NAdam": Contender(_nadam),
    "Lion": Contender(_lion),
    "Muon": Contender(_muon),
    "schedule-free AdamW": Contender(
        _schedule_free, judged=optax.contrib.schedule_free_eval_params
    ),
    "AdamW, cosine": Contender(_adamw_cosine),
    "Muon, cosine": Contender(_muon_cosine),
}
