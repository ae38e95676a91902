"""What the experiments on few-shot learning share: the test."""

from typing import Any

import jax
import numpy as np

import metajax as mx


def accuracy(
    loop: mx.Inner, key: Any, meta_params: Any, data: Any, *, tasks: int, at_once: int, steps: int | None = None
) -> np.ndarray:
    """The accuracy on the query batch of each of ``tasks`` tasks, ``at_once`` at a time to bound the memory."""
    found = [
        mx.evaluate(loop, k, meta_params, data, num_tasks=at_once, steps=steps).test_metrics["accuracy"]
        for k in jax.random.split(key, -(-tasks // at_once))
    ]
    return np.concatenate(found)[:tasks]
