"""What the experiments on VSML share: the network, its meta-training and how a stream is tested."""

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
from benchmarks.experiments._training import Run, clipped_adam, divided, meta_train

RATES = {
    "SGD": [10 ** (k / 4) for k in range(-12, -2)],
    "Adam": [10 ** (k / 4) for k in range(-16, -5)],
}
Phase = dict[str, Any]


def network(units: int, classes: int) -> mx.Learner:
    """One tick upwards with the image, one downwards with the same image and its error."""
    return mx.vsml((units, classes), mx.cells.lstm(ticks=1), backward_pass=True)


def tasks(classes: int, view: str | None = None, dims: int = 0) -> mx.Tasks:
    """Random classes under random labels, the images as they are or as ``dims`` numbers.

    Those have unit spread. Views: ``"project"``, a random projection for each task; ``"mixed"``,
    for each task that, or the image at a low resolution, or some of its pixels.
    """
    stream = mx.tasks.classification(classes)
    if view is None:
        return stream
    seen = mx.tasks.project(stream, dims) if view == "project" else mixed(stream, dims)
    return mx.tasks.unit_spread(seen)


def mixed(stream: mx.Tasks, dims: int) -> mx.Tasks:
    """All three views are linear: each task has a matrix ``[pixels, dims]``."""

    def sample(key, batch):
        k_which, k_project, k_subset = jax.random.split(key, 3)
        pixels = batch["image"][0].size
        project = jax.random.normal(k_project, (pixels, dims)) / pixels**0.5
        chosen = jax.random.permutation(k_subset, pixels)[:dims]
        subset = jax.nn.one_hot(chosen, pixels).T
        views = jnp.stack([project, _pool(pixels, dims), subset])
        return views[jax.random.randint(k_which, (), 0, 3)]

    def apply(matrix, batch):
        return {**batch, "image": batch["image"] @ matrix}

    return mx.tasks.augment(stream, sample, apply)


def _pool(pixels: int, dims: int) -> np.ndarray:
    """Means over squares: ``[pixels, dims]``, both numbers of a square image."""
    large = math.isqrt(pixels)
    small = math.isqrt(dims)
    factor = large // small
    matrix = np.zeros((large, large, small, small), np.float32)
    for i, j in np.ndindex(small * factor, small * factor):
        matrix[i, j, i // factor, j // factor] = factor**-2.0
    return matrix.reshape(pixels, -1)


def train_phases(
    seed: int,
    data: Any,
    phases: Sequence[Phase],
    folder: Path,
    estimator: str = "bptt",
) -> Any:
    """Goes through the phases.

    Each resumes from its checkpoints, which experiments under one ``--out`` share.
    """
    digest = _digest([estimator, *phases], data)
    folder = folder.parents[1] / "vsml" / digest / folder.name
    meta_params = network(2, 2).meta(jax.random.key(seed))
    for i, phase in enumerate(phases):
        learner = network(phase["dims"], phase["classes"])
        seen = tasks(phase["classes"], phase["view"], phase["dims"])
        horizon = phase["horizon"]
        if isinstance(horizon, list):  # the shortest and the longest
            horizon = tuple(horizon)
        num_tasks = phase["tasks"]
        loop = divided(mx.inner(learner, seen, horizon), num_tasks)

        rate = phase["rate"]
        is_last = i == len(phases) - 1
        if is_last:  # phases go on from each other at full rate, and it comes to rest
            rate = optax.cosine_decay_schedule(rate, phase["steps"], alpha=0.05)
        by_gradients = estimator == "bptt"
        if by_gradients:
            estimates = mx.bptt(loop, num_tasks, phase["window"])
        else:
            estimates = mx.es(loop, num_tasks, phase["std"])
        meta_params = meta_train(
            estimates,
            clipped_adam(rate) if by_gradients else optax.adam(rate),
            jax.random.key(1000 * i + seed + 10),
            meta_params,
            data,
            Run(
                folder=folder / f"phase-{i}",
                steps=phase["steps"],
                chunk=25,
                chunks_per_checkpoint=2,
                episodes=num_tasks,
            ),
        )
    return meta_params


def _digest(settings: Any, data: Any) -> str:
    """What tells apart runs that differ in settings or in data."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for x in jax.tree.leaves(data):
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()[:8]


def stream_accuracy(
    seed: int,
    learner: mx.Learner,
    meta_params: Any,
    data: Any,
    *,
    tasks: mx.Tasks,
    steps: int,
    runs: int,
) -> np.ndarray:
    """The accuracy of each prediction, ``[runs, steps]``.

    One seed means the same streams for every learner.
    """
    loop = mx.inner(learner, tasks, steps)
    key = jax.random.key(5000 + seed)
    curves = mx.evaluate(
        loop,
        key,
        meta_params,
        data,
        num_tasks=runs,
        steps=steps,
    )
    return np.asarray(curves.metrics["accuracy"])


def cumulative(accuracy: Any) -> np.ndarray:
    """Mean accuracy so far, in percent, ``[runs, steps]`` -> ``[runs, steps]``."""
    x = np.asarray(accuracy, np.float64)
    return 100 * x.cumsum(-1) / np.arange(1, x.shape[-1] + 1)


def baselines(
    seed: int,
    data: Any,
    *,
    stream: mx.Tasks,
    units: int,
    steps: int,
    runs: int,
) -> dict[str, np.ndarray]:
    """Online SGD and Adam with no and one hidden layer, at every rate; images have ``units``.

    Returns accuracies by name, ``[rates, runs, steps]``.
    """
    key = jax.random.key(5000 + seed)
    found = {}
    for sizes in ((units, 10), (units, 160, 10)):
        problem = mx.problems.mlp(sizes, jnp.tanh)
        for name, tx in (("SGD", optax.sgd), ("Adam", optax.adam)):
            loop = mx.inner(mx.l2l(tx, problem), stream, steps)
            accuracies = []
            for rate in RATES[name]:
                curves = mx.evaluate(
                    loop,
                    key,
                    rate,
                    data,
                    num_tasks=runs,
                    steps=steps,
                )
                accuracies.append(curves.metrics["accuracy"])
            found[f"{name}, {len(sizes) - 2} hidden"] = np.stack(accuracies)
    return found


def points(steps: int) -> np.ndarray:
    """Where a curve is kept, about evenly on a logarithmic axis, with the first and last step."""
    return np.unique(np.geomspace(1, steps, 40).round().astype(int))
