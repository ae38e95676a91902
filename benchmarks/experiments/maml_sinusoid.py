"""Regression of sinusoids from 5 and 10 points: MAML beside pretraining, an oracle and iMAML.

A step of iMAML is one of Newton's method on its inner problem, that of the others a gradient step.
"""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx
from benchmarks.experiments._training import Run, meta_train
from benchmarks.reproduce import (
    Claim,
    Experiment,
    Result,
    Results,
    Settings,
    above,
    below,
    claim,
)

SOURCE = "Finn et al. 2017, section 5.1"
NAMES = ("MAML", "iMAML", "pretrained", "oracle")
STEPS = 10
GRID = np.linspace(-5, 5, 61)


def regressor(inputs: int) -> mx.Problem:
    """Two hidden layers of 40 ReLUs."""
    sizes = (inputs, 40, 40, 1)
    weights = jax.nn.initializers.glorot_uniform()

    def init(key):
        keys = jax.random.split(key, 3)
        layers = []
        for k, (fan_in, fan_out) in zip(keys, pairwise(sizes), strict=True):
            layers.append({"w": weights(k, (fan_in, fan_out)), "b": jnp.zeros(fan_out)})
        return layers

    def apply(params, x):
        *hidden, last = params
        for layer in hidden:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return x @ last["w"] + last["b"]

    return mx.problems.regressor(init, apply)


def known_sinusoids(tasks: mx.Tasks) -> mx.Tasks:
    """The same with the amplitude and the phase as further inputs: what the oracle sees."""

    def with_known(task, batch):
        known = jnp.stack([task["amplitude"], task["phase"]])
        known = jnp.broadcast_to(known, (len(batch["x"]), 2))
        return {**batch, "x": jnp.concatenate([batch["x"], known], 1)}

    def train(key, data, task):
        return with_known(task, tasks.train(key, data, task))

    def test(key, data, task):
        return with_known(task, tasks.test(key, data, task))

    return replace(tasks, train=train, test=test)


def imaml(settings: Settings, problem: mx.Problem, newton_steps: int) -> mx.Learner:
    """Nothing in an implicit gradient keeps gradient steps of a fixed size stable.

    Newton's method searches its own.
    """
    cg = mx.implicit.cg(settings["cg"])
    return mx.imaml(
        problem,
        mx.implicit.newton(newton_steps, cg),
        cg,
        settings["lam"],
    )


def run(seed: int, settings: Settings, folder: Path) -> Result:
    params = trained(seed, settings, folder)
    learners = adapting(settings)
    candidates = {name: [params[name]] for name in learners}
    candidates["pretrained"] = [
        {"params": params["pretrained"], "rate": jnp.float32(rate)}
        for rate in settings["rates"]
    ]

    num_tasks = settings["test_tasks"]
    key = jax.random.key(200 + seed)
    results = {}
    for shots in settings["test"]:
        tasks = mx.tasks.sinusoids(shots, queries=100)
        for name, learner in learners.items():
            # The rate of the pretrained network is the best on the very tasks that are reported.
            errors = query_errors(learner, tasks, key, candidates[name], num_tasks)
            last = [candidate[:, -1].mean() for candidate in errors]
            best = int(np.argmin(np.nan_to_num(last, nan=np.inf)))
            interval = 1.96 * errors[best].std(0, ddof=1) / num_tasks**0.5
            results[f"K={shots}, {name}"] = errors[best].mean(0)
            results[f"K={shots}, {name}: error"] = interval
            if name == "pretrained":
                results[f"K={shots}, {name}: rate"] = np.asarray(
                    settings["rates"][best]
                )
            if shots == settings["test"][0]:
                example_key = jax.random.key(300 + seed)
                results |= example(
                    name, learner, tasks, example_key, candidates[name][best]
                )

        error = oracle_error(tasks, key, params["oracle"], num_tasks)
        results[f"K={shots}, oracle"] = np.full(STEPS + 1, error)
        for name in NAMES:
            curve = results[f"K={shots}, {name}"]
            shown = ", ".join(f"{curve[i]:.3f}" for i in (0, 1, 5, 10))
            print(
                f"K={shots}, {name}: MSE after 0, 1, 5, 10 steps: {shown}", flush=True
            )
    return results


def trained(seed: int, settings: Settings, folder: Path) -> dict[str, Any]:
    """What each of the methods comes to in meta-training."""
    problem = regressor(1)
    tasks = mx.tasks.sinusoids(settings["shots"], settings["shots"])
    methods = {
        "MAML": (mx.maml(problem, settings["rate"]), tasks),
        "iMAML": (imaml(settings, problem, settings["newton"]), tasks),
        # With the rate 0, meta-training is training on all tasks at once.
        "pretrained": (mx.maml(problem, 0.0), tasks),
        "oracle": (mx.maml(regressor(3), 0.0), known_sinusoids(tasks)),
    }
    params = {}
    for name, (learner, its_tasks) in methods.items():
        loop = mx.inner(learner, its_tasks, 1, meta_loss="heldout")
        params[name] = meta_train(
            mx.bptt(loop, settings["tasks"]),
            optax.adam(1e-3),
            jax.random.key(seed),
            learner.meta(jax.random.key(100 + seed)),
            (),
            Run(folder / name, settings["steps"][name], settings["chunk"]),
        )
    return params


