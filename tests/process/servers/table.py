"""The matrix as a table: Markdown that also reads well in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tests.process.servers.harness import Outcome
from tests.process.servers.rows import Row

__all__ = ["record", "table"]

_RIGHT = ("accepted", "delivered", "duplicates", "seconds")


def record(row: Row, outcome: Outcome) -> dict[str, str | int | float]:
    """Return a row and its outcome as values for JSON."""
    return {
        "server": row.name,
        "app": row.app,
        "hook": " or ".join(sorted(outcome.hooks)),
        "accepted": outcome.accepted,
        "delivered": outcome.delivered,
        "duplicates": outcome.duplicates,
        "seconds": round(outcome.seconds, 1),
        "what you do": row.needs,
    }


def table(records: Iterable[Mapping[str, object]]) -> str:
    """Return a table with one line for each record; the columns are the keys of the first one."""
    rows = list(records)
    if not rows:
        return ""
    names = list(rows[0])
    cells = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    ruler = [
        "-" * (width - 1) + ":" if n in _RIGHT else "-" * width
        for n, width in zip(names, widths, strict=True)
    ]
    return "\n".join(
        f"| {' | '.join(_padded(*of) for of in zip(line, names, widths, strict=True))} |"
        for line in (cells[0], ruler, *cells[1:])
    )


def _padded(cell: str, name: str, width: int) -> str:
    return cell.rjust(width) if name in _RIGHT else cell.ljust(width)
