"""Meta-trains an optimizer on images of digits, then lets it train networks it never saw, beside
tuned baselines.

One inner loop, two estimators: backpropagation through time from scratch, then an evolution
strategy from there. The first follows truncated windows of 25 steps; the second sees whole episodes
and is told to care for the loss at their end. Run it with ``metajax demo``.
"""

import argparse
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import optax
from evosax.algorithms import Open_ES

import metajax as mx

STEPS = 50  # of the inner loop in an episode


def main(arguments: Sequence[str] | None = None, prog: str = "metajax demo") -> None:
    """Trains, compares, and writes what came out."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/demo"),
        help="folder for the results (default out/demo)",
    )
    parser.add_argument(
        "--bptt_steps", type=int, default=600, help="meta-steps of backpropagation through time"
    )
    parser.add_argument(
        "--es_steps", type=int, default=80, help="generations of the evolution strategy"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    for name in ("bptt_steps", "es_steps"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    import matplotlib.figure  # noqa: F401  what is missing is missed now, not after the training

    args.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()

    images, unseen = mx.data.load("digits", "train"), mx.data.load("digits", "test")
    tasks = mx.tasks.minibatches(batch_size=64)
    k_params, k_bptt, k_es, k_test = jax.random.split(jax.random.key(args.seed), 4)

    # The learner: an MLP with 8 hidden units, trained by an LSTM that is shared by all of its
    # parameters.
    optimizer = mx.optim.lstm()
    learner = mx.l2l(optimizer.tx, mx.problems.mlp((64, 8, 10)))
    meta_params = optimizer.init(k_params)

    # First estimator: truncated backpropagation through time.
    online = mx.inner(learner, tasks, horizon=STEPS)
    rate = optax.cosine_decay_schedule(5e-3, args.bptt_steps)
    outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    trainer = mx.trainer(mx.bptt(online, num_tasks=2, truncation=STEPS // 2), outer)
    state = trainer.init(k_bptt, meta_params, images)
    by_bptt, bptt_history, *_ = mx.fit(
        trainer, state, images, num_steps=args.bptt_steps, label="BPTT"
    )

    # Second estimator, same learner: OpenES over whole episodes, judged by the loss after the last
    # step.
    final = mx.inner(learner, tasks, horizon=STEPS, meta_loss="heldout")
    strategy = Open_ES(
        64,
        solution=by_bptt.meta_params,
        optimizer=optax.sgd(1.0),
        std_schedule=optax.constant_schedule(0.03),
    )
    outer = optax.adam(optax.cosine_decay_schedule(1e-2, args.es_steps))
    trainer = mx.trainer(mx.ask_tell(final, strategy, num_tasks=1), outer)
    state = trainer.init(k_es, by_bptt.meta_params, images)
    by_es, es_history, *_ = mx.fit(
        trainer, state, images, num_steps=args.es_steps, chunk=2, label="ES"
    )

    # What came out is an ordinary optax transformation. It meets images, initialisations and
    # networks it never saw.
    learned = {
        "L2L (BPTT, then ES)": optax.chain(optimizer.tx(by_es.meta_params)),
        "L2L (BPTT)": optax.chain(optimizer.tx(by_bptt.meta_params)),
    }
    cases = {
        "20 hidden units": ((64, 20, 10), STEPS),
        "40 hidden units": ((64, 40, 10), STEPS),
        "2 hidden layers": ((64, 20, 20, 10), STEPS),
        "twice the steps": ((64, 20, 10), 2 * STEPS),
    }
    results = {}
    for name, (sizes, steps) in cases.items():
        results[name] = mx.compare(
            {**learned, **mx.BASELINES},
            mx.problems.mlp(sizes),
            tasks,
            k_test,
            unseen,
            steps=steps,
            num_tasks=16,
        )
        print(
            f"\n{name}: {'-'.join(map(str, sizes))}, {steps} steps, 16 unseen tasks, mean ± standard error"
        )
        print(results[name], flush=True)

    mx.save(args.out / "l2l.npz", by_es.meta_params)
    _picture(args.out / "curves.png", results)
    seconds = time.monotonic() - begin
    report = {
        "cases": {name: _numbers(result) for name, result in results.items()},
        "meta_training": {"bptt": bptt_history["loss"].tolist(), "es": es_history["loss"].tolist()},
        "settings": {"seed": args.seed, "bptt_steps": args.bptt_steps, "es_steps": args.es_steps},
        "versions": {
            "metajax": mx.__version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        "device": jax.devices()[0].device_kind,
        "seconds": round(seconds, 1),
    }
    (args.out / "results.json").write_text(json.dumps(report, indent=1) + "\n")
    print(
        f"\n{_verdict(results)}\nDone in {seconds:.0f} s. Curves, numbers and learned parameters are in {args.out}/:"
    )
    print("  curves.png  results.json  l2l.npz")


def _numbers(result: mx.Comparison) -> dict:
    return {
        name: {
            "rate": result.rate[name],
            "final_mean": float(final.mean()),
            "final_standard_error": float(final.std(ddof=1) / len(final) ** 0.5),
            "loss": result.loss[name].mean(0).round(5).tolist(),
        }
        for name, final in result.final.items()
    }


def _verdict(results: dict[str, mx.Comparison]) -> str:
    lines = []
    for case, result in results.items():
        ours, *_ = result.final
        if not np.isfinite(result.final[ours]).all():
            lines.append(f"{case}: {ours} diverges")
            continue
        best = min(mx.BASELINES, key=lambda n: np.nan_to_num(result.final[n].mean(), nan=np.inf))
        difference = result.final[best] - result.final[ours]
        error = difference.std(ddof=1) / len(difference) ** 0.5
        word = (
            "wins"
            if difference.mean() > 2 * error
            else "loses"
            if difference.mean() < -2 * error
            else "is level"
        )
        ratio = result.final[ours].mean() / result.final[best].mean()
        lines.append(
            f"{case}: {ours} {word} against the best baseline, {best} "
            f"({ratio:.2f} x its final loss; ahead on {int(np.sum(difference > 0))} of {len(difference)} tasks)"
        )
    return "\n".join(lines)


def _picture(path: Path, results: dict[str, mx.Comparison]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    for ax, (name, result) in zip(figure.subplots(2, 2).flat, results.items(), strict=True):
        mx.plot.curves(result.loss, ax, xlabel="step", ylabel="training loss (nats)")
        ax.set_title(name, fontsize=10)
    figure.savefig(path, dpi=130)
