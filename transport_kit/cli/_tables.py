"""Tables, counts, sizes and ages, written for people.

The values are hostile input: they are made printable, and never interpreted as markup. Imports the package
rich for a table on a terminal only.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterable, Mapping

import click

from transport_kit.cli._text import one_line

__all__ = ["age", "counted", "quantities", "size", "table"]


def table(names: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print a table on a terminal, lines with tabs in a pipe."""
    lines = [tuple(one_line(cell) for cell in row) for row in rows]
    if not sys.stdout.isatty():
        for line in lines:
            click.echo("\t".join(line).rstrip("\t"))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False)
    for name in names:
        grid.add_column(name, no_wrap=name == "id", justify="right" if name in ("size", "age") else "left")
    for line in lines:
        grid.add_row(*(Text(cell) for cell in line))  # Text is never interpreted as markup
    Console().print(grid)


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, such as `1 file` or `2 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def quantities(counts: Mapping[str, int]) -> str:
    """Return quantities by category, such as `error 1, session 2`."""
    return ", ".join(f"{category} {n}" for category, n in counts.items())


def size(number: int) -> str:
    """Return a number of bytes in the unit that suits."""
    if number < 1024:
        return counted(number, "byte")
    power = 1 if number < 1024**2 else 2 if number < 1024**3 else 3
    return f"{number / 1024**power:.1f} {('', 'KiB', 'MiB', 'GiB')[power]}"


def age(seconds: float) -> str:
    """Return seconds up to two minutes; above that, hours and days."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return str(datetime.timedelta(seconds=int(seconds)))
