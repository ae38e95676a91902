"""Neural art (Gatys et al. 2015, arXiv 1508.06576) as a problem for optimizers.

Andrychowicz et al. 2016, section 3.4. An image is optimised to show the content of one and the
style of another, both seen through a fixed convolutional network. ``features`` is any function
``image [H, W, 3] -> {name: [h, w, C]}``; `vgg` makes it from weights, those of the published VGG
networks by `load_vgg`.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from metajax import _checks, io, nets
from metajax._arguments import NonNegative, check, checked, shown
from metajax._arrays import lift
from metajax._losses import at_least_float32
from metajax.problems._supervised import stateless
from metajax.types import Array, Key, Problem, Tasks

# Mean and standard deviation of ImageNet's channels, with which the published weights were trained.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# Convolutions a block of VGG-16 and VGG-19 (Simonyan & Zisserman 2015, table 1), by their number.
_BLOCKS = {13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}


_TARGETS = ("features", "gram")  # of an image, in its batch


@checked
def vgg(
    weights: dict[str, dict[str, Array]],
    normalisation: tuple[Sequence[float], Sequence[float]] = IMAGENET,
) -> Callable[[Array], dict[str, Array]]:
    """A network of 3x3 convolutions and ReLUs as a function of an image.

    2x2 average pooling precedes a new block; it stands in for VGG's maximum, as Gatys et al.
    recommend (section 3).

    Args:
      weights: ``"conv<block>_<layer>"`` -> ``{"w": [3, 3, I, O], "b": [O]}``.
      normalisation: mean and standard deviation of each channel, which are taken out of the image
        first.

    Returns:
      ``features(image [H, W, 3])``, values in [0, 1]: what each convolution gives, after its ReLU,
      by its name.

    >>> import jax.numpy as jnp, metajax as mx
    >>> first = {"w": jnp.ones((3, 3, 3, 4)), "b": jnp.zeros(4)}
    >>> second = {"w": jnp.ones((3, 3, 4, 5)), "b": jnp.zeros(5)}
    >>> features = mx.problems.vgg({"conv1_1": first, "conv2_1": second})
    >>> {name: x.shape for name, x in features(jnp.ones((16, 16, 3))).items()}
    {'conv1_1': (16, 16, 4), 'conv2_1': (8, 8, 5)}
    """
    if not isinstance(normalisation, tuple) or len(normalisation) != 2:
        raise TypeError(
            f"normalisation must be a pair (mean, std), got {shown(normalisation)}"
        )
    check(Sequence[float], **{"normalisation[0]": normalisation[0]})
    check(Sequence[float], **{"normalisation[1]": normalisation[1]})
    mean, std = (np.asarray(x, np.float32) for x in normalisation)
    names = sorted(weights, key=_block_and_layer)
    if not names:
        raise ValueError("weights is empty: give at least conv1_1")

    for name, layer in weights.items():
        _checks.entries(
            f"weights[{name!r}]", layer, ("w", "b"), "metajax.problems.load_vgg"
        )

    def features(image):
        x = image[None]
        x = (x - lift(mean, x)) / lift(std, x)
        found = {}
        current_block, _ = _block_and_layer(names[0])
        for name in names:
            block, _ = _block_and_layer(name)
            if block != current_block:
                x = _average_pool(x)
                current_block = block
            layer = weights[name]
            x = nets.conv(x, layer["w"])
            x = jax.nn.relu(x + lift(layer["b"], x))
            found[name] = x[0]
        return found

    return features


@checked
def load_vgg(
    path: str | os.PathLike, last: str = "conv5_1"
) -> dict[str, dict[str, Array]]:
    """The convolutions of a VGG-16 or VGG-19 from a file with the names of torchvision, for `vgg`.

    Such a safetensors file is made once, where PyTorch is at hand, by ``save_file(
    torchvision.models.vgg19(weights="DEFAULT").features.state_dict(), path)`` of
    ``safetensors.torch``; names may begin with ``features.`` or not.

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
    layers = _convolutions(arrays)
    if len(layers) not in _BLOCKS or not all(map(_is_vgg_layer, layers)):
        raise ValueError(
            f"path {Path(path).name} is no VGG-16 or VGG-19 with torchvision's names "
            f"(features.0.weight [64, 3, 3, 3], ...): it has {len(layers)} layers with a number, "
            f"the names begin with {sorted(arrays)[:3]}"
        )
    names = []
    for block, count in enumerate(_BLOCKS[len(layers)], 1):
        names += [f"conv{block}_{layer}" for layer in range(1, count + 1)]
    if last not in names:
        raise ValueError(f"last must be one of {', '.join(names)}, got {last!r}")

    weights = {}
    for name, layer in zip(names[: names.index(last) + 1], layers, strict=False):
        w = layer["weight"].transpose(2, 3, 1, 0)
        weights[name] = {"w": jnp.asarray(w), "b": jnp.asarray(layer["bias"])}
    return weights


