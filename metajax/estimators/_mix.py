"""Several estimators as one."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax import _trees
from metajax._arguments import Finite, check, checked
from metajax.types import Data, Estimate, Estimator


@checked
def mix(
    estimators: Sequence[Estimator] | Mapping[str, Estimator],
    weights: Sequence[float] | Mapping[str, float] | None = None,
) -> Estimator:
    """The weighted sum of several estimates of one tree of meta-parameters.

    For meta-training over inner loops that no `jax.vmap` could batch: other architectures, sizes,
    horizons, data sets. The loss is the same weighted sum, and so the gradient's own objective. The
    metrics are those of the parts and their losses, under ``"name/metric"``, with the position for
    a name in a sequence.

    Args:
      estimators: a sequence, all of whom are handed the same ``data``; or a mapping from names, and
        ``data`` is a mapping with the same names, of which each estimator is handed its own.
      weights: one for each estimator, under the same names if they have names; by default all equal
        with the sum 1.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loops = [mx.inner(learner, mx.tasks.quadratics(size), horizon=10) for size in (2, 5)]
    >>> estimator = mx.mix([mx.bptt(loop, num_tasks=4) for loop in loops], weights=[0.5, 0.2])
    >>> trainer = mx.trainer(estimator, optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> state, metrics = jax.jit(trainer.step)(state)
    >>> metrics["0/loss"].shape, metrics["1/loss"].shape
    ((), ())
    """
    have_names = isinstance(estimators, Mapping)
    parts = _by_name("estimators", estimators)
    for name, part in parts.items():
        check(Estimator, **{f"estimators[{name!r}]": part})
    shares = _shares(weights, parts, have_names)

    def each_its_own(data: Data) -> dict[Any, Data]:
        if not have_names:
            return dict.fromkeys(parts, data)
        _check_data(data, parts)
        return data

    def init(key, meta_params, data):
        keys = jax.random.split(key, len(parts))
        data = each_its_own(data)
        states = []
        for k, (name, part) in zip(keys, parts.items(), strict=True):
            states.append(part.init(k, meta_params, data[name]))
        return tuple(states)

    def estimate(key, meta_params, state, data):
        keys = jax.random.split(key, len(parts))
        data = each_its_own(data)
        floating, _ = _trees.partition(meta_params)
        updates = optax.tree.zeros_like(floating)
        loss = jnp.zeros(())
        states = []
        metrics = {}
        for k, old, (name, part) in zip(keys, state, parts.items(), strict=True):
            result, new = part.estimate(k, meta_params, old, data[name])
            states.append(new)
            updates = optax.tree.add_scale(updates, shares[name], result.updates)
            loss += shares[name] * result.loss
            metrics[f"{name}/loss"] = result.loss
            metrics |= {f"{name}/{metric}": x for metric, x in result.metrics.items()}
        return Estimate(updates, loss, metrics), tuple(states)

    return Estimator(init, estimate)


def _by_name(name: str, values: Any) -> dict:
    """The values by their names, or by their positions."""
    is_one = isinstance(values, Estimator)
    is_one |= isinstance(values, (str, bytes))
    if is_one or not isinstance(values, (Mapping, Sequence)) or not values:
        raise TypeError(
            f"{name} must be a sequence, or a mapping from names, and not empty"
        )
    return dict(values) if isinstance(values, Mapping) else dict(enumerate(values))


def _shares(weights: Any, parts: dict, have_names: bool) -> dict:
    if weights is None:
        return dict.fromkeys(parts, 1 / len(parts))
    if have_names != isinstance(weights, Mapping):
        kind = "a mapping with their names" if have_names else "a sequence"
        raise TypeError(
            f"weights must be {kind}, as estimators are, got {type(weights).__name__}"
        )
    shares = _by_name("weights", weights)
    if shares.keys() != parts.keys():
        raise ValueError(
            f"weights must be one for each estimator, for {list(parts)}, got {list(shares)}"
        )
    for name, share in shares.items():
        check(Finite, **{f"weights[{name!r}]": share})
    return shares


def _check_data(data: Data, parts: dict) -> None:
    if isinstance(data, Mapping) and data.keys() == parts.keys():
        return
    got = f"names {sorted(data)}" if isinstance(data, Mapping) else type(data).__name__
    raise ValueError(
        f"data must be a dict with an entry for each of the estimators {sorted(parts)}, got {got}; "
        f"give () to those that need none, or give mix a list of estimators that share data"
    )
