"""Networks of the few-shot literature as pairs of functions, made to run under `jax.vmap` over
per-task weights.

Parameters are ``{"body": [layer, ...], "head": layer}``: the head is the last, linear layer that
gives the logits, the body all before it. Methods that adapt only a part pick it by name: ANIL
(Raghu et al. 2020) adapts the head, BOIL (Oh et al. 2021) the body. Any other pair ``(init,
apply)``, of `flax.linen` say, can take the place of these.

Normalisation is a function that is passed in, since what it may look at decides what is measured:
`transductive_batch_norm`, the choice of MAML and iMAML, looks at all query images of a task
together; `layer_norm` at one image at a time.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metajax import _checks
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


def transductive_batch_norm(x: Array) -> Array:
    """Normalises ``x [B, ..., C]`` by the mean and variance of each channel over the batch, at test
    time too.

    Transductive: the prediction for an image depends on the other images it is shown with, so
    accuracies are not to be compared with those of methods that see one query at a time (Nichol et
    al. 2018; Bronskill et al. 2020).

    >>> import jax.numpy as jnp, metajax as mx
    >>> mx.nets.transductive_batch_norm(jnp.array([[1.0], [3.0]])).round(3).tolist()
    [[-1.0], [1.0]]
    """
    return _normalised(x, tuple(range(x.ndim - 1)))


def layer_norm(x: Array) -> Array:
    """Normalises each example of ``x [B, ...]`` by its own mean and variance (Ba et al. 2016): not
    transductive.

    >>> import jax.numpy as jnp, metajax as mx
    >>> mx.nets.layer_norm(jnp.array([[1.0, 3.0], [10.0, 30.0]])).round(3).tolist()
    [[-1.0, 1.0], [-1.0, 1.0]]
    """
    return _normalised(x, tuple(range(1, x.ndim)))


def _normalised(x, axes):
    centred = x - x.mean(axes, keepdims=True)
    return centred * lax.rsqrt(jnp.square(centred).mean(axes, keepdims=True) + 1e-5)


def conv(x: Array, w: Array, stride: int = 1) -> Array:
    """Convolution with ``SAME`` padding as a product of a matrix of patches with a matrix of
    weights.

    Equal to ``lax.conv_general_dilated``, which under `jax.vmap` over weights becomes a grouped
    convolution; for MAML with `conv4` that took six times the processor time on a CPU.

    Args:
      x: ``[B, H, W, C]``.
      w: ``[k, k, C, F]``.
      stride: in both directions.

    Returns:
      ``[B, ceil(H / stride), ceil(W / stride), F]``.

    Raises:
      ValueError: other axes, other channels of ``x`` than of ``w``, or a kernel that is not square.

    >>> import jax.numpy as jnp, metajax as mx
    >>> mx.nets.conv(jnp.ones((2, 28, 28, 1)), jnp.ones((3, 3, 1, 64)), stride=2).shape
    (2, 14, 14, 64)
    """
    if not (x.ndim == w.ndim == 4 and w.shape[0] == w.shape[1] and x.shape[-1] == w.shape[2]):
        raise ValueError(
            f"x must be [B, H, W, C] and w [k, k, C, F], got {list(x.shape)} and {list(w.shape)}"
        )
    k, _, channels, filters = w.shape
    height, width = (-(-size // stride) for size in x.shape[1:3])
    missing = [
        max((out - 1) * stride + k - size, 0)
        for out, size in zip((height, width), x.shape[1:3], strict=True)
    ]
    x = jnp.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)))
    ends = (height - 1) * stride + 1, (width - 1) * stride + 1
    taps = [
        x[:, i : i + ends[0] : stride, j : j + ends[1] : stride] for i in range(k) for j in range(k)
    ]
    # In two dimensions, or XLA turns the derivatives around before it multiplies them with the
    # patches.
    patches = jnp.concatenate(taps, -1).reshape(-1, k * k * channels)
    return (patches @ w.reshape(-1, filters)).reshape(-1, height, width, filters)


def conv4(
    ways: int,
    shape: Sequence[int] = (28, 28, 1),
    filters: int = 64,
    *,
    downsample: str = "stride",
    norm: Norm = transductive_batch_norm,
    weights: Callable = GLOROT,
) -> Net:
    """Four blocks of 3x3 convolution, normalisation and ReLU, and a linear layer (Vinyals et al.
    2016).

    The two variants of Finn et al. 2017 (section 5.2): for Omniglot 64 filters and strides of 2,
    the default; for mini-ImageNet ``conv4(ways, (84, 84, 3), 32, downsample="max_pool")``. The
    features are flattened, as in the code of Rajeswaran et al. 2019; the code of Finn et al.
    averages those of Omniglot over the positions.

    Args: ways: classes. shape: height, width and channels of an image. filters: of each block.
      downsample: ``"stride"``, or ``"max_pool"`` for 2x2 max-pooling at the end of each block, odd
      edges cut off. norm: ``[B, H, W, C] ->`` the same; scale and offset of each channel are
      learned besides. weights: an initializer of `jax.nn.initializers`: Glorot's uniform one, as in
      the code of Finn et al. 2017; that of Rajeswaran et al. 2019 has ``variance_scaling(3.0,
      "fan_avg", "uniform")``.

    Raises:
      TypeError, ValueError: a bad size, or images too small for four poolings.

    >>> import jax, metajax as mx
    >>> net = mx.nets.conv4(5)
    >>> problem = mx.problems.classifier(*net)
    >>> sum(x.size for x in jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0))))
    113221
    """
    height, width, channels = shape = _image_shape(shape)
    _checks.positive_int(ways=ways, filters=filters)
    if downsample not in ("stride", "max_pool"):
        raise ValueError(f"downsample must be 'stride' or 'max_pool', got {downsample!r}")
    _checks.function(norm=norm, weights=weights)
    pooled = downsample == "max_pool"
    if pooled and min(height, width) < 16:
        raise ValueError(
            f"shape must be at least 16x16 for four poolings, got {shape}; use downsample='stride'"
        )
    left = (height // 16) * (width // 16) if pooled else -(-height // 16) * -(-width // 16)

    def init(key):
        keys = jax.random.split(key, 5)
        sizes = [(3, 3, m, filters) for m in (channels, filters, filters, filters)]
        body = [
            _normed(weights, k, size, bias=True) for k, size in zip(keys[:4], sizes, strict=True)
        ]
        return {"body": body, "head": _linear(weights, keys[4], left * filters, ways)}

    def block(layer, x):
        x = conv(x, layer["w"], 1 if pooled else 2) + layer["b"]
        x = jax.nn.relu(norm(x) * layer["scale"] + layer["offset"])
        return max_pool(x) if pooled else x

    return Net(init, _stacked(block, lambda x: x.reshape(len(x), -1), shape))


def dense4(
    ways: int,
    shape: Sequence[int] = (28, 28, 1),
    hidden: Sequence[int] = (256, 128, 64, 64),
    *,
    norm: Norm = transductive_batch_norm,
    weights: Callable = GLOROT,
) -> Net:
    """The fully connected network for Omniglot of Santoro et al. 2016 and Finn et al. 2017 (section
    5.2).

    Linear layers, each followed by normalisation and ReLU, and a linear layer.

    Args:
      ways: classes.
      shape: of an image; it is flattened.
      hidden: units of the layers of the body.
      norm: ``[B, C] ->`` the same; scale and offset of each unit are learned besides.
      weights: an initializer of `jax.nn.initializers`.

    Raises:
      TypeError, ValueError: a bad size.

    >>> import jax, metajax as mx
    >>> params = jax.eval_shape(mx.nets.dense4(5).init, jax.random.key(0))
    >>> len(params["body"]), params["head"]["w"].shape
    (4, (64, 5))
    """
    height, width, channels = shape = _image_shape(shape)
    _checks.positive_int(ways=ways)
    sizes = (height * width * channels, *(_checks.positive_int("hidden", n) for n in hidden))
    _checks.function(norm=norm, weights=weights)

    def init(key):
        keys = jax.random.split(key, len(sizes))
        body = [
            _normed(weights, k, size, bias=True)
            for k, *size in zip(keys[:-1], sizes[:-1], sizes[1:], strict=True)
        ]
        return {"body": body, "head": _linear(weights, keys[-1], sizes[-1], ways)}

    def block(layer, x):
        x = x.reshape(len(x), -1) @ layer["w"] + layer["b"]
        return jax.nn.relu(norm(x) * layer["scale"] + layer["offset"])

    return Net(init, _stacked(block, lambda x: x.reshape(len(x), -1), shape))


def resnet12(
    ways: int,
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
      shape: height, width and channels of an image.
      filters: of each block; as many blocks as numbers.
      norm: ``[B, H, W, C] ->`` the same; scale and offset of each channel are learned besides.
      weights: an initializer of `jax.nn.initializers`.

    Raises:
      TypeError, ValueError: a bad size, or images too small for the poolings.

    >>> import jax, metajax as mx
    >>> params = jax.eval_shape(mx.nets.resnet12(5).init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params["body"]))
    12424320
    """
    height, width, channels = shape = _image_shape(shape)
    _checks.positive_int(ways=ways)
    sizes = (channels, *(_checks.positive_int("filters", n) for n in filters))
    _checks.function(norm=norm, weights=weights)
    if min(height, width) < 2 ** (len(sizes) - 1):
        raise ValueError(
            f"shape must be at least 2^blocks = {2 ** (len(sizes) - 1)} in height and width, got {shape}"
        )

    def init(key):
        *keys, k_head = jax.random.split(key, len(sizes))
        body = []
        for key, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True):
            *k_convs, k_shortcut = jax.random.split(key, 4)
            convs = [
                _normed(weights, k, (3, 3, i, n)) for k, i in zip(k_convs, (m, n, n), strict=True)
            ]
            body.append({"convs": convs, "shortcut": _normed(weights, k_shortcut, (1, 1, m, n))})
        return {"body": body, "head": _linear(weights, k_head, sizes[-1], ways)}

    def normed_conv(layer, x):
        return norm(conv(x, layer["w"])) * layer["scale"] + layer["offset"]

    def block(layers, x):
        residual = normed_conv(layers["shortcut"], x)
        first, second, third = layers["convs"]
        x = jax.nn.leaky_relu(normed_conv(first, x), 0.1)
        x = jax.nn.leaky_relu(normed_conv(second, x), 0.1)
        return max_pool(jax.nn.leaky_relu(normed_conv(third, x) + residual, 0.1))

    return Net(init, _stacked(block, lambda x: x.mean((1, 2)), shape))


