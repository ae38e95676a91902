"""No circles between modules: what a module imports when it is imported comes before it.

Imports within functions are left out: they run later.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules(folder: Path) -> dict[str, Path]:
    """The modules of a package, by their full names."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All that runs when the module is imported, the bodies of its classes included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from statements(node)


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules among the ``known`` that the module ``name`` needs when it is imported.

    A name that is no module is one of the package's ``__init__``. The packages that a module lies
    in are imported before it, and count too, but for those that ``name`` lies in itself.
    """
    found = set()
    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: import by the full name"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                found.add(module if module in known else node.module)
    for module in tuple(found):
        found |= packages_of(module) - packages_of(name)
    return found & known.keys() - {name}


def packages_of(module: str) -> set[str]:
    """``{"a.b", "a.b.c"}`` of ``"a.b.c.d"``; what is in the whole begins with ``a`` anyway."""
    parts = module.split(".")
    return {".".join(parts[:n]) for n in range(2, len(parts))}


def circle(folder: Path) -> list[str]:
    """Modules each of which imports the next, the last the first; empty if there are none."""
    known = modules(folder)
    graph = {name: imported(name, path, known) for name, path in known.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1][::-1]  # it names first what comes first
    return []


@pytest.mark.parametrize("package", ["metajax", "benchmarks"])
def test_no_module_imports_one_that_imports_it(package):
    assert len(modules(ROOT / package)) > 5
    assert not circle(ROOT / package), " imports ".join(circle(ROOT / package))


@pytest.mark.parametrize(
    ("first", "second", "is_circle"),
    [
        ("from package import second", "from package.first import f", True),
        ("import package.second", "from package import first", True),
        (
            "from package.second import g",
            "class C:\n    from package import first",
            True,
        ),
        ("from package import f", "", True),  # which the package takes from there
        (
            "from package import second",
            "def g():\n    from package import first",
            False,
        ),
        ("from package import second", "import json", False),
        ("from package.part.deep import h", "", False),
        ("from package import second", "from package.part.deep import h", False),
    ],
)
def test_circles_are_found(tmp_path, first, second, is_circle):
    folder = tmp_path / "package"
    (folder / "part").mkdir(parents=True)
    (folder / "__init__.py").write_text("from package.first import f\n")
    (folder / "first.py").write_text(first)
    (folder / "second.py").write_text(second)
    (folder / "part" / "__init__.py").write_text("")
    (folder / "part" / "deep.py").write_text("")
    assert bool(circle(folder)) == is_circle
    # A package that another part of the program needs, and that needs it.
    (folder / "part" / "__init__.py").write_text("from package import second")
    is_circle |= "deep" in second
    assert bool(circle(folder)) == is_circle
