"""What the experiments on few-shot learning share: meta-training and the test."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import metajax as mx


def meta_train(
    estimator: mx.Estimator,
    tx: optax.GradientTransformation,
    key: Any,
    meta_params: Any,
    data: Any = (),
    *,
    steps: int,
    folder: Path,
    validate: mx.Validation | None = None,
    chunk: int = 50,
) -> Any:
    """The best meta-parameters by validation, else the last; resumes from the checkpoints in ``folder``."""
    trainer = mx.trainer(estimator, tx)
    store = mx.checkpoints(folder, every=10 * chunk)
    fitted = mx.fit(
        trainer, trainer.init(key, meta_params, data), data, num_steps=steps, chunk=chunk, validate=validate,
        checkpoint=store, label=folder.name,
    )  # fmt: skip
    store.close()
    return fitted.best


def accuracy(
    loop: mx.Inner, key: Any, meta_params: Any, data: Any, *, tasks: int, at_once: int, steps: int | None = None
) -> np.ndarray:
    """The accuracy on the query batch of each of ``tasks`` tasks, ``at_once`` at a time to bound the memory."""
    found = [
        mx.evaluate(loop, k, meta_params, data, num_tasks=at_once, steps=steps).test_metrics["accuracy"]
        for k in jax.random.split(key, -(-tasks // at_once))
    ]
    return np.concatenate(found)[:tasks]
