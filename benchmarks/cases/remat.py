"""What backpropagation through time keeps, and what that costs: side by side in one process."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

import metajax as mx
from benchmarks.measure import Program, contest
from benchmarks.table import Row, Setting, Target, compared, costs, memory
from benchmarks.workloads import workload

EACH_STEP = "remat=True"
NESTED = 'remat="nested"'


def remat(setting: Setting) -> list[Row]:
    """MAML on conv-4 and a learned optimizer, by what is kept of the inner loop: writes a table."""
    maml_steps = 4 if setting.smoke else 64
    l2l_steps = 4 if setting.smoke else 1000

    def of_maml(remat):
        work = workload("maml", setting.smoke, maml_steps, remat)
        return Program(work.ours, work.args)

    of_maml_too, of_l2l_too = ([], []) if setting.smoke else ([False, 10, 6], [44, 17])
    maml = _contest(setting, of_maml, [True, "nested", *of_maml_too])
    l2l = _contest(setting, _l2l(l2l_steps), [True, "nested", *of_l2l_too])
    tables = [
        costs("MAML, conv-4, 4 tasks", {f"{maml_steps} steps": maml}),
        costs("LSTM optimizer, 1,510 coordinates", {f"{l2l_steps:,} steps": l2l}),
    ]
    (setting.out / "remat.md").write_text("\n".join(tables))
    hoped = {"maml": [Target("ours", "<=", 50.0)], "l2l": [Target("ratio", ">=", 8.0)]}
    rows = []
    for case, steps, found in (("maml", maml_steps, maml), ("l2l", l2l_steps, l2l)):
        both = {name: found[name] for name in (NESTED, EACH_STEP)}
        what = f"{case}, {steps:,} steps, nested"
        not_longer = [Target("ratio", ">=", 1 / 1.35)]
        rows.append(compared("remat", what, both, targets=not_longer))
        rows.append(memory("remat", what, both, hoped[case]))
    return rows


def _contest(
    setting: Setting, program: Callable[[Any], Program], kept: Sequence[Any]
) -> dict[str, Any]:
    """Of ``program(remat)``, each by how it is written."""
    programs = {f"remat={remat!r}".replace("'", '"'): program(remat) for remat in kept}
    return contest(programs, setting.limits, rtol=1e-2, rounds=setting.rounds)


def _l2l(steps: int) -> Callable[[Any], Program]:
    """A meta-gradient through the training of a network of 1,510 parameters."""
    learner = mx.l2l(mx.optim.lstm(), mx.problems.mlp((64, 20, 10)))
    loop = mx.inner(learner, mx.tasks.minibatches(32), steps)
    meta_params = learner.meta(jax.random.key(0))
    digits = mx.data.load("digits")

    def program(remat):
        estimator = mx.bptt(loop, 1, remat=remat)
        state = jax.jit(estimator.init)(jax.random.key(1), meta_params, digits)

        def run(key, meta_params, state, data):
            estimate, _ = estimator.estimate(key, meta_params, state, data)
            return optax.tree.norm(estimate.updates)

        return Program(run, (jax.random.key(2), meta_params, state, digits))

    return program


CASES = (remat,)
