"""Meta-training on one set or on several, meta-testing on all: what transfers to what."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import metajax as mx
from benchmarks import _data
from benchmarks.experiments import _vsml
from benchmarks.reproduce import Claim, Experiment, Results, claim

SOURCE = "Kirsch & Schmidhuber 2021, section 4.4"


def sources(settings: dict[str, Any]) -> dict[str, tuple[mx.Tasks, int, Any, Any]]:
    """Name -> (tasks, classes, training data, test data); images are all of one size."""
    size = settings["size"]
    found = {}
    for name in settings["sets"]:
        train, test = map(mx.data.by_class, _data.standardised(name, size))
        classes = min(settings["classes"], len(train["start"]) - 1)
        found[name] = (mx.tasks.classification(classes), classes, train, test)
    shape = (size * size,)
    found["Random"] = (
        mx.tasks.random_images(shape, num_classes=settings["classes"]),
        settings["classes"],
        (),
        (),
    )
    found["Sum Sign"] = (mx.tasks.permute_labels(mx.tasks.sum_sign(shape), 2), 2, (), ())
    return found


def meta_train(seed: int, chosen: dict[str, Any], settings: dict[str, Any], folder: Path) -> Any:
    """By backpropagation through time over a mixture of the chosen sets."""
    units, p = settings["size"] ** 2, settings["train"]
    estimators, data = {}, {}
    for name, (tasks, classes, train, _) in chosen.items():
        if p["dims"]:
            tasks = mx.tasks.unit_spread(mx.tasks.project(tasks, p["dims"]))
        loop = mx.inner(_vsml.network(p["dims"] or units, classes).learner, tasks, p["horizon"])
        estimators[name], data[name] = (
            mx.bptt(loop, max(1, p["tasks"] // len(chosen)), p["window"]),
            train,
        )
    rate = optax.cosine_decay_schedule(p["rate"], p["steps"], alpha=0.05)
    trainer = mx.trainer(
        mx.mix(estimators), optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    )
    state = trainer.init(
        jax.random.key(seed + 50), _vsml.network(2, 2).init(jax.random.key(seed)), data
    )
    store = mx.checkpoints(folder, every=50)
    fitted = mx.fit(
        trainer,
        state,
        data,
        num_steps=p["steps"],
        chunk=25,
        checkpoint=store,
        label=" + ".join(chosen),
    )
    store.close()
    return fitted.state.meta_params


def run(seed: int, settings: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    every = sources(settings)
    trainable = [name for name in every if name != "Sum Sign"]  # never trained on
    mixtures = {name: [name] for name in trainable} | {"all": trainable}
    if settings["leave_one_out"]:
        mixtures |= {f"all but {name}": [n for n in trainable if n != name] for name in trainable}
    results, units = {}, settings["size"] ** 2
    for i, (mixture, names) in enumerate(mixtures.items()):
        meta_params = meta_train(
            seed, {n: every[n] for n in names}, settings, folder / f"mixture-{i}"
        )
        row = []
        for name, (tasks, classes, _, test) in every.items():
            learner = _vsml.network(units, classes).learner
            accuracy = _vsml.stream(
                seed,
                learner,
                meta_params,
                test,
                tasks=tasks,
                steps=settings["steps"],
                runs=settings["runs"],
            )
            row.append(_vsml.cumulative(accuracy)[:, -1].mean())
            print(f"from {mixture} to {name}: {row[-1]:.1f} %", flush=True)
        results[mixture] = np.array(row)
    return results


def claims(results: Results, settings: dict[str, Any]) -> list[Claim]:
    names = [*settings["sets"], "Random", "Sum Sign"]
    chance = {name: 100 / settings["classes"] for name in names} | {"Sum Sign": 50}
    found = []
    for i, name in enumerate(names):
        source = f"all but {name}" if f"all but {name}" in results[0] else "all"
        gain = [r[source][i] - chance[name] for r in results]
        text = f"Meta-trained on {source}, tested on {name}: points of cumulative accuracy above chance > 5"
        found.append(claim(text, f"{SOURCE}, figure 8", "generalises", gain, lambda x: x > 5))
    first = names[0]
    lead = [r[first][0] - r["Random"][0] for r in results]
    text = f"Tested on {first}: points that meta-training on it is ahead of meta-training on Random alone > 0"
    found.append(
        claim(text, f"{SOURCE}, figure 8", "real images teach more", lead, lambda x: x > 0)
    )
    return found


def picture(results: Results, settings: dict[str, Any], figure: Any) -> None:
    ax = figure.subplots()
    rows = list(results[0])
    columns = [*settings["sets"], "Random", "Sum Sign"]
    values = np.mean([[r[row] for row in rows] for r in results], axis=0)
    image = ax.imshow(values, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for i, j in np.ndindex(values.shape):
        ax.text(
            j,
            i,
            f"{values[i, j]:.0f}",
            ha="center",
            va="center",
            color="w" if values[i, j] < 60 else "k",
            fontsize=8,
        )
    ax.set(
        xticks=range(len(columns)),
        yticks=range(len(rows)),
        xlabel="meta-tested on",
        ylabel="meta-trained on",
    )
    ax.set_xticklabels(columns, fontsize=8)
    ax.set_yticklabels(rows, fontsize=8)
    figure.colorbar(image, label=f"accuracy over {settings['steps']} examples (%)")


_TRAIN = {"dims": 32, "horizon": 60, "window": 60, "tasks": 16, "rate": 1e-2}
EXPERIMENT = Experiment(
    title="Meta-training on varying data sets",
    source=SOURCE,
    settings={
        "smoke": {
            "sets": ["digits"], "size": 4, "classes": 3, "steps": 20, "runs": 2, "leave_one_out": False,
            "train": {**_TRAIN, "dims": None, "horizon": 6, "window": 6, "tasks": 2, "steps": 2},
        },
        "small": {
            "sets": ["mnist", "fashion_mnist", "digits"], "size": 14, "classes": 5, "steps": 500, "runs": 16,
            "leave_one_out": True,
            "train": {**_TRAIN, "steps": 400},
        },
        "full": {
            "sets": ["mnist", "fashion_mnist", "emnist/byclass", "kmnist"], "size": 28, "classes": 10, "steps": 2000,
            "leave_one_out": True,
            "runs": 32, "train": {**_TRAIN, "dims": None, "horizon": 500, "window": 500, "tasks": 128, "steps": 10_000,
                                  "rate": 1e-3},
        },
    },
    run=run,
    claims=claims,
    picture=picture,
)  # fmt: skip
