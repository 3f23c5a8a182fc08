"""`transport-kit receiver`: the local server, from a shell.

This module owns the options, the printed lines, and the signals that end it. The server is
`transport_kit.receiver`.
"""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import click

__all__ = ["command"]


@click.command(name="receiver")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8123, show_default=True, type=click.IntRange(0, 65535), help="0: a free one.")
@click.option("--store", type=click.Path(dir_okay=False, path_type=Path), help="Keep envelopes in this file.")
@click.option("--keep", default=10_000, show_default=True, type=click.IntRange(1), help="Envelopes kept.")
@click.option(
    "--fail",
    type=click.Choice(["503", "429", "reset", "hang", "slow"]),
    help="Play an outage: answer 503 or 429, reset connections, never answer, or answer after 5 s.",
)
@click.option(
    "--fail-for", type=float, metavar="SECONDS", help="End the outage and the rate limit after this."
)
@click.option("--rate-limit", metavar="LIMITS", help="Announce and obey limits, such as 60:error:key.")
@click.option("--listen-anywhere", is_flag=True, help="Allow a --host that other machines can reach.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Also answer for this host name.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, the first with the DSN.")
def command(
    host: str,
    port: int,
    store: Path | None,
    keep: int,
    fail: str | None,
    fail_for: float | None,
    rate_limit: str | None,
    listen_anywhere: bool,
    allow_host: tuple[str, ...],
    as_json: bool,
) -> None:
    """Runs a local Sentry-compatible server with a page that shows what arrives.

    Prints the DSN to use, then one line for each envelope. Ctrl-C ends it.

    \b
    Examples:
      transport-kit receiver
      transport-kit receiver --store events.db
      transport-kit receiver --port 0 --fail 503 --fail-for 10
      transport-kit receiver --rate-limit "60:error:key"
    """
    from transport_kit.receiver import Receiver

    receiver = Receiver(
        host=host,
        port=port,
        store=store,
        fail=fail,
        fail_for=fail_for,
        rate_limit=rate_limit,
        listen_anywhere=listen_anywhere,
        allowed_hosts=allow_host,
        max_envelopes=keep,
        on_received=_print_json if as_json else _print_line,
    )
    with _Signals() as signals, receiver:
        if as_json:
            _echo(json.dumps({"dsn": receiver.dsn, "url": receiver.url, "port": receiver.port}))
        else:
            _echo(f"DSN   {receiver.dsn}")
            _echo(f"page  {receiver.url}/")
            if listen_anywhere:
                _echo("Other machines can reach this receiver, and see what it has received.")
            if fail is not None or rate_limit is not None:
                _echo(f"playing {_describe_outage(fail, rate_limit, fail_for)}")
        signals.wait()


class _Signals:
    """A context in which SIGINT and SIGTERM end `wait`; its end restores the earlier handlers."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self) -> None:
        self._ended.wait()

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self._ended.set()


def _describe_outage(fail: str | None, rate_limit: str | None, fail_for: float | None) -> str:
    parts = [fail, None if rate_limit is None else f"rate limit {rate_limit}"]
    until = "until the end" if fail_for is None else f"for {fail_for:g} s"
    return f"{' and '.join(part for part in parts if part)} {until}"


def _print_json(record: dict[str, Any]) -> None:
    _echo(json.dumps(record))


def _print_line(record: dict[str, Any]) -> None:
    culprit = record["culprit"] or {}
    where = (
        f"  in {culprit.get('function')} ({culprit.get('filename')}:{culprit.get('lineno')})"
        if culprit
        else ""
    )
    from transport_kit.receiver.summary import visible

    # A sender's text must not move the terminal's cursor or colour it.
    _echo(visible(f"{record['received_at'][11:19]}  {record['type'] or 'empty'}  {record['title']}{where}"))


def _echo(line: str) -> None:
    try:
        click.echo(line)
    except OSError:
        pass  # the reader of a pipe has gone; the receiver continues
