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
optimizer, problem = mx.optim.lstm(), mx.problems.mlp((784, 20, 10))
tx, params = optimizer.tx(optimizer.init(jax.random.key(0))), problem.init(jax.random.key(1), ())
batch = {"image": jnp.zeros((128, 28, 28, 1)), "label": jnp.zeros(128, jnp.int32)}

@jax.jit
def step(params, state):
    grads = jax.grad(lambda params: problem.loss(jax.random.key(2), params, batch)[0])(params)
    updates, state = tx.update(grads, state, params)
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
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"the process failed:\n{done.stderr}")
    return seconds, done.stdout


def import_time(setting: Setting) -> list[Row]:
    """``import metajax`` against what one would import without it, and against jax alone."""
    names = {
        "ours": "metajax",
        "jax, optax, flax, evosax": "jax, optax, flax, evosax",
        "jax alone": "jax",
    }
    rounds = 1 if setting.smoke else 7
    seconds = {name: [] for name in names}
    for i in range(rounds + 1):  # the first warms the disk's cache
        for name, modules in names.items():
            found = float(python(IMPORT.format(modules))[1])
            seconds[name] += [found] if i else []
    median = {name: float(np.median(s)) for name, s in seconds.items()}
    bound = Target("ratio", ">=", 1 / 1.2)
    ours, both, alone = names
    return [
        Row(
            "import_time",
            "import metajax",
            "s",
            median[ours],
            median[both],
            both,
            targets=(bound,),
            detail=seconds,
        ),
        Row("import_time", "import metajax", "s", median[ours], median[alone], alone),
    ]


def first_call(setting: Setting) -> list[Row]:
    """The first call of a training step, and each system's example of the README, all of it, in
    fresh processes.

    The time of an example has the start of Python and the imports in it.
    """

    def step(environment):
        return float(python(TRAINING_STEP, **environment)[1])

    rows = _cold_and_cached("a training step with the LSTM optimizer", step, setting, limits=(5, 1))
    for system, heading in list(README.items())[: 1 if setting.smoke else None]:
        code = PRELUDE + example(heading, blocks=1 if setting.smoke else None)
        rows += _cold_and_cached(
            system, lambda env, code=code: python(code, **env)[0], setting, limits=(10, 2)
        )
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
        warm = [seconds(environment) for _ in range(1 if setting.smoke else 3)]
    first, later = (Target("ours", "<=", limit) for limit in limits)
    detail, cached = {"cold": cold, "with the cache": warm}, f"{what}, with the compilation cache"
    return [
        Row("first_call", f"{what}, cold", "s", cold, targets=(first,), detail=detail),
        Row("first_call", cached, "s", float(np.median(warm)), cold, "cold", targets=(later,)),
    ]


def example(heading: str, blocks: int | None = None) -> str:
    """The Python code under a heading of the README, up to the next heading, its first ``blocks``
    only if asked.
    """
    section = re.search(
        rf"^## {heading}.*?(?=^##|\Z)", (ROOT / "README.md").read_text(), re.S | re.M
    )
    if section is None:
        raise ValueError(f"the README has no heading that begins with {heading!r}")
    code = re.findall(r"^```python\n(.*?)^```", section[0], re.S | re.M)[:blocks]
    return "".join(x.source for block in code for x in doctest.DocTestParser().get_examples(block))


CASES = (import_time, first_call)
