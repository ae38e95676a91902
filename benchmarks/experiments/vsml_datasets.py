"""Meta-training on one set or on several, meta-testing on all: what transfers to what."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import metajax as mx
from benchmarks import _data
from benchmarks.experiments import _vsml
from benchmarks.experiments._training import Run, clipped_adam, meta_train
from benchmarks.reproduce import (
    Claim,
    Experiment,
    Result,
    Results,
    Settings,
    above,
    claim,
)

SOURCE = "Kirsch & Schmidhuber 2021, section 4.4"


class Source(NamedTuple):
    """Where images come from.

    Attributes:
      tasks: drawn from the data.
      classes: of a task.
      train: data of meta-training.
      test: data of the test.
    """

    tasks: mx.Tasks
    classes: int
    train: Any = ()
    test: Any = ()


def sources(settings: Settings) -> dict[str, Source]:
    """All of them by name; images are of one size."""
    size = settings["size"]
    most_classes = settings["classes"]
    found = {}
    for name in settings["sets"]:
        train, test = map(mx.data.by_class, _data.standardised(name, size))
        classes = min(most_classes, len(train["start"]) - 1)
        found[name] = Source(
            mx.tasks.classification(classes),
            classes,
            train,
            test,
        )

    shape = (size * size,)
    random_images = mx.tasks.random_images(shape, num_classes=most_classes)
    found["Random"] = Source(random_images, most_classes)
    found["Sum Sign"] = Source(mx.tasks.permute_labels(mx.tasks.sum_sign(shape), 2), 2)
    return found


def train_on(
    chosen: dict[str, Source],
    seed: int,
    settings: Settings,
    folder: Path,
) -> Any:
    """By backpropagation through time over a mixture of the chosen sets."""
    options = settings["train"]
    dims = options["dims"]
    units = dims or settings["size"] ** 2
    num_tasks = max(1, options["tasks"] // len(chosen))
    estimators = {}
    for name, source in chosen.items():
        tasks = source.tasks
        if dims:
            tasks = mx.tasks.unit_spread(mx.tasks.project(tasks, dims))
        loop = mx.inner(_vsml.network(units, source.classes), tasks, options["horizon"])
        estimators[name] = mx.bptt(loop, num_tasks, options["window"])

    rate = optax.cosine_decay_schedule(options["rate"], options["steps"], alpha=0.05)
    return meta_train(
        mx.mix(estimators),
        clipped_adam(rate),
        jax.random.key(seed + 50),
        _vsml.network(2, 2).meta(jax.random.key(seed)),
        {name: source.train for name, source in chosen.items()},
        Run(folder, options["steps"], chunk=25, chunks_per_checkpoint=2),
    )


def run(seed: int, settings: Settings, folder: Path) -> Result:
    every = sources(settings)
    trainable = [name for name in every if name != "Sum Sign"]  # never trained on
    mixtures = {name: [name] for name in trainable}
    mixtures["all"] = trainable
    if settings["leave_one_out"]:
        for left_out in trainable:
            others = [name for name in trainable if name != left_out]
            mixtures[f"all but {left_out}"] = others

    results = {}
    for i, (mixture, names) in enumerate(mixtures.items()):
        chosen = {name: every[name] for name in names}
        meta_params = train_on(chosen, seed, settings, folder / f"mixture-{i}")
        row = []
        for name, source in every.items():
            accuracy = _vsml.stream_accuracy(
                seed,
                _vsml.network(settings["size"] ** 2, source.classes),
                meta_params,
                source.test,
                tasks=source.tasks,
                steps=settings["steps"],
                runs=settings["runs"],
            )
            final = _vsml.cumulative(accuracy)[:, -1].mean()
            row.append(final)
            print(f"from {mixture} to {name}: {final:.1f} %", flush=True)
        results[mixture] = np.array(row)
    return results


def claims(results: Results, settings: Settings) -> list[Claim]:
    figure = f"{SOURCE}, figure 8"
    names = [*settings["sets"], "Random", "Sum Sign"]
    chance = {name: 100 / settings["classes"] for name in names}
    chance["Sum Sign"] = 50
    found = []
    for i, name in enumerate(names):
        others = f"all but {name}"
        source = others if others in results[0] else "all"
        gain = [result[source][i] - chance[name] for result in results]
        text = (
            f"Meta-trained on {source}, tested on {name}: points of cumulative accuracy"
        )
        text += " above chance > 5"
        found.append(claim(text, figure, "generalises", gain, above(5)))

    first = names[0]
    lead = [result[first][0] - result["Random"][0] for result in results]
    text = f"Tested on {first}: points that meta-training on it is ahead of meta-training on Random"
    text += " alone > 0"
    found.append(claim(text, figure, "real images teach more", lead, above(0)))
    return found


def picture(results: Results, settings: Settings, figure: Any) -> None:
    ax = figure.subplots()
    rows = list(results[0])
    columns = [*settings["sets"], "Random", "Sum Sign"]
    every_seed = [[result[row] for row in rows] for result in results]
    values = np.mean(every_seed, axis=0)

    image = ax.imshow(
        values,
        cmap="viridis",
        vmin=0,
        vmax=100,
        aspect="auto",
    )
    for (i, j), value in np.ndenumerate(values):
        colour = "w" if value < 60 else "k"
        ax.text(
            j,
            i,
            f"{value:.0f}",
            ha="center",
            va="center",
            color=colour,
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


_SMOKE = {
    "sets": ["digits"],
    "size": 4,
    "classes": 3,
    "steps": 20,
    "runs": 2,
    "leave_one_out": False,
    "train": {
        "dims": None,
        "horizon": 6,
        "window": 6,
        "tasks": 2,
        "rate": 1e-2,
        "steps": 2,
    },
}
_SMALL = {
    "sets": ["mnist", "fashion_mnist", "digits"],
    "size": 14,
    "classes": 5,
    "steps": 500,
    "runs": 16,
    "leave_one_out": True,
    "train": {
        "dims": 32,
        "horizon": 60,
        "window": 60,
        "tasks": 16,
        "rate": 1e-2,
        "steps": 400,
    },
}
_FULL = {
    "sets": ["mnist", "fashion_mnist", "emnist/byclass", "kmnist"],
    "size": 28,
    "classes": 10,
    "steps": 2000,
    "runs": 32,
    "leave_one_out": True,
    "train": {
        "dims": None,
        "horizon": 500,
        "window": 500,
        "tasks": 128,
        "rate": 1e-3,
        "steps": 10_000,
    },
}
EXPERIMENT = Experiment(
    title="Meta-training on varying data sets",
    source=SOURCE,
    settings={"smoke": _SMOKE, "small": _SMALL, "full": _FULL},
    run=run,
    claims=claims,
    picture=picture,
)
