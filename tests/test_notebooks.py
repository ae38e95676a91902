"""The notebooks run from top to bottom; numbers with a `# smoke:` are replaced by smaller ones."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))


def reduced(text: str) -> str:
    return re.sub(r"^(\w+ = ).*  # smoke: (.+)$", r"\1\2", text, flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook, tmp_path):
    script = tmp_path / notebook.name
    script.write_text(reduced(notebook.read_text()))
    environment = os.environ | {
        "PYTHONPATH": str(notebook.parents[1]),
        "MPLBACKEND": "agg",
    }
    command = [sys.executable, script]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_there_is_something_to_reduce():
    assert len(NOTEBOOKS) == 8
    for notebook in NOTEBOOKS:
        text = notebook.read_text()
        assert reduced(text) != text, notebook.name


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(notebook):
    for target in re.findall(r"\]\(([\w./]+)\)", notebook.read_text()):
        path = notebook.parent / target
        assert path.exists() or path.with_suffix(".py").exists(), target