def _stacked(block, pool, shape):
    def apply(params, images):
        if images.shape[1:] != shape:
            raise ValueError(
                f"shape is {shape}, but an image is {tuple(images.shape[1:])}; give that shape to the net"
            )
        x = images
        for layer in params["body"]:
            x = block(layer, x)
        return pool(x) @ params["head"]["w"] + params["head"]["b"]

    return apply


def max_pool(x: Array) -> Array:
    """2x2 max-pooling of ``x [B, H, W, C]``, odd edges cut off.

    >>> import jax.numpy as jnp, metajax as mx
    >>> mx.nets.max_pool(jnp.ones((2, 5, 4, 3))).shape
    (2, 2, 2, 3)
    """
    # By reshaping, whose gradient is cheaper than that of lax.reduce_window. By comparison of
    # pairs, since the gradient of x.max looks for the maximum in x again, and divides by zero where
    # a compiler has computed x twice, differently.
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)
    rows = _larger(x[:, :, 0], x[:, :, 1])
    return _larger(rows[..., 0, :], rows[..., 1, :])


def _larger(a: Array, b: Array) -> Array:
    return jnp.where((b > a) | jnp.isnan(b), b, a)  # the first of equals, and NaN if one is


def _linear(weights, key, m, n):
    return {"w": weights(key, (m, n)), "b": jnp.zeros(n)}


def _normed(weights, key, size, bias=False):
    # A layer that normalisation follows; a bias before it does nothing, and is there where the
    # published net has it.
    layer = {"w": weights(key, size), "scale": jnp.ones(size[-1]), "offset": jnp.zeros(size[-1])}
    return layer | {"b": jnp.zeros(size[-1])} if bias else layer


def _image_shape(shape) -> tuple[int, int, int]:
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise ValueError(
            f"shape must be (height, width, channels), e.g. (28, 28, 1), got {shape!r}"
        )
    height, width, channels = (_checks.positive_int("shape", n) for n in shape)
    return height, width, channels
