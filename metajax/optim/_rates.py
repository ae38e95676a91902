"""Hand-made optimizers with learned rates, one for each parameter or for each leaf."""

import math

import jax
import jax.numpy as jnp
import optax

from metajax._arguments import PositiveFloat, checked, shown
from metajax.optim._learned import learned_optimizer
from metajax.types import Array, LearnedOptimizer, PyTree


@checked
def rates(
    base: optax.GradientTransformation,
    like: PyTree,
    rate: PositiveFloat = 1e-3,
) -> LearnedOptimizer:
    """The updates of ``base`` times a learning rate for each parameter, or for each leaf.

    The meta-parameters are the logarithms of the rates, a tree like ``like``: as for Meta-SGD (Li
    et al. 2017) without its learned initialisation, and with rates that stay positive (there they
    may change sign).

    Args:
      base: any optax transformation with the learning rate 1, e.g. ``optax.sgd(1.0)``.
      like: the parameters, or their `jax.eval_shape`, for one rate a parameter; or a tree with the
        same structure and leaves that broadcast against them, such as scalars for one rate a leaf.
      rate: the initial rate.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    >>> opt = mx.optim.rates(optax.sgd(1.0), {"w": 0.0, "b": jnp.zeros(2)}, rate=0.1)
    >>> log_rates = opt.init(jax.random.key(0))
    >>> log_rates["b"].shape, log_rates["w"].shape
    ((2,), ())
    >>> tx = opt.tx(log_rates)
    >>> updates, state = tx.update(params, tx.init(params))
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(like):
        if not hasattr(leaf, "shape") and not isinstance(leaf, (int, float)):
            at = f"like{jax.tree_util.keystr(path)}"
            raise TypeError(f"{at} must be an array or a number, got {shown(leaf)}")
    log_rate = math.log(rate)

    def init(key):
        del key
        return jax.tree.map(lambda x: jnp.full(jnp.shape(x), log_rate, float), like)

    def tx(log_rates) -> optax.GradientTransformationExtraArgs:
        def scale_by_rates(updates, params):
            del params
            try:
                return jax.tree.map(_scale_leaf, updates, log_rates)
            except ValueError as error:
                raise ValueError(
                    "like must have the tree structure of the updates, and leaves that broadcast "
                    f"against theirs: {error}"
                ) from error

        return optax.chain(base, optax.stateless(scale_by_rates))

    return learned_optimizer(init, tx)


def _scale_leaf(update: Array, log_rate: Array) -> Array:
    rate = jnp.broadcast_to(jnp.exp(log_rate), update.shape)
    return (rate * update).astype(update.dtype)
