"""An LSTM learns to minimise random quadratics, beside tuned hand-made optimizers."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import metajax as mx
from benchmarks.experiments import _l2l
from benchmarks.experiments._training import meta_train
from benchmarks.reproduce import Claim, Experiment, Results, claim

SOURCE = "Andrychowicz et al. 2016, section 3.1"
CASE = "quadratics"


def run(seed: int, settings: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    s, optimizer = settings, mx.optim.lstm(p=None)
    problem, tasks = mx.problems.quadratic(), mx.tasks.quadratics(10)
    loop = mx.inner(mx.l2l(optimizer, problem), tasks, s["horizon"])

    def last(key, meta_params, data):
        return (
            mx.evaluate(loop, key, meta_params, data, num_tasks=s["validated"]).loss[:, -1].mean()
        )

    outer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(s["rate"], s["steps"], alpha=0.01)),
    )
    best = meta_train(
        mx.bptt(loop, s["tasks"], s["window"]), outer, jax.random.key(seed), optimizer.init(jax.random.key(100 + seed)),
        steps=s["steps"], folder=folder / "lstm", chunk=s["chunk"],
        validate=mx.validation(last, jax.random.key(200 + seed), every=s["chunk"]),
    )  # fmt: skip
    return _l2l.compare(
        CASE, {"LSTM": optimizer.tx(best)}, problem, tasks, jax.random.key(300 + seed),
        steps=s["horizon"], num_tasks=s["test_tasks"], score=lambda curves: curves.loss[:, -1].mean(),
        folder=folder,
    )  # fmt: skip


def claims(results: Results, settings: dict[str, Any]) -> list[Claim]:
    last = [float(r[f"{CASE}, LSTM"][-1]) for r in results]
    text = f"{CASE}: mean loss of the LSTM optimizer at the last of {settings['horizon']} steps <= 0.25"
    figure = f"{SOURCE}, figure 4"
    best = [float(np.nanmin([r[f"{CASE}, {b}"][-1] for b in mx.BASELINES])) for r in results]
    ratio = [a / b for a, b in zip(last, best, strict=True)]
    return [
        claim(text, figure, None, last, lambda x: x <= 0.25),
        claim(
            f"{CASE}: that loss as a multiple of the best tuned baseline's < 1",
            figure,
            "below all baselines",
            ratio,
            lambda x: x < 1,
        ),
    ]


def picture(results: Results, settings: dict[str, Any], figure: Any) -> None:
    ax = figure.subplots()
    _l2l.draw(results, CASE, ["LSTM"], ax, "loss")
    ax.legend(frameon=False, fontsize=8)


_SETTINGS = {"horizon": 100, "window": 20, "tasks": 128, "rate": 3e-3}
EXPERIMENT = Experiment(
    title="Learning to minimise random quadratics",
    source=f"{SOURCE}, figure 4",
    settings={
        "smoke": {
            **_SETTINGS, "horizon": 10, "window": 5, "tasks": 4, "steps": 20, "chunk": 10, "validated": 8,
            "test_tasks": 8,
        },
        "small": {**_SETTINGS, "steps": 12_000, "chunk": 100, "validated": 512, "test_tasks": 2560},
        "full": {**_SETTINGS, "steps": 50_000, "chunk": 500, "validated": 4096, "test_tasks": 12_800},
    },
    run=run,
    claims=claims,
    picture=picture,
)  # fmt: skip
