"""Tasks made from others, each with something of its own that was drawn with it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from metajax.types import Batch, Data, Key, PyTree, Task, Tasks


class Paired(NamedTuple):
    """A task of the tasks that were wrapped, and what was drawn for it."""

    task: Task
    own: PyTree


def paired(
    tasks: Tasks,
    draw: Callable[[Sequence[Key], Data, Task], PyTree],
    apply: Callable[[PyTree, Batch], Batch],
    num_keys: int = 1,
) -> Tasks:
    """Each task draws something of its own, and keeps it; its batches pass through ``apply``.

    Args:
      tasks: where tasks and batches come from.
      draw: ``(keys, data, task) -> own``, of ``num_keys`` keys.
      apply: ``(own, batch) -> batch``.
      num_keys: how many keys ``draw`` needs.
    """

    def sample(key, data):
        k_task, *keys = jax.random.split(key, 1 + num_keys)
        task = tasks.sample(k_task, data)
        return Paired(task, draw(keys, data, task))

    def train(key, data, task):
        return apply(task.own, tasks.train(key, data, task.task))

    def test(key, data, task):
        return apply(task.own, tasks.test(key, data, task.task))

    return Tasks(sample, train, test)
