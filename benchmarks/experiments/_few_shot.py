"""What the experiments on few-shot learning share: methods, their meta-training, the test, claims
and picture.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx
from benchmarks.experiments._training import divided, meta_train
from benchmarks.reproduce import Claim, Results, claim

EMBEDDING = 64  # numbers in an embedding of ProtoNet
# setting -> method -> per cent and its 95 % interval
Published = Mapping[str, Mapping[str, tuple[float, float | None]]]


def build(
    method: str, ways: int, shape: tuple[int, ...], kind: Sequence[Any], p: dict[str, Any]
) -> tuple[mx.Learner, Any]:
    """The learner and what initialises its meta-parameters. Batch normalisation looks at all
    queries of a task.
    """
    name, width, *options = kind
    net = getattr(mx.nets, name)(
        EMBEDDING if method == "ProtoNet" else ways, shape, width, **dict(*options)
    )
    if method == "ProtoNet":
        return mx.protonet(net.apply, ways, EMBEDDING), net.init
    problem = mx.problems.classifier(*net)
    if method == "MAML":
        return mx.maml(problem, p["rate"]), net.init
    if method == "FOMAML":
        return mx.fomaml(problem, p["rate"]), net.init
    if method == "Reptile":
        return mx.reptile(problem, optax.adam(p["rate"], b1=0.0)), net.init
    if method == "iMAML, GD":
        solver = mx.implicit.descend(optax.sgd(p["rate"]), p["solver_steps"])
    else:
        solver = mx.implicit.newton(p["solver_steps"], mx.implicit.cg(p["cg"], p["damping"]))
    if "lanczos" in p:
        linear_solver = mx.implicit.lanczos(p["lanczos"], floor=p["lam"], damping=p["damping"])
    else:
        linear_solver = mx.implicit.cg(p["cg"], p["damping"])
    return mx.imaml(problem, solver, linear_solver, p["lam"]), net.init


def over_query_sets(learner: mx.Learner, ways: int, sets: int) -> mx.Learner:
    """The learner judged by the mean over several query sets, each as large as one and normalised
    by itself.
    """

    def apart(batch):
        def one(x):
            x = x.reshape(ways, sets, -1, *x.shape[1:])
            return jnp.moveaxis(x, 1, 0).reshape(sets, -1, *x.shape[3:])

        return jax.tree.map(one, batch)

    def mean(f):
        def averaged(key, meta_params, state, batch):
            found = jax.vmap(lambda part: f(key, meta_params, state, part))(apart(batch))
            return jax.tree.map(lambda x: x.mean(0), found)

        return averaged

    return learner._replace(loss=mean(learner.loss), metrics=mean(learner.metrics))


def outer(method: str, rate: float, steps: int) -> optax.GradientTransformation:
    """Adam, its rate falling to a tenth; for Reptile the steps towards what was adapted, which
    shrink to none.
    """
    if method == "Reptile":
        return optax.sgd(optax.linear_schedule(1.0, 0.0, steps))
    return optax.adam(optax.cosine_decay_schedule(rate, steps, alpha=0.1))


def run(
    seed: int,
    settings: dict[str, Any],
    folder: Path,
    load: Callable[[str], Any],
    published: Published,
) -> dict[str, np.ndarray]:
    """Meta-trains each method of each setting on ``load("train")``; the test is on the classes of
    ``load("test")``.
    """
    s, results = settings, {}
    train, validation, test = (
        jax.tree.map(jnp.asarray, load(part)) for part in ("train", "validation", "test")
    )
    for where, budget in s["budgets"].items():
        ways, shots = (int(part.split("-")[0]) for part in where.split())
        for method, (meta_steps, tasks) in budget.items():
            p = options(s, where, method)
            here, meta_params = (
                folder / f"{where}, {method}".replace(", ", "-").replace(" ", "-"),
                None,
            )
            for i, phase in enumerate(p.get("phases", [{"share": 1}])):
                p = p | phase
                learner, init = build(method, ways, train["image"].shape[1:], s["net"], p)
                # As many queries a class as there are shots, in the test and in training, as is
                # published; in training there may be several such sets, since a solve costs more
                # than another set.
                sets = p.get("query_sets", 1)
                episodes = mx.tasks.episodes(ways, p.get("shots", shots), sets * shots)
                trained = learner if sets == 1 else over_query_sets(learner, ways, sets)
                learns = mx.inner(trained, episodes, p["steps"], "heldout")
                judged = mx.inner(learner, mx.tasks.episodes(ways, shots), p["test_steps"])

                def loss(key, meta_params, data, judged=judged):
                    found = accuracy(
                        judged,
                        key,
                        meta_params,
                        data,
                        tasks=s["validation_tasks"],
                        at_once=s["at_once"],
                    )
                    return 1 - found.mean()

                steps = round(p["share"] * meta_steps)
                meta_params = meta_train(
                    mx.bptt(divided(learns, tasks), tasks, remat=False),
                    outer(method, s["rate"], steps),
                    jax.random.key(seed + 1000 * i),
                    init(jax.random.key(100 + seed)) if i == 0 else meta_params,
                    train,
                    episodes=tasks,
                    steps=steps,
                    folder=here if i == 0 else here.with_name(f"{here.name}-{i}"),
                    validate=mx.validation(
                        loss, jax.random.key(200), validation, every=s["validate"]
                    ),
                    chunk=s["chunk"],
                )
            mx.save(here.with_suffix(".npz"), meta_params)
            found = 100 * accuracy(
                judged,
                jax.random.key(300),
                meta_params,
                test,
                tasks=s["test_tasks"],
                at_once=s["at_once"],
            )
            results[f"{where}, {method}"] = found.mean()
            results[f"{where}, {method}: interval"] = 1.96 * found.std(ddof=1) / len(found) ** 0.5
        print(table(where, results, published), flush=True)
    return results


def options(settings: dict[str, Any], where: str, method: str) -> dict[str, Any]:
    """What a method is given in a setting such as ``"5-way 1-shot"``."""
    p = settings["methods"][method]
    for kind in (where.split()[0], where):
        p = p | settings.get(f"methods, {kind}", {}).get(method, {})
    return p


def table(where: str, results: dict[str, Any], published: Published) -> str:
    """Ours beside what is published, in per cent with 95 % intervals over the test tasks."""
    lines = [f"{where:<24}{'published':>16}{'ours':>16}"]
    for method in published[where]:
        if f"{where}, {method}" in results:
            ours = f"{results[f'{where}, {method}']:.2f} ± {results[f'{where}, {method}: interval']:.2f}"
            lines.append(f"  {method:<22}{_text(*published[where][method]):>16}{ours:>16}")
    return "\n".join(lines)


def _text(per_cent: float, interval: float | None) -> str:
    return f"{per_cent}" + ("" if interval is None else f" ± {interval}")


def claims(
    results: Results, settings: dict[str, Any], published: Published, sources: Mapping[str, str]
) -> list[Claim]:
    """One for each method of each setting; ``sources`` says for each method where it is
    published.
    """
    found = []
    for where in settings["budgets"]:
        for method, (per_cent, interval) in published[where].items():
            ours = [r[f"{where}, {method}"] for r in results if f"{where}, {method}" in r]
            wanted = per_cent - 2
            found.append(
                claim(
                    f"{where}, {method}: test accuracy, no more than 2 points below the published, >= {wanted:.2f} %",
                    sources[method],
                    _text(per_cent, interval) + " %",
                    ours,
                    lambda x, wanted=wanted: x >= wanted,
                )
            )
    return found


def picture(results: Results, settings: dict[str, Any], figure: Any, published: Published) -> None:
    """Accuracies and their intervals, ours beside those published, a panel for each setting."""
    axes = figure.subplots(1, len(settings["budgets"]), sharey=True, squeeze=False)[0]
    methods = list(next(iter(published.values())))
    at = np.arange(len(methods))
    for ax, where in zip(axes, settings["budgets"], strict=True):
        per_cent, error = zip(*published[where].values(), strict=True)
        style = {"fmt": "o", "markersize": 4, "linewidth": 1.2}
        ax.errorbar(
            per_cent,
            at - 0.15,
            xerr=[x or 0 for x in error],
            color="#888888",
            label="published",
            **style,
        )
        for i, method in enumerate(methods):
            name = f"{where}, {method}"
            if name in results[0]:
                mean, error = (
                    np.mean([r[k] for r in results]) for k in (name, f"{name}: interval")
                )
                ax.errorbar(
                    mean, i + 0.15, xerr=error, color=mx.plot.COLOURS[4], **style | {"fmt": "D"}
                )
        ax.errorbar([], [], color=mx.plot.COLOURS[4], label="ours", **style | {"fmt": "D"})
        ax.set_title(where, fontsize=9)
        ax.set_xlabel("accuracy (%)", fontsize=9)
        ax.set(yticks=at, ylim=(len(methods) - 0.5, -0.5))
        ax.set_yticklabels(methods, fontsize=8)
        ax.tick_params(axis="x", labelsize=8)
        ax.grid(axis="x", linewidth=0.4)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=2,
        frameon=False,
        fontsize=8,
    )


def accuracy(
    loop: mx.Inner, key: Any, meta_params: Any, data: Any, *, tasks: int, at_once: int
) -> np.ndarray:
    """The accuracy on the query batch of each of ``tasks`` tasks, ``at_once`` at a time to bound
    the memory.
    """
    found = [
        mx.evaluate(loop, k, meta_params, data, num_tasks=at_once).test_metrics["accuracy"]
        for k in jax.random.split(key, -(-tasks // at_once))
    ]
    return np.concatenate(found)[:tasks]
