"""Networks of the few-shot literature."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax._arguments import PositiveInt, checked
from metajax._arrays import affine, lift
from metajax.nets._layers import conv, max_pool, transductive_batch_norm
from metajax.types import Array, PyTree

Norm = Callable[[Array], Array]
GLOROT = jax.nn.initializers.glorot_uniform()


class Net(NamedTuple):
    """A network; ``mx.problems.classifier(*net)`` makes it a problem.

    Attributes:
      init: ``(key) -> params``.
      apply: ``(params, images [B, height, width, channels]) -> logits [B, ways]``.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., Array]


@checked
def conv4(
    ways: PositiveInt,
    shape: Sequence[int] = (28, 28, 1),
    filters: PositiveInt = 64,
    *,
    downsample: Literal["stride", "max_pool"] = "stride",
    norm: Norm = transductive_batch_norm,
    weights: Callable = GLOROT,
) -> Net:
    """Four blocks of 3x3 convolution, normalisation and ReLU, and a linear layer.

    The network of Vinyals et al. 2016, in the two variants of Finn et al. 2017 (section 5.2): for
    Omniglot 64 filters and strides of 2, the default; for mini-ImageNet ``conv4(ways, (84, 84, 3),
    32, downsample="max_pool")``. The features are flattened, as in the code of Rajeswaran et al.
    2019; the code of Finn et al. averages those of Omniglot over the positions.

    Args:
      ways: classes.
      shape: height, width and channels of an image.
      filters: of each block.
      downsample: ``"stride"``, or ``"max_pool"`` for 2x2 max-pooling at the end of each block, odd
        edges cut off; images must then be at least 16x16.
      norm: ``[B, H, W, C] ->`` the same; scale and offset of each channel are learned besides.
      weights: an initializer of `jax.nn.initializers`: Glorot's uniform one, as in the code of Finn
        et al. 2017; that of Rajeswaran et al. 2019 has ``variance_scaling(3.0, "fan_avg",
        "uniform")``.

    >>> import jax, metajax as mx
    >>> net = mx.nets.conv4(5)
    >>> problem = mx.problems.classifier(*net)
    >>> params = jax.eval_shape(net.init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    113221
    """
    shape = _checks.positive_ints("shape", shape, like=(28, 28, 1))
    height, width, channels = shape

    # Four halvings: by pooling rounded down, by strides rounded up.
    if downsample == "max_pool":
        _check_poolings(shape, 4, "use downsample='stride'")
        stride = 1
        rows = height // 16
        columns = width // 16
    else:
        stride = 2
        rows = math.ceil(height / 16)
        columns = math.ceil(width / 16)

    def init_block(key, inputs, outputs):
        size = (3, 3, inputs, outputs)
        return _normed_layer(weights, key, size, bias=True)

    def block(layer, x):
        x = conv(x, layer["w"], stride)
        x = x + lift(layer["b"], x)
        x = _scale_and_offset(layer, norm(x))
        x = jax.nn.relu(x)
        if downsample == "max_pool":
            x = max_pool(x)
        return x

    body = _Body(
        widths=(channels, filters, filters, filters, filters),
        init_block=init_block,
        block=block,
        pool=_flatten,
        num_features=rows * columns * filters,
    )
    return _net(body, shape, ways, weights)


@checked
def dense4(
    ways: PositiveInt,
    shape: Sequence[int] = (28, 28, 1),
    hidden: Sequence[int] = (256, 128, 64, 64),
    *,
    norm: Norm = transductive_batch_norm,
    weights: Callable = GLOROT,
) -> Net:
    """Linear layers, each followed by normalisation and ReLU, and a linear layer.

    The fully connected network for Omniglot of Santoro et al. 2016 and Finn et al. 2017 (section
    5.2).

    Args:
      ways: classes.
      shape: height, width and channels of an image; it is flattened.
      hidden: units of the layers of the body.
      norm: ``[B, C] ->`` the same; scale and offset of each unit are learned besides.
      weights: an initializer of `jax.nn.initializers`.

    >>> import jax, metajax as mx
    >>> params = jax.eval_shape(mx.nets.dense4(5).init, jax.random.key(0))
    >>> len(params["body"]), params["head"]["w"].shape
    (4, (64, 5))
    """
    shape = _checks.positive_ints("shape", shape, like=(28, 28, 1))
    hidden = _checks.positive_ints("hidden", hidden, like=(256,))

    def init_block(key, inputs, outputs):
        size = (inputs, outputs)
        return _normed_layer(weights, key, size, bias=True)

    def block(layer, x):
        x = affine(_flatten(x), layer["w"], layer["b"])
        x = _scale_and_offset(layer, norm(x))
        return jax.nn.relu(x)

    body = _Body(
        widths=(math.prod(shape), *hidden),
        init_block=init_block,
        block=block,
        pool=_flatten,
        num_features=hidden[-1],
    )
    return _net(body, shape, ways, weights)


