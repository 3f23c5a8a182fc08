"""Output of `transport-kit check`: a table for people, plain lines for pipes, one JSON object for machines.

This module owns the display of steps; knows nothing about what they do. It imports the package rich for the
table only. Some texts come from servers: they are made printable here, and never interpreted as markup.

Threads: main thread only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, Self

import click

from transport_kit.cli._connection import one_line

__all__ = ["CheckStep", "Output", "output_for"]

_COLOURS: Final = {"ok": "green", "failed": "bold red", "skipped": "dim"}


@dataclass(frozen=True, slots=True)
class CheckStep:
    """The result of one step of a check.

    Attributes:
        name: Such as `resolve`.
        state: The verdict.
        seconds: Duration; None when the step was skipped.
        detail: The finding, or the reason of the failure, in one line.
        notes: Further lines, such as a certificate that ends soon.
        advice: A remedy for the failure.
        facts: The same for machines.
    """

    name: str
    state: Literal["ok", "failed", "skipped"]
    seconds: float | None = None
    detail: str = ""
    notes: tuple[str, ...] = ()
    advice: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def time(self) -> str:
        """The duration in milliseconds, for people."""
        return "" if self.seconds is None else f"{self.seconds * 1000:.0f} ms"

    @property
    def lines(self) -> list[str]:
        """Detail, notes and advice, each a printable line."""
        lines = [self.detail] if self.detail else []
        lines += [f"note: {note}" for note in self.notes]
        if self.advice is not None:
            lines.append(f"what to do: {self.advice}")
        return [one_line(line) for line in lines]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for any JSON encoder."""
        return {
            "name": self.name,
            "state": self.state,
            "seconds": None if self.seconds is None else round(self.seconds, 4),
            "detail": self.detail,
            "notes": list(self.notes),
            "advice": self.advice,
            "facts": dict(self.facts),
        }


class Output(Protocol):
    """Shows steps in the order in which they end; a context manager."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def begin(self, name: str) -> None:
        """Show that a step begins, which may take seconds."""

    def show(self, step: CheckStep) -> None:
        """Show a step that has ended, or was skipped."""

    def end(self, ok: bool, dsn: str | None) -> None:
        """Show the verdict. `dsn` is masked; None when it could not be parsed."""


def output_for(as_json: bool) -> Output:
    """Return the JSON output if `as_json`, a table on a terminal, plain lines otherwise."""
    if as_json:
        return _JsonOutput()
    if sys.stdout.isatty():
        return _Table()
    return _Plain()


def _verdict(ok: bool, dsn: str | None) -> str:
    name = "this DSN" if dsn is None else dsn
    return f"Events arrive at {name}" if ok else f"Events do not arrive at {name}"


class _Plain:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def begin(self, name: str) -> None:
        pass

    def show(self, step: CheckStep) -> None:
        first, *rest = step.lines or [""]
        click.echo(f"{step.name:<8} {step.state:<8} {step.time:>9}  {first}".rstrip())
        for line in rest:
            click.echo(f"{'':<29}{line}")

    def end(self, ok: bool, dsn: str | None) -> None:
        click.echo(_verdict(ok, dsn))


class _JsonOutput(_Plain):
    def __init__(self) -> None:
        self._steps: list[CheckStep] = []

    def show(self, step: CheckStep) -> None:
        self._steps.append(step)

    def end(self, ok: bool, dsn: str | None) -> None:
        result = {"ok": ok, "dsn": dsn, "steps": [step.as_dict() for step in self._steps]}
        click.echo(json.dumps(result, indent=2))


class _Table:
    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False)
        self._steps: list[CheckStep] = []

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def begin(self, name: str) -> None:
        self._refresh(running=name)

    def show(self, step: CheckStep) -> None:
        self._steps.append(step)
        self._refresh()

    def end(self, ok: bool, dsn: str | None) -> None:
        from rich.text import Text

        self._live.stop()
        self._console.print(Text(_verdict(ok, dsn), style="bold green" if ok else "bold red"))

    def _refresh(self, running: str | None = None) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(expand=True)
        table.add_column("step")
        table.add_column("")
        table.add_column("time", justify="right", no_wrap=True)
        table.add_column("what", ratio=1)
        for step in self._steps:
            style = _COLOURS[step.state]
            # Text and not str, which rich would interpret as markup.
            what = Text("\n".join(step.lines))
            table.add_row(step.name, Text(step.state, style=style), step.time, what)
        if running is not None:
            table.add_row(running, Text("…", style="dim"), "", "")
        self._live.update(table, refresh=True)
