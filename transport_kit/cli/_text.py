"""Texts made safe to show: without keys, and without control characters.

Prints nothing. Imports nothing but click, as commands that don't connect need it too.
"""

from __future__ import annotations

import re

import click

__all__ = ["MaskedCommand", "MaskedGroup", "masked", "one_line"]

_USERINFO = re.compile(r"//[^/\s@]*@")


def masked(text: str) -> str:
    """Mask what stands before an @ in URLs: a usage error must not show a key."""
    return _USERINFO.sub("//***@", text)


def one_line(text: str) -> str:
    """Return the text as one line of printable characters, which can't control a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


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
