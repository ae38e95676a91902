"""What only an accelerator can say: how exact it is, and what kernels by hand are worth there."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import metajax as mx
from benchmarks.measure import Program, contest
from benchmarks.table import Row, Setting, compared, memory
from benchmarks.workloads import workload

_STD = 0.05


def precision(setting: Setting) -> list[Row]:
    """Distances of meta-gradients from the CPU's, by JAX's default products and by exact ones."""
    smoke = setting.smoke
    found = [
        _few_shot(kind, smoke) for kind in (["maml"] if smoke else ["maml", "imaml"])
    ]
    found += [_l2l(smoke), _vsml_by_backpropagation(smoke)]
    return [_distances(what, run, args) for what, run, args in found]


def kernels(setting: Setting) -> list[Row]:
    """Kernels by hand against XLA's; where there is no GPU they are interpreted, and slow."""
    by_hand = "pallas" if _has_gpu() else "interpreted"
    if by_hand == "interpreted" and not setting.smoke:
        return [Row("kernels", "by hand", note="needs a GPU")]
    rows = []
    for what, program in (
        ("update by an LSTM", _update),
        ("VSML by evolution", _vsml_by_evolution),
    ):
        programs = {
            "by hand": program(setting.smoke, by_hand),
            "XLA's": program(setting.smoke, "xla"),
        }
        found = contest(programs, setting.limits, rtol=1e-2, rounds=setting.rounds)
        rows.append(compared("kernels", what, found))
        rows.append(memory("kernels", what, found))
    return rows


def vsml_published(setting: Setting) -> list[Row]:
    """The published meta-step: 2,048 networks of 784 x 10 cells learn from 500 examples each."""
    if not (setting.smoke or _has_gpu()):
        return [Row("vsml_published", "a meta-step", note="needs a GPU")]
    pairs, examples = (2, 3) if setting.smoke else (1024, 500)
    by_hand = "pallas" if _has_gpu() else "interpreted"
    programs = {}
    for name, kernel in (("by hand", by_hand), ("XLA's", "xla")):
        programs[name] = _vsml(setting.smoke, kernel, pairs, examples)
    found = contest(programs, setting.limits, rtol=5e-2, rounds=2)
    what = f"{2 * pairs:,} x {examples} examples"
    return [
        compared("vsml_published", what, found),
        memory("vsml_published", what, found),
    ]


CASES = (precision, kernels, vsml_published)


def _has_gpu() -> bool:
    return jax.default_backend() == "gpu"


def _distances(what: str, run: Any, args: tuple) -> Row:
    """Relative to the size of the CPU's: by default, and with products of all bits."""

    def vector(device, exactness):
        # Another function each time, or jit takes the program of the other precision.
        with jax.default_device(device), jax.default_matmul_precision(exactness):
            placed = jax.device_put(args, device)
            result = jax.jit(lambda *args: run(*args))(*placed)
        return np.asarray(ravel_pytree(result)[0], np.float64)

    cpu = jax.devices("cpu")[0]
    here = jax.devices()[0]
    want = vector(cpu, "highest")
    size = np.linalg.norm(want)

    def distance(exactness):
        return float(np.linalg.norm(vector(here, exactness) - want) / size)

    # On the CPU itself there is none.
    floor = float(np.finfo(np.float32).eps)
    return Row(
        "precision",
        what,
        "of the CPU's",
        ours=max(distance("default"), floor),
        other=max(distance("highest"), floor),
        against="highest precision",
    )


def _few_shot(kind: str, smoke: bool) -> tuple[str, Any, tuple]:
    work = workload(kind, smoke)
    return f"{kind}, conv-4, {work.steps} steps", work.ours, work.args


def _l2l(smoke: bool) -> tuple[str, Any, tuple]:
    steps = 3 if smoke else 20
    learner = mx.l2l(mx.optim.lstm(), mx.problems.mlp((64, 20, 10)))
    loop = mx.inner(learner, mx.tasks.minibatches(32), steps)
    meta_params = learner.meta(jax.random.key(0))
    run, args = _estimate(mx.bptt(loop, 2), meta_params, mx.data.load("digits"))
    return f"l2l, BPTT, {steps} steps", run, args


def _vsml_by_backpropagation(smoke: bool) -> tuple[str, Any, tuple]:
    examples = 3 if smoke else 100
    learner = mx.vsml((64, 10))
    loop = mx.inner(learner, mx.tasks.minibatches(1), examples)
    meta_params = learner.meta(jax.random.key(0))
    run, args = _estimate(mx.bptt(loop, 2), meta_params, mx.data.load("digits"))
    return f"vsml, BPTT, {examples} examples", run, args


def _estimate(
    estimator: mx.Estimator, meta_params: Any, data: Any
) -> tuple[Any, tuple]:
    def run(key, meta_params, state, data):
        estimate, _ = estimator.estimate(key, meta_params, state, data)
        return estimate.updates

    state = jax.jit(estimator.init)(jax.random.key(3), meta_params, data)
    return run, (jax.random.key(2), meta_params, state, data)


def _update(smoke: bool, kernel: Any) -> Program:
    size = 200 if smoke else 1_000_000
    optimizer = mx.optim.lstm(kernel=kernel)
    meta_params = optimizer.init(jax.random.key(0))
    grad = jax.random.normal(jax.random.key(1), (size,))
    state = optimizer.tx(meta_params).init(grad)

    def run(meta_params, grad, state):
        return optimizer.tx(meta_params).update(grad, state)

    return Program(run, (meta_params, grad, state), view=lambda result: result[0])


def _vsml_by_evolution(smoke: bool, kernel: Any) -> Program:
    pairs, examples = (2, 3) if smoke else (256, 20)
    return _vsml(smoke, kernel, pairs, examples)


def _vsml(smoke: bool, kernel: Any, pairs: int, examples: int) -> Program:
    side = 3 if smoke else 28
    learner = mx.vsml((side * side, 10), mx.cells.lstm(kernel=kernel))
    loop = mx.inner(learner, mx.tasks.minibatches(1), examples)
    images = jax.random.normal(jax.random.key(4), (1_000, side, side, 1))
    labels = jax.random.randint(jax.random.key(5), (1_000,), 0, 10)
    data = {"image": images, "label": labels}
    meta_params = learner.meta(jax.random.key(0))
    estimator = mx.es(loop, pairs, _STD)
    run, args = _estimate(estimator, meta_params, data)

    def size_of_gradient(*args):
        return jnp.linalg.norm(ravel_pytree(run(*args))[0])

    return Program(size_of_gradient, args)