@checked
def resnet12(
    ways: PositiveInt,
    shape: Sequence[int] = (84, 84, 3),
    filters: Sequence[int] = (64, 160, 320, 640),
    *,
    norm: Norm = transductive_batch_norm,
    weights: Callable = GLOROT,
) -> Net:
    """ResNet-12 with the sizes of Lee et al. 2019 (MetaOptNet), without its dropout and DropBlock.

    Four residual blocks of three 3x3 convolutions with normalisation and leaky ReLU (slope 0.1), a
    1x1 convolution with normalisation as the shortcut, and 2x2 max-pooling; the mean over positions
    (as Oreshkin et al. 2018) and a linear layer.

    Args:
      ways: classes.
      shape: height, width and channels of an image, large enough for a pooling a block.
      filters: of each block; as many blocks as numbers.
      norm: ``[B, H, W, C] ->`` the same; scale and offset of each channel are learned besides.
      weights: an initializer of `jax.nn.initializers`.

    >>> import jax, metajax as mx
    >>> params = jax.eval_shape(mx.nets.resnet12(5).init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params["body"]))
    12424320
    """
    shape = _checks.positive_ints("shape", shape, like=(84, 84, 3))
    filters = _checks.positive_ints("filters", filters, like=(64,))
    _check_poolings(shape, len(filters), "give larger images, or fewer filters")

    def init_block(key, inputs, outputs):
        *conv_keys, shortcut_key = jax.random.split(key, 4)
        convs = []
        channels = inputs
        for conv_key in conv_keys:
            size = (3, 3, channels, outputs)
            convs.append(_normed_layer(weights, conv_key, size))
            channels = outputs
        size = (1, 1, inputs, outputs)
        shortcut = _normed_layer(weights, shortcut_key, size)
        return {"convs": convs, "shortcut": shortcut}

    leaky_relu = functools.partial(jax.nn.leaky_relu, negative_slope=0.1)

    def normed_conv(layer, x):
        x = conv(x, layer["w"])
        return _scale_and_offset(layer, norm(x))

    def block(layers, x):
        shortcut = normed_conv(layers["shortcut"], x)
        first, second, third = layers["convs"]
        x = leaky_relu(normed_conv(first, x))
        x = leaky_relu(normed_conv(second, x))
        x = leaky_relu(normed_conv(third, x) + shortcut)
        return max_pool(x)

    body = _Body(
        widths=(shape[-1], *filters),
        init_block=init_block,
        block=block,
        pool=_mean_over_positions,
        num_features=filters[-1],
    )
    return _net(body, shape, ways, weights)


class _Body(NamedTuple):
    """All of a network before its head: blocks that are alike.

    Attributes:
      widths: channels or units before the first block, and after each.
      init_block: ``(key, inputs, outputs) -> layer``.
      block: ``(layer, x) -> x``.
      pool: what the last block gives ``-> [B, F]``, the features that the head takes.
      num_features: F.
    """

    widths: tuple[int, ...]
    init_block: Callable[..., PyTree]
    block: Callable[..., Array]
    pool: Callable[..., Array]
    num_features: int


@checked
def _net(
    body: _Body,
    shape: tuple[int, ...],
    ways: PositiveInt,
    weights: Callable,
) -> Net:
    """The body and a linear layer on its features."""

    def init(key):
        keys = jax.random.split(key, len(body.widths))
        *block_keys, head_key = keys
        sizes = itertools.pairwise(body.widths)
        blocks = []
        for block_key, size in zip(block_keys, sizes, strict=True):
            blocks.append(body.init_block(block_key, *size))
        head = {
            "w": weights(head_key, (body.num_features, ways)),
            "b": jnp.zeros(ways),
        }
        return {"body": blocks, "head": head}

    def apply(params, images):
        got = tuple(images.shape[1:])
        if got != shape:
            raise ValueError(
                f"shape is {shape}, but an image is {got}; give that shape to the net"
            )
        x = images
        for layer in params["body"]:
            x = body.block(layer, x)
        features = body.pool(x)
        head = params["head"]
        return affine(features, head["w"], head["b"])

    return Net(init, apply)


def _normed_layer(
    weights: Callable,
    key: Array,
    size: tuple[int, ...],
    bias: bool = False,
) -> dict[str, Array]:
    """A layer that normalisation follows."""
    outputs = size[-1]
    layer = {
        "w": weights(key, size),
        "scale": jnp.ones(outputs),
        "offset": jnp.zeros(outputs),
    }
    # A bias before normalisation does nothing, and is there where the published net has it.
    if bias:
        layer["b"] = jnp.zeros(outputs)
    return layer


def _scale_and_offset(layer: dict[str, Array], x: Array) -> Array:
    return x * lift(layer["scale"], x) + lift(layer["offset"], x)


def _flatten(x: Array) -> Array:
    return x.reshape(len(x), -1)


def _mean_over_positions(x: Array) -> Array:
    return x.mean((1, 2))


def _check_poolings(shape: tuple[int, ...], poolings: int, remedy: str) -> None:
    least = 2**poolings
    if min(shape[:2]) < least:
        raise ValueError(
            f"shape must be at least {least}x{least} for {poolings} poolings, got {shape}; {remedy}"
        )
