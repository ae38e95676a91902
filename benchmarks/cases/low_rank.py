"""When evolution by noise of low rank pays: what 256 members cost, and against what.

Two learners of three sizes each. A start for MAML is changed at the first gradient step, so that
each member has matrices of its own. A recurrent network reads the same ones at every example, and
its members share the product with them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

import metajax as mx
from benchmarks.cases.evolution import Population, estimate_of
from benchmarks.measure import Measured, contest
from benchmarks.table import Row, Setting, Target, compared, costs, memory

STD = 1e-4  # the losses are then those of the mean, whatever the noise
RANKS = (1, 4, 16)
AT_ONCE = "all at once"
IN_TURNS = "pair after pair"
MAML_SIZES = ((64, 128, 10), (64, 400, 180, 10), (64, 2000, 400, 100, 10))
NETWORK_SIZES = (22, 120, 456)


class _Contest(NamedTuple):
    """What was found of a population, by its number of meta-parameters."""

    num: int
    found: Mapping[str, Measured]


def es_low_rank(setting: Setting) -> list[Row]:
    """MAML's start and a recurrent network, by low rank and full noise: writes a table."""
    maml = [(64, 5, 10)] if setting.smoke else MAML_SIZES
    networks = [3] if setting.smoke else NETWORK_SIZES
    pairs = 2 if setting.smoke else 128
    starts = [_contest(setting, maml_start(sizes, pairs), False) for sizes in maml]
    read = [_contest(setting, network(size, pairs), True) for size in networks]

    tables = []
    for what, contests in (("a start for MAML", starts), ("a recurrent network", read)):
        columns = {f"{num:,} meta-parameters": found for num, found in contests}
        tables.append(costs(f"{what}, {2 * pairs} members", columns))
    (setting.out / "low_rank.md").write_text("\n".join(tables))
    return [
        *_rows("a start for MAML", starts, f"rank 1, {IN_TURNS}"),
        *_rows("a recurrent network", read, f"rank 1, {AT_ONCE}"),
    ]


def maml_start(sizes: Sequence[int], pairs: int) -> Population:
    """One gradient step on five images from the meta-parameters."""
    learner = mx.maml(mx.problems.mlp(sizes), 0.1)
    tasks = mx.tasks.minibatches(5, test_size=5)
    loop = mx.inner(learner, tasks, 1, meta_loss="heldout")
    meta_params = learner.meta(jax.random.key(0))
    return Population(loop, pairs, meta_params, mx.data.load("digits"))


def network(hidden: int, pairs: int) -> Population:
    """An LSTM that reads ten images, one after the other."""
    learner = mx.meta_rnn(64, 10, hidden)
    loop = mx.inner(learner, mx.tasks.classification(10), 10)
    meta_params = learner.meta(jax.random.key(0))
    digits = mx.data.by_class(mx.data.load("digits"))
    return Population(loop, pairs, meta_params, digits)


def _contest(setting: Setting, population: Population, shared: bool) -> _Contest:
    noises = {"full noise": mx.gaussian()}
    for rank in RANKS[:1] if setting.smoke else RANKS:
        noises[f"rank {rank}"] = mx.low_rank(rank, shared=shared)
    loops = {
        AT_ONCE: population.loop,
        IN_TURNS: mx.sharding.in_turns(population.loop, 1),
    }

    programs = {}
    for noise, perturbation in noises.items():
        for how, loop in loops.items():
            estimator = mx.es(loop, population.pairs, STD, perturbation)
            programs[f"{noise}, {how}"] = estimate_of(estimator, population, ())
    num = sum(x.size for x in jax.tree.leaves(population.meta_params))
    found = contest(programs, setting.limits, rtol=1e-2, rounds=setting.rounds)
    return _Contest(num, found)


def _rows(what: str, contests: Sequence[_Contest], ours: str) -> list[Row]:
    """Of each size time and memory; what was hoped for is of the largest."""
    other = f"full noise, {AT_ONCE}"
    largest = contests[-1].num
    rows = []
    for num, found in contests:
        ordered = {ours: found[ours], other: found[other]} | dict(found)
        text = f"{what}, {num:,} meta-parameters, {ours}"
        of_time = [Target("ratio", ">=", 3.0)] if num == largest else []
        of_memory = [Target("ratio", ">=", 10.0)] if num == largest else []
        rows.append(compared("es_low_rank", text, ordered, targets=of_time))
        rows.append(memory("es_low_rank", text, ordered, of_memory))
    return rows


CASES = (es_low_rank,)
