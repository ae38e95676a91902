"""A cell is fitted to backpropagation; then networks of it learn images with no gradient, beside
the same under SGD.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx
from benchmarks import _data
from benchmarks.reproduce import Claim, Experiment, Results, claim

SOURCE = "Kirsch & Schmidhuber 2021, section 4.1"
PUBLISHED = {("mnist", 1): 87, ("mnist", 0): 90, ("fashion_mnist", 1): 76, ("fashion_mnist", 0): 80}
WANTED = {("mnist", 1): 85, ("mnist", 0): 88, ("fashion_mnist", 1): 74, ("fashion_mnist", 0): 78}


def clone(
    seed: int, settings: dict[str, Any], folder: Path
) -> tuple[mx.cells.Cell, Any, dict[str, np.ndarray]]:
    """Fits the cell, phase by phase; returns it, its parameters, and what its error is."""
    cell = mx.cells.with_weights(mx.cells.lstm(settings["hidden"], slots=1, reduce="sum"))
    fitted = mx.clone_backprop(cell, settings["rate"])
    meta_params = fitted.meta(jax.random.key(seed))
    for i, (horizon, steps, rate) in enumerate(settings["phases"]):
        loop = mx.inner(
            fitted, mx.tasks.signals(settings["cells"], settings["spread"]), horizon
        )
        outer = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adam(optax.cosine_decay_schedule(rate, steps, alpha=0.01)),
        )
        trainer = mx.trainer(mx.bptt(loop, 1, remat=False), outer)
        state = trainer.init(jax.random.key(1000 + seed), meta_params)
        store = mx.checkpoints(folder / f"clone-{i}", every=1000)
        label = f"clone, horizon {horizon}"
        meta_params = mx.fit(
            trainer, state, num_steps=steps, chunk=200, checkpoint=store, label=label
        ).state.meta_params
        store.close()
    spread, many = settings["spread"], 4096
    loop = mx.inner(fitted, mx.tasks.signals(settings["cells"], spread), 500)
    curves = mx.evaluate(loop, jax.random.key(2000 + seed), meta_params, num_tasks=4)
    single = mx.inner(fitted, mx.tasks.signals(many, spread), 1)
    one = mx.evaluate(single, jax.random.key(3000 + seed), meta_params, num_tasks=1)
    # The size of an update in units of the rate: e tanh(x) and e, as drawn by the tasks.
    task = mx.tasks.signals(many, spread).sample(jax.random.key(0), ())
    batch = mx.tasks.signals(many, spread).train(jax.random.key(1), (), task)
    size = jnp.mean((batch["e"] * jnp.tanh(batch["x"])) ** 2 + batch["e"] ** 2)
    error = {
        "drift": curves.metrics["drift"].mean(0)[np.array([0, 1, 4, 9, 49, 99, 249, 499])],
        "relative_error_of_the_update": jnp.sqrt(one.metrics["update"].mean() / size),
        "rms_error_of_y": jnp.sqrt(one.metrics["y"].mean()),
    }
    return cell, meta_params, {k: np.asarray(v) for k, v in error.items()}


def same_network(net: mx.InContext) -> mx.Problem:
    """What the clone imitates, from the same weights: ``tanh(x) w + b``, a bias for each pair of
    units.
    """

    def init(key, task):
        cells = net.init(key, (), task).cells
        return [jax.tree.map(lambda x: x[0, 0], mx.cells.recall(c)) for c in cells]

    def loss(key, params, batch):
        x = batch["image"].reshape(len(batch["image"]), -1)
        for w, b in params:
            x = jnp.tanh(x) @ w + b.sum(0)
        losses = optax.softmax_cross_entropy_with_integer_labels(x, batch["label"])
        return losses.mean(), {"accuracy": (x.argmax(-1) == batch["label"]).mean()}

    return mx.Problem(init, loss)


def run(seed: int, settings: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    cell, meta_params, results = clone(seed, settings, folder)
    steps = settings["steps"]
    for name in settings["data"]:
        train, test = _data.standardised(name, settings["size"])
        units = train["image"].shape[1]
        for hidden in ((), (settings["units"],)):
            net = mx.vsml((units, *hidden, 10), cell, backward_pass=True)
            sgd = mx.l2l(optax.sgd, same_network(net))
            for which, learner, params in (
                ("vsml", net, meta_params),
                ("sgd", sgd, settings["rate"]),
            ):
                loop = mx.inner(learner, mx.tasks.minibatches(1, test_size=1), steps)
                key = jax.random.key(4000 + seed)
                curves = mx.evaluate(loop, key, params, train, num_tasks=1)
                learned = jax.tree.map(lambda x: x[0], curves.state.learner)
                metrics = jax.jit(learner.metrics)(key, params, learned, test)
                online = np.asarray(curves.metrics["accuracy"][0])
                at = f"{name}, {len(hidden)} hidden, {which}"
                results[f"{at}: test"] = 100 * np.asarray(metrics["accuracy"])
                results[f"{at}: online"] = 100 * online.reshape(50, -1).mean(1)
                print(f"{at}: {float(results[f'{at}: test']):.2f} % of the test images", flush=True)
    return results


def claims(results: Results, settings: dict[str, Any]) -> list[Claim]:
    found = []
    for name in settings["data"]:
        for hidden in (0, 1):
            ours, sgd = (
                [r[f"{name}, {hidden} hidden, {w}: test"] for r in results] for w in ("vsml", "sgd")
            )
            where, key = f"{name}, {hidden} hidden layers", (name, hidden)
            if key in WANTED:
                text = f"Cloned learning, {where}: test accuracy >= {WANTED[key]} %"
                found.append(
                    claim(
                        text,
                        SOURCE,
                        f"{PUBLISHED[key]} %",
                        ours,
                        lambda x, key=key: x >= WANTED[key],
                    )
                )
            gap = [b - a for a, b in zip(ours, sgd, strict=True)]
            text = f"Cloned learning, {where}: points behind the same network under SGD <= 2"
            found.append(claim(text, SOURCE, None, gap, lambda x: x <= 2))
    drift = [r["drift"][-1] for r in results]
    spread = f"{settings['spread'] / 20:.3g} to {settings['spread']:g}"
    text = (
        f"Drift of a cell's weight and bias after 500 steps, for weights of spread {spread}: < 0.01"
    )
    found.append(claim(text, SOURCE, None, drift, lambda x: x < 0.01))
    relative = [r["relative_error_of_the_update"] for r in results]
    found.append(
        claim("Relative error of a single update < 5 %", SOURCE, None, relative, lambda x: x < 0.05)
    )
    return found


def picture(results: Results, settings: dict[str, Any], figure: Any) -> None:
    steps = (np.arange(50) + 0.5) * settings["steps"] / 50
    axes = figure.subplots(1, len(settings["data"]), sharey=True, squeeze=False)[0]
    for ax, name in zip(axes, settings["data"], strict=True):
        for i, (hidden, which) in enumerate([(0, "vsml"), (0, "sgd"), (1, "vsml"), (1, "sgd")]):
            curve = np.stack([r[f"{name}, {hidden} hidden, {which}: online"] for r in results])
            label = f"{'cloned' if which == 'vsml' else 'SGD'}, {hidden} hidden layer{'s' * (hidden != 1)}"
            style = "-" if which == "vsml" else "--"
            ax.plot(
                steps,
                curve.mean(0),
                style,
                color=mx.plot.COLOURS[[4, 4, 6, 6][i]],
                label=label,
                linewidth=1.5,
            )
            if (name, hidden) in PUBLISHED and which == "vsml":
                ax.axhline(
                    PUBLISHED[name, hidden],
                    color=mx.plot.COLOURS[[4, 4, 6, 6][i]],
                    linewidth=0.8,
                    linestyle=":",
                )
        ax.set(title=name, xlabel="examples seen", xscale="log")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="online accuracy (%)")
    axes[-1].legend(frameon=False, fontsize=8, title="dotted: published, test", title_fontsize=8)


_PHASES = [[1, 30_000, 1e-2], [1, 30_000, 2e-3]]  # horizon, steps, rate
EXPERIMENT = Experiment(
    title="Backpropagation cloned into forward dynamics",
    source=SOURCE,
    settings={
        "smoke": {
            "data": ["digits"], "size": 4, "hidden": 8, "units": 4, "rate": 0.01, "cells": 16, "spread": 0.5,
            "steps": 50,
            "phases": [[1, 200, 1e-2]],
        },
        "small": {
            "data": ["mnist", "fashion_mnist"], "size": 14, "hidden": 16, "units": 32, "rate": 0.004, "cells": 256,
            "spread": 0.7, "steps": 60_000, "phases": _PHASES,
        },
        "full": {
            "data": ["mnist", "fashion_mnist"], "size": 28, "hidden": 32, "units": 128, "rate": 0.001, "cells": 512,
            "spread": 0.7, "steps": 120_000, "phases": _PHASES,
        },
    },
    run=run,
    claims=claims,
    picture=picture,
)  # fmt: skip
