"""Meta-training as all experiments do it: validated, resumed from its checkpoints."""

from pathlib import Path
from typing import Any

import jax
import optax

import metajax as mx


def divided(loop: mx.Inner) -> mx.Inner:
    """The inner loop with its episodes over all devices, if there are several."""
    return loop if jax.device_count() == 1 else mx.sharding.split(loop, mx.sharding.mesh())


def placed(tree: Any) -> Any:
    """A state or data where such a loop wants them."""
    return tree if jax.device_count() == 1 else mx.sharding.place(tree, mx.sharding.mesh())


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
    trainer, data = mx.trainer(estimator, tx), placed(data)
    store = mx.checkpoints(folder, every=10 * chunk)
    fitted = mx.fit(
        trainer, placed(trainer.init(key, meta_params, data)), data, num_steps=steps, chunk=chunk, validate=validate,
        checkpoint=store, label=folder.name,
    )  # fmt: skip
    store.close()
    return mx.sharding.gather(fitted.best)
