"""Hand-made optimizers whose updates have a derivative everywhere."""

import optax

from metajax._arguments import checked
from metajax.optim._derivatives import without_singularities


@checked
def differentiable(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The same updates, and where a root or a quotient has no derivative, it is 0 instead of NaN.

    Adam takes the root of a mean of squares, which is 0 for a weight that has never had a gradient,
    such as one behind a pixel that is always black; reverse mode gives NaN there, and no ``eps``
    outside the root helps. For a root of squares 0 is a subgradient, and the derivative of the
    update is then the true one. Learners of optax transformations (`metajax.l2l`, `metajax.adapt`
    and theirs) do this themselves; it is for those that you write.

    Args:
      tx: any optax transformation.

    >>> import jax, jax.numpy as jnp, metajax as mx, optax
    >>> def update(tx, gradient):
    ...     return tx.update(gradient, tx.init(gradient))[0]
    >>> adam = optax.adam(0.1, eps=0.5)
    >>> float(jax.grad(lambda g: update(adam, g))(0.0))
    nan
    >>> slope = jax.grad(lambda g: update(mx.optim.differentiable(adam), g))(0.0)
    >>> round(float(slope), 4)  # -0.1 / eps
    -0.2
    """
    extended = optax.with_extra_args_support(tx)

    def update(updates, state, params=None, **extra):
        functions = {name: x for name, x in extra.items() if callable(x)}
        arrays = {name: x for name, x in extra.items() if not callable(x)}

        def run(updates, state, params, arrays):
            return extended.update(updates, state, params, **functions, **arrays)

        return without_singularities(run)(updates, state, params, arrays)

    return optax.GradientTransformationExtraArgs(tx.init, update)
