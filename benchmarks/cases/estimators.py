"""Every estimator on one problem: how good its estimate is, and what it costs.

The problem: a small coordinatewise LSTM (101 parameters) trains 8-dimensional quadratics for 40
steps. The meta-loss is the mean over the steps, and the meta-gradient flows through the optimizee's
gradient too, so that reverse mode is exact. A sample is one episode: four windows of ten steps for
the truncated estimators.
"""

import jax
import optax

import metajax as mx
from benchmarks.table import Row, Setting

HORIZON, WINDOW, TASKS, STD = 40, 10, 8, 0.02


def estimators(setting: Setting) -> list[Row]:
    """Bias, variance, direction and cost of every estimator on one problem: prints a table, draws a
    picture.
    """
    samples = 8 if setting.smoke else 4096
    optimizer = mx.optim.lstm(hidden=(4,), p=None)
    learner = mx.l2l(optimizer, mx.problems.quadratic(), second_order=True)
    inner = mx.inner(learner, mx.tasks.quadratics(8), HORIZON)
    # A point where the optimizer already descends a little: a few exact steps from a random start.
    trainer = mx.trainer(
        mx.bptt(inner, 32), optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    )
    start = trainer.init(jax.random.key(0), optimizer.init(jax.random.key(1)))
    meta_params = mx.fit(
        trainer, start, num_steps=4 if setting.smoke else 60, progress=False
    ).state.meta_params
    exact = mx.mean_gradient(mx.bptt(inner, 64), jax.random.key(2), meta_params, samples=samples)

    # Here, since importing it settles JAX's devices.
    from evosax.algorithms import Open_ES
    from evosax.core.fitness_shaping import identity_fitness_shaping_fn

    strategy = Open_ES(
        2 * TASKS,
        solution=meta_params,
        optimizer=optax.sgd(1.0),
        std_schedule=optax.constant_schedule(STD),
        fitness_shaping_fn=identity_fitness_shaping_fn,
    )
    cut = HORIZON // WINDOW
    cases = {
        "bptt, full": (mx.bptt(inner, TASKS), 1),
        "bptt, window 10": (mx.bptt(inner, TASKS, WINDOW), cut),
        "forward, full": (mx.forward(inner, TASKS), 1),
        "es": (mx.es(inner, TASKS, STD), 1),
        "pes, window 10": (mx.pes(inner, TASKS, STD, WINDOW), cut),
        "nres, window 10": (mx.noise_reuse_es(inner, TASKS, STD, WINDOW, stagger=False), cut),
        "guided es": (mx.guided_es(inner, TASKS, STD, surrogate=mx.bptt(inner, TASKS, WINDOW)), 1),
        "Open_ES of evosax": (mx.ask_tell(inner, strategy, 1), 1),
    }
    found = {}
    print(
        f"{'estimator':<20}{'bias':>8}{'± error':>9}{'snr':>10}{'cosine':>8}{'steps':>8}{'ms':>8}{'MiB':>7}"
    )
    for name, (estimator, windows) in cases.items():
        d = mx.diagnose(
            estimator,
            jax.random.key(3),
            meta_params,
            reference=exact,
            inner=inner,
            samples=samples,
            windows=windows,
        )
        found[name] = d
        print(
            f"{name:<20}{d.bias:>8.3f}{d.bias_error:>9.3f}{d.snr:>10.3g}{d.cosine:>8.3f}{d.inner_steps:>8.0f}"
            f"{1e3 * d.seconds:>8.2f}{d.temporary_bytes / 2**20:>7.2f}",
            flush=True,
        )
    mx.plot.estimators(found)[0].figure.savefig(setting.out / "estimators.png", dpi=130)
    problem = {
        "horizon": HORIZON,
        "window": WINDOW,
        "num_tasks": TASKS,
        "std": STD,
        "samples": samples,
    }
    return [
        Row(
            "estimators",
            name,
            "ms a sample",
            1e3 * d.seconds,
            detail={"problem": problem, **d._asdict()},
        )
        for name, d in found.items()
    ]


CASES = (estimators,)
