"""Temporary memory of one meta-step, from the compiled program, and its time, against inner
gradient steps.
"""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import metajax as mx
from benchmarks.reproduce import Claim, Experiment, Results, claim

SOURCE = "Rajeswaran et al. 2019, section 4, figure 2b and c"
REMAT = "MAML, rematerialised"
NAMES = ("MAML", REMAT, "iMAML", "FOMAML")


def meta_step(name: str, steps: int, s: dict[str, Any]) -> tuple[mx.Trainer, Any]:
    """One step of Adam on the meta-parameters, and what initialises these."""
    architecture, width = s["net"]
    net = getattr(mx.nets, architecture)(s["ways"], (s["size"], s["size"], 1), width)
    problem, rate = mx.problems.classifier(*net), s["rate"]
    if name == "iMAML":
        solver, linear_solver = mx.implicit.descend(optax.sgd(rate), steps), mx.implicit.cg(s["cg"])
        learner, horizon = mx.imaml(problem, solver, linear_solver, s["lam"]), 1
    else:
        learner, horizon = (mx.fomaml if name == "FOMAML" else mx.maml)(problem, rate), steps
    loop = mx.inner(learner, mx.tasks.episodes(s["ways"], s["shots"]), horizon, meta_loss="heldout")
    return mx.trainer(mx.bptt(loop, s["tasks"], remat=name == REMAT), optax.adam(1e-3)), net.init


def measure(trainer: mx.Trainer, state: Any, data: Any, repeats: int) -> tuple[float, float]:
    """MiB of temporary memory, seconds (the median)."""
    step = jax.jit(trainer.step).lower(state, data).compile()
    memory = step.memory_analysis()
    if memory is None:
        raise ValueError(
            "this backend does not say how much memory a program takes; run it on a CPU, a GPU or a TPU"
        )
    state, _ = jax.block_until_ready(step(state, data))
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, data))
        seconds.append(time.perf_counter() - begin)
    return memory.temp_size_in_bytes / 2**20, float(np.median(seconds))


def run(seed: int, settings: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    # Neither depends on what is in the images.
    classes, each = 2 * settings["ways"], 2 * settings["shots"]
    size = (classes * each, settings["size"], settings["size"], 1)
    images = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    data = jax.device_put(
        mx.data.by_class({"image": images, "label": np.repeat(np.arange(classes), each)})
    )
    results = {}
    for name in NAMES:
        found = []
        for steps in settings["steps"]:
            trainer, init = meta_step(name, steps, settings)
            state = trainer.init(jax.random.key(seed), init(jax.random.key(seed)), data)
            found.append(measure(trainer, state, data, settings["repeats"]))
            print(
                f"{name}, {steps} steps: {found[-1][0]:.1f} MiB, {1e3 * found[-1][1]:.0f} ms",
                flush=True,
            )
        results[f"{name}: MiB"], results[f"{name}: seconds"] = np.transpose(found)
    return results


def claims(results: Results, settings: dict[str, Any]) -> list[Claim]:
    steps = np.asarray(settings["steps"], float)
    span = f"from {settings['steps'][0]} to {settings['steps'][-1]} inner steps"

    def not_flat(x):
        return np.abs(x / x[0] - 1).max()

    def r_squared(x):
        return np.corrcoef(steps, x)[0, 1] ** 2

    def at_last(name, other, of):
        return [r[f"{name}: {of}"][-1] / r[f"{other}: {of}"][-1] for r in results]

    last = f"after {settings['steps'][-1]} inner steps"
    return [
        claim(
            f"iMAML's memory is flat {span}: greatest relative change <= 5 %",
            SOURCE, "constant", [not_flat(r["iMAML: MiB"]) for r in results], lambda x: x <= 0.05,
        ),
        claim(
            f"MAML's memory is linear {span}: R^2 of a line > 0.99",
            SOURCE, "linear", [r_squared(r["MAML: MiB"]) for r in results], lambda x: x > 0.99,
        ),
        claim(
            f"iMAML's memory over MAML's {last} < 1",
            SOURCE, "less", at_last("iMAML", "MAML", "MiB"), lambda x: x < 1,
        ),
        claim(
            f"Rematerialised, MAML's memory over what it was {last} < 0.5",
            "this package: `bptt(..., remat=True)`", None, at_last(REMAT, "MAML", "MiB"), lambda x: x < 0.5,
        ),
        claim(
            f"iMAML's time over MAML's {last} < 1",
            SOURCE, "less", at_last("iMAML", "MAML", "seconds"), lambda x: x < 1,
        ),
    ]  # fmt: skip


def picture(results: Results, settings: dict[str, Any], figure: Any) -> None:
    panels = {"MiB": "temporary memory (MiB)", "seconds": "time of a meta-step (s)"}
    for ax, (of, ylabel) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        means = {name: np.stack([r[f"{name}: {of}"] for r in results]).mean(0) for name in NAMES}
        mx.plot.scaling(settings["steps"], means, ax, xlabel="inner gradient steps", ylabel=ylabel)


_STEPS = [1, 2, 4, 8, 16, 32, 64]
_SOLVE = {"rate": 0.1, "lam": 2.0, "cg": 5}
EXPERIMENT = Experiment(
    title="Memory and time of a meta-step against inner gradient steps",
    source=SOURCE,
    settings={
        "smoke": {
            **_SOLVE, "ways": 2, "shots": 1, "tasks": 1, "size": 8, "net": ["dense4", [16]], "steps": [2, 8],
            "repeats": 2,
        },
        "small": {
            **_SOLVE, "ways": 5, "shots": 1, "tasks": 4, "size": 28, "net": ["conv4", 64],
            "steps": _STEPS, "repeats": 5,
        },
        "full": {
            **_SOLVE, "ways": 20, "shots": 5, "tasks": 4, "size": 28, "net": ["conv4", 64],
            "steps": _STEPS, "repeats": 10,
        },
    },
    run=run,
    claims=claims,
    picture=picture,
    seeds=1,
)  # fmt: skip
