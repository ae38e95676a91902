"""A distribution over tasks of which one comes more often."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from metajax._arguments import NonNegativeInt, UnitInterval, checked
from metajax.types import Tasks


@checked
def biased(tasks: Tasks, probability: UnitInterval, seed: NonNegativeInt = 0) -> Tasks:
    """One and the same of the tasks with that probability, else any of them; examples as before.

    What learns in its activations alone may stay long at the loss of a guess. A task that it meets
    often can be memorised first, and learning to learn follows sooner (Kirsch et al. 2022,
    arXiv 2212.04458, "biasing the training distribution"). Whatever goes around it is drawn anew
    for each task: below, the meaning of labels is often the same, the projection never.

    Args:
      tasks: where tasks and batches come from.
      probability: of the one task.
      seed: which one.

    >>> import jax, metajax as mx
    >>> meanings = mx.tasks.biased(mx.tasks.classification(10), 0.5)
    >>> tasks = mx.tasks.project(meanings, 32)
    >>> data = mx.data.by_class(mx.data.load("digits"))
    >>> keys = jax.random.split(jax.random.key(0), 100)
    >>> drawn = jax.jit(jax.vmap(tasks.sample, (0, None)))(keys, data)
    >>> meanings, matrices = jax.device_get((drawn.task["classes"], drawn.own))
    >>> 35 < len({x.tobytes() for x in meanings}) < 65  # of 100, of 10! possible ones
    True
    >>> len({x.tobytes() for x in matrices})
    100
    """

    def sample(key, data):
        k_which, k_task = jax.random.split(key)
        is_the_one = jax.random.bernoulli(k_which, float(probability))
        k_one = jax.random.key(seed, impl=jax.random.key_impl(key))
        return tasks.sample(jnp.where(is_the_one, k_one, k_task), data)

    return replace(tasks, sample=sample)
