"""The documentation: `make docs`."""

import importlib.metadata
import inspect
import shutil
from pathlib import Path

import metajax as mx

HERE = Path(__file__).parent
# Parts whose names are those of the package itself: mx.maml, mx.bptt, ...
FLAT = ("types", "learners", "estimators", "training", "evaluation")

project = "metajax"
author = "The metajax authors"
copyright = author
release = version = importlib.metadata.version("metajax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
default_role = "py:obj"  # `metajax.inner` in a docstring is a link
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks hold their outputs; the tests run them
nb_mime_priority_overrides = [
    ("html", "application/vnd.jupyter.widget-view+json", None)
]

autodoc_typehints = (
    "none"  # they stand in the signature of the source; shapes are in the text
)
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False
napoleon_use_ivar = (
    True  # fields of NamedTuples are described once, in the text of their class
)
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "metajax"
html_theme_options = {"source_repository": "", "navigation_with_keys": True}
html_static_path: list[str] = []


def reference() -> dict[str, str]:
    """The reference, a page for each part of the package, from what the parts export."""
    flat = {name: page(getattr(mx, name)) for name in FLAT}
    flat["types"] += "\n".join(
        entry(name) for name in ("inner", "unroll", "save", "load")
    )
    modules = [name for name in mx.__all__ if inspect.ismodule(getattr(mx, name))]
    return flat | {name: module_page(name) for name in modules}


def page(part) -> str:
    """The names of a part, as names of the package."""
    title = part.__name__.rpartition(".")[2].capitalize()
    entries = "\n".join(entry(name) for name in part.__all__)
    return f"# {title}\n\n{inspect.getdoc(part)}\n\n{entries}"


def entry(name: str) -> str:
    """One name of the package."""
    value = getattr(mx, name)
    kind = "class" if inspect.isclass(value) else "function"
    text = f".. auto{kind}:: {name}"
    if not callable(value):  # a table: it has the docstring of `dict`
        text = f".. data:: {name}\n\n   {', '.join(value)}"
    return f"```{{eval-rst}}\n.. currentmodule:: metajax\n{text}\n```\n"


def module_page(name: str) -> str:
    """A part that is a name space of its own."""
    title = name.capitalize()
    return f"# {title}\n\n```{{eval-rst}}\n.. automodule:: metajax.{name}\n   :members:\n```\n"


def write_pages(app) -> None:
    """Puts the reference and the notebooks beside the pages."""
    for folder in ("api", "notebooks"):
        shutil.rmtree(HERE / folder, ignore_errors=True)
        (HERE / folder).mkdir()
    for name, text in reference().items():
        (HERE / "api" / f"{name}.md").write_text(text)
    for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):
        shutil.copy(notebook, HERE / "notebooks")


def setup(app):
    """Leaves out what `collections.namedtuple` writes about fields."""

    def skip(app, what, name, obj, default, options):
        return (
            True
            if str(getattr(obj, "__doc__", "")).startswith("Alias for field number")
            else None
        )

    app.connect("builder-inited", write_pages)
    app.connect("autodoc-skip-member", skip)
