"""The packages of the integrations: their imports and their documentation pages."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "integrations"
PACKAGES = sorted(path.name for path in ROOT.iterdir() if (path / "__init__.py").exists())


def imported(source: Path, package: str) -> set[str]:
    """Return the modules of its own package that a module imports, at any place of its text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found.update(name for name in names if name.startswith(f"{package}."))
    return found


def test_the_pages_have_the_same_headings_in_the_same_order() -> None:
    """Readers who know one page find their way in all."""
    pages = sorted((ROOT.parent / "docs" / "integrations").glob("*.md"))
    headings = [
        [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("## ")]
        for page in pages
    ]
    assert len(pages) == 4
    assert len(headings[0]) == 7
    assert all(found == headings[0] for found in headings)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_of_an_integration_imports_itself_in_the_end(package: str) -> None:
    """An import cycle works until another module of it is imported first; imports in functions count too."""
    modules = {
        f"{package}.{path.relative_to(ROOT / package).with_suffix('').as_posix().replace('/', '.')}": path
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    graph = {name: imported(path, package) & modules.keys() for name, path in modules.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(modules) > 1
