"""The evolution strategies of evosax as estimators."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from metajax import _checks
from metajax._arguments import PositiveInt, checked, shown
from metajax._inner import unroll
from metajax.estimators import _episodes
from metajax.types import Array, Estimate, Estimator, Inner, PyTree

# What has no single mean, or wants something other than the losses of whole episodes. By name,
# since importing evosax makes arrays, after which `jax.distributed` can no longer be initialised.
_NOT_SERVED = {
    "PopulationBasedAlgorithm": (
        "keeps a population and has no mean that could follow meta_params; take e.g. "
        "evosax.algorithms.SimpleES or CMA_ES"
    ),
    "SV_ES": (
        "has several means, where meta_params are one; take the strategy it is built on, CMA_ES or "
        "Open_ES"
    ),
    "PersistentES": (
        "is for the windows of truncated episodes; take metajax.pes(inner, num_tasks, std, "
        "truncation)"
    ),
    "NoiseReuseES": (
        "is for the windows of truncated episodes; take metajax.noise_reuse_es(inner, num_tasks, "
        "std, truncation)"
    ),
    "GuidedES": (
        "must be given a gradient each generation; take metajax.guided_es(inner, num_tasks, std, "
        "surrogate)"
    ),
}


@checked
def ask_tell(
    inner: Inner, strategy: Any, num_tasks: PositiveInt, params: Any = None
) -> Estimator:
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
    tasks: give them many.

    A member whose loss is not finite counts as the worst of the others. A task on which that is so
    for all members is left out. The metric ``diverged`` is the share of episodes, one for each
    member and task, whose loss was not finite.

    Args:
      inner: the inner loop.
      strategy: made outside `jax.jit`, e.g. ``evosax.algorithms.Open_ES(population_size,
        solution=meta_params)``.
      num_tasks: tasks each member is evaluated on.
      params: the strategy's parameters, ``strategy.default_params`` by default.

    Raises:
      TypeError: a strategy that cannot be served, with the reason and what to take instead: a
        genetic algorithm or particle swarm has no mean, Stein variational ones have several,
        ``PersistentES``, ``NoiseReuseES`` and ``GuidedES`` need more than losses and are
        `metajax.pes`, `metajax.noise_reuse_es` and `metajax.guided_es`.
      ValueError: a strategy made for a tree other than ``meta_params``.

    >>> import jax, metajax as mx, optax
    >>> from evosax.algorithms import Open_ES
    >>> learner = mx.l2l(optax.sgd, mx.problems.quadratic())
    >>> loop = mx.inner(learner, mx.tasks.quadratics(3), horizon=10)
    >>> rate = jax.numpy.float32(0.1)
    >>> std = optax.constant_schedule(0.01)
    >>> strategy = Open_ES(population_size=8, solution=rate, std_schedule=std)
    >>> trainer = mx.trainer(mx.ask_tell(loop, strategy, num_tasks=4), optax.sgd(1.0))
    >>> state = trainer.init(jax.random.key(0), rate)
    >>> state, metrics = jax.jit(trainer.step)(state)
    """
    _check_strategy(strategy)
    params = _params_of(strategy, params)

    def init(key, meta_params, data):
        del data
        _check_solution(strategy, meta_params)
        # It is NaN that strategies begin with where the best member is to come.
        with _as_evosax_is(), jax.debug_nans(False):
            state = strategy.init(key, meta_params, params)
            return jax.tree.map(_without_nan, state)

    def fitness(index, population, keys, data):
        """The losses of a member and its metrics, each ``[num_tasks]``."""
        member = jax.tree.map(lambda x: x[index], population)

        def episode(key):
            begin = inner.init(key, member, data)
            _, loss, metrics = unroll(inner, member, begin, data, inner.horizon)
            return loss, metrics

        return jax.vmap(episode)(keys)

    def estimate(key, meta_params, state, data):
        _check_solution(strategy, meta_params)
        k_ask, k_tasks, k_tell = jax.random.split(key, 3)
        keys = jax.random.split(k_tasks, num_tasks)
        mean, unravel = ravel_pytree(meta_params)

        with _as_evosax_is():
            state = state.replace(mean=mean)
            population, asked = strategy.ask(k_ask, state, params)
        # Over indices: the population stays whole where members are divided over devices, and so
        # does the strategy.
        index = jnp.arange(strategy.population_size)
        evaluate = inner.vmap(fitness, (0, None, None, None), whole=True)
        episode_losses, metrics = evaluate(index, population, keys, data)

        # A member that has diverged counts as the worst of the others.
        losses = _member_losses(episode_losses)
        ok = jnp.isfinite(losses)
        worst = jnp.where(ok, losses, -jnp.inf).max()
        losses_told = jnp.where(ok, losses, worst)
        with _as_evosax_is():
            new, _ = strategy.tell(k_tell, population, losses_told, asked, params)

        # A strategy that has met a NaN may never recover from it.
        is_sound = ok.any() & jnp.isfinite(new.mean).all()
        state = optax.tree.where(is_sound, new, state)
        updates = unravel(jnp.where(is_sound, mean - new.mean, jnp.nan))
        loss = _episodes.mean_of_finite(ok, losses)
        metrics = jax.tree.map(jnp.ravel, metrics)
        episode_ok = jnp.isfinite(episode_losses).ravel()
        metrics = _episodes.mean_of_finite(episode_ok, metrics)
        metrics = _episodes.with_diverged("ask_tell", metrics, episode_ok)
        return Estimate(updates, loss, metrics), state

    return Estimator(init, estimate, inner)


