"""Neural art (Gatys et al. 2015, arXiv 1508.06576) as a problem for optimizers (Andrychowicz et al.
2016, section 3.4).

An image is optimised to show the content of one and the style of another, both seen through a fixed
convolutional network. ``features`` is any function ``image [H, W, 3] -> {name: [h, w, C]}``; `vgg`
makes it from weights, those of the published VGG networks by `load_vgg`.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from metajax import _checks, io, nets
from metajax.types import Array, Problem, PyTree, Tasks

# Mean and standard deviation of ImageNet's channels, with which the published weights were trained.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_BLOCKS = {
    13: (2, 2, 3, 3, 3),
    16: (2, 2, 4, 4, 4),
}  # VGG-16 and VGG-19 (Simonyan & Zisserman 2015, table 1)


def vgg(
    weights: dict[str, dict[str, Array]],
    normalisation: tuple[Sequence[float], Sequence[float]] = IMAGENET,
) -> Callable[[Array], dict[str, Array]]:
    """A network of 3x3 convolutions and ReLUs as a function of an image; 2x2 average pooling
    precedes a new block.

    Average pooling stands in for VGG's maximum, as Gatys et al. recommend (section 3).

    Args: weights: ``"conv<block>_<layer>"`` -> ``{"w": [3, 3, I, O], "b": [O]}``. normalisation:
      mean and standard deviation of each channel, which are taken out of the image first.

    Returns: ``features(image [H, W, 3])``, values in [0, 1]: what each convolution gives, after its
      ReLU, by its name.

    >>> import jax.numpy as jnp, metajax as mx
    >>> layer = {"w": jnp.ones((3, 3, 3, 4)), "b": jnp.zeros(4)}
    >>> features = mx.problems.vgg({"conv1_1": layer, "conv2_1": {"w": jnp.ones((3, 3, 4, 5)), "b": jnp.zeros(5)}})
    >>> {name: x.shape for name, x in features(jnp.ones((16, 16, 3))).items()}
    {'conv1_1': (16, 16, 4), 'conv2_1': (8, 8, 5)}
    """
    mean, std = (np.asarray(x, np.float32) for x in normalisation)
    order = sorted(weights, key=_place)
    if not order:
        raise ValueError("weights is empty: give at least conv1_1")

    def features(image):
        x = (image[None] - mean) / std
        found, block = {}, _place(order[0])[0]
        for name in order:
            if _place(name)[0] != block:
                block, x = _place(name)[0], _average_pool(x)
            x = jax.nn.relu(nets.conv(x, weights[name]["w"]) + weights[name]["b"])
            found[name] = x[0]
        return found

    return features


def load_vgg(path: str | os.PathLike, last: str = "conv5_1") -> dict[str, dict[str, Array]]:
    """The convolutions of a VGG-16 or VGG-19 from a safetensors file with the names of torchvision,
    for `vgg`.

    Such a file is made once, where PyTorch is at hand, by
    ``safetensors.torch.save_file(torchvision.models.vgg19(
    weights="DEFAULT").features.state_dict(), path)``; names may begin with ``features.`` or not.

    Args:
      path: the file.
      last: the deepest convolution wanted.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another kind of file, or one that is no such network.

    >>> import metajax as mx
    >>> weights = mx.problems.load_vgg("vgg19.safetensors")  # doctest: +SKIP
    """
    arrays = io.load_arrays(path)
    layers = {}
    for name, x in arrays.items():
        *_, index, kind = ("", *name.split("."))[-3:]
        if index.isdecimal() and kind in ("weight", "bias") and name.split(".")[0] != "classifier":
            layers.setdefault(int(index), {})[kind] = x
    ordered = [layers[i] for i in sorted(layers)]
    if len(ordered) not in _BLOCKS or any(
        layer.keys() != {"weight", "bias"} or layer["weight"].shape[2:] != (3, 3)
        for layer in ordered
    ):
        raise ValueError(
            f"path {Path(path).name} is no VGG-16 or VGG-19 with torchvision's names (features.0.weight [64, 3, 3, 3], "
            f"...): it has {len(ordered)} layers with a number, the names begin with {sorted(arrays)[:3]}"
        )
    names = [
        f"conv{b}_{i}" for b, n in enumerate(_BLOCKS[len(ordered)], 1) for i in range(1, n + 1)
    ]
    if last not in names:
        raise ValueError(f"last must be one of {', '.join(names)}, got {last!r}")
    return {
        name: {
            "w": jnp.asarray(layer["weight"].transpose(2, 3, 1, 0)),
            "b": jnp.asarray(layer["bias"]),
        }
        for name, layer in zip(names[: names.index(last) + 1], ordered, strict=False)
    }


def gram(x: Array) -> Array:
    """How often features occur together: ``[h, w, C] -> [C, C]``, the mean over positions of their
    products.

    >>> import jax.numpy as jnp, metajax as mx
    >>> mx.problems.gram(jnp.array([[[1.0, 2.0]], [[3.0, 0.0]]])).tolist()
    [[5.0, 1.0], [1.0, 2.0]]
    """
    x = x.reshape(-1, x.shape[-1])
    return x.T @ x / len(x)


def neural_art(
    features: Callable[[Array], dict[str, Array]],
    content: Sequence[str] = ("conv4_2",),
    style: Sequence[str] = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"),
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 0.1,
) -> tuple[Problem, Tasks]:
    """Content, style and smoothness (Andrychowicz et al. 2016, section 3.4): one image is one
    task's parameters.

    ``alpha * content + beta * style + gamma * smoothness``: the mean squared difference of the
    features; that of their `gram` matrices, averaged over the layers; the mean squared difference
    of neighbouring pixels. Content and style are taken relative to the size of their target, so
    that the three numbers mean the same for every network. The metrics are the three parts. The
    image starts as noise around grey, is not bounded, and is any size that ``features`` takes: an
    optimizer that was meta-trained at one resolution works at another.

    Args:
      features: from `vgg`, or another function of an image.
      content: names of the features compared as they are.
      style: names of the features compared by their `gram` matrices.
      alpha: weight of the content.
      beta: weight of the style.
      gamma: weight of the smoothness.

    Returns: A problem and its tasks, whose ``data = {"content": [M, H, W, 3], "style": [N, h, w,
      3]}`` are of dtype uint8 or in [0, 1]; each task draws one of each.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> features = mx.problems.vgg({"conv1_1": {"w": jax.random.normal(jax.random.key(0), (3, 3, 3, 4)), "b": jnp.zeros(4)}})
    >>> problem, tasks = mx.problems.neural_art(features, content=["conv1_1"], style=["conv1_1"])
    >>> data = {"content": jax.random.uniform(jax.random.key(1), (2, 8, 8, 3)), "style": jnp.ones((1, 8, 8, 3))}
    >>> loop = mx.inner(mx.l2l(optax.adam, problem), tasks, horizon=20)
    >>> curves = mx.evaluate(loop, jax.random.key(2), 0.1, data, num_tasks=2)
    >>> sorted(curves.metrics), bool((curves.loss[:, -1] < curves.loss[:, 0]).all())
    (['content', 'smoothness', 'style'], True)
    """
    _checks.function(features=features)
    weights = [
        _checks.at_least_zero(n, w) for n, w in (("alpha", alpha), ("beta", beta), ("gamma", gamma))
    ]
    content, style = tuple(content), tuple(style)
    if not content or not style:
        raise ValueError("content and style must each name at least one of the features")

    def pick(name, found):
        if name not in found:
            raise ValueError(
                f"content and style must be among the features {', '.join(found)}; there is no {name!r}"
            )
        return found[name]

    def look(image):
        found = features(image)
        return {name: pick(name, found) for name in content}, {
            name: gram(pick(name, found)) for name in style
        }

    def sample(key, data):
        images = {}
        for name, k in zip(("content", "style"), jax.random.split(key), strict=True):
            if (
                not isinstance(data, dict)
                or name not in data
                or data[name].ndim != 4
                or data[name].shape[-1] != 3
            ):
                raise ValueError(
                    f'data must be {{"content": [M, H, W, 3], "style": [N, h, w, 3]}}; look at {name!r}'
                )
            chosen = jnp.asarray(data[name])[jax.random.randint(k, (), 0, len(data[name]))]
            images[name] = chosen.astype(jnp.float32) / (255 if chosen.dtype == jnp.uint8 else 1)
        return {**images, "features": look(images["content"])[0], "gram": look(images["style"])[1]}

    def init(key, task):
        return 0.5 + 0.1 * jax.random.normal(key, task["content"].shape)

    def loss(key, params, batch):
        shown, textures = look(params)
        across, down = jnp.diff(params, axis=1), jnp.diff(params, axis=0)
        parts = {
            "content": _distance(shown, batch["features"]),
            "style": _distance(textures, batch["gram"]),
            "smoothness": jnp.mean(across**2) + jnp.mean(down**2),
        }
        return sum(w * x for w, x in zip(weights, parts.values(), strict=True)) + jnp.zeros(
            ()
        ), parts

    same = lambda key, data, task, *t: task  # noqa: E731
    return Problem(init, loss), Tasks(sample, same, same)


def _distance(got: PyTree, want: PyTree) -> Array:
    # The mean over the layers of the relative squared difference.
    parts = [jnp.mean((got[n] - want[n]) ** 2) / (jnp.mean(want[n] ** 2) + 1e-6) for n in want]
    return jnp.stack(parts).mean()


def _place(name: str) -> tuple[int, int]:
    block, _, layer = name.removeprefix("conv").partition("_")
    if not (name.startswith("conv") and block.isdecimal() and layer.isdecimal()):
        raise ValueError(f"weights must have names such as conv1_1, got {name!r}")
    return int(block), int(layer)


def _average_pool(x: Array) -> Array:
    height, width = 2 * (x.shape[1] // 2), 2 * (x.shape[2] // 2)
    if not height or not width:
        raise ValueError(
            f"the image is too small for this network: features of {x.shape[1:3]} cannot be pooled"
        )
    total = lax.reduce_window(
        x[:, :height, :width], 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    return total / 4
