"""What is built and shipped."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_wheel_and_sdist_hold_what_a_user_needs(tmp_path):
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as f:
        names = f.namelist()
        metadata = f.read(next(n for n in names if n.endswith("METADATA"))).decode()
    assert {"metajax/py.typed", "metajax/data/digits.npz", "metajax/data/omniglot.csv", "metajax/optim/lstm.py"} <= set(
        names
    )
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not [n for n in names if n.startswith(("tests", "benchmarks", "notebooks"))]
    assert "License-Expression: Apache-2.0" in metadata
    # From the wheel itself, without the source tree: import it and read the data that come with it.
    code = "import metajax as mx; print(mx.__file__, len(mx.data.load()['label']))"
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as f:
        f.extractall(target)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(target)}
    )
    assert done.stdout.split() == [str(target / "metajax" / "__init__.py"), "1197"], done.stdout + done.stderr
    with tarfile.open(sdist) as f:
        assert any(n.endswith("metajax/data/digits.npz") for n in f.getnames())
