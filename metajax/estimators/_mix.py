"""Several estimators as one."""

import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax.types import Estimate, Estimator


def mix(
    estimators: Sequence[Estimator] | Mapping[str, Estimator],
    weights: Sequence[float] | Mapping[str, float] | None = None,
) -> Estimator:
    """The weighted sum of several estimates of one tree of meta-parameters.

    For meta-training over inner loops that no `jax.vmap` could batch: other architectures, sizes,
    horizons, data sets. The loss is the same weighted sum, and so the gradient's own objective.

    Args: estimators: a sequence, all of whom are handed the same ``data``; or a mapping from names,
      and ``data`` is a mapping with the same names, of which each estimator is handed its own.
      weights: one for each estimator, under the same names if they have names; by default all equal
      with the sum 1.

    Returns: An estimator whose metrics are those of its parts and their losses, under
      ``"name/metric"``, with the position for a name in a sequence.

    Raises: TypeError, ValueError: no estimators, something other than an estimator, or weights that
      are not finite or not one for each estimator; on use, ``data`` without an entry for each name.

    >>> import jax, metajax as mx, optax
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loops = [mx.inner(learner, mx.tasks.quadratics(size), horizon=10) for size in (2, 5)]
    >>> estimator = mx.mix([mx.bptt(loop, num_tasks=4) for loop in loops], weights=[0.5, 0.2])
    >>> trainer = mx.trainer(estimator, optax.adam(1e-3))
    >>> state = trainer.init(jax.random.key(0), jax.numpy.float32(0.01))
    >>> state, metrics = jax.jit(trainer.step)(state)
    >>> sorted(metrics)
    ['0/loss', '1/loss', 'loss', 'skipped', 'update_norm']
    """
    named = isinstance(estimators, Mapping)
    if (
        isinstance(estimators, Estimator)
        or not isinstance(estimators, (Mapping, Sequence))
        or not estimators
    ):
        raise TypeError(
            "estimators must be a sequence of estimators, or a mapping from names to them, and not empty"
        )
    parts = dict(estimators) if named else dict(enumerate(estimators))
    for name, part in parts.items():
        _checks.instance(
            f"estimators[{name!r}]", part, Estimator, "metajax.bptt or another estimator"
        )
    shares = _weights(weights, parts, named)

    def pick(name, data):
        return data[name] if named else data

    def check(data):
        if named and not (isinstance(data, Mapping) and data.keys() == parts.keys()):
            got = f"names {sorted(data)}" if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(
                f"data must be a dict with an entry for each of the estimators {sorted(parts)}, got {got}; "
                f"give () to those that need none, or give mix a list of estimators that share data"
            )

    def init(key, meta_params, data):
        check(data)
        keys = jax.random.split(key, len(parts))
        return tuple(
            part.init(k, meta_params, pick(name, data))
            for k, (name, part) in zip(keys, parts.items(), strict=True)
        )

    def estimate(key, meta_params, state, data):
        check(data)
        keys = jax.random.split(key, len(parts))
        results, states, metrics = [], [], {}
        for k, (name, part), s in zip(keys, parts.items(), state, strict=True):
            result, s = part.estimate(k, meta_params, s, pick(name, data))
            results.append(result)
            states.append(s)
            metrics |= {
                f"{name}/{k}": v for k, v in ({"loss": result.loss} | result.metrics).items()
            }

        def total(*terms):
            return functools.reduce(
                jnp.add, [shares[name] * term for name, term in zip(parts, terms, strict=True)]
            )

        updates = jax.tree.map(total, *(r.updates for r in results))
        return Estimate(updates, total(*(r.loss for r in results)), metrics), tuple(states)

    return Estimator(init, estimate)


def _weights(weights, parts: dict, named: bool) -> dict:
    if weights is None:
        return dict.fromkeys(parts, 1 / len(parts))
    if named != isinstance(weights, Mapping) or not isinstance(weights, (Mapping, Sequence)):
        kind = "a mapping with their names" if named else "a sequence"
        raise TypeError(f"weights must be {kind}, as estimators are, got {type(weights).__name__}")
    shares = dict(weights) if isinstance(weights, Mapping) else dict(enumerate(weights))
    if shares.keys() != parts.keys():
        names = (
            f"the names {list(parts)}, got {list(shares)}"
            if named
            else f"{len(parts)} in all, got {len(shares)}"
        )
        raise ValueError(f"weights must be one for each estimator, {names}")
    for name, share in shares.items():
        if (
            isinstance(share, bool)
            or not isinstance(share, (int, float))
            or not math.isfinite(share)
        ):
            raise ValueError(f"weights[{name!r}] must be a finite Python number, got {share!r}")
    return shares
