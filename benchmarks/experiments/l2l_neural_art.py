"""An LSTM learns to make neural art with one style, then makes it in other ways without retraining.

Those are of unseen images, in an unseen style, and larger. Beside it, which the paper has not,
Nadam with learned hyperparameters.

The paper leaves open the network, its layers and the weights of the loss. Here the network is
trained in the run on CIFAR-10, where the contents come from, or it is the VGG whose file is named
in ``vgg``. Styles are drawn by formulas.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

import metajax as mx
from benchmarks.experiments import _l2l
from benchmarks.reproduce import Claim, Experiment, Result, Results, Settings

SOURCE = "Andrychowicz et al. 2016, section 3.4, figure 8"
CASES = ("training style", "unseen style", "double resolution")
LEARNED = ("LSTM", "Nadam, learned")
ROW = ("content", "style", "LSTM", "Adam")
NORMALISATION = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def waves(size: int) -> np.ndarray:
    """A colourful texture ``[size, size, 3]`` in [0, 1]."""
    y, x = np.mgrid[:size, :size] / 32
    bend = x + 0.3 * np.sin(2 * np.pi * y)
    channels = []
    for shift in (0, 0.25, 0.6):
        phase = 2 * np.pi * (5 * bend + shift) + 4 * np.sin(np.pi * y)
        channels.append(0.5 + 0.5 * np.sin(phase))
    return np.stack(channels, -1).astype(np.float32)


def tiles(size: int) -> np.ndarray:
    """Another one: each pixel has the colour of the nearest of 40 points; lines part them."""
    y, x = np.mgrid[:size, :size] / 32
    rng = np.random.default_rng(0)
    points = rng.random((40, 2)) * (y.max() + 1 / 32)
    colours = rng.random((40, 3))
    down = y[..., None] - points[:, 0]
    across = x[..., None] - points[:, 1]
    squared_distance = down**2 + across**2

    by_distance = np.sqrt(np.sort(squared_distance, -1))
    is_line = by_distance[..., 1] - by_distance[..., 0] < 0.02
    nearest = colours[squared_distance.argmin(-1)]
    return np.where(is_line[..., None], 0.05, nearest).astype(np.float32)


def colour_images(name: str, split: str, size: int) -> dict[str, np.ndarray]:
    """A split of a data set, ``size`` by ``size``, with three channels."""
    data = mx.data.resize(mx.data.load(name, split), size)
    image = np.repeat(data["image"], 3 // data["image"].shape[-1], -1)
    return {**data, "image": image}


def features_of(
    seed: int,
    settings: Settings,
    data: dict[str, np.ndarray],
    folder: Path,
) -> Callable[[Any], dict[str, Any]]:
    """What the network that looks at the images sees in one."""
    if settings["vgg"]:
        return mx.problems.vgg(mx.problems.load_vgg(settings["vgg"]))

    layers = settings["layers"]
    last = list(layers)[-1]

    def apply(params, images):
        features = mx.problems.vgg(params["conv"], NORMALISATION)

        def embed(image):
            return features(image)[last].mean((0, 1))

        return jax.vmap(embed)(images) @ params["head"]

    def init(key):
        return initial_network(key, layers)

    path = folder / "network.npz"
    if not path.exists():
        problem = mx.problems.classifier(init, apply)
        learner = mx.l2l(optax.adam, problem)
        loop = mx.inner(learner, mx.tasks.minibatches(64), settings["network_steps"])
        curves = mx.evaluate(
            loop,
            jax.random.key(seed),
            2e-3,
            data,
            num_tasks=1,
        )
        per_cent = 100 * float(curves.test_metrics["accuracy"][0])
        print(f"embedded network: {per_cent:.0f} % of training images", flush=True)
        mx.save(path, jax.tree.map(lambda x: x[0], curves.state.learner.params))

    like = jax.eval_shape(init, jax.random.key(0))
    return mx.problems.vgg(mx.load(path, like=like)["conv"], NORMALISATION)


def initial_network(key: Any, layers: dict[str, int]) -> dict[str, Any]:
    """Parameters of 3x3 convolutions with so many filters, and of a classifier of ten classes."""
    convs = {}
    inputs = 3
    keys = jax.random.split(key, len(layers))
    for k, (name, filters) in zip(keys, layers.items(), strict=True):
        w = mx.nets.GLOROT(k, (3, 3, inputs, filters))
        convs[name] = {"w": w, "b": jnp.zeros(filters)}
        inputs = filters
    return {"conv": convs, "head": mx.nets.GLOROT(key, (inputs, 10))}


def run(seed: int, settings: Settings, folder: Path) -> Result:
    size = settings["size"]
    train = colour_images(settings["data"], "train", size)
    features = features_of(seed, settings, train, folder)
    content = settings["content"]
    style = settings["style"]
    weights = settings["weights"]
    problem, tasks = mx.problems.neural_art(features, content, style, **weights)
    posed = (problem, tasks, {"content": train["image"], "style": waves(size)[None]})

    nadam = mx.optim.nadam(rate=0.1, knots=(1, 10, 30, 60, 90, 110, 128))
    learned = {}
    for name, optimizer in zip(LEARNED, (mx.optim.lstm(), nadam), strict=True):
        meta_params = _l2l.learn(
            seed,
            optimizer,
            settings["meta_training"][name],
            lambda phase: posed,
            folder / name.split(",")[0].lower(),
            steps=settings["steps"],
            num_validation_tasks=settings["validated"],
        )
        learned[name] = optimizer.tx(meta_params)

    results = {}
    for i, case in enumerate(cases(settings)):
        key = jax.random.key(3000 + 10 * seed + i)
        unseen = (problem, tasks, case_images(case, settings))
        results |= _l2l.compare(
            case,
            learned,
            unseen,
            key,
            folder,
            steps=settings["steps"],
            num_tasks=settings["test_tasks"],
            search=mx.RateSearch(settings["rates"]),
        )
        adam = optax.adam(float(results[f"{case}, Adam: rate"]))
        made = {"LSTM": learned["LSTM"], "Adam": adam}
        row = images_made(made, unseen, key, settings["steps"])
        for name, pixels in row.items():
            picture_file = folder / f"{case}, {name}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(picture_file)
            if seed == 0:
                scale = len(pixels) // size
                results[f"{case}: image, {name}"] = pixels[::scale, ::scale]
    return results


def cases(settings: Settings) -> tuple[str, ...]:
    """Those of the scale."""
    return settings.get("cases", CASES)


def case_images(case: str, settings: Settings) -> dict[str, np.ndarray]:
    """The contents and the style of a case."""
    size = settings["size"]
    if case == "double resolution":
        size = 2 * size
    style = tiles if case == "unseen style" else waves
    content = colour_images(settings["data"], "test", size)["image"]
    return {"content": content, "style": style(size)[None]}


def images_made(
    optimizers: dict[str, Any],
    posed: _l2l.Posed,
    key: Any,
    steps: int,
) -> dict[str, np.ndarray]:
    """What each makes of one task, beside its content and its style, values from 0 to 255."""
    problem, tasks, data = posed
    row = {}
    for name, tx in optimizers.items():
        learner = mx.l2l(lambda _, tx=tx: tx, problem)
        loop = mx.inner(learner, tasks, steps)
        state = mx.evaluate(
            loop,
            key,
            jnp.zeros(()),
            data,
            num_tasks=1,
        ).state
        row["content"] = state.task["content"][0]
        row["style"] = state.task["style"][0]
        row[name] = state.learner.params[0]
    return {name: (255 * np.clip(row[name], 0, 1)).round() for name in ROW}


def claims(results: Results, settings: Settings) -> list[Claim]:
    found = []
    for name, source, published in (
        (LEARNED[0], SOURCE, "below all baselines"),
        (LEARNED[1], f"beyond {SOURCE}", None),
    ):
        for case in cases(settings):
            found.append(_l2l.against_baselines(results, case, name, source, published))
    return found


def picture(results: Results, settings: Settings, figure: Any) -> None:
    figure.set_size_inches(9, 4)
    num_cases = len(cases(settings))
    curves, strips = figure.subplots(
        2,
        num_cases,
        squeeze=False,
        height_ratios=[3, 1],
    )
    shown = next(
        (result for result in results if f"{CASES[0]}: image, LSTM" in result), None
    )
    for i, case in enumerate(cases(settings)):
        _l2l.draw(
            results,
            case,
            list(LEARNED),
            curves[i],
            "loss" if i == 0 else "",
        )
        strips[i].axis("off")
        if shown is not None:
            images = [np.asarray(shown[f"{case}: image, {name}"]) for name in ROW]
            _draw_strip(images, strips[i])
    curves[0].legend(frameon=False, fontsize=7)


def _draw_strip(images: list[np.ndarray], ax: Any) -> None:
    size = len(images[0])
    gap = np.full((size, 1, 3), 255)
    parts = [part for image in images for part in (image, gap)]
    ax.imshow(np.concatenate(parts, 1) / 255, interpolation="nearest")
    for i, name in enumerate(ROW):
        middle = (i + 0.5) * (size + 1)
        ax.text(middle, -2, name, fontsize=7, horizontalalignment="center")


_WEIGHTS = {"alpha": 1.0, "beta": 1.0, "gamma": 1.0}
_NETWORK = {
    "layers": {
        "conv1_1": 16,
        "conv1_2": 16,
        "conv2_1": 32,
        "conv2_2": 32,
        "conv3_1": 64,
    },
    "content": ["conv2_2"],
    "style": ["conv1_1", "conv2_1", "conv3_1"],
    "vgg": None,
    "weights": _WEIGHTS,
}
_WINDOWS = {"estimator": "bptt", "horizon": 128, "window": 32}
_SEARCH = {"estimator": "es", "std": 0.1, "rate": 0.05}
_SMOKE = {
    "cases": ["training style"],
    "layers": {"conv1_1": 4, "conv2_1": 4},
    "content": ["conv2_1"],
    "style": ["conv1_1"],
    "vgg": None,
    "weights": _WEIGHTS,
    "data": "digits",
    "size": 8,
    "network_steps": 5,
    "steps": 10,
    "validated": 2,
    "test_tasks": 2,
    "rates": [1e-7, 0.01, 0.1, 1.0, 1e4],
    "meta_training": {
        "LSTM": [
            {
                "estimator": "bptt",
                "horizon": 10,
                "window": 5,
                "tasks": 2,
                "rate": 1e-3,
                "steps": 4,
                "chunk": 2,
            }
        ],
        "Nadam, learned": [
            {**_SEARCH, "ends": [10], "tasks": 2, "steps": 4, "chunk": 2}
        ],
    },
}
_SMALL = {
    **_NETWORK,
    "data": "cifar10",
    "size": 32,
    "network_steps": 2000,
    "steps": 128,
    "validated": 4,
    "test_tasks": 8,
    "rates": [10 ** (k / 2) for k in range(-6, 6)],
    "meta_training": {
        "LSTM": [
            {**_WINDOWS, "tasks": 4, "rate": 3e-3, "steps": 400, "chunk": 40},
            {
                **_WINDOWS,
                "window": 128,
                "tasks": 4,
                "rate": 1e-3,
                "steps": 200,
                "chunk": 20,
            },
        ],
        "Nadam, learned": [
            {**_SEARCH, "ends": [128], "tasks": 12, "steps": 60, "chunk": 10}
        ],
    },
}
# With a VGG, name its file in "vgg", and the layers of Gatys et al.
_FULL = {
    **_SMALL,
    "size": 64,
    "network_steps": 20_000,
    "validated": 16,
    "test_tasks": 32,
    "meta_training": {
        "LSTM": [{**_WINDOWS, "tasks": 8, "rate": 1e-3, "steps": 10_000, "chunk": 100}],
        "Nadam, learned": [
            {**_SEARCH, "ends": [128], "tasks": 64, "steps": 300, "chunk": 10}
        ],
    },
}
EXPERIMENT = Experiment(
    title="Learning to make neural art",
    source=SOURCE,
    settings={"smoke": _SMOKE, "small": _SMALL, "full": _FULL},
    run=run,
    claims=claims,
    picture=picture,
)
