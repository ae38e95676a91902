"""Evolution strategies: what they cost beside the inner loops that they run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import metajax as mx
from benchmarks.measure import Program, contest
from benchmarks.table import Row, Setting, Target, compared

STD = 0.01


class Population(NamedTuple):
    """An inner loop on ``data`` for ``pairs`` of members around ``meta_params``."""

    loop: mx.Inner
    pairs: int
    meta_params: Any
    data: Any


def es_population(setting: Setting) -> list[Row]:
    """Whole episodes: antithetic evolution strategies, and a strategy of evosax."""
    return [
        _antithetic(setting, "es_population", None),
        _open_es(setting, "es_population"),
    ]


def pes(setting: Setting) -> list[Row]:
    """A window of persistent evolution strategies, half an episode."""
    return [_antithetic(setting, "pes", 2 if setting.smoke else 10)]


def population(smoke: bool) -> Population:
    """An LSTM optimizer that trains a network on digits."""
    pairs = 2 if smoke else 32
    units = 3 if smoke else 20
    steps = 4 if smoke else 20
    batch_size = 8 if smoke else 32
    optimizer = mx.optim.lstm(hidden=(4,)) if smoke else mx.optim.lstm()
    learner = mx.l2l(optimizer, mx.problems.mlp((64, units, 10)))
    loop = mx.inner(learner, mx.tasks.minibatches(batch_size), steps)
    meta_params = learner.meta(jax.random.key(0))
    return Population(loop, pairs, meta_params, mx.data.load("digits"))


def _antithetic(setting: Setting, case: str, truncation: int | None) -> Row:
    problem = population(setting.smoke)
    loop, pairs, meta_params, data = problem
    window = truncation or loop.horizon
    estimator = mx.pes(loop, pairs, STD, truncation)
    state = estimator.init(jax.random.key(1), meta_params, data)

    # The first window of all pairs: the twins of a pair start from one key.
    k_noise, k_start = jax.random.split(jax.random.key(2))
    flat, unravel = ravel_pytree(meta_params)
    noise = STD * jax.random.normal(k_noise, (pairs, flat.size))
    members = jax.vmap(unravel)(jnp.concatenate([flat + noise, flat - noise]))
    keys = jnp.tile(jax.random.split(k_start, pairs), 2)

    def bare(members, keys, data):
        def meta_loss(member, key):
            start = loop.init(key, member, data)
            _, loss, _ = mx.unroll(loop, member, start, data, window)
            return loss

        return jax.vmap(meta_loss)(members, keys)

    what = f"{pairs} pairs x {window} steps, {flat.size:,} meta-parameters"
    ours = estimate_of(estimator, problem, state)
    alone = Program(bare, (members, keys, data), jnp.mean)
    return _against_inner_loops(setting, case, what, ours, alone)


def _open_es(setting: Setting, case: str) -> Row:
    from evosax.algorithms import (
        Open_ES,  # here, since importing it settles JAX's devices
    )

    problem = population(setting.smoke)
    loop, pairs, meta_params, data = problem
    strategy = Open_ES(2 * pairs, solution=meta_params)
    estimator = mx.ask_tell(loop, strategy, 1)
    state = estimator.init(jax.random.key(1), meta_params, data)

    # The members that the estimator will ask for, on its task.
    k_ask, k_tasks, _ = jax.random.split(jax.random.key(2), 3)
    mean, _ = ravel_pytree(meta_params)
    at_mean = state.replace(mean=mean)
    members, _ = jax.jit(strategy.ask)(k_ask, at_mean, strategy.default_params)
    (task_key,) = jax.random.split(k_tasks, 1)

    def bare(members, key, data):
        def meta_loss(member):
            start = loop.init(key, member, data)
            _, loss, _ = mx.unroll(
                loop,
                member,
                start,
                data,
                loop.horizon,
            )
            return loss

        return jax.vmap(meta_loss)(members)

    what = f"Open_ES, {2 * pairs} members x {loop.horizon} steps, {mean.size:,} meta-parameters"
    ours = estimate_of(estimator, problem, state)
    alone = Program(bare, (members, task_key, data), jnp.mean)
    return _against_inner_loops(setting, case, what, ours, alone)


def estimate_of(estimator: mx.Estimator, population: Population, state: Any) -> Program:
    """An estimate from ``state``; its loss is what is compared."""

    def loss_and_updates(key, meta_params, state, data):
        estimate, _ = estimator.estimate(key, meta_params, state, data)
        return estimate.loss, estimate.updates

    args = (jax.random.key(2), population.meta_params, state, population.data)
    return Program(loss_and_updates, args, _first)


def _first(result: tuple) -> Any:
    return result[0]


def _against_inner_loops(
    setting: Setting,
    case: str,
    what: str,
    ours: Program,
    alone: Program,
) -> Row:
    """An estimate is to take at most a ninth longer than its bare inner loops."""
    programs = {"ours": ours, "inner loops alone": alone}
    found = contest(programs, setting.limits, rounds=setting.rounds)
    return compared(
        case,
        what,
        found,
        targets=[Target("ratio", ">=", 0.9)],
    )


CASES = (es_population, pes)
