"""The error of meta-gradients on linear regression, where the exact one is known, against inner
gradient steps.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx
from benchmarks.reproduce import Claim, Experiment, Results, claim

SOURCE = "Rajeswaran et al. 2019, section 4, figure 2a"


def run(seed: int, settings: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    with jax.enable_x64(True):  # errors of 1e-12 are told apart
        return errors(seed, settings)


def errors(seed: int, s: dict[str, Any]) -> dict[str, np.ndarray]:
    """The relative error ``|g - exact| / |exact|`` of the mean meta-gradient ``g`` of the same
    tasks, by method.
    """
    size, lam = s["size"], s["lam"]
    tasks = mx.tasks.linear_regressions(
        size, s["shots"], s["queries"], condition=s["condition"], noise=s["noise"]
    )
    problem = mx.problems.regressor(lambda key: jnp.zeros((size, 1)), lambda w, x: x @ w)
    k_theta, k_tasks = jax.random.split(jax.random.key(seed))
    theta, keys = jax.random.normal(k_theta, (size, 1)), jax.random.split(k_tasks, s["tasks"])

    def meta_gradient(learner, steps):
        loop = mx.inner(learner, tasks, steps, meta_loss="heldout")

        def loss(theta):
            return jax.vmap(
                lambda key: mx.unroll(loop, theta, loop.init(key, theta, ()), (), steps)[1]
            )(keys).mean()

        return np.asarray(jax.jit(jax.grad(loss))(theta))

    any_loop = mx.inner(mx.maml(problem, 0.1), tasks, 1)
    drawn = jax.tree.map(np.asarray, jax.vmap(lambda key: any_loop.init(key, theta, ()).task)(keys))
    exact, steepest = closed_form(drawn["support"], drawn["query"], np.asarray(theta), lam)
    rate = 1 / steepest

    def error(learner, steps=1):
        return np.linalg.norm(meta_gradient(learner, steps) - exact) / np.linalg.norm(exact)

    def implicit(solver, linear_solver):
        return error(mx.imaml(problem, solver, linear_solver, lam))

    def descend(steps):
        return mx.implicit.descend(optax.sgd(rate), steps)

    at_solution = mx.implicit.newton(1, mx.implicit.direct())
    results: dict[str, Any] = {
        "MAML": [error(proximal_descent(problem, rate, lam), steps) for steps in s["steps"]]
    }
    for k in s["cg"]:
        results[f"iMAML, {k} CG"] = [
            implicit(descend(steps), mx.implicit.cg(k)) for steps in s["steps"]
        ]
        results[f"iMAML, {k} CG: at the solution"] = implicit(at_solution, mx.implicit.cg(k))
    results["converged"] = implicit(descend(s["converged"]), mx.implicit.cg(2 * size))
    results["condition number"] = steepest / lam  # at most
    return {k: np.asarray(v) for k, v in results.items()}


def proximal_descent(problem: mx.Problem, rate: float, lam: float) -> mx.Learner:
    """Gradient descent on the inner objective of iMAML step by step: what MAML would differentiate
    through.
    """

    def make_tx(theta):
        def pull(grads, params):
            return jax.tree.map(lambda g, p, t: g + lam * (p - t), grads, params, theta)

        return optax.chain(optax.stateless(pull), optax.sgd(rate))

    return mx.adapt(problem, make_tx)


def closed_form(
    support: Any, query: Any, theta: np.ndarray, lam: float
) -> tuple[np.ndarray, float]:
    """The mean over tasks of ``lam (H + lam I)^-1 grad L_val(phi*)``, and the greatest eigenvalue
    of ``H + lam I``.
    """
    gradients, steepest = [], 0.0
    for x, y, x_val, y_val in zip(support["x"], support["y"], query["x"], query["y"], strict=True):
        system = 2 * x.T @ x / len(x) + lam * np.eye(x.shape[1])
        phi = np.linalg.solve(system, 2 * x.T @ y / len(x) + lam * theta)
        gradients.append(
            lam * np.linalg.solve(system, 2 * x_val.T @ (x_val @ phi - y_val) / len(x_val))
        )
        steepest = max(steepest, float(np.linalg.eigvalsh(system)[-1]))
    return np.mean(gradients, 0), steepest


def claims(results: Results, settings: dict[str, Any]) -> list[Claim]:
    few, enough = settings["cg"][:2]
    last, early = settings["steps"][-1], settings["judged"]
    at = settings["steps"].index(early)

    def of(name, i):
        return [r[name][i] for r in results]

    def off_level(r):
        return max(
            abs(r[f"iMAML, {k} CG"][-1] / r[f"iMAML, {k} CG: at the solution"] - 1)
            for k in (few, enough)
        )

    ratio = [np.max(r[f"iMAML, {enough} CG"][: at + 1] / r["MAML"][: at + 1]) for r in results]
    worse = [r[f"iMAML, {few} CG"][-1] / r[f"iMAML, {enough} CG"][-1] for r in results]
    return [
        claim(
            "Implicit meta-gradient, both solves converged: relative error against the closed form < 1e-8",
            SOURCE, "exact", [r["converged"] for r in results], lambda x: x < 1e-8,
        ),
        claim(
            f"MAML approaches the exact meta-gradient: relative error after {last} inner steps < 1 %",
            SOURCE, "asymptotically exact", of("MAML", -1), lambda x: x < 0.01,
        ),
        claim(
            f"iMAML with {enough} CG steps approaches it: relative error after {last} inner steps < 2 %",
            SOURCE, "asymptotically exact", of(f"iMAML, {enough} CG", -1), lambda x: x < 0.02,
        ),
        claim(
            f"iMAML ({enough} CG) is better after few steps: its error over MAML's, the greatest up to {early}, < 1",
            SOURCE, "better", ratio, lambda x: x < 1,
        ),
        claim(
            f"{few} CG steps leave an error: it is over 5 times that with {enough}, after {last} inner steps",
            SOURCE, "small terminal error", worse, lambda x: x > 5,
        ),
        claim(
            f"The CG steps alone set the level that is reached: relative difference after {last} inner steps < 1 %",
            SOURCE, None, [off_level(r) for r in results], lambda x: x < 0.01,
        ),
    ]  # fmt: skip


def picture(results: Results, settings: dict[str, Any], figure: Any) -> None:
    ax = figure.subplots()
    steps = settings["steps"]
    for i, name in enumerate(["MAML", *(f"iMAML, {k} CG" for k in settings["cg"])]):
        error = np.exp(
            np.stack([np.log(r[name]) for r in results]).mean(0)
        )  # the geometric mean over seeds
        style = {"color": mx.plot.COLOURS[(0, 1, 4, 6, 3)[i]], "linewidth": 2.2 if i == 0 else 1.5}
        label = name if i == 0 else f"{name} steps"
        ax.plot(
            steps,
            error,
            linestyle=mx.plot.STYLES[i],
            marker="os^Dv"[i],
            markersize=4,
            label=label,
            **style,
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
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


_PROBLEM = {
    "size": 20,
    "shots": 40,
    "queries": 40,
    "condition": 50.0,
    "noise": 0.1,
    "lam": 1.0,
    "judged": 8,
}
EXPERIMENT = Experiment(
    title="The error of meta-gradients against inner gradient steps",
    source=SOURCE,
    settings={
        "smoke": {**_PROBLEM, "tasks": 4, "steps": [1, 8, 64], "cg": [2, 5], "converged": 500},
        "small": {
            **_PROBLEM,
            "tasks": 32,
            "steps": [1, 2, 4, 8, 16, 32, 64],
            "cg": [2, 5, 10],
            "converged": 500,
        },
        "full": {
            **_PROBLEM,
            "tasks": 512,
            "steps": [1, 2, 4, 8, 16, 32, 64],
            "cg": [2, 5, 10],
            "converged": 500,
        },
    },
    run=run,
    claims=claims,
    picture=picture,
    seeds=5,
)
