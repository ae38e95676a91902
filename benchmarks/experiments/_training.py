"""Meta-training as all experiments do it: validated, resumed from its checkpoints."""

from pathlib import Path
from typing import Any

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
