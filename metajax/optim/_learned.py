"""What all learned optimizers check: the key, and whose meta-parameters they get."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax import _checks
from metajax._arguments import check_key
from metajax.types import Array, LearnedOptimizer, PyTree


def learned_optimizer(
    init: Callable[[Array], PyTree],
    make_tx: Callable[[PyTree], optax.GradientTransformation],
) -> LearnedOptimizer:
    """The learned optimizer of ``init`` and ``make_tx``, with checks of what these are given."""
    # The key is made while tracing: an optimizer made at import must not start a backend.
    like = jax.eval_shape(lambda: init(jax.random.key(0)))
    want = _structure_and_shapes(like)

    def checked_init(key: Array) -> PyTree:
        if not hasattr(key, "dtype"):
            got = type(key).__name__
            raise TypeError(
                f"key must be a typed key, e.g. jax.random.key(0), got {got}; where an optax "
                f"transformation is due, give optimizer.tx(meta_params)"
            )
        check_key(key)
        return init(key)

    checked_init.checks_key = True  # in words of its own

    def tx(meta_params: PyTree) -> optax.GradientTransformation:
        _check_no_result(meta_params)
        got = _structure_and_shapes(meta_params)
        if got != want:
            raise ValueError(
                f"meta_params must have the tree and the shapes of this optimizer's init; were "
                f"they made with other settings?\n  got  {got}\n  want {want}"
            )
        _checks.floating("meta_params", meta_params)
        return make_tx(meta_params)

    return LearnedOptimizer(checked_init, tx)


def _check_no_result(meta_params: PyTree) -> None:
    remedies = {"Fit": "give result.best", "TrainState": "give state.meta_params"}
    kind = type(meta_params).__name__
    if kind in remedies:
        raise TypeError(
            f"meta_params must be those of this optimizer, got a metajax.{kind}; {remedies[kind]}"
        )


def _structure_and_shapes(tree: PyTree) -> tuple[Any, list[tuple[int, ...]]]:
    leaves, structure = jax.tree.flatten(tree)
    shapes = [jnp.shape(x) for x in leaves]
    return structure, shapes
