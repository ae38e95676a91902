"""The orthogonal matrix nearest to a matrix, nearly."""

import optax
from jax import lax

from metajax.types import Array

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_STEPS = 5


def orthogonalize(x: Array) -> Array:
    """Five steps of Newton and Schulz with the coefficients of Muon (Jordan et al. 2024).

    Of matrices ``[..., n, m]`` over their Frobenius norms, singular values from 0.01 to 1 come to
    lie in [0.68, 1.14]; singular vectors stay, and so does zero.
    """
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    norm = optax.safe_norm(x, 0.0, axis=(-2, -1), keepdims=True)
    x = x / (norm + 1e-8)
    a, b, c = _COEFFICIENTS

    def step(_, x):
        # At the device's own precision: Muon takes these steps in bfloat16.
        gram = x @ x.mT
        return a * x + (b * gram + c * gram @ gram) @ x

    x = lax.fori_loop(0, _NUM_STEPS, step, x)
    return x.mT if is_tall else x
