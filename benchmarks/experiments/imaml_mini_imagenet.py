"""Mini-ImageNet from one picture a class: MAML's family and iMAML.

The pictures are not free to pass on: the scales small and full read the folder `mini_imagenet` that
`metajax.data.few_shot` describes. The smoke scale makes such a folder, of scanned digits turned and
enlarged.
"""

import csv
from pathlib import Path
from typing import Any

import metajax as mx
from benchmarks.experiments import _few_shot
from benchmarks.reproduce import Claim, Experiment, Result, Results, Settings

SOURCE = "Rajeswaran et al. 2019, table 3"
PUBLISHED: _few_shot.Published = {
    "5-way 1-shot": {
        "MAML": (48.70, 1.84),
        "FOMAML": (48.07, 1.75),
        "Reptile": (49.97, 0.32),
        "iMAML, GD": (48.96, 1.84),
        "iMAML, Hessian-free": (49.30, 1.88),
    }
}
SOURCES = dict.fromkeys(PUBLISHED["5-way 1-shot"], SOURCE)


def make(folder: Path, pictures: int) -> None:
    """Writes ``pictures`` of each class of the digits, in the form of mini-ImageNet.

    Those turned by 0, 90, 180 and 270 degrees are classes of their own.
    """
    from PIL import Image

    (folder / "images").mkdir(parents=True, exist_ok=True)
    for part, file in (("train", "train"), ("validation", "val"), ("test", "test")):
        data = mx.data.rotations(mx.data.few_shot("digits", part))
        rows = [["filename", "label"]]
        for label, start in enumerate(data["start"][:-1]):
            images = data["image"][start : start + pictures, :, :, 0]
            for i, image in enumerate(images):
                name = f"{part}-{label}-{i}.png"
                Image.fromarray(image).save(folder / "images" / name)
                rows.append([name, f"{part}-{label}"])
        with (folder / f"{file}.csv").open("w", newline="") as f:
            csv.writer(f).writerows(rows)


def run(seed: int, settings: Settings, folder: Path) -> Result:
    directory = None
    if "made" in settings:
        directory = folder
        make(folder / "mini_imagenet", settings["made"])

    def load(part):
        return mx.data.few_shot("mini_imagenet", part, directory)

    return _few_shot.run(seed, settings, folder, load, PUBLISHED)


def claims(results: Results, settings: Settings) -> list[Claim]:
    return _few_shot.claims(results, settings, PUBLISHED, SOURCES)


def picture(results: Results, settings: Settings, figure: Any) -> None:
    _few_shot.picture(results, settings, figure, PUBLISHED)


# MAML's are those of Finn et al. 2017 (appendix A.1; 15 queries a class, here 15 sets of one, as in
# the test), those of Reptile of Nichol et al. 2018 (table 3), those of iMAML of its supplement; the
# damping is that for Omniglot.
_IMPLICIT = {"steps": 1, "test_steps": 1, "lam": 0.5, "cg": 5, "damping": 10.0}
_METHODS = {
    "MAML": {"rate": 0.01, "steps": 5, "test_steps": 10, "query_sets": 15},
    "FOMAML": {"rate": 0.01, "steps": 5, "test_steps": 10, "query_sets": 15},
    "Reptile": {"rate": 1e-3, "steps": 8, "test_steps": 50, "shots": 15},
    "iMAML, GD": {**_IMPLICIT, "rate": 0.1, "solver_steps": 10},
    "iMAML, Hessian-free": {**_IMPLICIT, "solver_steps": 3},
}
_SMOKE = {
    "methods": _METHODS,
    "rate": 1e-3,
    "made": 4,
    "net": ["conv4", 2, {"downsample": "max_pool"}],
    "test_tasks": 4,
    "validation_tasks": 4,
    "at_once": 4,
    "validate": 1,
    "chunk": 1,
    "budgets": {
        "5-way 1-shot": {"iMAML, GD": [2, 1]}
    },  # method: meta-steps, tasks a step
}
_FULL = {
    "methods": _METHODS,
    "rate": 1e-3,
    "net": ["conv4", 32, {"downsample": "max_pool"}],
    "test_tasks": 600,
    "validation_tasks": 600,
    "at_once": 50,
    "validate": 1000,
    "chunk": 100,
    "budgets": {
        "5-way 1-shot": {
            "MAML": [60_000, 4],
            "FOMAML": [60_000, 4],
            "Reptile": [100_000, 5],
            "iMAML, GD": [60_000, 4],
            "iMAML, Hessian-free": [60_000, 4],
        }
    },
}
_SMALL = {
    **_FULL,
    "validation_tasks": 100,
    "at_once": 10,
    "validate": 100,
    "chunk": 20,
    "budgets": {
        "5-way 1-shot": {"MAML": [500, 2], "FOMAML": [500, 2], "iMAML, GD": [1000, 2]}
    },
}
EXPERIMENT = Experiment(
    title="Mini-ImageNet, few-shot, held-out classes",
    source=SOURCE,
    settings={"smoke": _SMOKE, "small": _SMALL, "full": _FULL},
    run=run,
    claims=claims,
    picture=picture,
    seeds=1,
)
