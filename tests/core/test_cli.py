"""The command line: help, version, missing extras, exit statuses."""

from __future__ import annotations

import importlib.metadata
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

import transport_kit.cli
from transport_kit.__main__ import main as run
from transport_kit.cli import main
from transport_kit.config.dsn import Dsn
from transport_kit.queues.spool import FileSpool, identity_of
from transport_kit.runtime.errors import InvalidDsn, OptionsError
from transport_kit.runtime.version import VERSION


class Hidden:
    """An import hook that makes packages look as if they were not installed."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture(name="hide")
def _hide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes packages look as if they were not installed."""

    def hide(*names: str) -> None:
        for loaded in list(sys.modules):
            if loaded.partition(".")[0] in names or loaded.startswith("transport_kit.receiver"):
                monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.delattr(sys.modules["transport_kit"], "receiver", raising=False)
        monkeypatch.setattr(sys, "meta_path", [Hidden(*names), *sys.meta_path])

    return hide


def test_help_names_every_command_with_examples() -> None:
    """A new user calls `--help` first."""
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "transport-kit receiver" in result.output
    context = click.Context(main)
    commands = main.list_commands(context)
    assert {"check", "receiver", "send"} <= set(commands)
    for name in commands:
        command = main.get_command(context, name)
        assert command is not None
        assert command.help
        assert f"\n  {name} " in result.output


def test_the_version_is_the_packages_own() -> None:
    """A bug report begins with the version."""
    result = CliRunner().invoke(main, ["--version"])
    assert result.output == f"transport-kit, version {VERSION}\n"
    try:
        assert importlib.metadata.version("transport-kit") == VERSION
    except importlib.metadata.PackageNotFoundError:
        assert VERSION  # run from a checkout that is not installed


def test_an_unknown_command_is_a_wrong_call() -> None:
    """Exit status 2, as for a wrong option; no module of that name is imported."""
    for name in ("recieve", "_output", "os"):
        result = CliRunner().invoke(main, [name])
        assert result.exit_code == 2
        assert "No such command" in result.output


@pytest.mark.parametrize("before", [(), ("spool",)])
def test_a_dsn_in_the_place_of_a_command_is_quoted_without_its_key(before: tuple[str, ...]) -> None:
    """A forgotten command is the most likely mistake, and terminals are recorded."""
    result = CliRunner().invoke(main, [*before, "https://0123456789abcdef@sentry.example/1"])
    assert result.exit_code == 2
    assert "https://***@sentry.example/1" in result.output
    assert "0123456789abcdef" not in result.output


