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
    """Bias, variance, direction and cost of all, with a picture."""
    samples = 8 if setting.smoke else 4096
    optimizer = mx.optim.lstm(hidden=(4,), p=None)
    learner = mx.l2l(optimizer, mx.problems.quadratic(), second_order=True)
    loop = mx.inner(learner, mx.tasks.quadratics(8), HORIZON)
    meta_params = descending_point(loop, learner, 4 if setting.smoke else 60)
    truncated = by_windows(loop)
    found = mx.compare_estimators(
        whole_episodes(loop, meta_params) | truncated,
        loop,
        jax.random.key(2),
        meta_params,
        windows=dict.fromkeys(truncated, HORIZON // WINDOW),
        samples=samples,
    )
    print(found)
    axes = mx.plot.estimators(found.diagnoses)
    axes[0].figure.savefig(setting.out / "estimators.png", dpi=130)

    problem = {
        "horizon": HORIZON,
        "window": WINDOW,
        "num_tasks": TASKS,
        "std": STD,
        "samples": samples,
    }
    rows = []
    for name, diagnosis in found.diagnoses.items():
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


def whole_episodes(loop: mx.Inner, meta_params: Any) -> dict[str, mx.Estimator]:
    """Those that run an episode in one estimate."""
    surrogate = mx.bptt(loop, TASKS, WINDOW)
    return {
        "bptt, full": mx.bptt(loop, TASKS),
        "bptt, full, nested": mx.bptt(loop, TASKS, remat="nested"),
        "forward, full": mx.forward(loop, TASKS),
        "forward gradient, full": mx.forward_gradient(loop, TASKS),
        "es": mx.es(loop, TASKS, STD),
        "es, rank 1": mx.es(loop, TASKS, STD, mx.low_rank()),
        "guided es": mx.guided_es(loop, TASKS, STD, surrogate=surrogate),
        "Open_ES of evosax": mx.ask_tell(loop, open_es(meta_params), 1),
    }


def by_windows(loop: mx.Inner) -> dict[str, mx.Estimator]:
    """Those that are asked for window after window."""
    return {
        "bptt, window 10": mx.bptt(loop, TASKS, WINDOW),
        "rtrl, window 10": mx.rtrl(loop, TASKS, WINDOW),
        "uoro, window 10": mx.uoro(loop, TASKS, WINDOW),
        "pes, window 10": mx.pes(loop, TASKS, STD, WINDOW),
        "nres, window 10": mx.noise_reuse_es(loop, TASKS, STD, WINDOW, stagger=False),
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


CASES = (estimators,)
