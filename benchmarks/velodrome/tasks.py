"""The fixed image tasks: perceptrons, autoencoders and convolutions on three small data sets.

Names and definitions are those of google/learned_optimization (Metz et al. 2022, arXiv 2211.09760),
``tasks/fixed``. Scales and offsets of batch normalisation are vectors here, there ``[1, C]``.
"""

import itertools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import metajax as mx

NUM_CLASSES = 10
CHANNELS = {"cifar10": 3}  # of all others 1
STRIDES = (2, 1, 1)


class FixedTask(NamedTuple):
    """A network, a loss and its data.

    Attributes:
      data: a name of `metajax.data.load`.
      size: height and width that the images are scaled to.
      hidden: the units of each layer, or the channels of each convolution.
      kind: of network.
      activation: the name of a function.
      norm: over the features of an example, or over the batch.
      loss: cross-entropy, or squared error; autoencoders have that of the pixels.
      batch: examples in a batch.
      grey: whether the channels of an image are averaged.
    """

    data: str
    size: int
    hidden: tuple[int, ...]
    kind: Literal["perceptron", "autoencoder", "convolutional"] = "perceptron"
    activation: Literal["relu", "tanh"] = "relu"
    norm: Literal["layer", "batch"] | None = None
    loss: Literal["cross-entropy", "squared"] = "cross-entropy"
    batch: int = 128
    grey: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        channels = 1 if self.grey else CHANNELS.get(self.data, 1)
        return self.size, self.size, channels


_THREE = FixedTask("cifar10", 32, (128, 128, 128))
_TANH = _THREE._replace(activation="tanh")
_CODE = FixedTask("cifar10", 32, (128, 32, 128), "autoencoder")
_CONV = FixedTask("cifar10", 32, (32, 64, 64), "convolutional")

TASKS = {
    "ImageMLP_Mnist_128x128x128_Relu": FixedTask("mnist", 28, (128, 128, 128)),
    "ImageMLP_FashionMnist_Relu128x128": FixedTask("fashion_mnist", 28, (128, 128)),
    "ImageMLP_FashionMnist8_Relu32": FixedTask("fashion_mnist", 8, (32,)),
    "ImageMLP_Cifar10_8_Relu32": FixedTask("cifar10", 8, (32,)),
    "ImageMLP_Cifar10_128x128x128_Relu": _THREE,
    "ImageMLP_Cifar10_128x128x128_Tanh_bs64": _TANH._replace(batch=64),
    "ImageMLP_Cifar10_128x128x128_Tanh_bs128": _TANH,
    "ImageMLP_Cifar10_128x128x128_Tanh_bs256": _TANH._replace(batch=256),
    "ImageMLP_Cifar10_128x128x128_Relu_MSE": _THREE._replace(loss="squared"),
    "ImageMLP_Cifar10_128x128x128_LayerNorm_Relu": _THREE._replace(norm="layer"),
    "ImageMLP_Cifar10_128x128x128_LayerNorm_Tanh": _TANH._replace(norm="layer"),
    "ImageMLP_Cifar10_128x128x128_BatchNorm_Relu": _THREE._replace(norm="batch"),
    "ImageMLP_Cifar10_128x128x128_BatchNorm_Tanh": _TANH._replace(norm="batch"),
    "ImageMLP_Cifar10_256x256_Relu": _THREE._replace(hidden=(256, 256)),
    "ImageMLP_Cifar10_1024x1024_Relu": _THREE._replace(hidden=(1024, 1024)),
    "ImageMLP_Cifar10_4096x4096_Relu": _THREE._replace(hidden=(4096, 4096)),
    "ImageMLP_Cifar10_8192x8192_Relu": _THREE._replace(hidden=(8192, 8192)),
    "ImageMLPAE_Mnist_128x32x128_bs128": _CODE._replace(data="mnist", size=28),
    "ImageMLPAE_FashionMnist_128x32x128_bs128": _CODE._replace(
        data="fashion_mnist", size=28
    ),
    "ImageMLPAE_Cifar10_32x32x32_bs128": _CODE._replace(hidden=(32, 32, 32)),
    "ImageMLPAE_Cifar10_128x32x128_bs256": _CODE._replace(batch=256),
    "ImageMLPAE_Cifar10_256x256x256_bs128": _CODE._replace(hidden=(256, 256, 256)),
    "ImageMLPAE_Cifar10_256x256x256_bs1024": _CODE._replace(
        hidden=(256, 256, 256), batch=1024
    ),
    "Conv_Cifar10_16_32x64x64": _CONV._replace(size=16),
    "Conv_Cifar10_32x64x64": _CONV,
    "Conv_Cifar10_32x64x64_Tanh": _CONV._replace(activation="tanh"),
    "Conv_Cifar10_32x64x64_layernorm": _CONV._replace(norm="layer"),
    "Conv_Cifar10_32x64x64_batchnorm": _CONV._replace(norm="batch"),
    # No curve was published of these.
    "ImageMLP_Cifar10BW8_Relu32": FixedTask("cifar10", 8, (32,), grey=True),
    "ImageMLP_FashionMnist16_Relu32": FixedTask("fashion_mnist", 16, (32,)),
    "ImageMLP_FashionMnist32_Relu32": FixedTask("fashion_mnist", 32, (32,)),
    "ImageMLP_Cifar10_256x256_Relu_BS32": _THREE._replace(hidden=(256, 256), batch=32),
    "ImageMLP_Cifar10_16384x16384_Relu": _THREE._replace(hidden=(16384, 16384)),
    "ImageMLP_FashionMnist8_256x256_Relu": FixedTask("fashion_mnist", 8, (256, 256)),
    "ImageMLPAE_FashionMnist16_64x16x64_bs128": _CODE._replace(
        data="fashion_mnist", size=16, hidden=(64, 16, 64)
    ),
    "Conv_Cifar10_8_16x32": _CONV._replace(size=8, hidden=(16, 32)),
}


