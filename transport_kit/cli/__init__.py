"""The command `transport-kit`: a group whose subcommands are modules of this package.

This package owns loading a subcommand when it is named, and turning an error into one line and an exit
status: 2 for a wrong call or a missing package, 1 for the rest. A subcommand's module has its name and
defines `command`. Importing it needs no extra but click, so that help always works.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from transport_kit.cli._text import MaskedGroup, WrongCall, printable_errors
from transport_kit.runtime.errors import OptionsError, TransportKitError
from transport_kit.runtime.version import VERSION

__all__ = ["main"]


_NAMES = ("check", "forward", "options", "receiver", "send", "spool")


class _Commands(MaskedGroup):
    """A group that imports a subcommand's module when the subcommand is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_NAMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _NAMES:
            return None
        command = importlib.import_module(f"{__name__}.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with printable_errors():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with printable_errors():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            name = error.name or ""
            if name.partition(".")[0] in ("", "transport_kit"):
                raise  # a bug of this package
            # A part that needs its own extra raises an error that contains the install line.
            line = str(error)
            if "pip install" not in line:
                line = f"this command needs the package {name}: pip install 'transport-kit[cli]'"
            raise WrongCall(line) from error
        except OptionsError as error:
            raise WrongCall(str(error)) from error
        except TransportKitError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, "-V", "--version", prog_name="transport-kit")
def main() -> None:
    """Send a web app's events to a Sentry-compatible server, and check that they arrive.

    \b
    Examples:
      transport-kit receiver                 run a local server with a page that shows what arrives
      transport-kit check DSN                check that the server accepts events
      transport-kit send DSN --message hi    send one message
      transport-kit forward DIR              deliver the envelopes that apps wrote to a spool
      transport-kit spool status DIR         list the envelopes that wait in a spool
      transport-kit options                  list all options and how to set them
      transport-kit COMMAND --help           show the help of a command
    """
