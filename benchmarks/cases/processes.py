"""What a user waits for before anything runs: measured on fresh processes."""

import doctest
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.table import Row, Setting, Target

ROOT = Path(__file__).parents[2]
IMPORT = "import time; begin = time.perf_counter(); import {}; print(time.perf_counter() - begin)"
PRELUDE = "import jax, jax.numpy as jnp, optax, metajax as mx\ndata = mx.data.load('digits')\n"
TRAINING_STEP = """
import time, jax, jax.numpy as jnp, optax, metajax as mx

optimizer = mx.optim.lstm()
problem = mx.problems.mlp((784, 20, 10))
tx = optimizer.tx(optimizer.init(jax.random.key(0)))
params, model_state = problem.init(jax.random.key(1), ())
batch = {"image": jnp.zeros((128, 28, 28, 1)), "label": jnp.zeros(128, jnp.int32)}

@jax.jit
def step(params, state):
    def loss(params):
        return problem.loss(jax.random.key(2), params, model_state, batch)[0]

    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

state = tx.init(params)
begin = time.perf_counter()
jax.block_until_ready(step(params, state))
print(time.perf_counter() - begin)
"""
README = {
    "L2L": "Learned optimizers",
    "VSML": "Learning algorithms in forward dynamics",
    "MAML, iMAML": "Few-shot learning",
}


def python(code: str, **environment: str) -> tuple[float, str]:
    """Seconds of a new interpreter that runs ``code``, and what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", code]
    begin = time.perf_counter()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
    )
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"the process failed:\n{done.stderr}")
    return seconds, done.stdout


def import_time(setting: Setting) -> list[Row]:
    """``import metajax`` against what one would import without it, and against jax alone."""
    alone = "jax alone"
    without = "jax, optax, flax, evosax"
    names = {"ours": "metajax", without: without, alone: "jax"}
    rounds = 1 if setting.smoke else 7
    seconds = {name: [] for name in names}
    for i in range(1 + rounds):
        for name, modules in names.items():
            _, printed = python(IMPORT.format(modules))
            if i > 0:  # the first warms the disk's cache
                seconds[name].append(float(printed))

    median = {name: float(np.median(times)) for name, times in seconds.items()}
    row = Row("import_time", "import metajax", "s", median["ours"])
    bound = Target("ratio", ">=", 1 / 1.2)
    return [
        row._replace(
            other=median[without],
            against=without,
            targets=(bound,),
            detail=seconds,
        ),
        row._replace(other=median[alone], against=alone),
    ]


def first_call(setting: Setting) -> list[Row]:
    """The first call of a training step, and each system's example of the README, all of it.

    They run in fresh processes. The time of an example has the start of Python and the imports in
    it.
    """

    def step(environment):
        _, printed = python(TRAINING_STEP, **environment)
        return float(printed)

    rows = _cold_and_cached(
        "a training step with the LSTM optimizer", step, setting, limits=(5, 1)
    )
    examples = list(README.items())
    for system, heading in examples[:1] if setting.smoke else examples:
        code = PRELUDE + example(heading, blocks=1 if setting.smoke else None)

        def run_example(environment, code=code):
            seconds, _ = python(code, **environment)
            return seconds

        rows += _cold_and_cached(system, run_example, setting, limits=(10, 2))
    return rows


def _cold_and_cached(
    what: str,
    seconds: Callable[[dict[str, str]], float],
    setting: Setting,
    limits: tuple[float, float],
) -> list[Row]:
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        cold = seconds(environment)
        cached = [seconds(environment) for _ in range(1 if setting.smoke else 3)]
    cold_limit, cached_limit = limits
    return [
        Row(
            "first_call",
            f"{what}, cold",
            "s",
            ours=cold,
            targets=(Target("ours", "<=", cold_limit),),
            detail={"cold": cold, "with the cache": cached},
        ),
        Row(
            "first_call",
            f"{what}, with the compilation cache",
            "s",
            ours=float(np.median(cached)),
            other=cold,
            against="cold",
            targets=(Target("ours", "<=", cached_limit),),
        ),
    ]


def example(heading: str, blocks: int | None = None) -> str:
    """The Python code under a heading of the README, up to the next heading.

    It is that of its first ``blocks`` if asked.
    """
    text = (ROOT / "README.md").read_text()
    section = re.search(rf"^## {heading}.*?(?=^##|\Z)", text, re.S | re.M)
    if section is None:
        raise ValueError(f"the README has no heading that begins with {heading!r}")
    sources = []
    found = re.findall(r"^```python\n(.*?)^```", section[0], re.S | re.M)
    for block in found[:blocks]:
        examples = doctest.DocTestParser().get_examples(block)
        sources += [one.source for one in examples]
    return "".join(sources)


CASES = (import_time, first_call)
