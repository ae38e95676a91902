"""Learned optimizers: functions of meta-parameters that give optax gradient transformations."""

from metajax.optim.lstm import PRESETS, log_and_sign, lstm

__all__ = ["PRESETS", "log_and_sign", "lstm"]
