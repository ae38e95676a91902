"""What is built and shipped."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import metajax as mx

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.xdist_group("packaging")  # one worker builds, once

NEEDED = {
    "py.typed",
    "cli/_main.py",
    "data/digits.npz",
    "data/omniglot.csv",
    "data/cifar_fs.csv",
    "optim/_lstm.py",
    "pretrained/l2l-digits.npz",
    "pretrained/l2l-digits.md",
    "pretrained/vsml-mnist.npz",
    "pretrained/vsml-mnist.md",
}
# What a user does first, far from the source tree.
SMOKE = """
import metajax as mx, optax, jax
assert len(mx.data.load()["label"]) == 1197
assert len(mx.data.few_shot("digits")["start"]) == 6
tx = optax.chain(mx.pretrained.load("l2l-digits"))
print(mx.__file__)
"""


def run(*command, **kwargs):
    done = subprocess.run(
        [str(x) for x in command], capture_output=True, text=True, **kwargs
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Of a copy, since a build writes into the folder that it builds."""
    folder, source = (
        tmp_path_factory.mktemp("dist"),
        tmp_path_factory.mktemp("build") / "source",
    )
    shutil.copytree(
        ROOT,
        source,
        ignore=shutil.ignore_patterns(".*", "out", "build", "dist", "*.egg-info"),
    )
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.mark.slow
def test_wheel_and_sdist_hold_what_a_user_needs(built):
    with zipfile.ZipFile(built["wheel"]) as f:
        names = set(f.namelist())
        metadata = f.read(next(n for n in names if n.endswith("METADATA"))).decode()
        commands = f.read(
            next(n for n in names if n.endswith("entry_points.txt"))
        ).decode()
    assert {f"metajax/{n}" for n in NEEDED} <= names
    assert {
        f"metajax/{p.relative_to(ROOT / 'metajax')}"
        for p in (ROOT / "metajax").rglob("*.py")
    } <= names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not [
        n
        for n in names
        if n.startswith(("tests", "benchmarks", "notebooks", "examples"))
    ]
    assert "License-Expression: Apache-2.0" in metadata
    assert "metajax = metajax.cli:main" in commands
    with tarfile.open(built["sdist"]) as f:
        names = {n.split("/", 1)[-1] for n in f.getnames()}
    assert {f"metajax/{n}" for n in NEEDED} <= names
    assert {
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "examples/l2l-digits.toml",
        "tests/conftest.py",
    } <= names


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_they_install_and_run(built, tmp_path, kind):
    """Into an environment with nothing in it but the dependencies, lent by that of the tests to
    spare a download.
    """
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(
        run(
            python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
        ).strip()
    )
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
    ]
    (site / "lent.pth").write_text(sysconfig.get_path("purelib"))
    run(*install, "--ignore-installed", built[kind])
    where = run(python, "-c", SMOKE, cwd=tmp_path)
    assert Path(where.strip()).parent == site / "metajax"
    command = python.with_name("metajax")
    assert run(command, "--version", cwd=tmp_path).split()[0] == "metajax"
    assert "vsml-mnist" in run(command, "pretrained", cwd=tmp_path)
    assert run(
        python, "-m", "metajax", "pretrained", "card", "l2l-digits", cwd=tmp_path
    ).startswith("# l2l-digits")


def test_the_versions_are_one():
    version = f"version: {mx.__version__}\n"
    assert version in (ROOT / "CITATION.cff").read_text()