def adapting(settings: Settings) -> dict[str, mx.Learner]:
    """What is tested, a step at a time; one of iMAML goes on from where the last has come to."""
    problem = regressor(1)
    tuned = mx.adapt(
        problem,
        lambda meta_params: optax.sgd(meta_params["rate"]),
        start=lambda meta_params: meta_params["params"],
        second_order=False,
    )
    return {
        "MAML": mx.maml(problem, settings["rate"]),
        "iMAML": imaml(settings, problem, 1),
        "pretrained": tuned,
    }


def query_errors(
    learner: mx.Learner,
    tasks: mx.Tasks,
    key: Any,
    candidates: list[Any],
    num_tasks: int,
) -> list[np.ndarray]:
    """Mean squared errors on the query points after 0 .. 10 steps.

    There is an array ``[num_tasks, 11]`` for each of the meta-parameters.
    """
    loop = mx.inner(learner, tasks, STEPS)

    def error(meta_params, state):
        loss, _ = loop.test(meta_params, state, ())
        return loss

    def errors_of_task(key, meta_params):
        def body(state, _):
            new, _ = loop.step(meta_params, state, ())
            return new, error(meta_params, state)

        start = loop.init(key, meta_params, ())
        state, errors = jax.lax.scan(body, start, None, length=STEPS)
        return jnp.append(errors, error(meta_params, state))

    errors_of_tasks = jax.jit(jax.vmap(errors_of_task, (0, None)))
    keys = jax.random.split(key, num_tasks)
    return [
        np.asarray(errors_of_tasks(keys, meta_params)) for meta_params in candidates
    ]


def oracle_error(
    tasks: mx.Tasks,
    key: Any,
    meta_params: Any,
    num_tasks: int,
) -> float:
    """The mean squared error of the oracle, which does not adapt."""
    loop = mx.inner(mx.maml(regressor(3), 0.0), known_sinusoids(tasks), 1)
    curves = mx.evaluate(loop, key, meta_params, num_tasks=num_tasks)
    return float(curves.test_loss.mean())


def example(
    name: str,
    learner: mx.Learner,
    tasks: mx.Tasks,
    key: Any,
    meta_params: Any,
) -> dict[str, np.ndarray]:
    """Predictions on one task after 0, 1 and 10 steps, the truth, and the points given."""
    loop = mx.inner(learner, tasks, STEPS)
    unroll = jax.jit(mx.unroll, static_argnums=(0, 4))
    start = jax.jit(loop.init)(key, meta_params, ())
    states = {0: start}
    for steps in (1, STEPS):
        states[steps], _, _ = unroll(
            loop,
            meta_params,
            start,
            (),
            steps,
        )

    task = jax.tree.map(np.asarray, start.task)
    found = {}
    for steps, state in states.items():
        predictions = learner.predict(
            key,
            meta_params,
            state.learner,
            GRID[:, None],
        )
        found[f"example: {name}, after {steps}"] = np.asarray(predictions[:, 0])
    found["example: truth"] = task["amplitude"] * np.sin(GRID - task["phase"])
    support = task["support"]
    found["example: points"] = np.concatenate([support["x"], support["y"]], 1)
    return found


def claims(results: Results, settings: Settings) -> list[Claim]:
    few, many = settings["test"]
    return [
        *_level_claims(results, few),
        *_comparison_claims(results, few),
        *_comparison_claims(results, many),
        _oracle_claim(results, few),
        _imaml_claim(results, few),
    ]


def _level_claims(results: Results, shots: int) -> list[Claim]:
    table = f"{SOURCE} and appendix, 5-shot sinusoids"
    found = []
    for step, published, wanted in ((1, 0.67, 1.0), (5, 0.38, 0.6), (10, 0.35, 0.55)):
        errors = _errors(results, shots, "MAML", step)
        text = f"MAML, K = {shots}: mean squared error after {step} gradient steps < {wanted}"
        found.append(claim(text, table, published, errors, below(wanted)))

    pretrained = _errors(results, shots, "pretrained", 10)
    text = (
        f"Pretrained on all tasks, K = {shots}: mean squared error after 10 steps > 1.5"
    )
    found.append(claim(text, table, 2.19, pretrained, above(1.5)))
    return found


def _comparison_claims(results: Results, shots: int) -> list[Claim]:
    figure = f"{SOURCE}, figure 3"
    maml = _errors(results, shots, "MAML", 10)
    after_one = _errors(results, shots, "MAML", 1)
    pretrained = _errors(results, shots, "pretrained", 10)
    over_pretraining = _ratios(maml, pretrained)
    over_one_step = _ratios(maml, after_one)

    text = f"K = {shots}: MAML's error over that of pretraining, after 10 steps, < 0.5"
    further = (
        f"K = {shots}: MAML goes on improving beyond the one step it was trained for"
    )
    further += ": error after 10 over 1 < 1"
    return [
        claim(text, figure, "well below", over_pretraining, below(0.5)),
        claim(further, figure, "improves", over_one_step, below(1)),
    ]


