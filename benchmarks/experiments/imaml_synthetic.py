"""The error of meta-gradients against inner gradient steps, on linear regression.

There the exact meta-gradient is known.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
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
    below,
    claim,
)

SOURCE = "Rajeswaran et al. 2019, section 4, figure 2a"


def run(seed: int, settings: Settings, folder: Path) -> Result:
    with jax.enable_x64(True):  # errors of 1e-12 are told apart
        return errors(seed, settings)


def errors(seed: int, settings: Settings) -> dict[str, np.ndarray]:
    """The relative error ``|g - exact| / |exact|`` of a mean meta-gradient ``g``, by method.

    All are of the same tasks.
    """
    size = settings["size"]
    lam = settings["lam"]
    problem = mx.problems.regressor(
        lambda key: jnp.zeros((size, 1)), lambda w, x: x @ w
    )
    k_theta, k_tasks = jax.random.split(jax.random.key(seed))
    theta = jax.random.normal(k_theta, (size, 1))
    keys = jax.random.split(k_tasks, settings["tasks"])
    tasks = mx.tasks.linear_regressions(
        size,
        settings["shots"],
        settings["queries"],
        condition=settings["condition"],
        noise=settings["noise"],
    )
    drawn = drawn_tasks(problem, tasks, keys, theta)
    exact, steepest = closed_form(
        drawn["support"],
        drawn["query"],
        np.asarray(theta),
        lam,
    )
    rate = 1 / steepest

    def error(learner, steps=1):
        estimate = meta_gradient(learner, tasks, steps, keys, theta)
        return np.linalg.norm(estimate - exact) / np.linalg.norm(exact)

    def implicit(solver, linear_solver):
        return error(mx.imaml(problem, solver, linear_solver, lam))

    def descend(steps):
        return mx.implicit.descend(optax.sgd(rate), steps)

    maml = proximal_descent(problem, rate, lam)
    to_the_solution = mx.implicit.newton(1, mx.implicit.direct())
    results: dict[str, Any] = {
        "MAML": [error(maml, steps) for steps in settings["steps"]]
    }
    for products in settings["cg"]:
        cg = mx.implicit.cg(products)
        name = f"iMAML, {products} CG"
        results[name] = [implicit(descend(steps), cg) for steps in settings["steps"]]
        results[f"{name}: at the solution"] = implicit(to_the_solution, cg)
    results["converged"] = implicit(
        descend(settings["converged"]), mx.implicit.cg(2 * size)
    )
    results["condition number"] = steepest / lam  # at most
    return {name: np.asarray(x) for name, x in results.items()}


def drawn_tasks(
    problem: mx.Problem,
    tasks: mx.Tasks,
    keys: Any,
    theta: Any,
) -> Any:
    """The tasks of episodes that begin with these keys."""
    loop = mx.inner(mx.maml(problem, 0.1), tasks, 1)

    def task_of(key):
        return loop.init(key, theta, ()).task

    return jax.tree.map(np.asarray, jax.vmap(task_of)(keys))


def meta_gradient(
    learner: mx.Learner,
    tasks: mx.Tasks,
    steps: int,
    keys: Any,
    theta: Any,
) -> np.ndarray:
    """The mean over episodes of ``steps`` inner steps."""
    loop = mx.inner(learner, tasks, steps, meta_loss="heldout")

    def mean_loss(theta):
        def loss(key):
            start = loop.init(key, theta, ())
            _, meta_loss, _ = mx.unroll(
                loop,
                theta,
                start,
                (),
                steps,
            )
            return meta_loss

        return jax.vmap(loss)(keys).mean()

    return np.asarray(jax.jit(jax.grad(mean_loss))(theta))


def proximal_descent(problem: mx.Problem, rate: float, lam: float) -> mx.Learner:
    """Gradient descent on the inner objective of iMAML, a step at a time.

    It is what MAML would differentiate through.
    """

    def make_tx(theta):
        def pull(grads, params):
            return jax.tree.map(
                lambda g, p, t: g + lam * (p - t),
                grads,
                params,
                theta,
            )

        return optax.chain(optax.stateless(pull), optax.sgd(rate))

    return mx.adapt(problem, make_tx)


def closed_form(
    support: Any,
    query: Any,
    theta: np.ndarray,
    lam: float,
) -> tuple[np.ndarray, float]:
    """The mean over tasks of ``lam (H + lam I)^-1 grad L_val(phi*)``.

    And the greatest eigenvalue of ``H + lam I``.
    """
    gradients = []
    steepest = 0.0
    data = (support["x"], support["y"], query["x"], query["y"])
    for x, y, x_query, y_query in zip(*data, strict=True):
        system = 2 * x.T @ x / len(x) + lam * np.eye(x.shape[1])
        phi = np.linalg.solve(system, 2 * x.T @ y / len(x) + lam * theta)
        query_gradient = 2 * x_query.T @ (x_query @ phi - y_query) / len(x_query)
        gradients.append(lam * np.linalg.solve(system, query_gradient))
        steepest = max(steepest, float(np.linalg.eigvalsh(system)[-1]))
    return np.mean(gradients, 0), steepest


def claims(results: Results, settings: Settings) -> list[Claim]:
    few, enough = settings["cg"][:2]
    last = settings["steps"][-1]
    early = settings["judged"]
    num_early = settings["steps"].index(early) + 1
    with_few = f"iMAML, {few} CG"
    with_enough = f"iMAML, {enough} CG"

    worst_ratio = []
    left = []
    off_level = []
    for result in results:
        ratio = result[with_enough][:num_early] / result["MAML"][:num_early]
        worst_ratio.append(np.max(ratio))
        left.append(result[with_few][-1] / result[with_enough][-1])
        levels = [
            result[name][-1] / result[f"{name}: at the solution"]
            for name in (with_few, with_enough)
        ]
        off_level.append(max(abs(level - 1) for level in levels))

    converged = [result["converged"] for result in results]
    maml = [result["MAML"][-1] for result in results]
    imaml = [result[with_enough][-1] for result in results]
    after = f"after {last} inner steps"
    texts = [
        "Implicit meta-gradient, both solves converged: relative error against the closed form"
        " < 1e-8",
        f"MAML approaches the exact meta-gradient: relative error {after} < 1 %",
        f"iMAML with {enough} CG steps approaches it: relative error {after} < 2 %",
        f"iMAML ({enough} CG) is better after few steps: its error over MAML's, the greatest up to"
        f" {early}, < 1",
        f"{few} CG steps leave an error: it is over 5 times that with {enough}, {after}",
        f"The CG steps alone set the level that is reached: relative difference {after} < 1 %",
    ]
    return [
        claim(texts[0], SOURCE, "exact", converged, below(1e-8)),
        claim(texts[1], SOURCE, "asymptotically exact", maml, below(0.01)),
        claim(texts[2], SOURCE, "asymptotically exact", imaml, below(0.02)),
        claim(texts[3], SOURCE, "better", worst_ratio, below(1)),
        claim(texts[4], SOURCE, "small terminal error", left, above(5)),
        claim(texts[5], SOURCE, None, off_level, below(0.01)),
    ]


def picture(results: Results, settings: Settings, figure: Any) -> None:
    ax = figure.subplots()
    steps = settings["steps"]
    colours = [mx.plot.COLOURS[i] for i in (0, 1, 4, 6, 3)]
    labels = {"MAML": "MAML"}
    for products in settings["cg"]:
        labels[f"iMAML, {products} CG"] = f"iMAML, {products} CG steps"
    for i, (name, label) in enumerate(labels.items()):
        logarithms = [np.log(result[name]) for result in results]
        geometric_mean = np.exp(np.stack(logarithms).mean(0))
        ax.plot(
            steps,
            geometric_mean,
            color=colours[i],
            linewidth=2.2 if i == 0 else 1.5,
            linestyle=mx.plot.STYLES[i],
            marker="os^Dv"[i],
            markersize=4,
            label=label,
        )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="inner gradient steps",
        ylabel="relative error of the meta-gradient",
    )
    ax.set_xticks(steps, [str(t) for t in steps], minor=False)
    ax.minorticks_off()
    ax.set(ylim=(1e-10, 3))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
    )


_PROBLEM = {
    "size": 20,
    "shots": 40,
    "queries": 40,
    "condition": 50.0,
    "noise": 0.1,
    "lam": 1.0,
    "judged": 8,
    "converged": 500,
}
_STEPS = [1, 2, 4, 8, 16, 32, 64]
EXPERIMENT = Experiment(
    title="The error of meta-gradients against inner gradient steps",
    source=SOURCE,
    settings={
        "smoke": {**_PROBLEM, "tasks": 4, "steps": [1, 8, 64], "cg": [2, 5]},
        "small": {**_PROBLEM, "tasks": 32, "steps": _STEPS, "cg": [2, 5, 10]},
        "full": {**_PROBLEM, "tasks": 512, "steps": _STEPS, "cg": [2, 5, 10]},
    },
    run=run,
    claims=claims,
    picture=picture,
    seeds=5,
)