def images(task: FixedTask) -> dict[str, np.ndarray]:
    """What is trained on: the first 80 % of the training split of the data set.

    In uint8 where the images stay as they are, else in float32 from 0 to 1.
    """
    data = mx.data.load(task.data)
    num_images = len(data["label"]) * 8 // 10
    image = data["image"][:num_images]
    label = data["label"][:num_images]
    if image.shape[1] != task.size:
        image = resized(image, task.size) / np.float32(255)
    if task.grey:
        image = in_unit_range(image).mean(-1, keepdims=True)
    return {"image": image, "label": label}


def in_unit_range(image: np.ndarray) -> np.ndarray:
    """In float32 from 0 to 1."""
    return image / np.float32(255) if image.dtype == np.uint8 else image


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """Images ``[M, H, W, C]`` as ``[M, size, size, C]`` in float32.

    Bilinear with half-pixel centres, without antialiasing, as ``tf.image.resize`` does it.
    """
    return _resized_axis(_resized_axis(image, 1, size), 2, size)


def _resized_axis(x: np.ndarray, axis: int, size: int) -> np.ndarray:
    length = x.shape[axis]
    source = (np.arange(size) + 0.5) * length / size - 0.5
    below = np.floor(source).astype(int)
    share = np.expand_dims(
        np.float32(source - below), tuple(range(1, x.ndim - axis))
    )  # over the axes that follow
    lower = x.take(below.clip(0), axis)
    upper = x.take((below + 1).clip(max=length - 1), axis)
    return (1 - share) * lower + share * upper