def _convolutions(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The layers with a number in their name, in its order, but for those of the classifier."""
    layers = {}
    for name, x in arrays.items():
        *_, index, kind = ("", *name.split("."))[-3:]
        in_classifier = name.startswith("classifier.")
        if index.isdecimal() and kind in ("weight", "bias") and not in_classifier:
            layers.setdefault(int(index), {})[kind] = x
    return [layers[i] for i in sorted(layers)]


def _is_vgg_layer(layer: dict[str, np.ndarray]) -> bool:
    return layer.keys() == {"weight", "bias"} and layer["weight"].shape[2:] == (3, 3)


@checked
def gram(x: Array) -> Array:
    """How often features occur together: the mean over positions of their products.

    ``[h, w, C] -> [C, C]``.

    >>> import jax.numpy as jnp, metajax as mx
    >>> mx.problems.gram(jnp.array([[[1.0, 2.0]], [[3.0, 0.0]]])).tolist()
    [[5.0, 1.0], [1.0, 2.0]]
    """
    x = at_least_float32(x).reshape(-1, x.shape[-1])
    return x.T @ x / len(x)


@checked
def neural_art(
    features: Callable[[Array], dict[str, Array]],
    content: Sequence[str] = ("conv4_2",),
    style: Sequence[str] = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"),
    *,
    alpha: NonNegative = 1.0,
    beta: NonNegative = 1.0,
    gamma: NonNegative = 0.1,
) -> tuple[Problem, Tasks]:
    """Content, style and smoothness (Andrychowicz et al. 2016, section 3.4) of one image.

    The image is a task's parameters. The loss is ``alpha * content + beta * style + gamma *
    smoothness``: the mean squared difference of the features; that of their `gram` matrices,
    averaged over the layers; the mean squared difference of neighbouring pixels. Content and style
    are taken relative to the size of their target, so that the three numbers mean the same for
    every network. The metrics are the three parts. The image starts as noise around grey, is not
    bounded, and is any size that ``features`` takes: an optimizer that was meta-trained at one
    resolution works at another.

    Args:
      features: from `vgg`, or another function of an image.
      content: names of the features compared as they are.
      style: names of the features compared by their `gram` matrices.
      alpha: weight of the content.
      beta: weight of the style.
      gamma: weight of the smoothness.

    Returns:
      A problem and its tasks, whose ``data = {"content": [M, H, W, 3], "style": [N, h, w, 3]}`` are
      of dtype uint8 or in [0, 1]; each task draws one of each.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> k_layer, k_image = jax.random.split(jax.random.key(0))
    >>> layer = {"w": jax.random.normal(k_layer, (3, 3, 3, 4)), "b": jnp.zeros(4)}
    >>> features = mx.problems.vgg({"conv1_1": layer})
    >>> problem, tasks = mx.problems.neural_art(features, content=["conv1_1"], style=["conv1_1"])
    >>> content = jax.random.uniform(k_image, (2, 8, 8, 3))
    >>> data = {"content": content, "style": jnp.ones((1, 8, 8, 3))}
    >>> loop = mx.inner(mx.l2l(optax.adam, problem), tasks, horizon=20)
    >>> curves = mx.evaluate(loop, jax.random.key(2), 0.1, data, num_tasks=2)
    >>> sorted(curves.metrics), bool((curves.loss[:, -1] < curves.loss[:, 0]).all())
    (['content', 'smoothness', 'style'], True)
    """
    content = tuple(content)
    style = tuple(style)
    if not content or not style:
        raise ValueError(
            "content and style must each name at least one of the features"
        )

    def sample(key, data):
        _check_images(data)
        k_content, k_style = jax.random.split(key)
        content_image = _draw_image(k_content, data["content"])
        style_image = _draw_image(k_style, data["style"])
        return {
            "content": content_image,
            "style": style_image,
            "features": _select(features(content_image), content),
            "gram": _grams(_select(features(style_image), style)),
        }

    def same_task(key, data, task):
        del key, data
        return task

    def init(key, task):
        return 0.5 + 0.1 * jax.random.normal(key, task["content"].shape)

    def loss(key, params, batch):
        del key
        _checks.entries("batch", batch, _TARGETS, "metajax.problems.neural_art")
        found = features(params)
        parts = {
            "content": _distance(_select(found, content), batch["features"]),
            "style": _distance(_grams(_select(found, style)), batch["gram"]),
            "smoothness": _smoothness(at_least_float32(params)),
        }
        total = (
            alpha * parts["content"]
            + beta * parts["style"]
            + gamma * parts["smoothness"]
        )
        return total, parts

    return stateless(init, loss), Tasks(sample, same_task, same_task)


def _smoothness(image: Array) -> Array:
    across = jnp.diff(image, axis=1)
    down = jnp.diff(image, axis=0)
    return jnp.mean(across**2) + jnp.mean(down**2)


def _check_images(data: dict[str, Array]) -> None:
    for name in ("content", "style"):
        images = data.get(name) if isinstance(data, dict) else None
        if images is None or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f'data must be {{"content": [M, H, W, 3], "style": [N, h, w, 3]}}; look at {name!r}'
            )


def _draw_image(key: Key, images: Array) -> Array:
    """One of the images, with values in [0, 1]."""
    chosen = jnp.asarray(images)[jax.random.randint(key, (), 0, len(images))]
    image = chosen.astype(jnp.float32)
    return image / 255 if chosen.dtype == jnp.uint8 else image


def _select(found: dict[str, Array], names: Sequence[str]) -> dict[str, Array]:
    for name in names:
        if name not in found:
            raise ValueError(
                f"content and style must be among the features {', '.join(found)}; there is no "
                f"{name!r}"
            )
    return at_least_float32({name: found[name] for name in names})


def _grams(found: dict[str, Array]) -> dict[str, Array]:
    return {name: gram(x) for name, x in found.items()}


def _distance(got: dict[str, Array], want: dict[str, Array]) -> Array:
    """The mean over the layers of the squared difference, relative to what is wanted."""
    relative = []
    for name, target in want.items():
        error = jnp.mean((got[name] - target) ** 2)
        relative.append(error / (jnp.mean(target**2) + 1e-6))
    return jnp.stack(relative).mean()


def _block_and_layer(name: str) -> tuple[int, int]:
    block, _, layer = name.removeprefix("conv").partition("_")
    if not (name.startswith("conv") and block.isdecimal() and layer.isdecimal()):
        raise ValueError(f"weights must have names such as conv1_1, got {name!r}")
    return int(block), int(layer)


def _average_pool(x: Array) -> Array:
    height = 2 * (x.shape[1] // 2)
    width = 2 * (x.shape[2] // 2)
    if not height or not width:
        raise ValueError(
            f"the image is too small for this network: features of {x.shape[1:3]} cannot be pooled"
        )
    window = (1, 2, 2, 1)
    total = lax.reduce_window(
        x[:, :height, :width], 0.0, lax.add, window, window, "VALID"
    )
    return total / 4
