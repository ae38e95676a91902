"""What one example changes: the probabilities of all classes before and after it, and for the class
it was of.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx
from benchmarks import _data
from benchmarks.experiments import _vsml
from benchmarks.experiments.vsml_from_scratch import EXPERIMENT as FROM_SCRATCH
from benchmarks.reproduce import Claim, Experiment, Results, claim

SOURCE = "Kirsch & Schmidhuber 2021, section 5"


def run(seed: int, settings: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    size, warm = settings["size"], np.asarray(settings["after"])
    train = mx.data.by_class(_data.standardised(settings["train"], size)[0])
    test = mx.data.by_class(_data.standardised(settings["test"], size)[1])
    units = train["image"].shape[1]
    meta_params = _vsml.meta_train(seed, train, settings["bptt"], folder)
    problem = mx.problems.mlp((units, 10), jnp.tanh)
    learners = {
        "VSML": (_vsml.network(units, 10).learner, [meta_params]),
        "SGD": (mx.l2l(optax.sgd, problem), settings["rates"]),
    }
    key, runs, steps = jax.random.key(seed + 40), settings["runs"], int(warm.max())
    results, shown = {}, 0
    for who, (learner, candidates) in learners.items():
        probed = [
            tuple(map(np.asarray, probe(key, learner, x, test, runs, steps))) for x in candidates
        ]
        for k in reversed(warm):
            # Of SGD the rate that predicts these very examples best.
            best = int(
                np.argmax(
                    [(before.argmax(-1) == label)[:, :k].mean() for before, _, label in probed]
                )
            )
            before, after, label = probed[best]
            if who == "SGD":
                results[f"{who}, {k}: rate"] = np.float64(candidates[best])
            # [runs, steps, classes] -> what was thought of the right class before, and of that
            # image after one step.
            right = np.take_along_axis(before, label[..., None], -1)[..., 0]
            later = np.take_along_axis(after, label[..., None], -1)[..., 0]
            wrong = before.argmax(-1) != label
            at = slice(max(0, k - settings["window"]), k)
            w = wrong[:, at]
            results[f"{who}, {k}: before"] = right[:, at][w].mean()
            results[f"{who}, {k}: after"] = later[:, at][w].mean()
            results[f"{who}, {k}: corrected"] = 100 * (after.argmax(-1) == label)[:, at][w].mean()
        if (
            who == "VSML"
        ):  # the same image for both: the first of its place in the streams that VSML took for another
            shown = int(wrong[:, warm[0] - 1].argmax())
        results[f"{who}: example"] = np.stack(
            [before[shown, warm[0] - 1], after[shown, warm[0] - 1]]
        )
        results[f"{who}: label"] = label[shown, warm[0] - 1]
    return results


def probe(key: Any, learner: mx.Learner, meta_params: Any, data: Any, runs: int, steps: int) -> Any:
    """Probabilities ``[runs, steps, classes]`` for each image as it comes and again after learning
    from it.
    """

    @jax.jit
    def one(key, meta_params, data):
        k_task, k_init, key = jax.random.split(key, 3)
        tasks = _vsml.tasks(10)
        task = tasks.sample(k_task, data)

        def probabilities(state, batch):
            # The loss of every label the image could have is minus its log-probability.
            def of(label):
                return learner.loss(key, meta_params, state, {**batch, "label": label[None]})

            return jnp.exp(-jax.vmap(of)(jnp.arange(10)))

        def step(state, t):
            k_data, k_step = jax.random.split(jax.random.fold_in(key, t))
            batch = tasks.train(k_data, data, task, t)
            before = probabilities(state, batch)
            state = learner.step(k_step, meta_params, state, batch)[0]
            return state, (before, probabilities(state, batch), batch["label"][0])

        return jax.lax.scan(step, learner.init(k_init, meta_params, task), jnp.arange(steps))[1]

    return jax.vmap(one, (0, None, None))(jax.random.split(key, runs), meta_params, data)


def claims(results: Results, settings: dict[str, Any]) -> list[Claim]:
    found = []
    for k in settings["after"]:
        ours, sgd = ([r[f"{who}, {k}: corrected"] for r in results] for who in ("VSML", "SGD"))
        text = f"Misclassified images that are right after one look, examples up to {k}: VSML minus SGD, in points, > 0"
        more = [a - b for a, b in zip(ours, sgd, strict=True)]
        found.append(
            claim(text, f"{SOURCE}, figure 9", "VSML corrects at once", more, lambda x: x > 0)
        )
        ours, sgd = (
            [r[f"{who}, {k}: after"] - r[f"{who}, {k}: before"] for r in results]
            for who in ("VSML", "SGD")
        )
        text = f"Rise of the probability of the right class of those, examples up to {k}: VSML minus SGD > 0"
        more = [a - b for a, b in zip(ours, sgd, strict=True)]
        found.append(
            claim(text, f"{SOURCE}, figure 9", "confidently, SGD slowly", more, lambda x: x > 0)
        )
    return found


def picture(results: Results, settings: dict[str, Any], figure: Any) -> None:
    r = results[0]
    axes = figure.subplots(1, 2, sharey=True)
    for ax, who in zip(axes, ("VSML", "SGD"), strict=True):
        before, after = np.asarray(r[f"{who}: example"])
        ax.bar(np.arange(10) - 0.2, before, 0.4, color=mx.plot.COLOURS[2], label="before")
        ax.bar(np.arange(10) + 0.2, after, 0.4, color=mx.plot.COLOURS[4], label="after one look")
        ax.axvline(
            int(r[f"{who}: label"]), color="#000000", linestyle=":", linewidth=1, label="its class"
        )
        ax.set(title=who, xlabel="class", xticks=range(10), ylim=(0, 1))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="probability")
    axes[0].legend(frameon=False, fontsize=8)


def _settings(scale: str, **own: Any) -> dict[str, Any]:
    shared = FROM_SCRATCH.settings[scale]
    return {
        "train": shared["train"],
        "test": shared["train"],
        "size": shared["size"],
        "bptt": shared["bptt"],
        **own,
    }


EXPERIMENT = Experiment(
    title="What a single example changes",
    source=SOURCE,
    settings={
        "smoke": _settings("smoke", rates=_vsml.RATES["SGD"][-2:], runs=4, after=[20], window=20),
        "small": _settings("small", rates=_vsml.RATES["SGD"], runs=32, after=[50, 500], window=50),
        "full": _settings("full", rates=_vsml.RATES["SGD"], runs=128, after=[50, 500], window=50),
    },
    run=run,
    claims=claims,
    picture=picture,
)