def test_help_needs_no_other_extra() -> None:
    """The help of the group imports every command, but must import neither the server nor the HTTP client."""
    code = (
        "import sys\nfrom transport_kit.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'starlette', 'uvicorn', 'jinja2', 'urllib3', 'brotli'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("package", ["brotli", "jinja2", "starlette", "uvicorn", "zstandard"])
def test_a_missing_package_of_the_receiver_names_the_install_line(
    hide: Callable[..., None], package: str
) -> None:
    """One line to copy, whichever part of the extra is missing."""
    hide(package)
    result = CliRunner().invoke(main, ["receiver", "--port", "0"])
    assert result.exit_code == 2
    assert f"needs the package {package}: pip install 'transport-kit[receiver]'" in result.output
    with pytest.raises(ModuleNotFoundError, match="pip install") as caught:
        __import__("transport_kit.receiver")
    assert caught.value.name == package


def test_a_missing_click_names_the_install_line(
    hide: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The command is installed with the core, but click is not."""
    hide("click")
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    assert "pip install 'transport-kit[cli]'" in capsys.readouterr().err


def test_python_m_runs_the_same_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scripts of a virtual environment may not be on the path."""
    monkeypatch.setattr(sys, "argv", ["transport_kit", "--version"])
    monkeypatch.delitem(sys.modules, "transport_kit.__main__", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("transport_kit", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("transport-kit, version")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (OptionsError("port", "is taken"), 2, "Error: port (arguments): is taken\n"),
        (InvalidDsn("invalid_url", "no scheme"), 1, "Error: invalid DSN (invalid_url): no scheme\n"),
        (
            ModuleNotFoundError("No module named 'rich'", name="rich"),
            2,
            "Error: this command needs the package rich: pip install 'transport-kit[cli]'\n",
        ),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, line: str
) -> None:
    """A traceback does not help the user of a command."""

    @click.command()
    def command() -> None:
        raise error

    module = ModuleType("transport_kit.cli.check")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transport_kit.cli.check", module)
    result = CliRunner().invoke(main, ["check"])
    assert result.exit_code == status
    assert result.output == line


@pytest.mark.parametrize(
    "error",
    [ModuleNotFoundError("gone", name="transport_kit.x"), ModuleNotFoundError("?"), ValueError("bug")],
)
def test_a_mistake_of_our_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A bug must not look like a missing package."""

    @click.command()
    def command() -> None:
        raise error

    module = ModuleType("transport_kit.cli.check")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transport_kit.cli.check", module)
    result = CliRunner().invoke(main, ["check"])
    assert result.exception is error


def test_the_commands_are_public() -> None:
    """The entry point imports the group by this name."""
    assert transport_kit.cli.__all__ == ["main"]


STEERING = "\x1b[31m\x9b2J\r\u202e\u2066\u200b\nx"


@pytest.mark.parametrize(
    "call",
    [
        "check DSN EXTRA",
        "check DSN --ca-certs MISSING",
        "check DSN --client-key FOLDER",
        "check DSN --ca-certs FILE",
        "check DSN --timeout EXTRA",
        "check DSN --EXTRA",
        "check DSN --proxy gopher://EXTRA",
        "send DSN EXTRA",
        "send DSN --message m EXTRA",
        "send DSN --message m --level EXTRA",
        "send DSN --message m --tag EXTRA",
        "send DSN --envelope FILE",
        "send DSN --envelope MISSING",
        "send DSN --envelope FOLDER",
        "forward FILE",
        "forward MISSING EXTRA",
        "forward MISSING --once --dsn EXTRA",
        "forward MISSING --once --dsn-file MISSING",
        "forward MISSING --once --dsn-file FILE",
        "forward MISSING --once --dsn-file FOLDER",
        "forward MISSING --once --health 0 --listen EXTRA",
        "forward MISSING --max-rate EXTRA",
        "spool status MISSING",
        "spool ls FOLDER",
        "spool verify FILE",
        "spool dead MISSING",
        "spool dead MISSING EXTRA",
        "spool replay EXTRA MISSING",
        "spool show EXTRA MISSING",
        "spool show EXTRA SPOOL",
        "spool replay EXTRA SPOOL",
        "spool purge --yes SPOOL EXTRA",
        "spool purge --older-than EXTRA MISSING",
        "spool EXTRA",
        "receiver EXTRA",
        "receiver --host EXTRA",
        "receiver --fail EXTRA",
        "receiver --rate-limit EXTRA",
        "receiver --port EXTRA",
        "receiver --store FILE",
        "receiver --store FOLDER",
        "receiver --store MISSING/x",
        "options EXTRA",
        "options --EXTRA",
        "EXTRA",
        "--EXTRA",
    ],
)
def test_no_argument_can_steer_the_terminal(tmp_path: Path, call: str) -> None:
    """A file's name may be the choice of a stranger, and a script passes it on with a wildcard."""
    names = {name: tmp_path / f"{name.lower()}{STEERING}" for name in ("FILE", "FOLDER", "SPOOL", "MISSING")}
    names["FILE"].write_bytes(b"nonsense")
    names["FOLDER"].mkdir()
    dsn = Dsn.parse("http://0123456789abcdef0123456789abcdef@127.0.0.1:9/1")
    FileSpool(str(names["SPOOL"]), identity_of(dsn)).close()
    words = {**names, "DSN": dsn.reveal(), "EXTRA": STEERING}
    arguments = [re.sub("|".join(words), lambda match: str(words[match[0]]), word) for word in call.split()]
    # Colours on: a pipe would get the text without escape sequences.
    result = CliRunner(env={"TRANSPORT_KIT_DSN": None}).invoke(main, arguments, color=True)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2)
    assert result.output
    assert [c for c in result.output if not c.isprintable() and c != "\n"] == []
    assert not [line for line in result.output.splitlines() if line.startswith("x")], "a line of its own"
