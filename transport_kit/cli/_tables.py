"""Tables, sizes and ages, written for people.

What is shown was sent by anyone: it can't steer a terminal, and is never read as markup. The package rich is
imported only for a table on a terminal.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterable, Mapping

import click

from transport_kit.cli._text import one_line

__all__ = ["age", "quantities", "size", "table"]


def table(names: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """A table on a terminal, lines with tabs in a pipe."""
    lines = [tuple(one_line(cell) for cell in row) for row in rows]
    if not sys.stdout.isatty():
        for line in lines:
            click.echo("\t".join(line).rstrip("\t"))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False)
    for name in names:
        drawn.add_column(name, no_wrap=name == "id", justify="right" if name in ("size", "age") else "left")
    for line in lines:
        drawn.add_row(*(Text(cell) for cell in line))  # never read as markup
    Console().print(drawn)


def quantities(counts: Mapping[str, int]) -> str:
    """Such as `error 1, session 2`."""
    return ", ".join(f"{category} {n}" for category, n in counts.items())


def size(number: int) -> str:
    """Bytes in the unit that suits."""
    if number < 1024:
        return f"{number} bytes"
    power = 1 if number < 1024**2 else 2 if number < 1024**3 else 3
    return f"{number / 1024**power:.1f} {('', 'KiB', 'MiB', 'GiB')[power]}"


def age(seconds: float) -> str:
    """Seconds, and from two minutes on hours and days."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return str(datetime.timedelta(seconds=int(seconds)))
