"""`transport-kit options`: every option with its type, bounds, default and environment variable.

This module reads no configuration: it describes what can be set, not what is set.
"""

from __future__ import annotations

import dataclasses
import difflib
import json

import click

from transport_kit.cli._tables import table
from transport_kit.cli._text import MaskedCommand, one_line
from transport_kit.config.reference import (
    GROUPS,
    OptionDescription,
    describe,
    markdown_table,
    substitutes_table,
)

__all__ = ["command"]


@click.command(cls=MaskedCommand)
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array, for machines.")
@click.option("--markdown", is_flag=True, help="Print the tables of docs/reference/options.md.")
def command(name: str | None, as_json: bool, markdown: bool) -> None:
    """List every option, or describe the one that is named.

    NAME is the option's name or its environment variable, in any case.

    \b
    Examples:
      transport-kit options
      transport-kit options spool_max_age
      transport-kit options TRANSPORT_KIT_PROXY --json
    """
    groups = {options.__name__: describe(options) for options in GROUPS}
    if name is not None:
        groups = {
            title: [one for one in group if name.lower() in _names(one)] for title, group in groups.items()
        }
        if not any(groups.values()):
            known = [one.name for options in GROUPS for one in describe(options)]
            near = difflib.get_close_matches(
                name.lower().removeprefix("transport_kit_"), known, n=1, cutoff=0.5
            )
            hint = f"; did you mean {near[0]}?" if near else "; `transport-kit options` lists all of them"
            raise click.UsageError(f"there is no option {one_line(name)}{hint}")
    options = [option for group in groups.values() for option in group]
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(option) for option in options], indent=2))
    elif markdown:
        for title, group in groups.items():
            if group:
                click.echo(f"{title}\n\n{markdown_table(group)}\n")
        click.echo(substitutes_table([one for group in groups.values() for one in group]))
    elif name is not None:
        _describe(options[0])
    else:
        table(
            ("option", "type", "accepted", "default"),
            ((one.name, one.type_name, one.bounds, one.default) for one in options),
        )


def _names(option: OptionDescription) -> tuple[str, str]:
    return option.name, option.variable.lower()


def _describe(option: OptionDescription) -> None:
    facts = (
        ("option", option.name),
        ("variable", option.variable),
        ("type", option.type_name),
        ("accepted", option.bounds),
        ("default", option.default),
        ("unusable", f"{option.substitute}; health is {option.health}"),
        ("secret", "yes, and left out of every repr" if option.secret else ""),
    )
    for title, fact in facts:
        if fact:
            click.echo(f"{title:<10}{fact}")
    click.echo()
    click.echo(click.wrap_text(option.meaning))
