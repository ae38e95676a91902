"""A learned optimizer on each leaf by itself."""

from typing import NamedTuple

import jax
import optax

from metajax import _checks
from metajax.types import LearnedOptimizer, PyTree


class LeafwiseState(NamedTuple):
    """The states of all leaves, in the order of `jax.tree.leaves`."""

    leaves: tuple[PyTree, ...]


def leafwise(opt: LearnedOptimizer) -> LearnedOptimizer:
    """Runs ``opt`` on each leaf of the parameters as if it were alone, with the same
    meta-parameters.

    The optimizers here keep one flat state for the whole tree, which is the faster the more leaves
    there are. Leaf by leaf the states can be placed on devices as the parameters are, and what is
    shared by all coordinates, such as the averaged cells of `lstm` or the memory of `ntm_bfgs`,
    becomes shared by those of a leaf. What treats coordinates or tensors alone anyway (`lstm`
    without averaged cells, `rnnprop`, `mlp`, `adafactor_mlp`) does the same either way.

    Raises: TypeError, ValueError: something other than a learned optimizer; updates with another
      number of leaves than the parameters given to ``init``.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> opt = mx.optim.leafwise(mx.optim.ntm_bfgs())
    >>> tx = opt.tx(opt.init(jax.random.key(0)))
    >>> state = tx.init({"w": jnp.ones((3, 2)), "b": jnp.zeros(2)})
    >>> [leaf.memory.shape for leaf in state.leaves]
    [(2, 2), (6, 6)]
    """
    _checks.instance(LearnedOptimizer, opt=opt)

    def tx(meta_params) -> optax.GradientTransformation:
        one = optax.with_extra_args_support(opt.tx(meta_params))

        def init_fn(params) -> LeafwiseState:
            return LeafwiseState(tuple(one.init(leaf) for leaf in jax.tree.leaves(params)))

        def update_fn(updates, state, params=None, **extra):
            grads, treedef = jax.tree.flatten(updates)
            thetas = [None] * len(grads) if params is None else jax.tree.leaves(params)
            if not len(grads) == len(state.leaves) == len(thetas):
                raise ValueError(
                    f"updates must have the tree of the params given to init: they have {len(grads)} leaves, the state "
                    f"was made for {len(state.leaves)}, and params have {len(thetas)}"
                )
            pairs = [
                one.update(*args, **extra) for args in zip(grads, state.leaves, thetas, strict=True)
            ]
            new = jax.tree.unflatten(treedef, [update for update, _ in pairs])
            return new, LeafwiseState(tuple(leaf for _, leaf in pairs))

        return optax.GradientTransformationExtraArgs(init_fn, update_fn)

    return LearnedOptimizer(opt.init, tx)
