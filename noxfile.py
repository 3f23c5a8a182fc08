"""The suite of each integration with the oldest and the newest version of its framework: `make test-all`.

Each cell is an environment of its own: what constraints.txt pins, but for the cell's versions. What
`make test` runs is the cell of constraints.txt itself. tests/interpreter.sh finds the interpreters; a missing
one fails its cells, and with `ALLOW_MISSING=1` they are named and passed over.
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
#: Of the dependency group `dev`, what checks and builds, and no test imports.
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
    """One combination.

    Attributes:
        python: The interpreter's version.
        versions: Requirements that come instead of what constraints.txt says of the same names.
        tests: What is run.
        free: Names that constraints.txt says nothing of either; `*` is all.
        without: Packages that are taken away again.
        warnings: Filters for what the cell's own old code warns of; pytest's `-W`.
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
    "tests/integrations/test_starlette_life.py",
    "tests/integrations/test_starlette_names.py",
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
        # Its test client takes this name of anyio from where it is no more.
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
    """The package that a requirement is about, as package indexes compare names."""
    match = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", match.group()).lower() if match else ""


@functools.cache
def _interpreter(version: str) -> tuple[str, str]:
    """The path of a Python, or an empty text and the reason that there is none."""
    done = subprocess.run((FINDER, version), capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip(), done.stderr.strip().removesuffix(".")  # nox adds one


def _define(name: str, cell: Cell) -> None:
    python, lack = _interpreter(cell.python)

    @nox.session(name=name, python=python or False)
    def run(session: nox.Session) -> None:
        if not python:
            if os.environ.get("ALLOW_MISSING") == "1":
                session.skip(lack)
            session.error(f"{lack}; ALLOW_MISSING=1 passes over the cells that need it")
        project = nox.project.load_toml(ROOT / "pyproject.toml")
        needs = [one for one in project["dependency-groups"]["dev"] if _name(one) not in CHECKS]
        free = {*cell.free, *map(_name, cell.versions)}
        pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        kept = [line for line in pins if "*" not in free and _name(line) not in free]
        constraints = Path(session.create_tmp()) / "constraints.txt"
        constraints.write_text("\n".join(kept), encoding="utf-8")
        # One installation, so that the cell's versions and everybody's wishes are settled together.
        session.install("--constraint", str(constraints), "--editable", ".[all]", *needs, *cell.versions)
        if cell.without:
            # Tests read JSON by the kit's own module, so they run without it too.
            session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", *cell.without)
        names = sorted({"python", *map(_name, cell.versions)} - {"python"})
        session.run(
            "python",
            "-c",
            "import sys, importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]))",
            *names,
        )
        filters = [word for one in cell.warnings for word in ("-W", one)]
        session.run(
            "python", "-m", "pytest", "-q", "-m", "not chaos", *filters, *cell.tests, *session.posargs
        )


for _cell in CELLS.items():
    _define(*_cell)
