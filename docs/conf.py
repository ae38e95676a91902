"""The documentation: `make docs`."""

import importlib.metadata
import shutil
from pathlib import Path

HERE = Path(__file__).parent
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
(HERE / "notebooks").mkdir()
for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):
    shutil.copy(notebook, HERE / "notebooks")

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
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]

autodoc_typehints = "none"  # they stand in the signature of the source; shapes are in the text
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False
napoleon_use_ivar = True  # fields of NamedTuples are described once, in the text of their class
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "metajax"
html_theme_options = {"source_repository": "", "navigation_with_keys": True}
html_static_path: list[str] = []


def setup(app):
    """Leaves out what `collections.namedtuple` writes about fields."""

    def skip(app, what, name, obj, default, options):
        return (
            True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None
        )

    app.connect("autodoc-skip-member", skip)
