"""What the experiments on VSML share: the network, its meta-training and how a stream is judged."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx
from benchmarks.experiments._training import divided, placed

RATES = {
    "SGD": [10 ** (k / 4) for k in range(-12, -2)],
    "Adam": [10 ** (k / 4) for k in range(-16, -5)],
}


def network(units: int, classes: int) -> mx.InContext:
    """One tick upwards with the image, one downwards with the same image and its error."""
    return mx.vsml((units, classes), mx.cells.lstm(ticks=1), backward_pass=True)


def tasks(classes: int, view: str | None = None, dims: int = 0) -> mx.Tasks:
    """Random classes under random labels, the images as they are or as ``dims`` numbers of unit
    spread.

    Views: ``"project"``, a random projection for each task; ``"mixed"``, for each task that, or the
    image at a low resolution, or some of its pixels.
    """
    stream = mx.tasks.classification(classes)
    if view is None:
        return stream
    return mx.tasks.unit_spread(
        mx.tasks.project(stream, dims) if view == "project" else mixed(stream, dims)
    )


def mixed(stream: mx.Tasks, dims: int) -> mx.Tasks:
    """All three views are linear: each task has a matrix ``[pixels, dims]``."""

    def sample(key, batch):
        k_which, k_project, k_subset = jax.random.split(key, 3)
        pixels = batch["image"][0].size
        project = jax.random.normal(k_project, (pixels, dims)) / pixels**0.5
        subset = jax.nn.one_hot(jax.random.permutation(k_subset, pixels)[:dims], pixels).T
        return jnp.stack([project, _pool(pixels, dims), subset])[
            jax.random.randint(k_which, (), 0, 3)
        ]

    return mx.tasks.augment(
        stream, sample, lambda own, batch: {**batch, "image": batch["image"] @ own}
    )


def _pool(pixels: int, dims: int) -> np.ndarray:
    """Means over squares: ``[pixels, dims]``, both numbers of a square image."""
    large, small = math.isqrt(pixels), math.isqrt(dims)
    factor = large // small
    matrix = np.zeros((large, large, small, small), np.float32)
    for i, j in np.ndindex(small * factor, small * factor):
        matrix[i, j, i // factor, j // factor] = factor**-2.0
    return matrix.reshape(pixels, -1)


def meta_train(
    seed: int, data: Any, phases: Sequence[dict[str, Any]], folder: Path, estimator: str = "bptt"
) -> Any:
    """Goes through the phases; each resumes from its checkpoints, which experiments under one
    ``--out`` share.
    """
    digest = hashlib.sha256(json.dumps([estimator, *phases], sort_keys=True).encode())
    for x in jax.tree.leaves(data):
        digest.update(np.ascontiguousarray(x).tobytes())
    folder = folder.parents[1] / "vsml" / digest.hexdigest()[:8] / folder.name
    meta_params = network(2, 2).init(jax.random.key(seed))
    for i, p in enumerate(phases):
        learner = network(p["dims"], p["classes"]).learner
        horizon = tuple(p["horizon"]) if isinstance(p["horizon"], list) else p["horizon"]
        loop = divided(
            mx.inner(learner, tasks(p["classes"], p["view"], p["dims"]), horizon), p["tasks"]
        )
        # Phases go on from each other at full rate; the last one comes to rest.
        last = i == len(phases) - 1
        rate = optax.cosine_decay_schedule(p["rate"], p["steps"], alpha=0.05) if last else p["rate"]
        if estimator == "bptt":
            estimate = mx.bptt(loop, p["tasks"], p["window"])
            outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
        else:
            estimate = mx.es(loop, p["tasks"], p["std"])
            outer = optax.adam(rate)
        trainer = mx.trainer(estimate, outer)
        state = placed(
            trainer.init(jax.random.key(1000 * i + seed + 10), meta_params, data), p["tasks"]
        )
        store = mx.checkpoints(folder / f"phase-{i}", every=50)
        label = f"{estimator}, phase {i}"
        fitted = mx.fit(
            trainer,
            state,
            placed(data, p["tasks"]),
            num_steps=p["steps"],
            chunk=25,
            checkpoint=store,
            label=label,
        )
        meta_params = mx.sharding.gather(fitted.state.meta_params)
        store.close()
    return meta_params


def cumulative(accuracy: Any) -> np.ndarray:
    """Mean accuracy so far, in percent, ``[runs, steps]`` -> ``[runs, steps]``."""
    x = np.asarray(accuracy, np.float64)
    return 100 * x.cumsum(-1) / np.arange(1, x.shape[-1] + 1)


def stream(
    seed: int,
    learner: mx.Learner,
    meta_params: Any,
    data: Any,
    *,
    tasks: mx.Tasks,
    steps: int,
    runs: int,
) -> np.ndarray:
    """The accuracy of each prediction, ``[runs, steps]``; one seed means the same streams for every
    learner.
    """
    loop = mx.inner(learner, tasks, steps)
    curves = mx.evaluate(
        loop, jax.random.key(5000 + seed), meta_params, data, num_tasks=runs, steps=steps
    )
    return np.asarray(curves.metrics["accuracy"])


def baselines(seed: int, data: Any, *, steps: int, runs: int) -> dict[str, np.ndarray]:
    """Online SGD and Adam with no and one hidden layer at every rate: name -> ``[rates, runs,
    steps]``.
    """
    units = data["image"][0].size
    found = {}
    for sizes in ((units, 10), (units, 160, 10)):
        problem = mx.problems.mlp(sizes, jnp.tanh)
        for name, tx in (("SGD", optax.sgd), ("Adam", optax.adam)):
            loop = mx.inner(mx.l2l(tx, problem), tasks(10), steps)
            found[f"{name}, {len(sizes) - 2} hidden"] = np.stack(
                [
                    mx.evaluate(
                        loop, jax.random.key(5000 + seed), rate, data, num_tasks=runs, steps=steps
                    ).metrics["accuracy"]
                    for rate in RATES[name]
                ]
            )
    return found


def points(steps: int) -> np.ndarray:
    """Where a curve is kept, about evenly on a logarithmic axis, the first and the last step
    included.
    """
    return np.unique(np.geomspace(1, steps, 40).round().astype(int))
