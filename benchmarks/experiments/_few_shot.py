"""What the experiments on few-shot learning share: a learner to compare with, meta-training, the test."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import metajax as mx


def proximal_descent(problem: mx.Problem, rate: float, lam: float) -> mx.Learner:
    """Gradient descent on the inner objective of iMAML step by step: what MAML would differentiate through."""

    def make_tx(theta):
        def pull(grads, params):
            return jax.tree.map(lambda g, p, t: g + lam * (p - t), grads, params, theta)

        return optax.chain(optax.stateless(pull), optax.sgd(rate))

    return mx.adapt(problem, make_tx)


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
