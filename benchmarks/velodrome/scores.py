"""Scores of an optimizer against published curves, and their means over tasks and seeds."""

import json
from pathlib import Path

import numpy as np

NUM_STEPS = 100_000  # of the published runs


def published() -> dict[str, np.ndarray]:
    """For each task the best loss so far, ``[512]``, at `steps`.

    The lowest of 60 curves, four optimizers at 15 rates, each a mean over five seeds of the loss on
    training batches, smoothed, and so about 190 steps late.
    """
    file = Path(__file__).with_name("lo_curves.json")
    curves = json.loads(file.read_text())["curves"]
    return {task: np.asarray(curve) for task, curve in curves.items()}


def steps() -> np.ndarray:
    """Where the published curves are given, ``[512]``."""
    return np.linspace(0, NUM_STEPS, 512)


def steps_to(curve: np.ndarray, loss: float) -> float:
    """The first step at which a curve was down at ``loss``, linear between its points.

    0 for a loss that is above the start or not finite, the last step for one below the end.
    """
    if not loss < curve[0]:
        return 0.0
    if loss < curve[-1]:
        return float(NUM_STEPS)
    end = int(np.argmax(curve <= loss))
    start = end - 1
    share = (curve[start] - loss) / (curve[start] - curve[end])
    at = steps()
    return float(at[start] + share * (at[end] - at[start]))


def speed_up(curve: np.ndarray, loss: float, num_steps: int) -> float:
    """How many times as many steps a published curve takes to the loss after ``num_steps``."""
    return steps_to(curve, loss) / num_steps


def relative(loss: float, reference: float) -> float:
    """How many times as large the ``reference`` is; 0 for a loss that is not finite."""
    return reference / loss if np.isfinite(loss) else 0.0


def smoothed(losses: np.ndarray, decay: float = 0.95) -> np.ndarray:
    """The moving average of ``losses [..., T]`` that the published curves are of.

    It begins at the first loss and is not corrected for that.
    """
    averages = [losses[..., 0]]
    for t in range(1, losses.shape[-1]):
        averages.append(decay * averages[-1] + (1 - decay) * losses[..., t])
    return np.stack(averages, -1)


def envelope(curves: np.ndarray) -> np.ndarray:
    """The best so far, ``[T]``, of any of the ``curves [N, T]``; what is NaN is left out."""
    lowest = np.nanmin(curves, 0)
    return np.minimum.accumulate(lowest)


def iqm(values: np.ndarray) -> float:
    """The interquartile mean: without the lowest and the highest quarter, rounded down."""
    ordered = np.sort(np.ravel(values))
    dropped = len(ordered) // 4
    return float(ordered[dropped : len(ordered) - dropped].mean())


def interval(values: np.ndarray, replicates: int = 2000) -> tuple[float, float]:
    """The 95 % interval of the `iqm` of ``values [tasks, seeds]``.

    By a bootstrap that draws seeds anew within each task (Agarwal et al. 2021): it says nothing of
    other tasks.
    """
    rng = np.random.default_rng(0)
    drawn = rng.integers(values.shape[1], size=(replicates, *values.shape))
    resampled = np.take_along_axis(values[None], drawn, 2)
    means = [iqm(sample) for sample in resampled]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
