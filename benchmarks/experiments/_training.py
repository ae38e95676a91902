"""Meta-training as all experiments do it: validated, resumed from its checkpoints."""

import math
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

import metajax as mx


def mesh(episodes: int) -> Mesh | None:
    """As many devices as divide the episodes, if that is more than one."""
    devices = math.gcd(episodes, jax.device_count())
    return mx.sharding.mesh(devices) if devices > 1 else None


def divided(loop: mx.Inner, episodes: int) -> mx.Inner:
    """The inner loop with its episodes over those devices."""
    over = mesh(episodes)
    return loop if over is None else mx.sharding.split(loop, over)


def placed(tree: Any, episodes: int) -> Any:
    """A state or data where such a loop wants them."""
    over = mesh(episodes)
    return tree if over is None else mx.sharding.place(tree, over)


def meta_train(
    estimator: mx.Estimator,
    tx: optax.GradientTransformation,
    key: Any,
    meta_params: Any,
    data: Any = (),
    *,
    episodes: int = 1,
    steps: int,
    folder: Path,
    validate: mx.Validation | None = None,
    chunk: int = 50,
) -> Any:
    """The best meta-parameters by validation, else the last; resumes from the checkpoints in
    ``folder``.

    ``episodes`` is the number that the estimator's inner loop was `divided` by.
    """
    trainer, data = mx.trainer(estimator, tx), placed(data, episodes)
    store = mx.checkpoints(folder, every=10 * chunk)
    state = placed(trainer.init(key, meta_params, data), episodes)
    fitted = mx.fit(
        trainer,
        state,
        data,
        num_steps=steps,
        chunk=chunk,
        validate=validate,
        checkpoint=store,
        label=folder.name,
    )
    store.close()
    return mx.sharding.gather(fitted.best)
