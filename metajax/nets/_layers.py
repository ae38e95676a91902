"""Layers without parameters of their own, made to run under `jax.vmap` over weights."""

import jax.numpy as jnp
from jax import lax

from metajax._arguments import PositiveInt, checked
from metajax._arrays import standardise
from metajax.nets._convolutions import convolve
from metajax.types import Array


@checked
def transductive_batch_norm(x: Array) -> Array:
    """Normalises ``x [B, ..., C]`` by the mean and variance of each channel over the batch.

    At test time too. Transductive: the prediction for an image depends on the other images it is
    shown with, so accuracies are not to be compared with those of methods that see one query at a
    time (Nichol et al. 2018; Bronskill et al. 2020).

    >>> import jax.numpy as jnp, metajax as mx
    >>> mx.nets.transductive_batch_norm(jnp.array([[1.0], [3.0]])).round(3).tolist()
    [[-1.0], [1.0]]
    """
    batch_and_positions = range(x.ndim - 1)
    return standardise(x, tuple(batch_and_positions))


@checked
def layer_norm(x: Array) -> Array:
    """Normalises each example of ``x [B, ...]`` by its own mean and variance.

    Not transductive (Ba et al. 2016).

    >>> import jax.numpy as jnp, metajax as mx
    >>> mx.nets.layer_norm(jnp.array([[1.0, 3.0], [10.0, 30.0]])).round(3).tolist()
    [[-1.0, 1.0], [-1.0, 1.0]]
    """
    all_but_batch = range(1, x.ndim)
    return standardise(x, tuple(all_but_batch))


@checked
def conv(x: Array, w: Array, stride: PositiveInt = 1) -> Array:
    """Convolution with ``SAME`` padding, as a product of two matrices: patches and weights.

    Equal to ``lax.conv_general_dilated``, which under `jax.vmap` over weights becomes a grouped
    convolution; for MAML with `conv4` that took six times the processor time on a CPU.

    Args:
      x: ``[B, H, W, C]``.
      w: ``[k, k, C, F]``.
      stride: in both directions.

    Returns:
      ``[B, ceil(H / stride), ceil(W / stride), F]``.

    >>> import jax.numpy as jnp, metajax as mx
    >>> mx.nets.conv(jnp.ones((2, 28, 28, 1)), jnp.ones((3, 3, 1, 64)), stride=2).shape
    (2, 14, 14, 64)
    """
    _check_conv(x, w)
    window = w.shape[:2]
    strides = (stride, stride)
    padding = lax.padtype_to_pads(x.shape[1:3], window, strides, "SAME")
    return convolve(x, w, strides, padding)


def _check_conv(x: Array, w: Array) -> None:
    fits = x.ndim == w.ndim == 4
    fits = fits and w.shape[0] == w.shape[1]
    fits = fits and w.shape[2] == x.shape[-1]
    if not fits:
        raise ValueError(
            f"x must be [B, H, W, C] and w [k, k, C, F], got {list(x.shape)} and {list(w.shape)}"
        )


@checked
def max_pool(x: Array) -> Array:
    """2x2 max-pooling of ``x [B, H, W, C]``, odd edges cut off.

    >>> import jax.numpy as jnp, metajax as mx
    >>> mx.nets.max_pool(jnp.ones((2, 5, 4, 3))).shape
    (2, 2, 2, 3)
    """
    # By reshaping, whose gradient is cheaper than that of lax.reduce_window. By comparison of
    # pairs, since the gradient of x.max looks for the maximum in x again, and divides by zero where
    # a compiler has computed x twice, differently.
    if x.ndim != 4:
        raise ValueError(f"x must be [B, H, W, C], got {list(x.shape)}")
    batch, height, width, channels = x.shape
    rows = height // 2
    columns = width // 2
    x = x[:, : 2 * rows, : 2 * columns]
    x = x.reshape(batch, rows, 2, columns, 2, channels)
    upper = x[:, :, 0]
    lower = x[:, :, 1]
    x = _larger(upper, lower)
    left = x[..., 0, :]
    right = x[..., 1, :]
    return _larger(left, right)


def _larger(a: Array, b: Array) -> Array:
    # The first of equals, and NaN if one is.
    second = (b > a) | jnp.isnan(b)
    return jnp.where(second, b, a)
