"""Regression of sinusoids from 5 and 10 points: MAML beside pretraining, an oracle and iMAML.

A step of iMAML is one of Newton's method on its inner problem, that of the others a gradient step.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx
from benchmarks.experiments._training import meta_train
from benchmarks.reproduce import Claim, Experiment, Results, claim

SOURCE = "Finn et al. 2017, section 5.1"
NAMES = ("MAML", "iMAML", "pretrained", "oracle")
STEPS = 10
GRID = np.linspace(-5, 5, 61)


def regressor(inputs: int) -> mx.Problem:
    """Two hidden layers of 40 ReLUs."""
    sizes, weights = (inputs, 40, 40, 1), jax.nn.initializers.glorot_uniform()

    def init(key):
        keys = jax.random.split(key, 3)
        pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
        return [{"w": weights(k, (m, n)), "b": jnp.zeros(n)} for k, m, n in pairs]

    return mx.problems.regressor(init, predict)


def predict(params: Any, x: Any) -> Any:
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def told(tasks: mx.Tasks) -> mx.Tasks:
    """The same with the amplitude and the phase as further inputs: what the oracle sees."""

    def add(task, batch):
        known = jnp.broadcast_to(
            jnp.stack([task["amplitude"], task["phase"]]), (len(batch["x"]), 2)
        )
        return {**batch, "x": jnp.concatenate([batch["x"], known], 1)}

    return tasks._replace(
        train=lambda key, data, task: add(task, tasks.train(key, data, task, t)),
        test=lambda key, data, task: add(task, tasks.test(key, data, task)),
    )


def run(seed: int, settings: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    s, rate, lam = settings, settings["rate"], settings["lam"]
    problem, tasks = regressor(1), mx.tasks.sinusoids(s["shots"], s["shots"])
    # Nothing in an implicit gradient keeps gradient steps of a fixed size stable; Newton's method
    # searches its own.
    cg = mx.implicit.cg(s["cg"])
    trained = {
        "MAML": (problem, mx.maml(problem, rate), tasks),
        "iMAML": (problem, mx.imaml(problem, mx.implicit.newton(s["newton"], cg), cg, lam), tasks),
        # With the rate 0, meta-training is training on all tasks at once.
        "pretrained": (problem, mx.maml(problem, 0.0), tasks),
        "oracle": (regressor(3), mx.maml(regressor(3), 0.0), told(tasks)),
    }
    params = {}
    for name, (p, learner, its_tasks) in trained.items():
        loop = mx.inner(learner, its_tasks, 1, meta_loss="heldout")
        params[name] = meta_train(
            mx.bptt(loop, s["tasks"]), optax.adam(1e-3), jax.random.key(seed), p.init(jax.random.key(100 + seed), ()),
            steps=s["steps"][name], folder=folder / name, chunk=s["chunk"],
        )  # fmt: skip

    results, key = {}, jax.random.key(200 + seed)
    tuned = mx.adapt(
        problem, lambda m: optax.sgd(m["rate"]), start=lambda m: m["params"], second_order=False
    )
    # A step of iMAML goes on from where the last has come to.
    adapts = {
        "MAML": mx.maml(problem, rate),
        "iMAML": mx.imaml(problem, mx.implicit.newton(1, cg), cg, lam),
    }
    candidates = {name: [params[name]] for name in adapts}
    adapts["pretrained"] = tuned
    candidates["pretrained"] = [
        {"params": params["pretrained"], "rate": jnp.float32(r)} for r in s["rates"]
    ]
    for shots in s["test"]:
        tasks = mx.tasks.sinusoids(shots, queries=100)
        for name, learner in adapts.items():
            # The rate of the pretrained network is the best on the very tasks that are reported.
            grid = query_errors(learner, tasks, key, candidates[name], s["test_tasks"])
            best = int(
                np.argmin(np.nan_to_num([errors[:, -1].mean() for errors in grid], nan=np.inf))
            )
            results[f"K={shots}, {name}"] = grid[best].mean(0)
            results[f"K={shots}, {name}: error"] = (
                1.96 * grid[best].std(0, ddof=1) / s["test_tasks"] ** 0.5
            )
            if name == "pretrained":
                results[f"K={shots}, {name}: rate"] = np.asarray(s["rates"][best])
            if shots == s["test"][0]:
                results |= example(
                    name, learner, tasks, jax.random.key(300 + seed), candidates[name][best]
                )
        loop = mx.inner(mx.maml(regressor(3), 0.0), told(tasks), 1)
        errors = mx.evaluate(loop, key, params["oracle"], num_tasks=s["test_tasks"]).test_loss
        results[f"K={shots}, oracle"] = np.full(STEPS + 1, errors.mean())
        for name in NAMES:
            told_at = ", ".join(f"{results[f'K={shots}, {name}'][i]:.3f}" for i in (0, 1, 5, 10))
            print(f"K={shots}, {name}: MSE after 0, 1, 5, 10 steps: {told_at}", flush=True)
    return results


def query_errors(
    learner: mx.Learner, tasks: mx.Tasks, key: Any, candidates: list[Any], n: int
) -> list[np.ndarray]:
    """For each of the meta-parameters, the mean squared error on the query points after 0 .. 10
    steps, ``[n, 11]``.
    """
    loop = mx.inner(learner, tasks, STEPS)

    def one(key, meta_params):
        def body(state, _):
            return loop.step(meta_params, state, ())[0], loop.test(meta_params, state, ())

        state, losses = jax.lax.scan(body, loop.init(key, meta_params, ()), None, length=STEPS)
        return jnp.append(losses, loop.test(meta_params, state, ()))

    every = jax.jit(jax.vmap(one, (0, None)))
    return [np.asarray(every(jax.random.split(key, n), meta_params)) for meta_params in candidates]


def example(
    name: str, learner: mx.Learner, tasks: mx.Tasks, key: Any, params: Any
) -> dict[str, np.ndarray]:
    """What is predicted on one task after 0, 1 and 10 steps, the truth, and the points that were
    given.
    """
    loop = mx.inner(learner, tasks, STEPS)
    start = jax.jit(loop.init)(key, params, ())
    states = {0: start} | {
        n: jax.jit(mx.unroll, static_argnums=(0, 4))(loop, params, start, (), n)[0]
        for n in (1, STEPS)
    }
    task = jax.tree.map(np.asarray, start.task)
    found = {
        f"{name}, after {n}": predict(x.learner.params, GRID[:, None])[:, 0]
        for n, x in states.items()
    }
    found["truth"] = task["amplitude"] * np.sin(GRID - task["phase"])
    found["points"] = np.concatenate([task["support"]["x"], task["support"]["y"]], 1)
    return {f"example: {k}": np.asarray(v) for k, v in found.items()}


def claims(results: Results, settings: dict[str, Any]) -> list[Claim]:
    few, many = settings["test"]

    def of(shots, name, step):
        return [r[f"K={shots}, {name}"][step] for r in results]

    def ratio(a, b):
        return [x / y for x, y in zip(a, b, strict=True)]

    table = f"{SOURCE} and appendix, 5-shot sinusoids"
    found = []
    for step, published, wanted in ((1, 0.67, 1.0), (5, 0.38, 0.6), (10, 0.35, 0.55)):
        text = f"MAML, K = {few}: mean squared error after {step} gradient steps < {wanted}"
        found.append(
            claim(
                text, table, published, of(few, "MAML", step), lambda x, wanted=wanted: x < wanted
            )
        )
    text = f"Pretrained on all tasks, K = {few}: mean squared error after 10 steps > 1.5"
    found.append(claim(text, table, 2.19, of(few, "pretrained", 10), lambda x: x > 1.5))
    for shots in (few, many):
        text = f"K = {shots}: MAML's error over that of pretraining, after 10 steps, < 0.5"
        found.append(
            claim(
                text, f"{SOURCE}, figure 3", "well below", ratio(of(shots, "MAML", 10), of(shots, "pretrained", 10)),
                lambda x: x < 0.5,
            )
        )  # fmt: skip
        text = f"K = {shots}: MAML goes on improving beyond the one step it was trained for: error after 10 over 1 < 1"
        found.append(
            claim(
                text, f"{SOURCE}, figure 3", "improves", ratio(of(shots, "MAML", 10), of(shots, "MAML", 1)),
                lambda x: x < 1,
            )
        )  # fmt: skip
    text = f"The oracle, K = {few}: mean squared error < 0.1"
    found.append(
        claim(text, f"{SOURCE}, figure 3", "near 0", of(few, "oracle", 0), lambda x: x < 0.1)
    )
    text = f"iMAML, K = {few}: its error after 10 steps of Newton's method over that of pretraining < 0.5"
    found.append(
        claim(
            text, "this package", None, ratio(of(few, "iMAML", 10), of(few, "pretrained", 10)), lambda x: x < 0.5
        )
    )  # fmt: skip
    return found


def picture(results: Results, settings: dict[str, Any], figure: Any) -> None:
    fit, *axes = figure.subplots(1, 3)
    first = results[0]
    fit.plot(GRID, first["example: truth"], color=mx.plot.COLOURS[4], linewidth=1.2, label="truth")
    for n, style in ((0, ":"), (1, "--"), (STEPS, "-")):
        fit.plot(
            GRID, first[f"example: MAML, after {n}"], "k" + style, linewidth=1.3, label=f"MAML, {n}"
        )
    after = first[f"example: pretrained, after {STEPS}"]
    fit.plot(
        GRID,
        after,
        color=mx.plot.COLOURS[2],
        linewidth=1.2,
        linestyle="-.",
        label=f"pretrained, {STEPS}",
    )
    fit.plot(
        *first["example: points"].T, "^", color=mx.plot.COLOURS[6], markersize=6, label="given"
    )
    low, high = fit.get_ylim()
    fit.set(
        title=f"K = {settings['test'][0]}, one task",
        xlabel="x",
        ylabel="y",
        ylim=(low, high + 0.6 * (high - low)),
    )
    fit.legend(
        frameon=False,
        fontsize=7,
        ncols=2,
        loc="upper center",
        columnspacing=0.8,
        title="curve, gradient steps",
    )
    for ax, shots in zip(axes, settings["test"], strict=True):
        for i, name in enumerate(NAMES):
            mean = np.stack([r[f"K={shots}, {name}"] for r in results]).mean(0)
            style = {"color": mx.plot.COLOURS[(0, 4, 2, 3)[i]], "linestyle": mx.plot.STYLES[i]}
            ax.plot(
                range(STEPS + 1),
                mean,
                marker="os^"[i] if i < 3 else None,
                markersize=3,
                label="iMAML (Newton)" if name == "iMAML" else name,
                **style,
            )
        top = 1.1 * max(np.mean([r[f"K={shots}, {name}"][0] for r in results]) for name in NAMES)
        ax.set(title=f"K = {shots}", xlabel="steps", ylim=(0, top), xticks=range(0, STEPS + 1, 2))
    axes[0].set(ylabel="mean squared error")
    axes[1].legend(frameon=False, fontsize=8)
    for ax in (fit, *axes):
        ax.spines[["top", "right"]].set_visible(False)


_SETTINGS = {
    "rate": 0.01, "shots": 10, "tasks": 25, "newton": 5, "cg": 5, "lam": 0.5, "chunk": 1000,
    "test": [5, 10], "rates": [0.02, 0.01, 0.005, 0.002, 0.001],  # of the pretrained network; published 0.01 and 0.02
}  # fmt: skip
EXPERIMENT = Experiment(
    title="Sinusoids from a few points",
    source=f"{SOURCE}, figures 2 and 3",
    settings={
        "smoke": {**_SETTINGS, "steps": dict.fromkeys(NAMES, 50), "test_tasks": 20, "chunk": 25},
        "small": {
            **_SETTINGS,
            "steps": dict.fromkeys(NAMES, 70_000) | {"iMAML": 10_000},
            "test_tasks": 600,
        },
        "full": {**_SETTINGS, "steps": dict.fromkeys(NAMES, 70_000), "test_tasks": 600},
    },
    run=run,
    claims=claims,
    picture=picture,
)
