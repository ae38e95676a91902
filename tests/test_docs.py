"""The documentation names all that is public, and its links lead somewhere."""

import inspect
import re
import runpy
from pathlib import Path

import pytest

import metajax as mx

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_the_reference_has_every_name_of_the_package():
    pages = runpy.run_path(str(ROOT / "docs" / "conf.py"))["reference"]()
    text = "\n".join(pages.values())
    for name in mx.__all__:
        is_module = inspect.ismodule(getattr(mx, name))
        directive = (
            "automodule:: metajax."
            if is_module
            else r"(autofunction|autoclass|data):: "
        )
        assert re.search(rf"{directive}{name}$", text, re.MULTILINE), name


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name
)
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
        assert name == "index" or re.search(
            rf"^{re.escape(name)}$", index, re.MULTILINE
        ), name
