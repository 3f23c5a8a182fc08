"""tests/interpreter.sh: which Python the Makefile, noxfile.py and CI take for `3.12`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

FINDER = Path(__file__).parents[1] / "interpreter.sh"
#: Answers as a Python of a version does that is asked for version and path.
PYTHON = '#!/bin/sh\n[ "$2" = {version} ] && echo {path}\n'
BROKEN = "#!/bin/sh\necho no version is chosen >&2\nexit 127\n"


class Machine:
    """A PATH, a pyenv and an uv of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.programs = folder / "bin"
        self.root = folder / "pyenv of mine"
        self.put(self.programs / "pyenv", f'#!/bin/sh\necho "{self.root}"\n')
        self.manage(None)

    def put(self, path: Path, script: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)
        return path

    def python(self, path: Path, version: str) -> str:
        return str(self.put(path, PYTHON.format(version=version, path=f'"{path}"')))

    def version(self, name: str, version: str) -> str:
        """A Python that pyenv installed."""
        return self.python(self.root / "versions" / name / "bin" / "python", version)

    def manage(self, path: str | None) -> None:
        """Have uv know one Python, or none."""
        self.put(self.programs / "uv", f'#!/bin/sh\necho "{path}"\n' if path else "#!/bin/sh\nexit 2\n")

    def find(self, version: str) -> tuple[int, str]:
        """The status, and what is printed: the path, or a sentence."""
        environ = {"PATH": f"{self.programs}:/usr/bin:/bin", "HOME": str(self.root)}
        done = subprocess.run(
            ["sh", FINDER, version], env=environ, capture_output=True, text=True, timeout=30, check=False
        )
        return done.returncode, (done.stdout or done.stderr).strip()


@pytest.fixture(name="machine")
def _machine(tmp_path: Path) -> Machine:
    """It has no Python of the versions that the tests look for, nor has any other machine."""
    return Machine(tmp_path)


def test_path_comes_first_then_pyenv_then_uv(machine: Machine) -> None:
    """The user's own choice wins; each of the others is a machine that has the interpreter off PATH."""
    managed = machine.python(machine.root / "managed" / "python", "9.12")
    machine.manage(managed)
    assert machine.find("9.12") == (0, managed)
    kept = machine.version("9.12.1", "9.12")
    assert machine.find("9.12") == (0, kept)
    named = machine.python(machine.programs / "python9.12", "9.12")
    assert machine.find("9.12") == machine.find("python9.12") == (0, named)


def test_pyenvs_newest_that_runs_is_taken(machine: Machine) -> None:
    """9.12.10 is newer than 9.12.9, 9.1 is another version, and a build without the lock another Python."""
    machine.version("9.12.9", "9.12")
    newest = machine.version("9.12.10", "9.12")
    machine.version("9.120.1", "9.120")
    machine.version("9.12.11t", "9.12")
    machine.put(machine.root / "versions" / "9.12.12" / "bin" / "python", BROKEN)
    assert machine.find("9.12") == (0, newest)
    assert machine.find("9.1")[0] == 1


@pytest.mark.parametrize("script", [BROKEN, PYTHON.format(version="9.13", path="/x")])
def test_a_name_on_path_is_no_proof(machine: Machine, script: str) -> None:
    """pyenv's shims are on PATH for every version, and fail where none is chosen."""
    machine.put(machine.programs / "python9.12", script)
    assert machine.find("9.12") == (1, "There is no Python 9.12 here: not on PATH, with pyenv or with uv.")
    kept = machine.version("9.12.1", "9.12")
    assert machine.find("9.12") == (0, kept)


def test_an_installation_that_does_not_run_is_told_from_none(machine: Machine) -> None:
    """CI passes over what a machine lacks, never over what is broken."""
    broken = machine.put(machine.root / "versions" / "9.12.1" / "bin" / "python", BROKEN)
    assert machine.find("9.12") == (2, "The Python 9.12 that pyenv or uv installed does not run.")
    broken.unlink()
    machine.manage(str(machine.root / "nothing"))
    assert machine.find("9.12")[0] == 2