def _oracle_claim(results: Results, shots: int) -> Claim:
    figure = f"{SOURCE}, figure 3"
    oracle = _errors(results, shots, "oracle", 0)
    text = f"The oracle, K = {shots}: mean squared error < 0.1"
    return claim(text, figure, "near 0", oracle, below(0.1))


def _imaml_claim(results: Results, shots: int) -> Claim:
    imaml = _errors(results, shots, "iMAML", 10)
    pretrained = _errors(results, shots, "pretrained", 10)
    over_pretraining = _ratios(imaml, pretrained)
    text = f"iMAML, K = {shots}: its error after 10 steps of Newton's method"
    text += " over that of pretraining < 0.5"
    return claim(text, "this package", None, over_pretraining, below(0.5))


def _errors(
    results: Results,
    shots: int,
    name: str,
    step: int,
) -> list[float]:
    return [result[f"K={shots}, {name}"][step] for result in results]


def _ratios(numerators: list[float], denominators: list[float]) -> list[float]:
    return [x / y for x, y in zip(numerators, denominators, strict=True)]


def picture(results: Results, settings: Settings, figure: Any) -> None:
    fit, *axes = figure.subplots(1, 3)
    _draw_example(results[0], fit)
    fit.set(title=f"K = {settings['test'][0]}, one task")
    for ax, shots in zip(axes, settings["test"], strict=True):
        _draw_errors(results, shots, ax)
    axes[0].set(ylabel="mean squared error")
    axes[1].legend(frameon=False, fontsize=8)
    for ax in (fit, *axes):
        ax.spines[["top", "right"]].set_visible(False)


def _draw_example(result: dict[str, np.ndarray], ax: Any) -> None:
    colours = mx.plot.COLOURS
    ax.plot(
        GRID,
        result["example: truth"],
        color=colours[4],
        linewidth=1.2,
        label="truth",
    )
    for steps, style in ((0, ":"), (1, "--"), (STEPS, "-")):
        curve = result[f"example: MAML, after {steps}"]
        ax.plot(GRID, curve, "k" + style, linewidth=1.3, label=f"MAML, {steps}")
    ax.plot(
        GRID,
        result[f"example: pretrained, after {STEPS}"],
        color=colours[2],
        linewidth=1.2,
        linestyle="-.",
        label=f"pretrained, {STEPS}",
    )
    x, y = result["example: points"].T
    ax.plot(
        x,
        y,
        "^",
        color=colours[6],
        markersize=6,
        label="given",
    )

    low, high = ax.get_ylim()
    top = high + 0.6 * (high - low)  # room for the legend
    ax.set(
        xlabel="x",
        ylabel="y",
        ylim=(low, top),
    )
    ax.legend(
        frameon=False,
        fontsize=7,
        ncols=2,
        loc="upper center",
        columnspacing=0.8,
        title="curve, gradient steps",
    )


def _draw_errors(results: Results, shots: int, ax: Any) -> None:
    means = {}
    for name in NAMES:
        curves = [result[f"K={shots}, {name}"] for result in results]
        means[name] = np.stack(curves).mean(0)
    colours = [mx.plot.COLOURS[i] for i in (0, 4, 2, 3)]
    markers = ("o", "s", "^", None)
    for i, (name, mean) in enumerate(means.items()):
        ax.plot(
            range(STEPS + 1),
            mean,
            color=colours[i],
            linestyle=mx.plot.STYLES[i],
            marker=markers[i],
            markersize=3,
            label="iMAML (Newton)" if name == "iMAML" else name,
        )
    top = 1.1 * max(mean[0] for mean in means.values())
    ax.set(
        title=f"K = {shots}",
        xlabel="steps",
        ylim=(0, top),
        xticks=range(0, STEPS + 1, 2),
    )


_SETTINGS = {
    "rate": 0.01,
    "shots": 10,
    "tasks": 25,
    "newton": 5,
    "cg": 5,
    "lam": 0.5,
    "chunk": 1000,
    "test": [5, 10],
    # Of the pretrained network; published are 0.01 and 0.02.
    "rates": [0.02, 0.01, 0.005, 0.002, 0.001],
}
_LONG = dict.fromkeys(NAMES, 70_000)
_SMOKE = {**_SETTINGS, "steps": dict.fromkeys(NAMES, 50), "test_tasks": 20, "chunk": 25}
_SMALL = {**_SETTINGS, "steps": _LONG | {"iMAML": 10_000}, "test_tasks": 600}
_FULL = {**_SETTINGS, "steps": _LONG, "test_tasks": 600}
EXPERIMENT = Experiment(
    title="Sinusoids from a few points",
    source=f"{SOURCE}, figures 2 and 3",
    settings={"smoke": _SMOKE, "small": _SMALL, "full": _FULL},
    run=run,
    claims=claims,
    picture=picture,
)
