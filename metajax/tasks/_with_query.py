"""What a learner adapts to and what it is judged on, together."""

from dataclasses import replace
from typing import Any

import jax

from metajax._arguments import checked
from metajax.types import Batch, Tasks

_QUERY = (
    2**31 - 1
)  # a fold_in tag that tasks, which may fold in the inner step, do not reach


@checked
def with_query(tasks: Tasks) -> Tasks:
    """Tasks whose training batch is the pair of their training and their test batch.

    For learners that are judged on the way, such as `metajax.multi_step`: ``(support, query)``.
    Where a task draws its test batch anew each time instead of fixing it, so it does for the query
    batch of each step.

    >>> import jax, metajax as mx
    >>> tasks = mx.tasks.with_query(mx.tasks.minibatches(5, test_size=7))
    >>> support, query = tasks.train(jax.random.key(0), mx.data.load("digits"), ())
    >>> len(support["label"]), len(query["label"])
    (5, 7)
    """

    def train(key, data, task):
        # The support batch is that of the tasks alone, and the query batch is independent of it.
        support = tasks.train(key, data, task)
        query = tasks.test(jax.random.fold_in(key, _QUERY), data, task)
        return support, query

    return replace(tasks, train=train)


def pair(batch: Any) -> tuple[Batch, Batch]:
    """The batch as ``(support, query)``, or says where such batches come from."""
    if not isinstance(batch, tuple) or len(batch) != 2:
        raise TypeError(
            f"this learner needs batches (support, query), got {type(batch).__name__}; give inner "
            f"the tasks metajax.tasks.with_query(tasks)"
        )
    return batch
