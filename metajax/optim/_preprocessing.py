"""How LSTM optimizers see gradients (Andrychowicz et al. 2016, arXiv 1606.04474)."""

import jax.numpy as jnp

from metajax._arguments import PositiveFloat, check, checked
from metajax.types import Array


@checked
def log_and_sign(grad: Array, p: PositiveFloat) -> Array:
    """The gradient on a log scale and its sign, as in appendix A of Andrychowicz et al. 2016.

    ``(log|g| / p, sign g)`` where ``|g| >= exp(-p)``, else ``(-1, exp(p) g)``. DeepMind's code adds
    a small constant, the precision of the dtype, to ``|g|`` within the logarithm.

    Args:
      grad: ``[P]``.
      p: how small a gradient is still told from zero.

    Returns:
      ``[2, P]``.

    >>> import jax.numpy as jnp, metajax as mx
    >>> mx.optim.log_and_sign(jnp.array([1.0, -1.0, 0.0]), p=10.0).tolist()
    [[0.0, 0.0, -1.0], [1.0, -1.0, 0.0]]
    """
    return jnp.stack(_log_and_sign(grad, p))


def _log_and_sign(grad: Array, p: float) -> tuple[Array, Array]:
    magnitude = jnp.abs(grad)
    large = magnitude >= jnp.exp(-p)
    # The inner `where` keeps NaN out of the derivative.
    log_magnitude = jnp.log(jnp.where(large, magnitude, 1.0)) / p
    first = jnp.where(large, log_magnitude, -1.0)
    scaled = jnp.exp(p) * grad
    second = jnp.where(large, jnp.sign(grad), scaled)
    return first, second


def preprocess(grad: Array, p: float | None) -> Array:
    """The inputs ``[F, P]`` of a network: `log_and_sign`, or the gradient itself without ``p``."""
    return jnp.stack(rows(grad, p))


def rows(grad: Array, p: float | None) -> tuple[Array, ...]:
    """What `preprocess` stacks."""
    return (grad,) if p is None else _log_and_sign(grad, p)


def num_inputs(p: float | None) -> int:
    """How many rows `preprocess` gives."""
    return 1 if p is None else 2


def check_p(p: float | None) -> None:
    """``p`` must be None, or have an exponential within float32."""
    if p is None:
        return
    check(PositiveFloat, p=p)
    if p > 80:
        raise ValueError(f"p must be at most 80, got {p}: exp(p) has to be a float32")
