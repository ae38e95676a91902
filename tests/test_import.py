"""What `import metajax` costs and does."""

import subprocess
import sys

CODE = """
import sys
import metajax
from jax._src import xla_bridge
started = "importing started a backend: jax.distributed could no longer be initialised"
assert not xla_bridge._backends, started
heavy = {"evosax", "orbax.checkpoint", "tensorflow_datasets", "matplotlib", "sklearn"}
late = heavy & sys.modules.keys()
assert not late, f"imported before they are needed: {late}"
"""


def test_importing_starts_no_backend_and_leaves_the_heavy_packages_out():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
