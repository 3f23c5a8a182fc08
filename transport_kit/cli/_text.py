"""Texts made safe to show: without keys, and without control characters.

Prints nothing. Imports nothing but click, as commands that don't connect need it too.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import click

__all__ = ["MaskedCommand", "MaskedGroup", "masked", "one_line", "printable_errors", "WrongCall"]

_USERINFO = re.compile(r"//[^/\s@]*@")


def masked(text: str) -> str:
    """Mask what stands before an @ in URLs: a usage error must not show a key."""
    return _USERINFO.sub("//***@", text)


def one_line(text: str) -> str:
    """Return the text as one line of printable characters, which can't control a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class WrongCall(click.ClickException):
    """A call that can't work on this machine as it stands: it needs another option or another package."""

    exit_code = 2


@contextlib.contextmanager
def printable_errors() -> Iterator[None]:
    """Make the errors of a command one printable line each, with masked keys; their exit status stays.

    They quote the call: a file's name may contain whatever a stranger chose.
    """
    try:
        yield
    except click.UsageError as error:
        raise click.UsageError(one_line(masked(error.format_message())), error.ctx) from None
    except click.ClickException as error:
        printable = WrongCall if error.exit_code == WrongCall.exit_code else click.ClickException
        raise printable(one_line(masked(error.format_message()))) from error


class MaskedCommand(click.Command):
    """A command whose usage errors quote arguments with masked keys."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(masked(error.format_message()), error.ctx) from None


class MaskedGroup(click.Group):
    """A group whose usage errors quote the call, which may be a DSN without a command, with masked keys."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(masked(error.format_message()), error.ctx) from None
