"""The package's Celo2 on problems that its meta-training came nowhere near, beside tuned others.

It is taken as it is, with the one rate of its card, and told how long a run is. The rates of the
others are searched on other tasks of the same problem. What it costs AdamW not to search is shown
by rates a third and three times as high as the one found.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
from flax import nnx

import metajax as mx
from benchmarks.experiments import _l2l
from benchmarks.reproduce import (
    Claim,
    Experiment,
    Result,
    Results,
    Settings,
    at_most,
    below,
    claim,
)
from benchmarks.velodrome.baselines import cosine

SOURCE = "this package: mx.pretrained"
OURS = "celo2-images"
ADAMW = "AdamW"
COSINE = "AdamW, cosine"
OFF = {"AdamW, a third of its rate": 1 / 3, "AdamW, three times its rate": 3.0}


class _Block(nnx.Module):
    """Attention and a perceptron, each normalised before; its matrices are of two axes."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.first_norm = nnx.LayerNorm(width, rngs=rngs)
        self.project = nnx.Linear(width, 3 * width, rngs=rngs)
        self.join = nnx.Linear(width, width, rngs=rngs)
        self.second_norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x):
        batch, length, width = x.shape
        heads = (batch, length, 3, self.heads, width // self.heads)
        projected = self.project(self.first_norm(x)).reshape(heads)
        queries, keys, values = jnp.unstack(projected, axis=2)
        mixed = jax.nn.dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.join(mixed.reshape(x.shape))
        hidden = nnx.gelu(self.up(self.second_norm(x)))
        return x + self.down(hidden)


class _Transformer(nnx.Module):
    """A language model."""

    def __init__(self, symbols: int, length: int, width: int, rngs: nnx.Rngs):
        self.symbols = nnx.Embed(symbols, width, rngs=rngs)
        self.positions = nnx.Embed(length, width, rngs=rngs)
        blocks = [_Block(width, 4, rngs) for _ in range(2)]
        self.blocks = nnx.Sequential(*blocks)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.out = nnx.Linear(width, symbols, rngs=rngs)

    def __call__(self, text):
        positions = self.positions(jnp.arange(text.shape[1]))
        x = self.symbols(text) + positions[None]
        return self.out(self.norm(self.blocks(x)))


def _next_symbol(logits, batch):
    target = batch["text"][:, 1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], target)
    return losses.mean(), {}


def _transformer(settings: Settings) -> _l2l.Posed:
    text = mx.data.sums()
    length = settings["length"]

    def make(rngs):
        return _Transformer(len(text["alphabet"]), length + 1, settings["width"], rngs)

    problem = mx.problems.nnx(make, _next_symbol, "text")
    return problem, mx.tasks.text(settings["batch"], length), text


def _characters(settings: Settings) -> Any:
    """Drawings of handwritten characters, the classes of a problem of their own."""
    if settings["data"] is not None:
        return mx.data.load(settings["data"])
    drawings = mx.data.few_shot("omniglot", "test")
    num_images = drawings["start"][settings["classes"]]
    return {name: drawings[name][:num_images] for name in ("image", "label")}


def _resnet(settings: Settings) -> _l2l.Posed:
    data = _characters(settings)
    shape = data["image"].shape[1:]
    net = mx.nets.resnet12(settings["classes"], shape, settings["filters"])
    tasks = mx.tasks.minibatches(settings["batch"])
    return mx.problems.classifier(*net), tasks, data


def _perceptron(settings: Settings) -> _l2l.Posed:
    data = _characters(settings)
    pixels = int(np.prod(data["image"].shape[1:]))
    problem = mx.problems.mlp((pixels, 128, 128, settings["classes"]), jax.nn.relu)
    return problem, mx.tasks.minibatches(settings["batch"]), data


def _quadratics(settings: Settings) -> _l2l.Posed:
    del settings
    return mx.problems.quadratic(), mx.tasks.quadratics(10), ()


def _logistic(settings: Settings) -> _l2l.Posed:
    tasks = mx.tasks.minibatches(settings["batch"])
    return mx.problems.logistic(64, 10), tasks, mx.data.load("digits", "test")


# Trained for long. A learned optimizer is to be no worse than a tuned one that is a little off.
NETWORKS = {
    "transformer, sums in words": _transformer,
    "ResNet-12, Omniglot": _resnet,
    "perceptron, Omniglot": _perceptron,
}

# Trained for a short while, as in `l2l_transfer`, beside the usual four.
CONVEX = {"quadratics": _quadratics, "logistic regression": _logistic}


def run(seed: int, settings: Settings, folder: Path) -> Result:
    results: Result = {}
    for i, case in enumerate([*NETWORKS, *CONVEX]):
        if case not in settings["cases"]:
            continue
        key = jax.random.key(4000 + 10 * seed + i)
        if case in NETWORKS:
            results |= _network(case, key, settings, folder)
        else:
            results |= _convex(case, key, settings, folder)
    return results


def _ours(num_steps: int) -> optax.GradientTransformation:
    """Embeddings are left to Adam, as the authors advise."""

    def is_matrix(path, leaf):
        return leaf.ndim > 1 and "embedding" not in jax.tree_util.keystr(path)

    return mx.pretrained.load(OURS)(num_steps, is_matrix=is_matrix)


def _network(
    case: str,
    key: Any,
    settings: Settings,
    folder: Path,
) -> Result:
    """Final losses of ours, of AdamW with and without a cosine, and of AdamW beside its rate."""
    steps = settings["steps"]

    def with_cosine(rate):
        return optax.adamw(cosine(rate, steps))

    tuned = {OURS: _ours(steps), ADAMW: optax.adamw, COSINE: with_cosine}
    posed = NETWORKS[case](settings)
    result = _finals(f"{case}, tuned", tuned, posed, key, settings, folder)

    rate = float(result[f"{ADAMW}: rate"])
    off = {name: optax.adamw(times * rate) for name, times in OFF.items()}
    result |= _finals(f"{case}, off", off, posed, key, settings, folder)
    return {f"{case}, {name}": value for name, value in result.items()}


