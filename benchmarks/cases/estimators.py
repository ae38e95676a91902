"""Every estimator on one problem: how good its estimate is, and what it costs.

The problem: a small coordinatewise LSTM (101 parameters) trains 8-dimensional quadratics for 40
steps. The meta-loss is the mean over the steps, and the meta-gradient flows through the optimizee's
gradient too, so that reverse mode is exact. A sample is one episode: four windows of ten steps for
the truncated estimators.
"""

from typing import Any

import jax
import optax

import metajax as mx
from benchmarks.table import Row, Setting

HORIZON = 40
WINDOW = 10
TASKS = 8
STD = 0.02


def estimators(setting: Setting) -> list[Row]:
    """Bias, variance, direction and cost of all: prints a table, draws a picture."""
    samples = 8 if setting.smoke else 4096
    optimizer = mx.optim.lstm(hidden=(4,), p=None)
    learner = mx.l2l(optimizer, mx.problems.quadratic(), second_order=True)
    loop = mx.inner(learner, mx.tasks.quadratics(8), HORIZON)
    meta_params = descending_point(loop, learner, 4 if setting.smoke else 60)
    whole_episodes = mx.bptt(loop, 64)
    exact = mx.mean_gradient(
        whole_episodes,
        jax.random.key(2),
        meta_params,
        samples=samples,
    )

    print(_line("estimator", "bias", "± error", "snr", "cosine", "steps", "ms", "MiB"))
    found = {}
    for name, (estimator, windows) in contenders(loop, meta_params).items():
        diagnosis = mx.diagnose(
            estimator,
            jax.random.key(3),
            meta_params,
            reference=exact,
            inner=loop,
            samples=samples,
            windows=windows,
        )
        found[name] = diagnosis
        print(_diagnosis_line(name, diagnosis), flush=True)
    axes = mx.plot.estimators(found)
    axes[0].figure.savefig(setting.out / "estimators.png", dpi=130)

    problem = {
        "horizon": HORIZON,
        "window": WINDOW,
        "num_tasks": TASKS,
        "std": STD,
        "samples": samples,
    }
    rows = []
    for name, diagnosis in found.items():
        milliseconds = 1e3 * diagnosis.seconds
        detail = {"problem": problem, **diagnosis._asdict()}
        rows.append(Row("estimators", name, "ms a sample", milliseconds, detail=detail))
    return rows


def descending_point(loop: mx.Inner, learner: mx.Learner, steps: int) -> Any:
    """Meta-parameters with which the optimizer already descends a little.

    They are a few exact steps from a random start.
    """
    outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    trainer = mx.trainer(mx.bptt(loop, 32), outer)
    random = learner.meta(jax.random.key(1))
    start = trainer.init(jax.random.key(0), random)
    fitted = mx.fit(trainer, start, num_steps=steps, progress=None)
    return fitted.state.meta_params


def contenders(loop: mx.Inner, meta_params: Any) -> dict[str, tuple[mx.Estimator, int]]:
    """The estimators by name, each with how often it must be asked for a whole episode."""
    windows = HORIZON // WINDOW
    by_windows = mx.bptt(loop, TASKS, WINDOW)
    noise_reuse = mx.noise_reuse_es(loop, TASKS, STD, WINDOW, stagger=False)
    return {
        "bptt, full": (mx.bptt(loop, TASKS), 1),
        "bptt, window 10": (by_windows, windows),
        "forward, full": (mx.forward(loop, TASKS), 1),
        "es": (mx.es(loop, TASKS, STD), 1),
        "pes, window 10": (mx.pes(loop, TASKS, STD, WINDOW), windows),
        "nres, window 10": (noise_reuse, windows),
        "guided es": (mx.guided_es(loop, TASKS, STD, surrogate=by_windows), 1),
        "Open_ES of evosax": (mx.ask_tell(loop, open_es(meta_params), 1), 1),
    }


def open_es(meta_params: Any) -> Any:
    """The strategy of evosax that is most like `metajax.es`."""
    # Here, since importing it settles JAX's devices.
    from evosax.algorithms import Open_ES
    from evosax.core.fitness_shaping import identity_fitness_shaping_fn

    return Open_ES(
        2 * TASKS,
        solution=meta_params,
        optimizer=optax.sgd(1.0),
        std_schedule=optax.constant_schedule(STD),
        fitness_shaping_fn=identity_fitness_shaping_fn,
    )


def _diagnosis_line(name: str, diagnosis: mx.Diagnosis) -> str:
    return _line(
        name,
        f"{diagnosis.bias:.3f}",
        f"{diagnosis.bias_error:.3f}",
        f"{diagnosis.snr:.3g}",
        f"{diagnosis.cosine:.3f}",
        f"{diagnosis.inner_steps:.0f}",
        f"{1e3 * diagnosis.seconds:.2f}",
        f"{diagnosis.temporary_bytes / 2**20:.2f}",
    )


def _line(name: str, *cells: str) -> str:
    widths = (8, 9, 10, 8, 8, 8, 7)
    columns = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
    return name.ljust(20) + "".join(columns)


CASES = (estimators,)