def problem(task: FixedTask) -> mx.Problem:
    """What is minimised: parameters are a list of layers.

    Weights are ``[inputs, outputs]`` and kernels ``[3, 3, inputs, outputs]``, normals of variance
    ``1 / fan_in`` truncated at two standard deviations; biases are 0.
    """
    inputs = math.prod(task.shape)
    if task.kind == "autoencoder":
        net = _perceptron(task, inputs, inputs)
        return mx.problems.supervised(*_without_state(*net), _pixel_error)

    if task.kind == "convolutional":
        net = _convolutional(task)
    else:
        net = _perceptron(task, inputs, NUM_CLASSES)
    if task.loss == "squared":
        return mx.problems.supervised(*_without_state(*net), _label_error)
    return mx.problems.classifier(*net)


def normalised(task: FixedTask, loss: np.ndarray) -> np.ndarray:
    """The loss as a learned optimizer is meta-trained on it: capped, and of similar size.

    What is NaN counts as the cap, but for convolutions and autoencoders, whose NaN stays.
    """
    if task.kind == "autoencoder":
        return np.clip(loss, 0, 1)
    if task.loss == "squared":
        return 10 * np.minimum(np.nan_to_num(loss, nan=1.0), 1)
    cap = 1.5 * math.log(NUM_CLASSES)
    if task.kind == "convolutional":
        return np.clip(loss, 0, cap)
    return np.clip(np.nan_to_num(loss, nan=cap), 0, cap)


def _perceptron(task: FixedTask, inputs: int, outputs: int):
    sizes = (inputs, *task.hidden, outputs)
    shapes = list(itertools.pairwise(sizes))
    activation = getattr(jax.nn, task.activation)

    def init(key):
        return _layers(key, shapes, task.norm)

    def apply(params, image):
        x = image.reshape(len(image), -1)
        *hidden, last = params
        for layer in hidden:
            x = activation(_normalise(task, layer, x @ layer["w"] + layer["b"]))
        return x @ last["w"] + last["b"]

    return init, apply


def _convolutional(task: FixedTask):
    channels = (task.shape[-1], *task.hidden)
    kernels = [(3, 3, *pair) for pair in itertools.pairwise(channels)]
    shapes = [*kernels, (channels[-1], NUM_CLASSES)]
    activation = getattr(jax.nn, task.activation)

    def init(key):
        return _layers(key, shapes, task.norm)

    def apply(params, image):
        x = image
        *hidden, last = params
        for layer, stride in zip(hidden, STRIDES, strict=False):
            x = mx.nets.conv(x, layer["w"], stride) + layer["b"]
            x = _normalise(task, layer, activation(x))
        return x.mean((1, 2)) @ last["w"] + last["b"]

    return init, apply


def _layers(key, shapes, norm):
    layers = []
    for k, shape in zip(jax.random.split(key, len(shapes)), shapes, strict=True):
        fan_in = math.prod(shape[:-1])
        weights = jax.nn.initializers.truncated_normal(fan_in**-0.5)
        layers.append({"w": weights(k, shape), "b": jnp.zeros(shape[-1])})
    if norm is not None:
        for layer in layers[:-1]:
            layer["scale"] = jnp.ones_like(layer["b"])
            layer["offset"] = jnp.zeros_like(layer["b"])
    return layers


def _normalise(task, layer, x):
    if task.norm is None:
        return x
    if task.norm == "batch":
        x = mx.nets.transductive_batch_norm(x)
    else:  # of a place, where there are several
        x = mx.nets.layer_norm(x.reshape(-1, x.shape[-1])).reshape(x.shape)
    return x * layer["scale"] + layer["offset"]


def _without_state(net_init, net_apply):
    def init(key):
        return net_init(key), ()

    def apply(key, params, model_state, image, training):
        del key, training
        return net_apply(params, image), model_state

    return init, apply


def _pixel_error(outputs, batch):
    image = batch["image"].reshape(outputs.shape)
    return jnp.mean((jax.nn.sigmoid(outputs) - image) ** 2), {}


def _label_error(outputs, batch):
    target = jax.nn.one_hot(batch["label"], NUM_CLASSES)
    return jnp.mean((outputs - target) ** 2), {}
