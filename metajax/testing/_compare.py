"""Trees that are to be alike, equal or close."""

import jax
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax.types import PyTree


def assert_alike(what: str, got: PyTree, want: PyTree) -> None:
    """The same structure, shapes and dtypes."""
    try:
        _checks.same_structure(what, got, want, "what it was")
    except ValueError as e:
        raise AssertionError(str(e)) from None


def assert_equal(what: str, got: PyTree, want: PyTree) -> None:
    """The same bits."""
    assert_alike(what, got, want)
    for path, x, y in _leaves(got, want):
        np.testing.assert_array_equal(x, y, err_msg=f"{what}{path}")


def assert_close(
    what: str, got: PyTree, want: PyTree, rtol: float, atol: float = 0.0
) -> None:
    """The same but for rounding."""
    assert_alike(what, got, want)
    for path, x, y in _leaves(got, want):
        np.testing.assert_allclose(
            x.astype(np.float64), y.astype(np.float64), rtol, atol, err_msg=what + path
        )


def assert_finite(what: str, tree: PyTree) -> None:
    """No NaN, no infinity."""
    # In NumPy: nothing has to be compiled.
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        x = _numbers(x)
        if jnp.issubdtype(x.dtype, jnp.inexact):
            at = what + jax.tree_util.keystr(path)
            assert np.isfinite(x).all(), f"{at} is not finite"


def assert_moved(what: str, got: PyTree, want: PyTree) -> None:
    """At least one value is another."""
    moved = any(np.any(x != y) for _, x, y in _leaves(got, want))
    assert moved, f"{what} moved nothing"


def _leaves(got: PyTree, want: PyTree) -> list[tuple[str, np.ndarray, np.ndarray]]:
    leaves = []
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    )
    for (path, x), y in pairs:
        leaves.append((jax.tree_util.keystr(path), _numbers(x), _numbers(y)))
    return leaves


def _numbers(x: PyTree) -> np.ndarray:
    is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)
