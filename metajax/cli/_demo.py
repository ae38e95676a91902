"""Meta-train an optimizer on images of digits and compare it with tuned baselines.

It learns to train networks with 8 hidden units, and then trains larger ones on images it never saw.
One inner loop, two estimators: backpropagation through time from scratch, then an evolution
strategy from there. The first follows truncated windows of 25 steps; the second sees whole episodes
and is told to care for the loss at their end.
"""

import argparse
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import metajax as mx
from metajax.cli import _arguments
from metajax.types import Key, Learner, MetaParams

_STEPS = 50  # of the inner loop in an episode
_NUM_TASKS = 16  # of a comparison
_TASKS = mx.tasks.minibatches(batch_size=64)
# What the learned optimizer is to train: the sizes of a network, and for how many steps.
_CASES = {
    "20 hidden units": ((64, 20, 10), _STEPS),
    "40 hidden units": ((64, 40, 10), _STEPS),
    "2 hidden layers": ((64, 20, 20, 10), _STEPS),
    "twice the steps": ((64, 20, 10), 2 * _STEPS),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument(
        "--out",
        type=_arguments.folder,
        default=Path("out/demo"),
        help="folder for the results (default out/demo)",
    )
    parser.add_argument(
        "--bptt_steps",
        type=_arguments.whole_number(1),
        default=600,
        help="meta-steps of backpropagation through time (default 600)",
    )
    parser.add_argument(
        "--es_steps",
        type=_arguments.whole_number(1),
        default=80,
        help="generations of the evolution strategy (default 80)",
    )
    parser.add_argument(
        "--seed", type=_arguments.whole_number(0), default=0, help="default 0"
    )


def run(args: argparse.Namespace) -> None:
    """Trains, compares, and writes what came out."""
    # What is missing is missed now, not after the training.
    import matplotlib.figure  # noqa: F401

    args.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    k_params, k_bptt, k_es, k_test = jax.random.split(jax.random.key(args.seed), 4)

    # An LSTM that is shared by all parameters of the network it trains.
    optimizer = mx.optim.lstm()
    learner = mx.l2l(optimizer, mx.problems.mlp((64, 8, 10)))
    by_bptt = _train_by_bptt(learner, learner.meta(k_params), k_bptt, args.bptt_steps)
    by_es = _train_by_es(learner, by_bptt.state.meta_params, k_es, args.es_steps)

    # What came out is an ordinary optax transformation.
    learned = {
        "L2L (BPTT, then ES)": optax.chain(optimizer.tx(by_es.state.meta_params)),
        "L2L (BPTT)": optax.chain(optimizer.tx(by_bptt.state.meta_params)),
    }
    results = _compare(learned, k_test)

    mx.save(args.out / "l2l.npz", by_es.state.meta_params)
    _picture(args.out / "curves.png", results)
    seconds = time.monotonic() - begin
    report = _report(args, by_bptt, by_es, results, seconds)
    (args.out / "results.json").write_text(json.dumps(report, indent=1) + "\n")
    print(
        f"\n{_verdict(results)}\nDone in {seconds:.0f} s. Curves, numbers and learned parameters "
        f"are in {args.out}/:\n  curves.png  results.json  l2l.npz"
    )


def _train_by_bptt(
    learner: Learner, meta_params: MetaParams, key: Key, num_steps: int
) -> mx.Fit:
    """Truncated backpropagation through time."""
    inner = mx.inner(learner, _TASKS, horizon=_STEPS)
    estimator = mx.bptt(inner, num_tasks=2, truncation=_STEPS // 2)
    schedule = optax.cosine_decay_schedule(5e-3, num_steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    return _fit(mx.trainer(estimator, tx), meta_params, key, num_steps, label="BPTT")


def _train_by_es(
    learner: Learner, meta_params: MetaParams, key: Key, num_steps: int
) -> mx.Fit:
    """OpenES over whole episodes, judged by the loss after the last step."""
    # Imported here: half a second that other commands need not spend.
    from evosax.algorithms import Open_ES

    inner = mx.inner(learner, _TASKS, horizon=_STEPS, meta_loss="heldout")
    strategy = Open_ES(
        64,
        solution=meta_params,
        optimizer=optax.sgd(1.0),
        std_schedule=optax.constant_schedule(0.03),
    )
    estimator = mx.ask_tell(inner, strategy, num_tasks=1)
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, num_steps))
    trainer = mx.trainer(estimator, tx, chunk=2)
    return _fit(trainer, meta_params, key, num_steps, label="ES")


def _fit(
    trainer: mx.Trainer,
    meta_params: MetaParams,
    key: Key,
    num_steps: int,
    label: str,
) -> mx.Fit:
    data = mx.data.load("digits", "train")
    state = trainer.init(key, meta_params, data)
    return mx.fit(trainer, state, data, num_steps=num_steps, progress=label)


def _compare(
    learned: Mapping[str, optax.GradientTransformation], key: Key
) -> dict[str, mx.Comparison]:
    """Trains networks on images that meta-training never saw, beside the baselines."""
    data = mx.data.load("digits", "test")
    results = {}
    for name, (sizes, steps) in _CASES.items():
        results[name] = mx.compare(
            {**learned, **mx.BASELINES},
            mx.problems.mlp(sizes),
            _TASKS,
            key,
            data,
            steps=steps,
            num_tasks=_NUM_TASKS,
        )
        network = "-".join(map(str, sizes))
        print(
            f"\n{name}: {network}, {steps} steps, {_NUM_TASKS} unseen tasks, mean ± standard error"
        )
        print(results[name], flush=True)
    return results


def _report(
    args: argparse.Namespace,
    by_bptt: mx.Fit,
    by_es: mx.Fit,
    results: dict[str, mx.Comparison],
    seconds: float,
) -> dict[str, Any]:
    """All numbers, for results.json."""
    return {
        "cases": {name: _numbers(result) for name, result in results.items()},
        "meta_training": {
            "bptt": by_bptt.history["loss"].tolist(),
            "es": by_es.history["loss"].tolist(),
        },
        "settings": {
            "seed": args.seed,
            "bptt_steps": args.bptt_steps,
            "es_steps": args.es_steps,
        },
        "versions": {
            "metajax": mx.__version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        "device": jax.devices()[0].device_kind,
        "seconds": round(seconds, 1),
    }


def _numbers(result: mx.Comparison) -> dict[str, Any]:
    return {
        name: {
            "rate": result.rate[name],
            "final_mean": float(final.mean()),
            "final_standard_error": float(_standard_error(final)),
            "loss": result.loss[name].mean(0).round(5).tolist(),
        }
        for name, final in result.final.items()
    }


def _standard_error(values: np.ndarray) -> np.ndarray:
    return values.std(ddof=1) / len(values) ** 0.5


def _verdict(results: dict[str, mx.Comparison]) -> str:
    return "\n".join(
        f"{case}: {_verdict_of(result)}" for case, result in results.items()
    )


def _verdict_of(result: mx.Comparison) -> str:
    """The first optimizer, which is learned, against the best baseline."""
    learned, *_ = result.final
    loss = result.final[learned]
    if not np.isfinite(loss).all():
        return f"{learned} diverges"

    def mean_loss(name):
        return np.nan_to_num(result.final[name].mean(), nan=np.inf)

    best = min(mx.BASELINES, key=mean_loss)
    difference = result.final[best] - loss
    ahead = int(np.sum(difference > 0))
    ratio = loss.mean() / result.final[best].mean()
    return (
        f"{learned} {_outcome(difference)} against the best baseline, {best} "
        f"({ratio:.2f} x its final loss; ahead on {ahead} of {len(difference)} tasks)"
    )


def _outcome(difference: np.ndarray) -> str:
    """What paired differences ``[num_tasks]`` say, within two standard errors."""
    error = 2 * _standard_error(difference)
    if difference.mean() > error:
        return "wins"
    if difference.mean() < -error:
        return "loses"
    return "is level"


def _picture(path: Path, results: dict[str, mx.Comparison]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    axes = figure.subplots(2, 2).flat
    for ax, (name, result) in zip(axes, results.items(), strict=True):
        mx.plot.curves(result.loss, ax, xlabel="step", ylabel="training loss (nats)")
        ax.set_title(name, fontsize=10)
    figure.savefig(path, dpi=130)