def _as_evosax_is() -> Any:
    """Leaves alone how evosax broadcasts, whatever the user has chosen for himself."""
    return jax.numpy_rank_promotion("allow")


def _without_nan(x: Array) -> Array:
    is_float = jnp.issubdtype(jnp.result_type(x), jnp.floating)
    return jnp.where(jnp.isnan(x), 0, x) if is_float else x


def _member_losses(losses: Array) -> Array:
    """The mean loss ``[members]`` of ``[members, num_tasks]`` over tasks that some got through."""
    counts = jnp.isfinite(losses).any(0)
    total = jnp.where(counts, losses, 0).sum(1)
    return total / counts.sum()


def _check_strategy(strategy: Any) -> None:
    name = type(strategy).__name__
    bases = {base.__name__ for base in type(strategy).__mro__}
    for base in _NOT_SERVED.keys() & bases:
        raise TypeError(
            f"strategy must be a distribution with one mean, but {name} {_NOT_SERVED[base]}"
        )
    if "DistributionBasedAlgorithm" not in bases:
        if isinstance(strategy, type):
            name = f"the class {strategy.__name__} itself"
        raise TypeError(
            f"strategy must be an instance of a distribution-based strategy of evosax, got {name}; "
            f"take e.g. evosax.algorithms.Open_ES(population_size, solution=meta_params)"
        )


def _params_of(strategy: Any, params: Any) -> Any:
    defaults = strategy.default_params
    if params is None:
        return defaults
    if jax.tree.structure(params) != jax.tree.structure(defaults):
        raise TypeError(
            f"params must be like strategy.default_params, a {type(defaults).__name__}, got "
            f"{shown(params)}"
        )
    return params


def _check_solution(strategy: Any, meta_params: PyTree) -> None:
    _checks.floating("meta_params", meta_params)
    made_for = jax.tree.structure(strategy.solution)
    given = jax.tree.structure(meta_params)
    if made_for != given:
        raise ValueError(
            f"strategy was made for another tree than meta_params; make it with "
            f"solution=meta_params:\n  strategy    {made_for}\n  meta_params {given}"
        )
    _checks.same_structure(
        "meta_params", meta_params, strategy.solution, "the strategy's solution"
    )
