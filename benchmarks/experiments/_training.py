"""Meta-training as all experiments do it: validated, and resumed from its checkpoints."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

import metajax as mx


class Run(NamedTuple):
    """How long a run of meta-training is, and what belongs to it.

    Attributes:
      folder: of its checkpoints, from which it resumes.
      steps: meta-steps in all.
      chunk: meta-steps in a compiled call.
      chunks_per_checkpoint: what an interruption may cost.
      episodes: the number that the estimator's inner loop was `divided` by.
      validate: what chooses the best meta-parameters, which are otherwise the last.
    """

    folder: Path
    steps: int
    chunk: int = 50
    chunks_per_checkpoint: int = 10
    episodes: int = 1
    validate: mx.Validation | None = None


def meta_train(
    estimator: mx.Estimator,
    tx: optax.GradientTransformation,
    key: Any,
    meta_params: Any,
    data: Any,
    run: Run,
) -> Any:
    """The best meta-parameters of a run."""
    return mx.sharding.gather(fitted(estimator, tx, key, meta_params, data, run).best)


def fitted(
    estimator: mx.Estimator,
    tx: optax.GradientTransformation,
    key: Any,
    meta_params: Any,
    data: Any,
    run: Run,
) -> mx.Fit:
    """A run, with the history of its loss."""
    trainer = mx.trainer(estimator, tx, chunk=run.chunk)
    data = placed(data, run.episodes)
    state = placed(trainer.init(key, meta_params, data), run.episodes)
    every = run.chunks_per_checkpoint * run.chunk
    store = mx.checkpoints(run.folder, every=every)
    result = mx.fit(
        trainer,
        state,
        data,
        num_steps=run.steps,
        validate=run.validate,
        checkpoint=store,
        progress=run.folder.name,
    )
    store.close()
    return result


def clipped_adam(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Adam on meta-gradients of a norm of at most 1."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def mesh(episodes: int) -> Mesh | None:
    """As many devices as divide the episodes, if that is more than one."""
    devices = math.gcd(episodes, jax.device_count())
    return mx.sharding.mesh(devices) if devices > 1 else None


def divided(loop: mx.Inner, episodes: int) -> mx.Inner:
    """The inner loop with its episodes over those devices."""
    devices = mesh(episodes)
    return loop if devices is None else mx.sharding.split(loop, devices)


def placed(tree: Any, episodes: int) -> Any:
    """A state or data where such a loop wants them."""
    devices = mesh(episodes)
    return tree if devices is None else mx.sharding.place(tree, devices)
