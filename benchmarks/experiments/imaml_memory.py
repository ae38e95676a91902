"""Temporary memory and time of one meta-step against inner gradient steps.

The memory is what the compiled program says.
"""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import metajax as mx
from benchmarks.reproduce import (
    Claim,
    Experiment,
    Result,
    Results,
    Settings,
    above,
    at_most,
    below,
    claim,
)

SOURCE = "Rajeswaran et al. 2019, section 4, figure 2b and c"
REMAT = "MAML, rematerialised"
NAMES = ("MAML", REMAT, "iMAML", "FOMAML")


def method(name: str, steps: int, settings: Settings) -> tuple[mx.Learner, mx.Trainer]:
    """A learner of ``steps`` inner gradient steps, and one step of Adam on its meta-parameters."""
    architecture, width = settings["net"]
    size = settings["size"]
    ways = settings["ways"]
    rate = settings["rate"]
    net = getattr(mx.nets, architecture)(ways, (size, size, 1), width)
    problem = mx.problems.classifier(*net)
    horizon = steps
    if name == "iMAML":
        solver = mx.implicit.descend(optax.sgd(rate), steps)
        learner = mx.imaml(
            problem,
            solver,
            mx.implicit.cg(settings["cg"]),
            settings["lam"],
        )
        horizon = 1
    elif name == "FOMAML":
        learner = mx.fomaml(problem, rate)
    else:
        learner = mx.maml(problem, rate)

    tasks = mx.tasks.episodes(ways, settings["shots"])
    loop = mx.inner(learner, tasks, horizon, meta_loss="heldout")
    estimator = mx.bptt(loop, settings["tasks"], remat=name == REMAT)
    return learner, mx.trainer(estimator, optax.adam(1e-3))


def measure(
    trainer: mx.Trainer,
    state: Any,
    data: Any,
    repeats: int,
) -> tuple[float, float]:
    """MiB of temporary memory, seconds (the median)."""
    step = jax.jit(trainer.step).lower(state, data).compile()
    memory = step.memory_analysis()
    if memory is None:
        raise ValueError(
            "this backend does not say how much memory a program takes; run it on a CPU, a GPU or "
            "a TPU"
        )
    state, _ = jax.block_until_ready(step(state, data))
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, data))
        seconds.append(time.perf_counter() - begin)
    return memory.temp_size_in_bytes / 2**20, float(np.median(seconds))


def noise_images(seed: int, settings: Settings) -> Any:
    """Images of noise; neither memory nor time depends on what is in them."""
    classes = 2 * settings["ways"]
    each = 2 * settings["shots"]
    shape = (classes * each, settings["size"], settings["size"], 1)
    image = np.random.default_rng(seed).integers(
        0,
        256,
        shape,
        np.uint8,
    )
    label = np.repeat(np.arange(classes), each)
    return jax.device_put(mx.data.by_class({"image": image, "label": label}))


def run(seed: int, settings: Settings, folder: Path) -> Result:
    data = noise_images(seed, settings)
    key = jax.random.key(seed)
    results = {}
    for name in NAMES:
        mebibytes = []
        seconds = []
        for steps in settings["steps"]:
            learner, trainer = method(name, steps, settings)
            state = trainer.init(key, learner.meta(key), data)
            size, median = measure(trainer, state, data, settings["repeats"])
            mebibytes.append(size)
            seconds.append(median)
            print(
                f"{name}, {steps} steps: {size:.1f} MiB, {1e3 * median:.0f} ms",
                flush=True,
            )
        results[f"{name}: MiB"] = np.array(mebibytes)
        results[f"{name}: seconds"] = np.array(seconds)
    return results


def claims(results: Results, settings: Settings) -> list[Claim]:
    first = settings["steps"][0]
    last = settings["steps"][-1]
    steps = np.asarray(settings["steps"], float)

    def last_ratios(name, other, quantity):
        ratios = []
        for result in results:
            ratios.append(
                result[f"{name}: {quantity}"][-1] / result[f"{other}: {quantity}"][-1]
            )
        return ratios

    not_flat = []
    r_squared = []
    for result in results:
        memory = result["iMAML: MiB"]
        not_flat.append(np.abs(memory / memory[0] - 1).max())
        r_squared.append(np.corrcoef(steps, result["MAML: MiB"])[0, 1] ** 2)

    span = f"from {first} to {last} inner steps"
    after = f"after {last} inner steps"
    flat = f"iMAML's memory is flat {span}: greatest relative change <= 5 %"
    linear = f"MAML's memory is linear {span}: R^2 of a line > 0.99"
    less_memory = f"iMAML's memory over MAML's {after} < 1"
    remat = f"Rematerialised, MAML's memory over what it was {after} < 0.5"
    less_time = f"iMAML's time over MAML's {after} < 1"

    own = "this package: `bptt(..., remat=True)`"
    memory = last_ratios("iMAML", "MAML", "MiB")
    remat_memory = last_ratios(REMAT, "MAML", "MiB")
    seconds = last_ratios("iMAML", "MAML", "seconds")
    return [
        claim(flat, SOURCE, "constant", not_flat, at_most(0.05)),
        claim(linear, SOURCE, "linear", r_squared, above(0.99)),
        claim(less_memory, SOURCE, "less", memory, below(1)),
        claim(remat, own, None, remat_memory, below(0.5)),
        claim(less_time, SOURCE, "less", seconds, below(1)),
    ]


def picture(results: Results, settings: Settings, figure: Any) -> None:
    panels = {"MiB": "temporary memory (MiB)", "seconds": "time of a meta-step (s)"}
    for ax, (quantity, ylabel) in zip(
        figure.subplots(1, 2), panels.items(), strict=True
    ):
        means = {}
        for name in NAMES:
            curves = [result[f"{name}: {quantity}"] for result in results]
            means[name] = np.stack(curves).mean(0)
        mx.plot.scaling(
            settings["steps"],
            means,
            ax,
            xlabel="inner gradient steps",
            ylabel=ylabel,
        )


_SOLVE = {"rate": 0.1, "lam": 2.0, "cg": 5}
_SMOKE = {
    **_SOLVE,
    "ways": 2,
    "shots": 1,
    "tasks": 1,
    "size": 8,
    "net": ["dense4", [16]],
    "steps": [2, 8],
    "repeats": 2,
}
_SMALL = {
    **_SOLVE,
    "ways": 5,
    "shots": 1,
    "tasks": 4,
    "size": 28,
    "net": ["conv4", 64],
    "steps": [1, 2, 4, 8, 16, 32, 64],
    "repeats": 5,
}
_FULL = {**_SMALL, "ways": 20, "shots": 5, "repeats": 10}
EXPERIMENT = Experiment(
    title="Memory and time of a meta-step against inner gradient steps",
    source=SOURCE,
    settings={"smoke": _SMOKE, "small": _SMALL, "full": _FULL},
    run=run,
    claims=claims,
    picture=picture,
    seeds=1,
)
