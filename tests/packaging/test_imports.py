"""Imports: modules that an import of the package must not load. The layers are import-linter's."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transport_kit

ROOT = Path(transport_kit.__file__).parent
FRAMEWORKS = {
    "celery",
    "click",
    "django",
    "fastapi",
    "flask",
    "jinja2",
    "pytest",
    "rich",
    "rq",
    "starlette",
    "uvicorn",
}
#: Modules to import late: they take 120 ms, and under gevent an import before the patch breaks TLS.
LATE = {"ssl", "urllib3", "_ssl", "certifi"}


def modules() -> Iterator[tuple[Path, str]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield path, path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Yield full names of the modules that a file imports anywhere, functions and type-checking included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if node.module == "transport_kit":
                yield from (f"transport_kit.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def run(code: str, *arguments: str) -> dict[str, list[Any]]:
    """Return the JSON that a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result: dict[str, list[Any]] = json.loads(done.stdout)
    return result


def test_only_connections_knows_urllib3() -> None:
    """To replace the HTTP library, one file has to be changed."""
    users = {path.name for path, _ in modules() for name in imported(path) if name.split(".")[0] == "urllib3"}
    assert users == {"connections.py"}


def test_the_core_names_no_framework() -> None:
    """An app on Flask must not need Starlette, not even in a branch that is never taken."""
    allowed = {"__main__", "celery", "cli", "receiver", "rq"}
    for path, room in modules():
        if room not in allowed and path.name != "fixtures.py":
            assert FRAMEWORKS.isdisjoint(name.split(".")[0] for name in imported(path)), path


def test_a_fresh_interpreter_imports_no_framework_and_no_tls() -> None:
    """Every process of the app pays for an import, short-lived ones included."""
    result = run(
        "import sys, json, transport_kit, transport_kit.testing\n"
        "print(json.dumps({'modules': sorted({name.split('.')[0] for name in sys.modules})}))"
    )
    assert "transport_kit" in result["modules"]
    assert (FRAMEWORKS | LATE | {"asyncio", "multiprocessing"}).isdisjoint(result["modules"])


_SPY = """
import _thread, json, os, sys
from importlib.abc import MetaPathFinder
found = {"main": [], "other": []}
main = _thread.get_ident()

class Spy(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        found["main" if _thread.get_ident() == main else "other"].append(name)

sys.meta_path.insert(0, Spy())
import transport_kit
threads = [len(os.listdir("/proc/self/task"))]
transport = transport_kit.make_transport(sys.argv[1], shutdown_timeout=0)
threads.append(len(os.listdir("/proc/self/task")))
assert transport.capture_event({"message": "first"})
transport.health()
assert transport.flush(20.0 if sys.argv[2] == "delivered" else 0.0).ok is (sys.argv[2] == "delivered")
transport.close(0)
found["threads"] = threads
print(json.dumps(found))
"""


def test_no_request_thread_imports_urllib3_or_ssl() -> None:
    """The first capture happens in a request, whose user would wait 120 ms for the import."""
    from transport_kit.testing import FaultServer

    with FaultServer() as server:
        result = run(_SPY, server.dsn, "delivered")
        assert len(server.accepted) == 1
    assert LATE.isdisjoint(result["main"])
    assert "urllib3" in result["other"]  # the spy works
    assert result["threads"] == [1, 1]


def test_importing_logs_nothing_and_configures_no_logging() -> None:
    """The configuration of logging belongs to the app."""
    result = run(
        "import json, logging\n"
        "lines = []\n"
        "logging.getLogger().addHandler(type('H', (logging.Handler,), "
        "{'emit': lambda self, record: lines.append(record.getMessage())})(0))\n"
        "logging.getLogger().setLevel(0)\n"
        "import transport_kit, transport_kit.testing\n"
        "logger = logging.getLogger('transport_kit')\n"
        "print(json.dumps({'lines': lines, 'set': [logger.level, logger.handlers, logger.propagate]}))"
    )
    assert result["lines"] == []
    assert result["set"] == [0, [], True]


def test_the_public_names_are_sorted() -> None:
    """Sorting keeps a long list readable."""
    assert transport_kit.__all__ == sorted(transport_kit.__all__, key=str.lower)


def test_the_public_names_exist_and_are_documented() -> None:
    """A missing name in `__all__` breaks `import *`; a public name has a docstring."""
    for name in transport_kit.__all__:
        value = getattr(transport_kit, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, name
