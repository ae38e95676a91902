"""What one example changes: the probabilities of all classes before it and after it."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx
from benchmarks import _data
from benchmarks.experiments import _vsml
from benchmarks.experiments.vsml_from_scratch import EXPERIMENT as FROM_SCRATCH
from benchmarks.reproduce import (
    Claim,
    Experiment,
    Result,
    Results,
    Settings,
    above,
    claim,
)

SOURCE = "Kirsch & Schmidhuber 2021, section 5"


class Probed(NamedTuple):
    """What a learner thinks of each image of each stream.

    Attributes:
      before: the probabilities ``[runs, steps, classes]`` as the image comes.
      after: the same of that image, once it was learned from.
      label: ``[runs, steps]``, its class.
    """

    before: Any
    after: Any
    label: Any


def run(seed: int, settings: Settings, folder: Path) -> Result:
    size = settings["size"]
    train = mx.data.by_class(_data.standardised(settings["train"], size)[0])
    test = mx.data.by_class(_data.standardised(settings["test"], size)[1])
    units = train["image"].shape[1]
    meta_params = _vsml.train_phases(seed, train, settings["bptt"], folder)
    sgd = mx.l2l(optax.sgd, mx.problems.mlp((units, 10), jnp.tanh))

    key = jax.random.key(seed + 40)
    probed = probe(
        key,
        _vsml.network(units, 10),
        meta_params,
        test,
        settings,
    )
    by_rate = [
        probe(
            key,
            sgd,
            rate,
            test,
            settings,
        )
        for rate in settings["rates"]
    ]

    # The same image for both: the first of its place that VSML took for another.
    place = settings["after"][0] - 1
    run_shown = int(_is_wrong(probed)[:, place].argmax())

    results = {}
    for seen in settings["after"]:
        results |= corrections(f"VSML, {seen}", probed, seen, settings["window"])
        best = best_rate(by_rate, seen)
        results |= corrections(f"SGD, {seen}", by_rate[best], seen, settings["window"])
        results[f"SGD, {seen}: rate"] = np.float64(settings["rates"][best])
    best_at_place = by_rate[best_rate(by_rate, settings["after"][0])]
    results |= example("VSML", probed, run_shown, place)
    results |= example("SGD", best_at_place, run_shown, place)
    return results


def probe(
    key: Any,
    learner: mx.Learner,
    meta_params: Any,
    data: Any,
    settings: Settings,
) -> Probed:
    """Probabilities for each image as it comes, and again after learning from it."""
    tasks = _vsml.tasks(10)
    steps = max(settings["after"])

    @jax.jit
    def probe_stream(key, meta_params, data):
        k_task, k_init, key = jax.random.split(key, 3)
        task = tasks.sample(k_task, data)

        def probabilities(state, batch):
            logits = learner.predict(key, meta_params, state, batch["image"])
            return jax.nn.softmax(logits[0])

        def step(state, t):
            k_data, k_step = jax.random.split(jax.random.fold_in(key, t))
            batch = tasks.train(k_data, data, task)
            new, _, _ = learner.step(k_step, meta_params, state, batch)
            before = probabilities(state, batch)
            return new, Probed(before, probabilities(new, batch), batch["label"][0])

        start = learner.init(k_init, meta_params, task)
        _, probed = jax.lax.scan(step, start, jnp.arange(steps))
        return probed

    keys = jax.random.split(key, settings["runs"])
    probed = jax.vmap(probe_stream, (0, None, None))(keys, meta_params, data)
    return Probed(*map(np.asarray, probed))


def _is_wrong(probed: Probed) -> np.ndarray:
    return probed.before.argmax(-1) != probed.label


def best_rate(by_rate: list[Probed], seen: int) -> int:
    """The place of the rate at which the first ``seen`` examples are predicted best."""
    return int(np.argmax([(~_is_wrong(probed))[:, :seen].mean() for probed in by_rate]))


def corrections(
    name: str,
    probed: Probed,
    seen: int,
    window: int,
) -> dict[str, np.ndarray]:
    """What one look changes of the images that were misclassified, of the last of those seen.

    They are the probabilities of the right class, and how many are right after it, in per cent.
    """
    label = probed.label[..., None]
    before = np.take_along_axis(probed.before, label, -1)[..., 0]
    after = np.take_along_axis(probed.after, label, -1)[..., 0]
    is_corrected = probed.after.argmax(-1) == probed.label

    last = slice(max(0, seen - window), seen)
    wrong = _is_wrong(probed)[:, last]
    return {
        f"{name}: before": before[:, last][wrong].mean(),
        f"{name}: after": after[:, last][wrong].mean(),
        f"{name}: corrected": 100 * is_corrected[:, last][wrong].mean(),
    }


def example(
    name: str,
    probed: Probed,
    run: int,
    place: int,
) -> dict[str, np.ndarray]:
    """One image of one stream."""
    both = np.stack([probed.before[run, place], probed.after[run, place]])
    return {f"{name}: example": both, f"{name}: label": probed.label[run, place]}


def claims(results: Results, settings: Settings) -> list[Claim]:
    figure = f"{SOURCE}, figure 9"
    found = []
    for seen in settings["after"]:
        corrected = []
        risen = []
        for result in results:
            corrected.append(
                result[f"VSML, {seen}: corrected"] - result[f"SGD, {seen}: corrected"]
            )
            vsml = result[f"VSML, {seen}: after"] - result[f"VSML, {seen}: before"]
            sgd = result[f"SGD, {seen}: after"] - result[f"SGD, {seen}: before"]
            risen.append(vsml - sgd)

        text = (
            f"Misclassified images that are right after one look, examples up to {seen}"
        )
        text += ": VSML minus SGD, in points, > 0"
        found.append(claim(text, figure, "VSML corrects at once", corrected, above(0)))
        text = f"Rise of the probability of the right class of those, examples up to {seen}"
        text += ": VSML minus SGD > 0"
        found.append(claim(text, figure, "confidently, SGD slowly", risen, above(0)))
    return found


def picture(results: Results, settings: Settings, figure: Any) -> None:
    result = results[0]
    axes = figure.subplots(1, 2, sharey=True)
    classes = np.arange(10)
    black = {"color": "#000000", "linestyle": ":", "linewidth": 1}
    for ax, method in zip(axes, ("VSML", "SGD"), strict=True):
        before, after = np.asarray(result[f"{method}: example"])
        ax.bar(
            classes - 0.2,
            before,
            0.4,
            color=mx.plot.COLOURS[2],
            label="before",
        )
        ax.bar(
            classes + 0.2,
            after,
            0.4,
            color=mx.plot.COLOURS[4],
            label="after one look",
        )
        ax.axvline(int(result[f"{method}: label"]), label="its class", **black)
        ax.set(
            title=method,
            xlabel="class",
            xticks=range(10),
            ylim=(0, 1),
        )
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="probability")
    axes[0].legend(frameon=False, fontsize=8)


def _settings(scale: str, **own: Any) -> Settings:
    shared = FROM_SCRATCH.settings[scale]
    return {
        "train": shared["train"],
        "test": shared["train"],
        "size": shared["size"],
        "bptt": shared["bptt"],
        **own,
    }


_RATES = _vsml.RATES["SGD"]
EXPERIMENT = Experiment(
    title="What a single example changes",
    source=SOURCE,
    settings={
        "smoke": _settings(
            "smoke",
            rates=_RATES[-2:],
            runs=4,
            after=[20],
            window=20,
        ),
        "small": _settings(
            "small",
            rates=_RATES,
            runs=32,
            after=[50, 500],
            window=50,
        ),
        "full": _settings(
            "full",
            rates=_RATES,
            runs=128,
            after=[50, 500],
            window=50,
        ),
    },
    run=run,
    claims=claims,
    picture=picture,
)
