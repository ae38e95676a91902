"""Episodes side by side, all of them or a few at a time."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def vmap(
    f: Callable, in_axes: Any = 0, *, whole: bool = False, at_once: int | None = None
) -> Callable:
    """`jax.vmap` over episodes, of which ``in_axes`` is 0 or None for each argument.

    With ``at_once`` no more than so many run side by side, and the others after them. ``whole``
    asks for all results on every device, should they be divided over several.
    """
    del whole
    if at_once is None:
        return jax.vmap(f, in_axes)

    def run(*args):
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        episodes = [x for x, axis in zip(args, axes, strict=True) if axis == 0]

        def run_one(episode):
            own = iter(episode)
            return f(*[next(own) if a == 0 else x for x, a in zip(args, axes)])  # noqa: B905

        # Even turns: of 17 episodes, 16 at once, 9 and 8.
        num_episodes = len(jax.tree.leaves(episodes)[0])
        turns = -(-num_episodes // at_once)
        return lax.map(run_one, episodes, batch_size=-(-num_episodes // turns))

    return run
