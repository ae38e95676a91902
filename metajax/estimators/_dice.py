"""Gradients of what is sampled from a distribution that is being learned."""

import jax.numpy as jnp
from jax import lax

from metajax._arguments import checked
from metajax.types import Array


@checked
def dice(log_prob: Array) -> Array:
    """One, whose derivatives of any order are those of a probability: the magic box of DiCE.

    The loss of a `metajax.Problem` that samples, such as the cost of the actions of a policy, gets
    the factor ``dice(log_prob)`` with the log-probability of what was sampled. Its gradient is then
    that of the score function, and what an outer loop differentiates once more, as `metajax.maml`
    under `metajax.bptt` does, is unbiased too; ``log_prob * cost``, the usual surrogate, has the
    right gradient and a wrong Hessian (Foerster et al. 2018, "DiCE", eq. 6).

    The meta-gradient is that of the objective after a step along the *expected* gradient: with few
    samples a step its bias is of the order of one over their number. Costs minus a baseline have
    less variance.

    Args:
      log_prob: of any shape; sum the log-probabilities of all that a cost depends on.

    Returns:
      Ones of that shape.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> costs = jnp.array([1.0, 0.2, 0.5])
    >>> def loss(key, logits, batch):  # of a bandit that pulls 100 arms
    ...     arms = jax.random.categorical(key, logits, shape=(100,))
    ...     log_prob = jax.nn.log_softmax(logits)[arms]
    ...     return (mx.dice(log_prob) * costs[arms]).mean(), {}
    >>> bandit = mx.problems.stateless(lambda key, task: jnp.zeros(3), loss)
    >>> params, model_state = bandit.init(jax.random.key(0), ())
    >>> slope = jax.grad(bandit.loss, 1, has_aux=True)(jax.random.key(1), params, model_state, ())
    >>> slope[0].shape
    (3,)
    """
    return jnp.exp(log_prob - lax.stop_gradient(log_prob))
