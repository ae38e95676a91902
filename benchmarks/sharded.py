"""Meta-steps divided over the chips of a TPU: what the chips exchange, and what each holds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import metajax as mx
from benchmarks.ahead import Cost
from benchmarks.cases.estimators import TASKS, by_windows, whole_episodes
from benchmarks.programs import Step, meta_step

# A mesh of four chips for every estimator, one of 256 for two sizes of a meta-step.
SMALL = "v5e:2x2"
LARGE = "v5e:16x16"


class Exchange(NamedTuple):
    """What a program over several chips costs.

    Attributes:
      chips: how many.
      cost: of one of them.
    """

    chips: int
    cost: Cost

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"chips": self.chips, **self.cost.record()}


def mesh_of(devices: Sequence[Any]) -> Mesh:
    """One axis over devices that need not be here."""
    return Mesh(np.asarray(devices), ("tasks",), axis_types=(AxisType.Auto,))


def every_estimator(mesh: Mesh) -> Iterator[Step]:
    """Each estimator of the case ``estimators``, on its problem, with as many tasks."""
    learner = mx.l2l(mx.optim.lstm(hidden=(4,), p=None), mx.problems.quadratic())
    loop = mx.inner(learner, mx.tasks.quadratics(8), horizon=40)
    loop = mx.sharding.split(loop, mesh)
    meta_params = learner.meta(jax.random.key(0))
    for name, estimator in {
        **whole_episodes(loop, meta_params),
        **by_windows(loop),
    }.items():
        yield _divided(meta_step(name, estimator, meta_params, ()), mesh, TASKS)


def more_tasks(mesh: Mesh) -> Iterator[Step]:
    """A meta-step of a learned optimizer, with one task a chip and with four."""
    learner = mx.l2l(mx.optim.lstm(), mx.problems.mlp((64, 20, 10)))
    loop = mx.inner(learner, mx.tasks.minibatches(32), horizon=20)
    loop = mx.sharding.split(loop, mesh)
    meta_params = learner.meta(jax.random.key(0))
    data = mx.data.load("digits")
    for a_chip in (1, 4):
        tasks = a_chip * mesh.size
        estimator = mx.bptt(loop, tasks)
        step = meta_step(f"bptt, {tasks:,} tasks", estimator, meta_params, data)
        yield _divided(step, mesh, tasks)


SHARDED: Mapping[str, Callable[[Mesh], Iterator[Step]]] = {
    SMALL: every_estimator,
    LARGE: more_tasks,
}


def _divided(step: Step, mesh: Mesh, num_tasks: int) -> Step:
    """With the estimator's state, as far as it is of episodes, split over the mesh."""
    split = NamedSharding(mesh, PartitionSpec("tasks"))
    whole = NamedSharding(mesh, PartitionSpec())

    def where(x):
        is_of_episodes = np.shape(x)[:1] in ((num_tasks,), (2 * num_tasks,))
        return split if is_of_episodes else whole

    key, meta_params, state, data = jax.tree.map(lambda _: whole, step.args)
    state = jax.tree.map(where, step.args[2])
    return step._replace(where=(key, meta_params, state, data))


def markdown(found: Sequence[Exchange]) -> str:
    """A table, a row a program."""
    head = ("chips", "meta-step", "exchanges", "exchanged", "memory a chip")
    lines = [head, ("---",) * len(head)]
    for chips, cost in found:
        kinds = sorted(cost.counts.collectives.items())
        memory = cost.least_bytes + cost.temporary_bytes
        lines.append(
            (
                str(chips),
                cost.what,
                ", ".join(f"{number} {kind}" for kind, number in kinds),
                f"{cost.counts.exchanged_bytes:,} bytes",
                f"{memory / 2**20:.3g} MiB",
            )
        )
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
