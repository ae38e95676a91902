"""What the experiments on learned optimizers share: searched baselines, claims and pictures."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import metajax as mx
from benchmarks.reproduce import Claim, Results, claim


def compare(
    case: str,
    learned: Mapping[str, Any],
    problem: mx.Problem,
    tasks: mx.Tasks,
    key: Any,
    data: Any = (),
    **settings: Any,
) -> dict[str, np.ndarray]:
    """Learned optimizers and the usual four on fresh tasks: curves, final losses and rates, to be stored."""
    found = mx.compare({**learned, **mx.BASELINES}, problem, tasks, key, data, **settings)
    print(f"{case}\n{found}", flush=True)
    stored = {}
    for name, loss in found.loss.items():
        stored[f"{case}, {name}"] = loss.mean(0)
        stored[f"{case}, {name}: final"] = found.final[name].mean()
        stored[f"{case}, {name}: error"] = found.final[name].std(ddof=1) / len(loss) ** 0.5
        if found.rate[name] is not None:
            stored[f"{case}, {name}: rate"] = found.rate[name]
    return stored


def final(results: Results, case: str, name: str) -> list[float]:
    return [float(r[f"{case}, {name}: final"]) for r in results]


def against_baselines(results: Results, case: str, name: str, source: str, published: Any, wins: bool = True) -> Claim:
    """The final loss as a multiple of that of the best baseline of each seed."""
    best = [min(float(r[f"{case}, {b}: final"]) for b in mx.BASELINES) for r in results]
    ratio = [ours / other for ours, other in zip(final(results, case, name), best, strict=True)]
    text = f"{case}: final loss of {name} as a multiple of the best tuned baseline's {'< 1' if wins else '> 1'}"
    return claim(text, source, published, ratio, (lambda x: x < 1) if wins else (lambda x: x > 1))


def draw(results: Results, case: str, learned: list[str], ax: Any, ylabel: str = "") -> None:
    """Mean learning curves over seeds; the band is their range."""
    for i, name in enumerate([*learned, *mx.BASELINES]):
        curves = np.stack([r[f"{case}, {name}"] for r in results])
        colour, style = mx.plot.COLOURS[i], mx.plot.STYLES[i]
        ax.plot(curves.mean(0), color=colour, linestyle=style, linewidth=2 if i < len(learned) else 1.2, label=name)
        ax.fill_between(range(curves.shape[1]), curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0)
    ax.set(title=case, xlabel="step", ylabel=ylabel, yscale="log")
    ax.title.set_fontsize(9)
    ax.spines[["top", "right"]].set_visible(False)
