"""What the experiments on learned optimizers share: meta-training, searched baselines, claims and
pictures.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import metajax as mx
from benchmarks.experiments._training import divided, meta_train
from benchmarks.reproduce import Claim, Results, claim


def learn(
    seed: int,
    optimizer: mx.LearnedOptimizer,
    phases: Sequence[dict[str, Any]],
    pose: Callable[[dict[str, Any]], tuple[mx.Problem, mx.Tasks, Any]],
    folder: Path,
    *,
    steps: int,
    validated: int,
) -> Any:
    """Meta-trains through the phases and returns the best meta-parameters of the last.

    A phase is truncated backpropagation, or an evolution strategy on the loss after ``horizon``
    steps or on the final losses of runs with several ``ends``; it may have ``parts``, settings that
    replace its own, whose estimates are averaged. What is best are the final losses after ``ends``,
    or else ``steps``, on ``validated`` tasks that are met nowhere else. ``pose(part)`` gives the
    problem, its tasks and its data, the same for all parts.
    """
    meta_params = optimizer.init(jax.random.key(100 + seed))
    for i, p in enumerate(phases):
        estimators, judged = [], []
        for q in [{**p, **part} for part in p.get("parts", [{}])]:
            problem, tasks, data = pose(q)
            learner, ends = mx.l2l(optimizer, problem), q.get("ends", [steps])
            judged.append(final_loss(mx.inner(learner, tasks, max(ends)), ends))
            if q["estimator"] == "bptt":
                loop = divided(mx.inner(learner, tasks, q["horizon"]), q["tasks"])
                estimators.append(mx.bptt(loop, q["tasks"], q["window"]))
            else:
                loop = (
                    judged[-1]
                    if "ends" in q
                    else mx.inner(learner, tasks, q["horizon"], meta_loss="heldout")
                )
                estimators.append(mx.es(divided(loop, q["tasks"]), q["tasks"], q["std"]))

        def loss(key, meta_params, data, judged=judged):
            found = [
                mx.evaluate(loop, key, meta_params, data, num_tasks=validated).loss.mean()
                for loop in judged
            ]
            return sum(found) / len(found)

        outer = optax.adam(optax.cosine_decay_schedule(p["rate"], p["steps"], alpha=0.05))
        if p["estimator"] == "bptt":
            outer = optax.chain(optax.clip_by_global_norm(1.0), outer)
        meta_params = meta_train(
            mx.mix(estimators) if len(estimators) > 1 else estimators[0], outer, jax.random.key(1000 * i + seed),
            meta_params, data, episodes=p["tasks"], steps=p["steps"], folder=folder.with_name(f"{folder.name}-{i}"),
            chunk=p["chunk"], validate=mx.validation(loss, jax.random.key(200 + seed), data, every=p["chunk"]),
        )  # fmt: skip
    return meta_params


def final_loss(loop: mx.Inner, ends: Sequence[int]) -> mx.Inner:
    """The inner loop with a meta-loss that is the mean, over ``ends``, of the loss in the tenth of
    the steps before.
    """
    weights = np.zeros(loop.horizon)
    for end in ends:
        weights[end - end // 10 : end] += loop.horizon / (end // 10) / len(ends)
    weights = jax.numpy.asarray(weights, "float32")

    def step(meta_params, state, data):
        new, (loss, metrics) = loop.step(meta_params, state, data)
        return new, (loss * weights[state.t], metrics)

    return loop._replace(step=step)


def compare(
    case: str,
    learned: Mapping[str, Any],
    problem: mx.Problem,
    tasks: mx.Tasks,
    key: Any,
    data: Any = (),
    *,
    folder: Path,
    **settings: Any,
) -> dict[str, np.ndarray]:
    """Learned optimizers and the usual four on fresh tasks: curves, final losses and rates, kept in
    ``folder``.
    """
    file = folder / f"{case}.npz"
    if file.exists():
        return dict(np.load(file))
    found = mx.compare({**learned, **mx.BASELINES}, problem, tasks, key, data, **settings)
    print(f"{case}\n{found}", flush=True)
    stored = {}
    for name, loss in found.loss.items():
        stored[f"{case}, {name}"] = loss.mean(0)
        stored[f"{case}, {name}: final"] = found.final[name].mean()
        stored[f"{case}, {name}: error"] = found.final[name].std(ddof=1) / len(loss) ** 0.5
        if found.rate[name] is not None:
            stored[f"{case}, {name}: rate"] = np.float64(found.rate[name])
    part = file.with_suffix(".part.npz")
    np.savez(part, **stored)
    part.rename(file)
    return stored


def final(results: Results, case: str, name: str) -> list[float]:
    return [float(r[f"{case}, {name}: final"]) for r in results]


def against_baselines(
    results: Results, case: str, name: str, source: str, published: Any, wins: bool = True
) -> Claim:
    """The final loss as a multiple of that of the best baseline of each seed; one that diverged is
    not the best.
    """
    best = [np.nanmin([r[f"{case}, {b}: final"] for b in mx.BASELINES]) for r in results]
    ratio = [ours / other for ours, other in zip(final(results, case, name), best, strict=True)]
    text = f"{case}: final loss of {name} as a multiple of the best tuned baseline's {'< 1' if wins else '> 1'}"
    return claim(text, source, published, ratio, (lambda x: x < 1) if wins else (lambda x: x > 1))


def draw(
    results: Results, case: str, learned: list[str], ax: Any, ylabel: str = "", smooth: int = 1
) -> None:
    """Mean learning curves over seeds, averaged over ``smooth`` steps; the band is their range.

    A curve that does not stay finite is drawn as far as it is below twice its start.
    """
    for i, name in enumerate([*learned, *mx.BASELINES]):
        curves = np.stack([r[f"{case}, {name}"] for r in results])
        if not np.isfinite(curves).all():
            curves = np.where(curves < 2 * curves[:, :1], curves, np.nan)
        curves = np.stack([np.convolve(c, np.ones(smooth) / smooth, "valid") for c in curves])
        colour, style = mx.plot.COLOURS[i], mx.plot.STYLES[i]
        ax.plot(
            curves.mean(0),
            color=colour,
            linestyle=style,
            linewidth=2 if i < len(learned) else 1.2,
            label=name,
        )
        ax.fill_between(
            range(curves.shape[1]),
            curves.min(0),
            curves.max(0),
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    ax.set(title=case, xlabel="step", ylabel=ylabel, yscale="log")
    ax.title.set_fontsize(9)
    ax.spines[["top", "right"]].set_visible(False)
