"""An LSTM learns to minimise random quadratics, beside tuned hand-made optimizers."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import metajax as mx
from benchmarks.experiments import _l2l
from benchmarks.experiments._training import Run, clipped_adam, meta_train
from benchmarks.reproduce import (
    Claim,
    Experiment,
    Result,
    Results,
    Settings,
    at_most,
    below,
    claim,
)

SOURCE = "Andrychowicz et al. 2016, section 3.1"
CASE = "quadratics"


def run(seed: int, settings: Settings, folder: Path) -> Result:
    horizon = settings["horizon"]
    chunk = settings["chunk"]
    optimizer = mx.optim.lstm(p=None)
    problem = mx.problems.quadratic()
    tasks = mx.tasks.quadratics(10)
    learner = mx.l2l(optimizer, problem)
    loop = mx.inner(learner, tasks, horizon)

    def last_loss(key, meta_params, data):
        curves = mx.evaluate(
            loop,
            key,
            meta_params,
            data,
            num_tasks=settings["validated"],
        )
        return _last(curves)

    schedule = optax.cosine_decay_schedule(
        settings["rate"], settings["steps"], alpha=0.01
    )
    meta_params = meta_train(
        mx.bptt(loop, settings["tasks"], settings["window"]),
        clipped_adam(schedule),
        jax.random.key(seed),
        learner.meta(jax.random.key(100 + seed)),
        (),
        Run(
            folder=folder / "lstm",
            steps=settings["steps"],
            chunk=chunk,
            validate=mx.validation(last_loss, jax.random.key(200 + seed), every=chunk),
        ),
    )
    return _l2l.compare(
        CASE,
        {"LSTM": optimizer.tx(meta_params)},
        (problem, tasks, ()),
        jax.random.key(300 + seed),
        folder,
        steps=horizon,
        num_tasks=settings["test_tasks"],
        search=mx.RateSearch(score=_last),
    )


def _last(curves: mx.Curves) -> Any:
    return curves.loss[:, -1].mean()


def claims(results: Results, settings: Settings) -> list[Claim]:
    ours = []
    ratios = []
    for result in results:
        last = float(result[f"{CASE}, LSTM"][-1])
        baselines = [result[f"{CASE}, {baseline}"][-1] for baseline in mx.BASELINES]
        ours.append(last)
        ratios.append(last / float(np.nanmin(baselines)))

    source = f"{SOURCE}, figure 4"
    horizon = settings["horizon"]
    text = f"{CASE}: mean loss of the LSTM optimizer at the last of {horizon} steps <= 0.25"
    ratio_text = f"{CASE}: that loss as a multiple of the best tuned baseline's < 1"
    return [
        claim(text, source, None, ours, at_most(0.25)),
        claim(ratio_text, source, "below all baselines", ratios, below(1)),
    ]


def picture(results: Results, settings: Settings, figure: Any) -> None:
    ax = figure.subplots()
    _l2l.draw(results, CASE, ["LSTM"], ax, "loss")
    ax.legend(frameon=False, fontsize=8)


_PUBLISHED = {"horizon": 100, "window": 20, "tasks": 128, "rate": 3e-3}
_SMOKE = {
    "horizon": 10,
    "window": 5,
    "tasks": 4,
    "rate": 3e-3,
    "steps": 20,
    "chunk": 10,
    "validated": 8,
    "test_tasks": 8,
}
_SMALL = {
    **_PUBLISHED,
    "steps": 12_000,
    "chunk": 100,
    "validated": 512,
    "test_tasks": 2560,
}
_FULL = {
    **_PUBLISHED,
    "steps": 50_000,
    "chunk": 500,
    "validated": 4096,
    "test_tasks": 12_800,
}
EXPERIMENT = Experiment(
    title="Learning to minimise random quadratics",
    source=f"{SOURCE}, figure 4",
    settings={"smoke": _SMOKE, "small": _SMALL, "full": _FULL},
    run=run,
    claims=claims,
    picture=picture,
)
