"""The evolution strategies of evosax as estimators."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from metajax import _checks, _trees
from metajax._inner import unroll
from metajax.types import Estimate, Estimator, Inner

# What has no single mean, or wants something other than the losses of whole episodes. By name,
# since importing evosax makes arrays, after which `jax.distributed` can no longer be initialised.
_NOT_SERVED = {
    "PopulationBasedAlgorithm": "keeps a population and has no mean that could follow meta_params; take e.g. "
    "evosax.algorithms.SimpleES or CMA_ES",
    "SV_ES": "has several means, where meta_params are one; take the strategy it is built on, CMA_ES or Open_ES",
    "PersistentES": "is for the windows of truncated episodes; take metajax.pes(inner, num_tasks, std, truncation)",
    "NoiseReuseES": "is for the windows of truncated episodes; take metajax.noise_reuse_es(inner, num_tasks, std, "
    "truncation)",
    "GuidedES": "must be given a gradient each generation; take metajax.guided_es(inner, num_tasks, std, surrogate)",
}


def ask_tell(inner: Inner, strategy: Any, num_tasks: int, params: Any = None) -> Estimator:
    """A distribution-based strategy of evosax (Lange 2022) over whole episodes.

    A generation is asked for around the present ``meta_params``. Its members all meet the same
    ``num_tasks`` tasks, so that ranks compare members and not tasks. The estimate's ``updates`` are
    the old mean minus the new one: with ``optax.sgd(1.0)`` as the outer transformation training is
    the strategy itself, and ``Open_ES`` with ``optimizer=optax.sgd(1.0)`` under an outer
    ``optax.adam`` is OpenES with Adam. Where the strategy shapes fitness (``Open_ES`` ranks by
    default) the updates are a direction and no unbiased gradient; for that take `metajax.es`.

    All strategies with one mean that are told nothing but losses are served. Those that keep the
    best member ever seen (``HillClimbing``, ``SimulatedAnnealing``, ``GradientlessDescent``,
    ``RandomSearch``, ``CMAAnchoredLES``) compare losses across generations, which meet different
    tasks: give them many. A generation with a loss that is not finite is forgotten.

    Args: inner: the inner loop. strategy: made outside `jax.jit`, e.g.
      ``evosax.algorithms.Open_ES(population_size, solution=meta_params)``. num_tasks: tasks each
      member is evaluated on. params: the strategy's parameters, ``strategy.default_params`` by
      default.

    Raises: TypeError: a strategy that cannot be served, with the reason and what to take instead: a
      genetic algorithm or particle swarm has no mean, Stein variational ones have several,
      ``PersistentES``, ``NoiseReuseES`` and ``GuidedES`` need more than losses and are
      `metajax.pes`, `metajax.noise_reuse_es` and `metajax.guided_es`. ValueError: a strategy made
      for a tree other than ``meta_params``.

    >>> import jax, metajax as mx, optax
    >>> from evosax.algorithms import Open_ES
    >>> loop = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), horizon=10)
    >>> rate = jax.numpy.float32(0.1)
    >>> strategy = Open_ES(population_size=8, solution=rate, std_schedule=optax.constant_schedule(0.01))
    >>> trainer = mx.trainer(mx.ask_tell(loop, strategy, num_tasks=4), optax.sgd(1.0))
    >>> state = trainer.init(jax.random.key(0), rate)
    >>> state, metrics = jax.jit(trainer.step)(state)
    """
    _checks.instance(Inner, inner=inner)
    _checks.positive_int(num_tasks=num_tasks)
    kinds = {kind.__name__ for kind in type(strategy).__mro__}
    for kind in _NOT_SERVED.keys() & kinds:
        raise TypeError(
            f"strategy must be a distribution with one mean, but {type(strategy).__name__} {_NOT_SERVED[kind]}"
        )
    if "DistributionBasedAlgorithm" not in kinds:
        name = (
            type(strategy).__name__
            if not isinstance(strategy, type)
            else f"the class {strategy.__name__} itself"
        )
        raise TypeError(
            f"strategy must be an instance of a distribution-based strategy of evosax, got {name}; "
            f"take e.g. evosax.algorithms.Open_ES(population_size, solution=meta_params)"
        )
    params = strategy.default_params if params is None else params

    def init(key, meta_params, data):
        del data
        _same_tree(strategy, meta_params)
        return strategy.init(key, meta_params, params)

    def estimate(key, meta_params, state, data):
        _same_tree(strategy, meta_params)
        k_ask, k_tasks, k_tell = jax.random.split(key, 3)
        keys = jax.random.split(k_tasks, num_tasks)
        old, unravel = ravel_pytree(meta_params)

        def fitness(index, population, keys, data):
            member = jax.tree.map(lambda x: x[index], population)

            def episode(key):
                _, loss, metrics = unroll(
                    inner, member, inner.init(key, member, data), data, inner.horizon
                )
                return loss, metrics

            return jax.tree.map(jnp.mean, jax.vmap(episode)(keys))

        population, asked = strategy.ask(k_ask, state.replace(mean=old), params)
        # Over indices: the population itself stays whole where members are divided over devices,
        # and so the strategy.
        index = jnp.arange(strategy.population_size)
        losses, metrics = inner.vmap(fitness, (0, None, None, None), whole=True)(
            index, population, keys, data
        )
        told, _ = strategy.tell(k_tell, population, losses, asked, params)
        ok = _trees.all_finite(
            (losses, told.mean)
        )  # a strategy that has met a NaN may never recover from it
        kept = jax.tree.map(lambda new, old: jnp.where(ok, new, old), told, state)
        updates = unravel(jnp.where(ok, old - told.mean, jnp.nan))
        return Estimate(updates, losses.mean(), jax.tree.map(jnp.mean, metrics)), kept

    return Estimator(init, estimate)


def _same_tree(strategy, meta_params):
    made_for, given = jax.tree.structure(strategy.solution), jax.tree.structure(meta_params)
    if made_for != given:
        raise ValueError(
            f"strategy was made for another tree than meta_params; make it with solution=meta_params:\n"
            f"  strategy    {made_for}\n  meta_params {given}"
        )
    _checks.same_structure("meta_params", meta_params, strategy.solution, "the strategy's solution")
