"""`flask transport ...`: commands that test delivery with the app's own settings.

This module owns the four commands and their output. They run in their own process: `health` and `flush` ask
the running server, or look at a spool; a server's queue in memory can't be seen from here.

Exit status: 0 for success, 1 for a failure, 2 for a usage error.

Threads: main thread only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import click
from flask.cli import AppGroup

from transport_kit_flask.layer import get_kit

__all__ = ["transport_group"]

#: Default `--timeout` in seconds.
_PATIENCE: Final = 10.0

transport_group = AppGroup("transport", help="See whether what the app reports is delivered.")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
_timeout = click.option(
    "--timeout",
    type=click.FloatRange(0.1, 300),
    metavar="SECONDS",
    help="How long to wait.  [default: 10; flush: shutdown_timeout]",
)
_url = click.option("--url", help="The running server.  [default: TRANSPORT_KIT_SERVER_URL]")


class TestError(Exception):
    """The exception that `send-test` reports."""


@transport_group.command()
@_timeout
@_as_json
def check(timeout: float | None, as_json: bool) -> None:
    """Try every step from the app's DSN to an accepted event; sends one.

    The steps are those of `transport-kit check`, taken with the app's proxy and certificates.
    """
    kit = get_kit()
    try:
        from transport_kit.cli.check import check_app
    except ModuleNotFoundError as missing:
        raise click.UsageError(
            f"check needs the package {missing.name}: pip install 'transport-kit[cli]'"
        ) from missing
    status = check_app(
        kit,
        timeout=timeout or _PATIENCE,
        as_json=as_json,
        no_dsn="there is no DSN: set TRANSPORT_KIT_DSN",
    )
    raise SystemExit(status)


@transport_group.command("send-test")
@_timeout
@_as_json
def send_test(timeout: float | None, as_json: bool) -> None:
    """Report an exception as the app would, and say what became of it."""
    kit = get_kit()
    try:
        raise TestError("flask transport send-test: this event shows that errors arrive")
    except TestError as error:
        facts = kit.send_test(error, timeout or _PATIENCE)
    problem = facts["problem"]
    delivered = f"event {facts['event_id']} was delivered in {facts['seconds'] * 1000:.0f} ms"
    _print(as_json, facts, delivered if problem is None else f"not delivered: {problem}")
    raise SystemExit(0 if problem is None else 1)


@transport_group.command()
@_url
@_timeout
@_as_json
def flush(url: str | None, timeout: float | None, as_json: bool) -> None:
    """Deliver what waits in the running server, or in a spool."""
    _show(as_json, get_kit().flush_from_outside(url, timeout))


@transport_group.command()
@_url
@_as_json
def health(url: str | None, as_json: bool) -> None:
    """Show the state of the running server, or of a spool."""
    _show(as_json, get_kit().health_from_outside(url))


def _show(as_json: bool, view: Any) -> None:
    _print(as_json, view.facts, view.text.rstrip("\n"))
    raise SystemExit(view.exit_status)


def _print(as_json: bool, facts: Mapping[str, Any], text: str) -> None:
    click.echo(json.dumps(facts, indent=2) if as_json else text)
