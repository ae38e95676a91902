"""What metrics of inner loops tell before the meta-loss does."""

from collections.abc import Mapping

import numpy as np

from metajax.sharding import _hosts as hosts
from metajax.training._warnings import warn

# For each metric the mean over a chunk from which on it is told of, what it means, and a remedy.
_TROUBLES = {
    "inner_diverged": (
        0.1,
        "inner solves end with larger gradients than they begin with",
        "lower the learning rate of the solver, or raise lam",
    ),
    "inner_negative_curvature": (
        0.5,
        "Newton steps of inner solves meet negative curvature",
        "raise lam or the damping of the linear solver, or take implicit.lanczos",
    ),
    "negative_curvature": (
        0.5,
        "inner problems are not convex at their solutions, where implicit gradients are wrong",
        "raise lam or the damping of the linear solver, or take implicit.lanczos",
    ),
    "inner_residual": (
        0.9,
        "linear solves of Newton steps leave as much as there was",
        "give the linear solver more steps, or another damping or rate",
    ),
    "residual": (
        0.9,
        "linear solves of implicit gradients leave as much as there was",
        "give the linear solver more steps, or another damping or rate",
    ),
}


class Troubles:
    """Warns of each trouble once in a run."""

    def __init__(self):
        self._told: set[str] = set()

    def look(self, metrics: Mapping[str, np.ndarray], step: int) -> None:
        """Looks at the metrics ``[n]`` of the meta-steps up to ``step``."""
        for name, (limit, meaning, remedy) in _TROUBLES.items():
            values = metrics.get(name)
            if values is None or values.ndim != 1 or name in self._told:
                continue
            mean = values.mean()
            if mean >= limit and hosts.is_first():
                self._told.add(name)
                warn(f"up to meta-step {step}, {meaning} ({name} {mean:.3g}); {remedy}")
        self._look_for_zeros(metrics.get("update_norm", np.empty(0)), step)

    def _look_for_zeros(self, norms: np.ndarray, step: int) -> None:
        is_known = "update_norm" in self._told or not hosts.is_first()
        if is_known or not norms.size or norms.any():
            return
        self._told.add("update_norm")
        warn(
            f"up to meta-step {step}, meta-gradients were exactly 0 (update_norm 0). Online, the "
            f"loss of a step is that before its update, so that one step, as a horizon or a "
            f"window, says nothing of it: make inner with a longer horizon or "
            f"meta_loss='heldout', or give the estimator a longer truncation. Of implicit "
            f"gradients metajax.imaml_diagnosed tells whether anything was solved"
        )
