"""What a learner adapts to and what it is judged on, together."""

from metajax import checks
from metajax.types import Tasks


def with_query(tasks: Tasks) -> Tasks:
    """Tasks whose training batch is the pair ``(support, query)`` of their training and their test batch.

    For learners that are judged on the way, such as `metajax.multi_step`. The test batch stays what it was.

    Raises:
      TypeError: something other than tasks.

    >>> import jax, metajax as mx
    >>> tasks = mx.tasks.with_query(mx.tasks.minibatches(5, test_size=7))
    >>> support, query = tasks.train(jax.random.key(0), mx.data.load("digits"), (), 0)
    >>> len(support["label"]), len(query["label"])
    (5, 7)
    """
    checks.instance("tasks", tasks, Tasks, "metajax.tasks")

    def train(key, data, task, t):
        # One key for both: batches that a task fixes and batches that are drawn stay as they are apart.
        return tasks.train(key, data, task, t), tasks.test(key, data, task)

    return tasks._replace(train=train)