def _finals(
    name: str,
    optimizers: dict[str, Any],
    posed: _l2l.Posed,
    key: Any,
    settings: Settings,
    folder: Path,
) -> Result:
    """The mean final loss on the tasks of a key, and the rate that was found; kept in a file."""

    def compared() -> Result:
        problem, tasks, data = posed
        comparison = mx.compare(
            optimizers,
            problem,
            tasks,
            jax.random.clone(key),
            data,
            steps=settings["steps"],
            num_tasks=settings["num_tasks"],
            at_once=1,
            search=mx.RateSearch(settings["rates"]),
        )
        print(f"{name}\n{comparison}", flush=True)
        rates = comparison.rate.items()
        found = {f"{name}: rate": np.asarray(x) for name, x in rates if x is not None}
        return found | {name: x.mean() for name, x in comparison.final.items()}

    return _l2l.kept(folder / f"{name}.npz", compared)


def _convex(
    case: str,
    key: Any,
    settings: Settings,
    folder: Path,
) -> Result:
    return _l2l.compare(
        case,
        {OURS: _ours(settings["convex_steps"])},
        CONVEX[case](settings),
        key,
        folder,
        steps=settings["convex_steps"],
        num_tasks=settings["convex_tasks"],
        search=mx.RateSearch(settings["convex_rates"]),
    )


def claims(results: Results, settings: Settings) -> list[Claim]:
    found = []
    for case in settings["cases"]:
        if case in NETWORKS:
            found += _claims_of_network(case, results)
        else:
            found.append(_claim_of_convex(case, results))
    return found


def _claims_of_network(case: str, results: Results) -> list[Claim]:
    def multiples(others):
        """Ours over the geometric mean of theirs, of each seed."""
        ratios = []
        for result in results:
            theirs = np.array([result[f"{case}, {name}"] for name in others])
            theirs = np.nan_to_num(theirs, nan=np.inf)  # of a run that diverged
            ratios.append(float(result[f"{case}, {OURS}"] / scipy.stats.gmean(theirs)))
        return ratios

    text = f"{case}: final loss of {OURS} as a multiple of that of"
    return [
        claim(
            f"{text} AdamW at a third and at three times its best rate (geometric mean) <= 1",
            SOURCE,
            None,
            multiples(OFF),
            at_most(1),
        ),
        claim(f"{text} tuned AdamW < 1", SOURCE, None, multiples([ADAMW]), below(1)),
        claim(
            f"{text} AdamW with a tuned rate and a cosine < 1",
            SOURCE,
            None,
            multiples([COSINE]),
            below(1),
        ),
    ]


def _claim_of_convex(case: str, results: Results) -> Claim:
    ratios = []
    for result in results:
        baselines = [result[f"{case}, {name}: final"] for name in mx.BASELINES]
        ratios.append(float(result[f"{case}, {OURS}: final"] / np.nanmin(baselines)))
    return claim(
        f"{case}: final loss of {OURS} as a multiple of the best tuned baseline's <= 1.1",
        SOURCE,
        None,
        ratios,
        at_most(1.1),
    )


def picture(results: Results, settings: Settings, figure: Any) -> None:
    networks = [case for case in settings["cases"] if case in NETWORKS]
    figure.set_size_inches(9, 2.4)
    axes = figure.subplots(1, len(networks), squeeze=False)[0]
    shown = [OURS, ADAMW, COSINE, *OFF]
    for ax, case in zip(axes, networks, strict=True):
        for i, name in enumerate(shown):
            losses = [result[f"{case}, {name}"] for result in results]
            ax.barh(
                i, np.mean(losses), color=mx.plot.COLOURS[1 if i == 0 else 2], alpha=0.8
            )
            ax.plot(losses, [i] * len(losses), "k.", markersize=4)
        ax.set(title=case, xlabel="final loss (nats)", yticks=range(len(shown)))
        ax.set_yticklabels(shown if ax is axes[0] else [])
        ax.title.set_fontsize(9)
        ax.invert_yaxis()
        ax.spines[["top", "right"]].set_visible(False)


_SMOKE = {
    "cases": ["perceptron, Omniglot", "quadratics"],
    "data": "digits",
    "classes": 10,
    "filters": [4, 4],
    "width": 8,
    "length": 8,
    "batch": 8,
    "steps": 20,
    "num_tasks": 1,
    "rates": [1e-7, 1e-2, 1e4],
    "convex_steps": 10,
    "convex_tasks": 2,
    "convex_rates": [1e-7, 0.01, 0.1, 1e4],
}
_SMALL = {
    "cases": [*NETWORKS, *CONVEX],
    "data": None,
    "classes": 400,
    "filters": [8, 16, 32, 64],
    "width": 64,
    "length": 32,
    "batch": 32,
    "steps": 1000,
    "num_tasks": 1,
    "rates": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1],
    "convex_steps": 100,
    "convex_tasks": 16,
    "convex_rates": [10 ** (k / 2) for k in range(-8, 6)],
}
EXPERIMENT = Experiment(
    title="A pretrained Celo2 on families of networks that it never saw",
    source=SOURCE,
    settings={
        "smoke": _SMOKE,
        "small": _SMALL,
        "full": {**_SMALL, "filters": [64, 160, 320, 640], "steps": 10_000},
    },
    run=run,
    claims=claims,
    picture=picture,
)
