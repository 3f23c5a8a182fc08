"""Runs each integration's suite with the oldest and the newest version of its framework: `make test-all`.

Each cell has its own environment: the pins of constraints.txt, except for the cell's versions. `make test`
runs with all pins. tests/interpreter.sh finds the interpreters; a missing one fails its cells, or skips them
with `ALLOW_MISSING=1`.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import nox

ROOT = Path(__file__).parent
FINDER = ROOT / "tests" / "interpreter.sh"
#: Packages of the dependency group `dev` that check and build, and that no test imports.
CHECKS = {
    "build",
    "codespell",
    "coverage",
    "django-stubs",
    "hatchling",
    "import-linter",
    "mypy",
    "nox",
    "pre-commit-hooks",
    "pyright",
    "ruff",
    "towncrier",
    "types-pysocks",
}

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.stop_on_first_error = False


@dataclass(frozen=True)
class Cell:
    """One combination of versions and tests.

    Attributes:
        python: The interpreter's version.
        versions: Requirements that replace the pins of the same names in constraints.txt.
        tests: Files and folders to run.
        free: Names of further pins to leave out; `*` means all.
        without: Packages to uninstall after the installation.
        warnings: Filters for warnings of the cell's old versions, as for pytest's `-W`.
    """

    python: str
    versions: tuple[str, ...]
    tests: tuple[str, ...]
    free: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


STARLETTE = (
    "tests/integrations/test_starlette_capture.py",
    "tests/integrations/test_starlette_handlers.py",
    "tests/integrations/test_starlette_lifespan.py",
    "tests/integrations/test_starlette_route_names.py",
    "tests/integrations/test_starlette_passing.py",
    "tests/integrations/test_starlette_request.py",
    "tests/integrations/test_starlette_routes.py",
    "example_apps/starlette_app",
    "example_apps/fastapi_app",
)
DJANGO = (
    "tests/integrations/test_django_capture.py",
    "tests/integrations/test_django_checks.py",
    "tests/integrations/test_django_commands.py",
    "tests/integrations/test_django_life.py",
    "tests/integrations/test_django_routes.py",
    "example_apps/django_app",
)
FLASK = (
    "tests/integrations/test_flask_capture.py",
    "tests/integrations/test_flask_commands.py",
    "tests/integrations/test_flask_life.py",
    "tests/integrations/test_flask_request.py",
    "tests/integrations/test_flask_routes.py",
    "example_apps/flask_app",
)
CONTRACT = ("tests/contract/test_integrations.py",)

CELLS = {
    "starlette-0.46": Cell(
        "3.11",
        ("starlette==0.46.*", "fastapi==0.115.*"),
        STARLETTE + CONTRACT,
        # Starlette's test client uses an alias that anyio has deprecated.
        warnings=("ignore:The anyio.abc.BlockingPortal alias:DeprecationWarning",),
    ),
    "starlette-newest": Cell("3.13", ("starlette", "fastapi"), STARLETTE + CONTRACT, free=("*",)),
    "django-5.2": Cell("3.11", ("django==5.2.*",), DJANGO + CONTRACT),
    "django-6.0": Cell("3.12", ("django==6.0.*",), DJANGO + CONTRACT),
    "flask-3.0": Cell("3.11", ("flask==3.0.*", "werkzeug==3.0.*"), FLASK + CONTRACT),
    "flask-newest": Cell("3.13", ("flask",), FLASK + CONTRACT, free=("*",)),
    "core-oldest": Cell("3.11", ("urllib3==2.5.*", "orjson==3.10.*"), ("tests/core",)),
    "core-orjson-3.11": Cell("3.12", ("orjson==3.11.*",), ("tests/core",)),
    "core-orjson-3.12": Cell("3.12", ("orjson==3.12.0",), ("tests/core",)),
    "core-orjson-3.13": Cell("3.12", ("orjson==3.13.0",), ("tests/core",)),
    "core-without-orjson": Cell("3.12", (), ("tests/core",), without=("orjson",)),
}


def _name(requirement: str) -> str:
    """Return the package name of a requirement, normalized as package indexes do it."""
    match = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", match.group()).lower() if match else ""


@functools.cache
def _interpreter(version: str) -> tuple[str, str]:
    """Return the path of a Python, or an empty text and the reason that there is none."""
    done = subprocess.run((FINDER, version), capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip(), done.stderr.strip().removesuffix(".")  # nox adds one


def _define(name: str, cell: Cell) -> None:
    python, problem = _interpreter(cell.python)

    @nox.session(name=name, python=python or False)
    def run(session: nox.Session) -> None:
        if not python:
            if os.environ.get("ALLOW_MISSING") == "1":
                session.skip(problem)
            session.error(f"{problem}; ALLOW_MISSING=1 passes over the cells that need it")
        project = nox.project.load_toml(ROOT / "pyproject.toml")
        needs = [entry for entry in project["dependency-groups"]["dev"] if _name(entry) not in CHECKS]
        free = {*cell.free, *map(_name, cell.versions)}
        pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        remaining = [line for line in pins if "*" not in free and _name(line) not in free]
        constraints = Path(session.create_tmp()) / "constraints.txt"
        constraints.write_text("\n".join(remaining), encoding="utf-8")
        # One installation, so that pip resolves the cell's versions together with all other requirements.
        session.install("--constraint", str(constraints), "--editable", ".[all]", *needs, *cell.versions)
        if cell.without:
            # The tests parse JSON with the package's own encoder, so they run without orjson too.
            session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", *cell.without)
        names = sorted({"python", *map(_name, cell.versions)} - {"python"})
        session.run(
            "python",
            "-c",
            "import sys, importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]))",
            *names,
        )
        filters = [word for each in cell.warnings for word in ("-W", each)]
        session.run(
            "python", "-m", "pytest", "-q", "-m", "not chaos", *filters, *cell.tests, *session.posargs
        )


for _cell in CELLS.items():
    _define(*_cell)
