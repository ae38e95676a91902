"""What `import metajax` costs and does."""

import subprocess
import sys

CODE = """
import sys
import metajax
from jax._src import xla_bridge
started = "something started a backend: jax.distributed could no longer be initialised"
for make in (metajax.optim.lstm, metajax.optim.mlp, metajax.optim.rnnprop):
    metajax.l2l(make(), metajax.problems.mlp((64, 10)))
assert not xla_bridge._backends, started
heavy = {"evosax", "tensorflow_datasets", "matplotlib", "sklearn"}
late = heavy & sys.modules.keys()
assert not late, f"imported before they are needed: {late}"
"""


def test_nothing_made_at_import_starts_a_backend_or_needs_the_heavy_packages():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What other systems lack: modules, functions of `os`, signals.
ELSEWHERE = """
import os, signal, sys
import jax, numpy, optax, evosax, flax, tqdm, safetensors, filelock
for name in ("fcntl", "grp", "pwd", "resource", "termios", "pty", "posix", "syslog"):
    sys.modules[name] = None
for name in ("fork", "getuid", "geteuid", "uname", "sysconf", "mkfifo", "killpg", "O_SYNC"):
    delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM", "SIGQUIT", "SIGPIPE", "setitimer"):
    delattr(signal, name)
import tempfile
import metajax as mx
from metajax.cli import main
trainer = mx.trainer(mx.Estimator(
    lambda key, m, data: (), lambda key, m, state, data: (mx.Estimate(m, m.sum(), {}), state)
), optax.sgd(0.1))
state = trainer.init(jax.random.key(0), jax.numpy.ones(2))
folder = tempfile.mkdtemp()
for num_steps in (2, 4):
    store = mx.checkpoints(folder, every=2)
    result = mx.fit(trainer, state, num_steps=num_steps, checkpoint=store, progress=None)
assert int(result.state.step) == 4
"""


def test_nothing_asks_for_what_only_posix_has():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ELSEWHERE],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
