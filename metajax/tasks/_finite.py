"""A distribution over tasks that has but so many."""

from dataclasses import replace

import jax

from metajax._arguments import NonNegativeInt, PositiveInt, checked
from metajax.types import Tasks


@checked
def finite(tasks: Tasks, number: PositiveInt, seed: NonNegativeInt = 0) -> Tasks:
    """So many of the tasks, drawn uniformly; the examples of each are as many as before.

    Whether a learner memorises its tasks or learns to learn depends on how many it meets (Kirsch et
    al. 2022, arXiv 2212.04458). A task is what ``tasks`` draw from its number, and is made anew
    each time: a million take no memory. Another seed gives others, such as are unseen. It goes
    around all in which tasks differ, such as `project`.

    Args:
      tasks: where tasks and batches come from.
      number: of tasks.
      seed: which of them.

    >>> import jax, metajax as mx
    >>> endless = mx.tasks.project(mx.tasks.prototypes(5, (4, 4)), 32)
    >>> tasks = mx.tasks.finite(endless, number=2)
    >>> keys = jax.random.split(jax.random.key(0), 100)
    >>> drawn = jax.vmap(tasks.sample, (0, None))(keys, ())
    >>> len({matrix.tobytes() for matrix in jax.device_get(drawn.own)})
    2
    """

    def sample(key, data):
        which = jax.random.randint(key, (), 0, number)
        return tasks.sample(jax.random.fold_in(jax.random.key(seed), which), data)

    return replace(tasks, sample=sample)
