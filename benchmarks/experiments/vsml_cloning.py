"""A cell is fitted to backpropagation; then networks of it learn images with no gradient.

Beside them are the same networks under SGD.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx
from benchmarks import _data
from benchmarks.experiments._training import Run, clipped_adam, meta_train
from benchmarks.reproduce import (
    Claim,
    Experiment,
    Result,
    Results,
    Settings,
    at_least,
    at_most,
    below,
    claim,
)

SOURCE = "Kirsch & Schmidhuber 2021, section 4.1"
PUBLISHED = {
    ("mnist", 1): 87,
    ("mnist", 0): 90,
    ("fashion_mnist", 1): 76,
    ("fashion_mnist", 0): 80,
}
WANTED = {
    ("mnist", 1): 85,
    ("mnist", 0): 88,
    ("fashion_mnist", 1): 74,
    ("fashion_mnist", 0): 78,
}
PIECES = 50  # of a stream; the accuracy of each is kept


def cell_of(settings: Settings) -> mx.cells.Cell:
    """The cell that is fitted."""
    return mx.cells.with_weights(
        mx.cells.lstm(settings["hidden"], slots=1, reduce="sum")
    )


def clone(seed: int, settings: Settings, folder: Path) -> Any:
    """The parameters of the cell, fitted phase by phase."""
    learner = mx.clone_backprop(cell_of(settings), settings["rate"])
    tasks = mx.tasks.signals(settings["cells"], settings["spread"])
    meta_params = learner.meta(jax.random.key(seed))
    for i, (horizon, steps, rate) in enumerate(settings["phases"]):
        loop = mx.inner(learner, tasks, horizon)
        meta_params = meta_train(
            mx.bptt(loop, 1, remat=False),
            clipped_adam(optax.cosine_decay_schedule(rate, steps, alpha=0.01)),
            jax.random.key(1000 + seed),
            meta_params,
            (),
            Run(folder / f"clone-{i}", steps, chunk=200, chunks_per_checkpoint=5),
        )
    return meta_params


def clone_errors(
    seed: int, settings: Settings, meta_params: Any
) -> dict[str, np.ndarray]:
    """How far a fitted cell is from backpropagation."""
    learner = mx.clone_backprop(cell_of(settings), settings["rate"])
    spread = settings["spread"]
    loop = mx.inner(learner, mx.tasks.signals(settings["cells"], spread), 500)
    curves = mx.evaluate(
        loop,
        jax.random.key(2000 + seed),
        meta_params,
        num_tasks=4,
    )
    drift = curves.metrics["drift"].mean(0)

    tasks = mx.tasks.signals(4096, spread)
    single = mx.inner(learner, tasks, 1)
    one = mx.evaluate(
        single,
        jax.random.key(3000 + seed),
        meta_params,
        num_tasks=1,
    )

    # The size of an update in units of the rate: e tanh(x) and e, as drawn by the tasks.
    task = tasks.sample(jax.random.key(0), ())
    batch = tasks.train(jax.random.key(1), (), task)
    size = jnp.mean((batch["e"] * jnp.tanh(batch["x"])) ** 2 + batch["e"] ** 2)
    error = {
        "drift": drift[np.array([0, 1, 4, 9, 49, 99, 249, 499])],
        "relative_error_of_the_update": jnp.sqrt(one.metrics["update"].mean() / size),
        "rms_error_of_y": jnp.sqrt(one.metrics["y"].mean()),
    }
    return {name: np.asarray(x) for name, x in error.items()}


def same_network(net: mx.Learner) -> mx.Problem:
    """What the clone imitates, from the same weights: ``tanh(x) w + b``.

    There is a bias for each pair of units.
    """

    def init(key):
        layers = []
        for cells in net.init(key, (), ()).cells:
            w, b = mx.cells.recall(cells)
            layers.append((w[0, 0], b[0, 0]))
        return layers

    def apply(params, images):
        x = images.reshape(len(images), -1)
        for w, b in params:
            x = jnp.tanh(x) @ w + b.sum(0)
        return x

    return mx.problems.classifier(init, apply)


def run(seed: int, settings: Settings, folder: Path) -> Result:
    meta_params = clone(seed, settings, folder)
    results = clone_errors(seed, settings, meta_params)
    for name in settings["data"]:
        train, test = _data.standardised(name, settings["size"])
        units = train["image"].shape[1]
        for hidden in ((), (settings["units"],)):
            net = mx.vsml((units, *hidden, 10), cell_of(settings), backward_pass=True)
            methods = {
                "vsml": (net, meta_params),
                "sgd": (mx.l2l(optax.sgd, same_network(net)), settings["rate"]),
            }
            for method, (learner, params) in methods.items():
                loop = mx.inner(
                    learner, mx.tasks.minibatches(1, test_size=1), settings["steps"]
                )
                key = jax.random.key(4000 + seed)
                curves = mx.evaluate(loop, key, params, train, num_tasks=1)
                learned = jax.tree.map(lambda x: x[0], curves.state.learner)
                _, metrics = jax.jit(learner.test)(
                    key,
                    params,
                    learned,
                    test,
                )
                tested = 100 * np.asarray(metrics["accuracy"])
                online = np.asarray(curves.metrics["accuracy"][0])

                case = f"{name}, {len(hidden)} hidden, {method}"
                results[f"{case}: test"] = tested
                results[f"{case}: online"] = 100 * online.reshape(PIECES, -1).mean(1)
                print(f"{case}: {float(tested):.2f} % of the test images", flush=True)
    return results


def claims(results: Results, settings: Settings) -> list[Claim]:
    found = []
    for name in settings["data"]:
        for hidden in (0, 1):
            found += _accuracy_claims(results, name, hidden)

    low = settings["spread"] / 20
    high = settings["spread"]
    drift = [result["drift"][-1] for result in results]
    text = "Drift of a cell's weight and bias after 500 steps, for weights of spread "
    text += f"{low:.3g} to {high:g}: < 0.01"
    found.append(claim(text, SOURCE, None, drift, below(0.01)))

    relative = [result["relative_error_of_the_update"] for result in results]
    text = "Relative error of a single update < 5 %"
    found.append(claim(text, SOURCE, None, relative, below(0.05)))
    return found


def _accuracy_claims(results: Results, name: str, hidden: int) -> list[Claim]:
    case = f"{name}, {hidden} hidden"
    cloned = [result[f"{case}, vsml: test"] for result in results]
    sgd = [result[f"{case}, sgd: test"] for result in results]
    behind = [b - a for a, b in zip(cloned, sgd, strict=True)]
    about = f"Cloned learning, {case} layers"

    found = []
    if (name, hidden) in WANTED:
        wanted = WANTED[name, hidden]
        published = f"{PUBLISHED[name, hidden]} %"
        text = f"{about}: test accuracy >= {wanted} %"
        found.append(claim(text, SOURCE, published, cloned, at_least(wanted)))
    text = f"{about}: points behind the same network under SGD <= 2"
    found.append(claim(text, SOURCE, None, behind, at_most(2)))
    return found


def picture(results: Results, settings: Settings, figure: Any) -> None:
    axes = figure.subplots(
        1,
        len(settings["data"]),
        sharey=True,
        squeeze=False,
    )[0]
    for ax, name in zip(axes, settings["data"], strict=True):
        for hidden in (0, 1):
            _draw(results, settings, name, hidden, ax)
        ax.set(
            title=name,
            xlabel="examples seen",
            xscale="log",
        )
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="online accuracy (%)")
    axes[-1].legend(
        frameon=False,
        fontsize=8,
        title="dotted: published, test",
        title_fontsize=8,
    )


def _draw(
    results: Results,
    settings: Settings,
    name: str,
    hidden: int,
    ax: Any,
) -> None:
    steps = (np.arange(PIECES) + 0.5) * settings["steps"] / PIECES
    colour = mx.plot.COLOURS[(4, 6)[hidden]]
    layers = f"{hidden} hidden layer" if hidden == 1 else f"{hidden} hidden layers"
    for method, shown, style in (("vsml", "cloned", "-"), ("sgd", "SGD", "--")):
        curves = [
            result[f"{name}, {hidden} hidden, {method}: online"] for result in results
        ]
        mean = np.stack(curves).mean(0)
        ax.plot(
            steps,
            mean,
            style,
            color=colour,
            label=f"{shown}, {layers}",
            linewidth=1.5,
        )
    if (name, hidden) in PUBLISHED:
        ax.axhline(
            PUBLISHED[name, hidden],
            color=colour,
            linewidth=0.8,
            linestyle=":",
        )


_PHASES = [[1, 30_000, 1e-2], [1, 30_000, 2e-3]]  # horizon, steps, rate
_SMOKE = {
    "data": ["digits"],
    "size": 4,
    "hidden": 8,
    "units": 4,
    "rate": 0.01,
    "cells": 16,
    "spread": 0.5,
    "steps": 50,
    "phases": [[1, 200, 1e-2]],
}
_SMALL = {
    "data": ["mnist", "fashion_mnist"],
    "size": 14,
    "hidden": 16,
    "units": 32,
    "rate": 0.004,
    "cells": 256,
    "spread": 0.7,
    "steps": 60_000,
    "phases": _PHASES,
}
_FULL = {
    "data": ["mnist", "fashion_mnist"],
    "size": 28,
    "hidden": 32,
    "units": 128,
    "rate": 0.001,
    "cells": 512,
    "spread": 0.7,
    "steps": 120_000,
    "phases": _PHASES,
}
EXPERIMENT = Experiment(
    title="Backpropagation cloned into forward dynamics",
    source=SOURCE,
    settings={"smoke": _SMOKE, "small": _SMALL, "full": _FULL},
    run=run,
    claims=claims,
    picture=picture,
)
