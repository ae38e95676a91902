"""What the experiments on learned optimizers share: training, baselines, claims and curves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx
from benchmarks.experiments._training import Run, clipped_adam, divided, meta_train
from benchmarks.reproduce import Claim, Results, above, below, claim

Phase = dict[str, Any]
Posed = tuple[mx.Problem, mx.Tasks, Any]  # and the data


def learn(
    seed: int,
    optimizer: mx.LearnedOptimizer,
    phases: Sequence[Phase],
    pose: Callable[[Phase], Posed],
    folder: Path,
    *,
    steps: int,
    num_validation_tasks: int,
) -> Any:
    """Meta-trains through the phases and returns the best meta-parameters of the last.

    A phase is truncated backpropagation, or an evolution strategy on the loss after ``horizon``
    steps or on the final losses of runs with several ``ends``; it may have ``parts``, settings that
    replace its own, whose estimates are averaged. What is best are the final losses after ``ends``,
    or else ``steps``, on ``num_validation_tasks`` tasks that are met nowhere else. ``pose(part)``
    gives the problem, its tasks and its data, the same for all parts.
    """
    meta_params = optimizer.init(jax.random.key(100 + seed))
    for i, phase in enumerate(phases):
        estimators = []
        validation_loops = []
        data = None
        for part in phase.get("parts", [{}]):
            options = phase | part
            problem, tasks, data = pose(options)
            learner = mx.l2l(optimizer, problem)
            ends = options.get("ends", [steps])
            to_the_ends = final_loss(mx.inner(learner, tasks, max(ends)), ends)
            validation_loops.append(to_the_ends)
            estimators.append(_estimator(learner, tasks, options, to_the_ends))

        schedule = optax.cosine_decay_schedule(
            phase["rate"], phase["steps"], alpha=0.05
        )
        by_gradients = phase["estimator"] == "bptt"
        loss = _mean_loss(validation_loops, num_validation_tasks)
        key = jax.random.key(200 + seed)
        meta_params = meta_train(
            mx.mix(estimators) if len(estimators) > 1 else estimators[0],
            clipped_adam(schedule) if by_gradients else optax.adam(schedule),
            jax.random.key(1000 * i + seed),
            meta_params,
            data,
            Run(
                folder=folder.with_name(f"{folder.name}-{i}"),
                steps=phase["steps"],
                chunk=phase["chunk"],
                episodes=phase["tasks"],
                validate=mx.validation(loss, key, data, every=phase["chunk"]),
            ),
        )
    return meta_params


def _estimator(
    learner: mx.Learner,
    tasks: mx.Tasks,
    options: Phase,
    to_the_ends: mx.Inner,
) -> mx.Estimator:
    num_tasks = options["tasks"]
    if options["estimator"] == "bptt":
        loop = mx.inner(learner, tasks, options["horizon"])
        return mx.bptt(divided(loop, num_tasks), num_tasks, options["window"])

    loop = to_the_ends
    if "ends" not in options:
        loop = mx.inner(learner, tasks, options["horizon"], meta_loss="heldout")
    return mx.es(divided(loop, num_tasks), num_tasks, options["std"])


def _mean_loss(loops: Sequence[mx.Inner], num_tasks: int) -> Callable:
    def loss(key, meta_params, data):
        losses = []
        for loop in loops:
            curves = mx.evaluate(loop, key, meta_params, data, num_tasks=num_tasks)
            losses.append(curves.loss.mean())
        return sum(losses) / len(losses)

    return loss


def final_loss(loop: mx.Inner, ends: Sequence[int]) -> mx.Inner:
    """The inner loop with the final losses of runs of ``ends`` steps as its meta-loss.

    That of a run is the mean over the last tenth of its steps; of several runs it is their mean.
    """
    weights = np.zeros(loop.horizon)
    for end in ends:
        tenth = end // 10
        weights[end - tenth : end] += loop.horizon / tenth / len(ends)
    weights = jnp.asarray(weights, jnp.float32)

    def step(meta_params, state, data):
        new, (loss, metrics) = loop.step(meta_params, state, data)
        return new, (loss * weights[state.t], metrics)

    return replace(loop, step=step)


def compare(
    case: str,
    learned: Mapping[str, Any],
    posed: Posed,
    key: Any,
    folder: Path,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Learned optimizers and the usual four on fresh tasks: curves, final losses and rates.

    They are kept in ``folder``; ``options`` are those of `metajax.compare`.
    """

    def compared() -> dict[str, np.ndarray]:
        problem, tasks, data = posed
        optimizers = {**learned, **mx.BASELINES}
        comparison = mx.compare(optimizers, problem, tasks, key, data, **options)
        print(f"{case}\n{comparison}", flush=True)
        found = {}
        for optimizer, loss in comparison.loss.items():
            name = f"{case}, {optimizer}"
            final = comparison.final[optimizer]
            rate = comparison.rate[optimizer]
            found[name] = loss.mean(0)
            found[f"{name}: final"] = final.mean()
            found[f"{name}: error"] = final.std(ddof=1) / len(final) ** 0.5
            if rate is not None:
                found[f"{name}: rate"] = np.float64(rate)
        return found

    return kept(folder / f"{case}.npz", compared)


def kept(
    file: Path,
    make: Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """The arrays of a file; if it is not there, they are made and it is written, whole or not."""
    if not file.exists():
        arrays: dict[str, Any] = make()
        part = file.with_suffix(".part.npz")
        np.savez(part, **arrays)
        part.rename(file)
    return dict(np.load(file))


def against_baselines(
    results: Results,
    case: str,
    name: str,
    source: str,
    published: Any,
    wins: bool = True,
) -> Claim:
    """The final loss as a multiple of that of the best baseline of each seed.

    A baseline that diverged is not the best.
    """
    ratios = []
    for result in results:
        baselines = [result[f"{case}, {baseline}: final"] for baseline in mx.BASELINES]
        ratios.append(float(result[f"{case}, {name}: final"]) / np.nanmin(baselines))
    text = f"{case}: final loss of {name} as a multiple of the best tuned baseline's"
    if wins:
        return claim(f"{text} < 1", source, published, ratios, below(1))
    return claim(f"{text} > 1", source, published, ratios, above(1))


def draw(
    results: Results,
    case: str,
    learned: list[str],
    ax: Any,
    ylabel: str = "",
    smooth: int = 1,
) -> None:
    """Mean learning curves over seeds, averaged over ``smooth`` steps; the band is their range.

    A curve that does not stay finite is drawn as far as it is below twice its start.
    """
    window = np.ones(smooth) / smooth
    for i, name in enumerate([*learned, *mx.BASELINES]):
        curves = np.stack([result[f"{case}, {name}"] for result in results])
        if not np.isfinite(curves).all():
            curves = np.where(curves < 2 * curves[:, :1], curves, np.nan)
        curves = np.stack([np.convolve(curve, window, "valid") for curve in curves])

        colour = mx.plot.COLOURS[i]
        ax.plot(
            curves.mean(0),
            color=colour,
            linestyle=mx.plot.STYLES[i],
            linewidth=2 if i < len(learned) else 1.2,
            label=name,
        )
        steps = range(curves.shape[1])
        band = {"color": colour, "alpha": 0.15, "linewidth": 0}
        ax.fill_between(
            steps,
            curves.min(0),
            curves.max(0),
            **band,
        )
    ax.set(
        title=case,
        xlabel="step",
        ylabel=ylabel,
        yscale="log",
    )
    ax.title.set_fontsize(9)
    ax.spines[["top", "right"]].set_visible(False)
