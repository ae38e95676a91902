"""A learned optimizer on each leaf by itself."""

from typing import NamedTuple

import jax
import optax

from metajax._arguments import checked
from metajax.types import LearnedOptimizer, PyTree


class LeafwiseState(NamedTuple):
    """The states of all leaves, in the order of `jax.tree.leaves`."""

    leaves: tuple[PyTree, ...]


@checked
def leafwise(opt: LearnedOptimizer) -> LearnedOptimizer:
    """Runs ``opt`` on each leaf of the parameters by itself, with the same meta-parameters.

    Most optimizers here keep one flat state for the whole tree, which is the faster the more leaves
    there are. Leaf by leaf the states can be placed on devices as the parameters are, and what is
    shared by all coordinates, such as the averaged cells of `lstm` or the memory of `ntm_bfgs`,
    becomes shared by those of a leaf. What treats coordinates or tensors alone anyway (`lstm`
    without averaged cells, `rnnprop`, `mlp`, `adafactor_mlp`) does the same either way.

    >>> import jax, jax.numpy as jnp, metajax as mx
    >>> opt = mx.optim.leafwise(mx.optim.ntm_bfgs())
    >>> tx = opt.tx(opt.init(jax.random.key(0)))
    >>> state = tx.init({"w": jnp.ones((3, 2)), "b": jnp.zeros(2)})
    >>> [leaf.memory.shape for leaf in state.leaves]
    [(2, 2), (6, 6)]
    """

    def tx(meta_params) -> optax.GradientTransformationExtraArgs:
        leaf_tx = optax.with_extra_args_support(opt.tx(meta_params))

        def init_fn(params) -> LeafwiseState:
            leaves = jax.tree.leaves(params)
            return LeafwiseState(tuple(map(leaf_tx.init, leaves)))

        def update_fn(updates, state, params=None, **extra):
            grads, treedef = jax.tree.flatten(updates)
            thetas = [None] * len(grads)
            if params is not None:
                thetas = jax.tree.leaves(params)
            _check_leaves(grads, thetas, state)

            new_updates = []
            new_states = []
            leaves = zip(grads, state.leaves, thetas, strict=True)
            for grad, leaf_state, theta in leaves:
                update, leaf_state = leaf_tx.update(grad, leaf_state, theta, **extra)
                new_updates.append(update)
                new_states.append(leaf_state)
            new_state = LeafwiseState(tuple(new_states))
            return jax.tree.unflatten(treedef, new_updates), new_state

        return optax.GradientTransformationExtraArgs(init_fn, update_fn)

    return LearnedOptimizer(opt.init, tx)


def _check_leaves(grads: list, thetas: list, state: LeafwiseState) -> None:
    if not len(grads) == len(thetas) == len(state.leaves):
        raise ValueError(
            f"updates must have the tree of the params given to init: they have {len(grads)} "
            f"leaves, params {len(thetas)}, and the state was made for {len(state.leaves)}"
        )
