"""The documentation names all that is public, and its links lead somewhere."""

import doctest
import inspect
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx
from metajax.testing import _estimator as of_estimators

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


@pytest.mark.slow
def test_the_parts_of_the_guide_keep_the_contract(strict):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    guide = {}
    for example in doctest.DocTestParser().get_examples(text):
        exec(example.source, guide)

    learner = guide["sign_descent"](mx.problems.mlp((64, 10)), 0.01)
    digits = mx.data.load("digits")
    loop = mx.inner(learner, mx.tasks.minibatches(4, test_size=4), 4)
    meta_params = learner.meta(jax.random.key(0))
    for estimator in (mx.bptt(loop, 2), guide["spsa"](loop, 2, 1e-3)):
        trainer = of_estimators.compiled(mx.trainer(estimator, optax.adam(1e-2)))
        of_estimators.fits_a_scan(trainer, meta_params, digits)
        of_estimators.steps_alike(trainer, meta_params, digits)

    # A table of indices among the meta-parameters stays as it is.
    learner = mx.l2l(lambda m: optax.sgd(m["rate"]), mx.problems.quadratic())
    loop = mx.inner(learner, mx.tasks.quadratics(2), 3)
    meta_params = {"rate": jnp.float32(0.01), "table": jnp.arange(2)}
    trainer = mx.trainer(guide["spsa"](loop, 2, 1e-3), optax.sgd(0.1))
    state = trainer.init(jax.random.key(0), meta_params)
    state, _ = trainer.step(state)
    np.testing.assert_array_equal(state.meta_params["table"], meta_params["table"])
