"""An LSTM learns to make neural art with one style, then makes it of unseen images, in an unseen
style, and larger.

Beside it, which the paper has not, Nadam with learned hyperparameters.

The paper leaves open the network, its layers and the weights of the loss. Here the network is
trained in the run on CIFAR-10, where the contents come from, or it is the VGG whose file is named
in ``vgg``. Styles are drawn by formulas.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

import metajax as mx
from benchmarks.experiments import _l2l
from benchmarks.reproduce import Claim, Experiment, Results

SOURCE = "Andrychowicz et al. 2016, section 3.4, figure 8"
CASES = ("training style", "unseen style", "double resolution")
LEARNED = ("LSTM", "Nadam, learned")
ROW = ("content", "style", "LSTM", "Adam")


def style(which: str, size: int) -> np.ndarray:
    """A colourful texture ``[size, size, 3]`` in [0, 1]: ``"waves"`` or ``"tiles"``."""
    y, x = np.mgrid[:size, :size] / 32
    if which == "waves":
        bend = x + 0.3 * np.sin(2 * np.pi * y)
        phases = [
            2 * np.pi * (5 * bend + shift) + 4 * np.sin(np.pi * y) for shift in (0, 0.25, 0.6)
        ]
        return np.stack([0.5 + 0.5 * np.sin(p) for p in phases], -1).astype(np.float32)
    rng = np.random.default_rng(0)
    points, colours = rng.random((40, 2)) * (y.max() + 1 / 32), rng.random((40, 3))
    away = (y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2
    first, second = np.sort(away, -1)[..., :2].transpose(2, 0, 1)
    line = np.sqrt(second) - np.sqrt(first) < 0.02
    return np.where(line[..., None], 0.05, colours[away.argmin(-1)]).astype(np.float32)


def embedded(seed: int, s: dict[str, Any], data: dict[str, np.ndarray], folder: Path) -> Any:
    """The features of the network that looks at the images."""
    if s["vgg"]:
        return mx.problems.vgg(mx.problems.load_vgg(s["vgg"]))
    weights, last = mx.nets.GLOROT, list(s["layers"])[-1]
    normalisation = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

    def init(key):
        convs, inputs = {}, 3
        for k, (name, n) in zip(
            jax.random.split(key, len(s["layers"])), s["layers"].items(), strict=True
        ):
            convs[name], inputs = {"w": weights(k, (3, 3, inputs, n)), "b": jnp.zeros(n)}, n
        return {"conv": convs, "head": weights(key, (inputs, 10))}

    def apply(params, images):
        features = mx.problems.vgg(params["conv"], normalisation)
        return jax.vmap(lambda image: features(image)[last].mean((0, 1)))(images) @ params["head"]

    path = folder / "network.npz"
    if not path.exists():
        problem = mx.problems.classifier(init, apply)
        loop = mx.inner(mx.l2l(optax.adam, problem), mx.tasks.minibatches(64), s["network_steps"])
        curves = mx.evaluate(loop, jax.random.key(seed), 2e-3, data, num_tasks=1)
        print(
            f"embedded network: {100 * float(curves.test_metrics['accuracy'][0]):.0f} % of training images",
            flush=True,
        )
        mx.save(path, jax.tree.map(lambda x: x[0], curves.state.learner.params))
    return mx.problems.vgg(
        mx.load(path, like=jax.eval_shape(init, jax.random.key(0)))["conv"], normalisation
    )


def colour(name: str, split: str, size: int) -> dict[str, np.ndarray]:
    data = mx.data.resize(mx.data.load(name, split), size)
    return {**data, "image": np.repeat(data["image"], 3 // data["image"].shape[-1], -1)}


def run(seed: int, settings: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    s, size = settings, settings["size"]
    nadam = mx.optim.nadam(rate=0.1, knots=(1, 10, 30, 60, 90, 110, 128))
    train = colour(s["data"], "train", size)
    features = embedded(seed, s, train, folder)
    problem, tasks = mx.problems.neural_art(features, s["content"], s["style"], **s["weights"])
    posed = problem, tasks, {"content": train["image"], "style": style("waves", size)[None]}
    learned, results = {}, {}
    for name, optimizer in zip(LEARNED, (mx.optim.lstm(), nadam), strict=True):
        meta_params = _l2l.learn(
            seed, optimizer, s["meta_training"][name], lambda p: posed, folder / name.split(",")[0].lower(),
            steps=s["steps"], validated=s["validated"],
        )  # fmt: skip
        learned[name] = optimizer.tx(meta_params)
    for i, case in enumerate(settings.get("cases", CASES)):
        scale = 2 if case == "double resolution" else 1
        data = {
            "content": colour(s["data"], "test", scale * size)["image"],
            "style": style("tiles" if case == "unseen style" else "waves", scale * size)[None],
        }
        key = jax.random.key(3000 + 10 * seed + i)
        results |= _l2l.compare(
            case, learned, problem, tasks, key, data, steps=s["steps"],
            num_tasks=s["test_tasks"], rates=s["rates"], folder=folder,
        )  # fmt: skip
        rate = float(results[f"{case}, Adam: rate"])
        made = {"LSTM": learned["LSTM"], "Adam": optax.adam(rate)}
        row = {}
        for name, tx in made.items():
            loop = mx.inner(mx.l2l(lambda _, tx=tx: tx, problem), tasks, s["steps"])
            state = mx.evaluate(loop, key, jnp.zeros(()), data, num_tasks=1).state
            row |= {
                "content": state.task["content"][0],
                "style": state.task["style"][0],
                name: state.learner.params[0],
            }
        for name in ROW:
            pixels = (255 * np.clip(row[name], 0, 1)).round()
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{case}, {name}.png")
            if seed == 0:
                results[f"{case}: image, {name}"] = pixels[::scale, ::scale]
    return results


def claims(results: Results, settings: dict[str, Any]) -> list[Claim]:
    cases = settings.get("cases", CASES)
    return [
        _l2l.against_baselines(results, case, LEARNED[0], SOURCE, "below all baselines")
        for case in cases
    ] + [
        _l2l.against_baselines(results, case, LEARNED[1], f"beyond {SOURCE}", None)
        for case in cases
    ]


def picture(results: Results, settings: dict[str, Any], figure: Any) -> None:
    figure.set_size_inches(9, 4)
    axes = figure.subplots(
        2, len(settings.get("cases", CASES)), squeeze=False, height_ratios=[3, 1]
    )
    shown = next((r for r in results if f"{CASES[0]}: image, LSTM" in r), None)
    for i, case in enumerate(settings.get("cases", CASES)):
        _l2l.draw(results, case, list(LEARNED), axes[0, i], "loss" if i == 0 else "")
        axes[1, i].axis("off")
        if shown is not None:
            row = [np.asarray(shown[f"{case}: image, {name}"]) for name in ROW]
            gap = np.full((len(row[0]), 1, 3), 255)
            strip = np.concatenate([part for image in row for part in (image, gap)], 1)
            axes[1, i].imshow(strip / 255, interpolation="nearest")
            for j, name in enumerate(ROW):
                at = (j + 0.5) * (len(row[0]) + 1)
                axes[1, i].text(at, -2, name, fontsize=7, horizontalalignment="center")
    axes[0, 0].legend(frameon=False, fontsize=7)


_LAYERS = {"conv1_1": 16, "conv1_2": 16, "conv2_1": 32, "conv2_2": 32, "conv3_1": 64}
_NETWORK = {
    "layers": _LAYERS, "content": ["conv2_2"], "style": ["conv1_1", "conv2_1", "conv3_1"], "vgg": None,
    "weights": {"alpha": 1.0, "beta": 1.0, "gamma": 1.0},
}  # fmt: skip
_SEARCH = {"estimator": "es", "std": 0.1, "rate": 0.05}
EXPERIMENT = Experiment(
    title="Learning to make neural art",
    source=SOURCE,
    settings={
        "smoke": {
            **_NETWORK,
            "cases": ["training style"],
            "layers": {"conv1_1": 4, "conv2_1": 4}, "content": ["conv2_1"], "style": ["conv1_1"],
            "data": "digits", "size": 8, "network_steps": 5, "steps": 10, "validated": 2, "test_tasks": 2,
            "rates": [1e-7, 0.01, 0.1, 1.0, 1e4],
            "meta_training": {
                "LSTM": [
                    {"estimator": "bptt", "horizon": 10, "window": 5, "tasks": 2, "rate": 1e-3, "steps": 4, "chunk": 2}
                ],
                "Nadam, learned": [{**_SEARCH, "ends": [10], "tasks": 2, "steps": 4, "chunk": 2}],
            },
        },
        "small": {
            **_NETWORK, "data": "cifar10", "size": 32, "network_steps": 2000, "steps": 128, "validated": 4,
            "test_tasks": 8, "rates": [10 ** (k / 2) for k in range(-6, 6)],
            "meta_training": {
                "LSTM": [
                    {"estimator": "bptt", "horizon": 128, "window": 32, "tasks": 4, "rate": 3e-3, "steps": 400,
                     "chunk": 40},
                    {"estimator": "bptt", "horizon": 128, "window": 128, "tasks": 4, "rate": 1e-3, "steps": 200,
                     "chunk": 20},
                ],
                "Nadam, learned": [{**_SEARCH, "ends": [128], "tasks": 12, "steps": 60, "chunk": 10}],
            },
        },
        "full": {  # name a file for mx.problems.load_vgg in "vgg", the layers of Gatys et al., and 64 pixels
            **_NETWORK, "data": "cifar10", "size": 64, "network_steps": 20_000, "steps": 128, "validated": 16,
            "test_tasks": 32, "rates": [10 ** (k / 2) for k in range(-6, 6)],
            "meta_training": {
                "LSTM": [
                    {"estimator": "bptt", "horizon": 128, "window": 32, "tasks": 8, "rate": 1e-3, "steps": 10_000,
                     "chunk": 100}
                ],
                "Nadam, learned": [{**_SEARCH, "ends": [128], "tasks": 64, "steps": 300, "chunk": 10}],
            },
        },
    },
    run=run,
    claims=claims,
    picture=picture,
)  # fmt: skip
