"""What kernels written by hand share: they are in Pallas, for GPUs, and so for Triton."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from metajax.types import Array

Kernel = Literal["xla", "pallas", "interpreted"]

_FEWEST_ROWS = 16  # of a product


def check_device(kernel: Kernel) -> None:
    """What is chosen must be able to run here."""
    if kernel != "pallas":
        return  # to ask for the backend would start it
    backend = jax.default_backend()
    if backend != "gpu":
        raise ValueError(
            f"kernel='pallas' needs a GPU, and JAX runs on the {backend} here: leave kernel out, "
            f"or take kernel='interpreted' to test with"
        )


def block(size: int) -> int:
    """The length of an axis as products of Triton want it: a power of two."""
    return max(_FEWEST_ROWS, 2 ** (size - 1).bit_length())


def pad(x: Array, axes: Sequence[int]) -> Array:
    """With zeros at the ends of ``axes``, to a `block`."""
    widths = [(0, block(n) - n if i in axes else 0) for i, n in enumerate(x.shape)]
    return jnp.pad(x, widths)


def product(x: Array, y: Array) -> Array:
    """Of two matrices, in full precision."""
    return lax.dot(x, y, precision=lax.Precision.HIGHEST)


def call(
    kernel: Callable[..., None],
    grid: tuple[int, ...],
    like: Sequence[Array],
    in_place: dict[int, int],
    interpret: bool,
) -> Any:
    """The kernel at all places of a grid.

    Args:
      kernel: a function of references to all operands, then to all outputs, whole.
      grid: its size.
      like: what has the outputs' shapes and dtypes.
      in_place: which operands, by their places, share the memory of which outputs.
      interpret: run it without compiling it.
    """
    # Here, since to import it takes a while.
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    return pallas.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like],
        grid=grid,
        input_output_aliases=in_place,
        interpret=interpret,
        # So many threads keep what a block works on in registers.
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=1),
    )
