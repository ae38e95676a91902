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
