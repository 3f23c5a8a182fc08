"""The rooms of the package: what imports what runs one way."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import transport_kit

ROOT = Path(transport_kit.__file__).parent


def imports() -> dict[str, set[str]]:
    """Each module, and the modules that it imports anywhere, also for its types alone."""
    files = {
        ".".join((ROOT.name, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in ROOT.rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        found[module] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(ROOT.name):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found[module] |= {name if name in files else str(node.module) for name in names}
    return found


def test_no_modules_import_each_other() -> None:
    """Of two rooms in a circle neither can be read, tested or changed without the other."""
    graph = imports()
    assert len(graph) > 50
    TopologicalSorter(graph).prepare()  # raises for a circle, and names it
