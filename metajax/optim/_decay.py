"""Weight decay for updates that already have their sign."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metajax import _checks
from metajax._arguments import NonNegative, check, checked
from metajax.types import Array, PyTree


@checked
def decay_weights(
    rate: float | Array | Callable[[Array], Array],
    mask: PyTree | Callable[[PyTree], PyTree] = None,
) -> optax.GradientTransformation:
    """Decoupled weight decay (Loshchilov & Hutter 2019): each step takes ``rate * params`` off.

    It comes after an optimizer, learned ones among them, whose updates are what is added to the
    parameters. `optax.add_decayed_weights` belongs before a learning rate, which turns its sign
    with that of the gradient; after an optimizer it would make weights grow.
    ``optax.chain(optax.adam(a), decay_weights(a * w))`` is ``optax.adamw(a, weight_decay=w)``.

    Args:
      rate: the share of the weights that a step takes off, learning rate included, at least 0: a
        number, an array, which can be learned, or a schedule of optax.
      mask: which parameters decay, a tree of bools or a function of the parameters that gives one,
        as in optax; all by default.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> learned = mx.pretrained.load("l2l-digits")
    >>> tx = optax.chain(learned, mx.optim.decay_weights(0.25))
    >>> params = {"w": jnp.ones((3, 2))}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> alone, _ = learned.update(params, learned.init(params), params)
    >>> float((updates["w"] - alone["w"]).mean().round(4))
    -0.25
    """
    if isinstance(rate, jax.Array):
        _checks.scalar("rate", rate)
    elif not callable(rate):
        check(NonNegative, rate=rate)
    if mask is not None and not callable(mask):
        _check_bools(mask)

    def init(params):
        del params
        return jnp.int32(0)

    def update(updates, state, params=None):
        if params is None:
            raise ValueError(
                "decay_weights needs params: tx.update(grads, state, params)"
            )
        share = rate(state) if callable(rate) else rate
        decayed = jax.tree.map(
            lambda u, p: (u - share * p).astype(u.dtype), updates, params
        )
        return decayed, state + 1

    decay = optax.GradientTransformation(init, update)
    return decay if mask is None else optax.masked(decay, mask)


def _check_bools(mask: PyTree) -> None:
    leaves = jax.tree.leaves(mask)
    if not leaves or not all(isinstance(leaf, bool) for leaf in leaves):
        raise TypeError(
            f"mask must be a tree of bools, or a function of the parameters, got {mask!r}"
        )
