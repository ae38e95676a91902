"""Evolution strategies: what they cost beside the inner loops that they run."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import metajax as mx
from benchmarks.measure import Program, contest
from benchmarks.table import Row, Setting, Target, compared

STD = 0.01


def _problem(smoke: bool):
    pairs, units, steps, batch = (2, 3, 4, 8) if smoke else (32, 20, 20, 32)
    opt = mx.optim.lstm(hidden=(4,)) if smoke else mx.optim.lstm()
    learner = mx.l2l(opt, mx.problems.mlp((64, units, 10)))
    loop = mx.inner(learner, mx.tasks.minibatches(batch), steps)
    return loop, pairs, opt.init(jax.random.key(0)), mx.data.load("digits")


def _contest(setting: Setting, case: str, what: str, estimator, state, bare, args, problem) -> Row:
    """The estimate against its bare inner loops, of which it is to be at most a ninth longer."""
    _, _, meta_params, data = problem

    def ours(key, meta_params, state, data):
        estimate, _ = estimator.estimate(key, meta_params, state, data)
        return estimate.loss, estimate.updates

    key = jax.random.key(2)
    programs = {
        "ours": Program(ours, (key, meta_params, state, data), lambda result: result[0]),
        "inner loops alone": Program(bare, (*args, data), lambda losses: losses.mean()),
    }
    found = contest(programs, setting.limits, rounds=setting.rounds)
    return compared(case, what, found, targets=[Target("ratio", ">=", 0.9)])


def _antithetic(setting: Setting, case: str, truncation: int | None) -> Row:
    problem = loop, pairs, meta_params, data = _problem(setting.smoke)
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
        def episode(member, key):
            return mx.unroll(loop, member, loop.init(key, member, data), data, window)[1]

        return jax.vmap(episode)(members, keys)

    what = f"{pairs} pairs x {window} steps, {flat.size:,} meta-parameters"
    return _contest(setting, case, what, estimator, state, bare, (members, keys), problem)


def es_population(setting: Setting) -> list[Row]:
    """Whole episodes: antithetic evolution strategies, and a strategy of evosax."""
    problem = loop, pairs, meta_params, data = _problem(setting.smoke)
    from evosax.algorithms import Open_ES  # here, since importing it settles JAX's devices

    strategy = Open_ES(2 * pairs, solution=meta_params)
    estimator = mx.ask_tell(loop, strategy, 1)
    state = estimator.init(jax.random.key(1), meta_params, data)

    k_ask, k_tasks, _ = jax.random.split(jax.random.key(2), 3)
    mean, params = ravel_pytree(meta_params)[0], strategy.default_params
    population, _ = jax.jit(strategy.ask)(k_ask, state.replace(mean=mean), params)

    def bare(population, key, data):
        def episode(member):
            return mx.unroll(loop, member, loop.init(key, member, data), data, loop.horizon)[1]

        return jax.vmap(episode)(population)

    what = f"Open_ES, {2 * pairs} members x {loop.horizon} steps, {mean.size:,} meta-parameters"
    args = population, jax.random.split(k_tasks, 1)[0]
    return [
        _antithetic(setting, "es_population", None),
        _contest(setting, "es_population", what, estimator, state, bare, args, problem),
    ]


def pes(setting: Setting) -> list[Row]:
    """A window of persistent evolution strategies, half an episode."""
    return [_antithetic(setting, "pes", 2 if setting.smoke else 10)]


CASES = (es_population, pes)
