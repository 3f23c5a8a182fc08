"""tests/interpreter.sh: the Python that the Makefile, noxfile.py and CI use for a version such as `3.12`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

FINDER = Path(__file__).parents[1] / "interpreter.sh"
#: A script that answers like a Python of that version when it is run for its version and path.
PYTHON = '#!/bin/sh\n[ "$2" = {version} ] && echo {path}\n'
BROKEN = "#!/bin/sh\necho no version is chosen >&2\nexit 127\n"


class Machine:
    """A PATH, a pyenv and a uv that belong to the test."""

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
        """Install a Python with pyenv; return its path."""
        return self.python(self.root / "versions" / name / "bin" / "python", version)

    def manage(self, path: str | None) -> None:
        """Let uv know one Python, or none."""
        self.put(self.programs / "uv", f'#!/bin/sh\necho "{path}"\n' if path else "#!/bin/sh\nexit 2\n")

    def find(self, version: str) -> tuple[int, str]:
        """Return the exit status, and the printed path or sentence."""
        environ = {"PATH": f"{self.programs}:/usr/bin:/bin", "HOME": str(self.root)}
        done = subprocess.run(
            ["sh", FINDER, version], env=environ, capture_output=True, text=True, timeout=30, check=False
        )
        return done.returncode, (done.stdout or done.stderr).strip()


@pytest.fixture(name="machine")
def _machine(tmp_path: Path) -> Machine:
    """A machine without a Python of the versions that the tests look for, which don't exist."""
    return Machine(tmp_path)


def test_path_comes_first_then_pyenv_then_uv(machine: Machine) -> None:
    """The user's own choice wins; pyenv and uv serve for an interpreter that is not on PATH."""
    managed = machine.python(machine.root / "managed" / "python", "9.12")
    machine.manage(managed)
    assert machine.find("9.12") == (0, managed)
    from_pyenv = machine.version("9.12.1", "9.12")
    assert machine.find("9.12") == (0, from_pyenv)
    on_path = machine.python(machine.programs / "python9.12", "9.12")
    assert machine.find("9.12") == machine.find("python9.12") == (0, on_path)


def test_pyenvs_newest_that_runs_is_taken(machine: Machine) -> None:
    """9.12.10 is newer than 9.12.9; 9.120 is another version, and a free-threaded build another Python."""
    machine.version("9.12.9", "9.12")
    newest = machine.version("9.12.10", "9.12")
    machine.version("9.120.1", "9.120")
    machine.version("9.12.11t", "9.12")
    machine.put(machine.root / "versions" / "9.12.12" / "bin" / "python", BROKEN)
    assert machine.find("9.12") == (0, newest)
    assert machine.find("9.1")[0] == 1


@pytest.mark.parametrize("script", [BROKEN, PYTHON.format(version="9.13", path="/x")])
def test_a_name_on_path_is_no_proof(machine: Machine, script: str) -> None:
    """pyenv's shims are on PATH for every version, and fail for a version that is not selected."""
    machine.put(machine.programs / "python9.12", script)
    assert machine.find("9.12") == (1, "There is no Python 9.12 here: not on PATH, with pyenv or with uv.")
    from_pyenv = machine.version("9.12.1", "9.12")
    assert machine.find("9.12") == (0, from_pyenv)


def test_an_installation_that_does_not_run_is_told_from_none(machine: Machine) -> None:
    """CI skips a version that is missing, but fails for one that is broken."""
    broken = machine.put(machine.root / "versions" / "9.12.1" / "bin" / "python", BROKEN)
    assert machine.find("9.12") == (2, "The Python 9.12 that pyenv or uv installed does not run.")
    broken.unlink()
    machine.manage(str(machine.root / "nothing"))
    assert machine.find("9.12")[0] == 2
