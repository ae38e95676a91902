"""The documentation names all that is public, and its links lead somewhere; `make docs` builds
it.
"""

import inspect
import re
from pathlib import Path

import pytest
from test_api import FUNCTIONS

import metajax as mx

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("**/*.md"))
REFERENCE = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))


@pytest.mark.parametrize("name", [n for n in mx.__all__ if not inspect.ismodule(getattr(mx, n))])
def test_the_reference_has_every_name_of_the_package(name):
    assert re.search(
        rf"^\.\. auto(function|class):: {name}$|`metajax\.{name}`", REFERENCE, re.MULTILINE
    ), name


@pytest.mark.parametrize(
    "module", sorted({name.rpartition(".")[0] for name in FUNCTIONS} - {"metajax"})
)
def test_the_reference_has_every_module(module):
    assert f".. automodule:: {module}\n" in REFERENCE


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", page.read_text()):
        path = page.parent / target
        beside = ROOT / Path(target).with_suffix(
            ".py"
        )  # the site copies the notebooks; their scripts are in the tree
        assert path.exists() or beside.exists(), target


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in PAGES:
        name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert name == "index" or re.search(rf"^{re.escape(name)}$", index, re.MULTILINE), name
