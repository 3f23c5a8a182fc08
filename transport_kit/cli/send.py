"""`transport-kit send`: delivers one event, or envelopes from files, and prints the results.

This module owns the command's options, output and exit status. `_connection.py` delivers, through a transport
of the kind that apps use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import IO, Any

import click

from transport_kit.cli._connection import (
    Attempt,
    MaskedCommand,
    OneShot,
    connection_options,
    dsn_argument,
    envelope_for,
    interruptible,
    one_line,
    parse_dsn,
    read_options,
)
from transport_kit.config.options import ReporterOptions
from transport_kit.envelope.envelope import Envelope
from transport_kit.runtime.errors import InvalidDsn, InvalidEnvelope

__all__ = ["command"]

_LEVELS = ["fatal", "error", "warning", "info", "debug"]


@click.command(name="send", cls=MaskedCommand)
@dsn_argument
@click.option("--message", metavar="TEXT", help="Send an event with this message.")
@click.option("--level", type=click.Choice(_LEVELS), help="The event's level.  [default: info]")
@click.option("--release", metavar="VERSION", help="The event's release, such as shop@1.2.0.")
@click.option("--environment", metavar="NAME", help="The event's environment.  [default: production]")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A tag of the event. Repeatable.")
@click.option(
    "--envelope",
    "files",
    type=click.File("rb"),
    multiple=True,
    metavar="FILE",
    help="Send the envelope in this file, byte for byte; - is standard input. Repeatable.",
)
@connection_options
def command(
    dsn: str,
    message: str | None,
    level: str | None,
    release: str | None,
    environment: str | None,
    tags: tuple[str, ...],
    files: tuple[IO[bytes], ...],
    timeout: float,
    as_json: bool,
    **connection: Any,
) -> None:
    """Sends one event, or envelopes from files, and says what became of them.

    DSN may come from TRANSPORT_KIT_DSN, which keeps its key out of the shell's history. One attempt is
    made. Other options of the transport are read from TRANSPORT_KIT_* as in an app.

    Exit status: 0 when the server took everything, 1 when it did not, 2 when the call or an envelope
    can't be used and nothing was sent, 130 after Ctrl-C.

    \b
    Examples:
      transport-kit send https://key@sentry.example/42 --message "hello"
      transport-kit send --message "deployed" --level info --release shop@1.2.0 --tag region=eu
      transport-kit send --envelope crash.envelope --json
      cat crash.envelope | transport-kit send --envelope -

    \b
    Completion in the shell:
      eval "$(_TRANSPORT_KIT_COMPLETE=bash_source transport-kit)"     also zsh_source, fish_source
    """
    if (message is None) == (not files):
        raise click.UsageError("give either --message or --envelope")
    event = {"level": level, "release": release, "environment": environment}
    if files and (tags or any(event.values())):
        raise click.UsageError(
            "an envelope is sent as it is: --level, --release, --environment and --tag go with --message"
        )
    try:
        target = parse_dsn(dsn)
    except InvalidDsn as error:
        raise click.UsageError(str(error)) from None
    with interruptible():
        transport_options, reporter_options = read_options(
            {**connection, "release": release, "environment": environment}, timeout
        )
        if message is None:
            envelopes = [(_name(file), _read(file, transport_options.max_envelope_bytes)) for file in files]
        else:
            envelopes = [("event", _event(message, level or "info", _pairs(tags), reporter_options))]
        transport = OneShot(target, transport_options)
        results = []
        try:
            for name, envelope in envelopes:
                attempt = transport.deliver(envelope, timeout)
                results.append({"source": name, **attempt.as_dict()})
                if not as_json:
                    click.echo(_format_attempt(name, attempt))
        finally:
            transport.kill()
    ok = all(result["delivered"] for result in results)
    if as_json:
        click.echo(json.dumps({"ok": ok, "dsn": str(target), "results": results}, indent=2))
    raise SystemExit(0 if ok else 1)


def _event(message: str, level: str, tags: Mapping[str, str], options: ReporterOptions) -> Envelope:
    event = {"message": message, "level": level}
    return envelope_for(event, options, tags)


def _pairs(tags: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for tag in tags:
        key, equals, value = tag.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter("a tag is written KEY=VALUE, such as region=eu", param_hint="--tag")
        pairs[key.strip()] = value
    return pairs


def _name(file: IO[bytes]) -> str:
    name = getattr(file, "name", None)
    return name if isinstance(name, str) and name != "<stdin>" else "standard input"


def _read(file: IO[bytes], limit: int) -> Envelope:
    """Parse the envelope in `file` strictly."""
    try:
        data = file.read(limit + 1)
    except OSError as error:
        raise click.UsageError(f"{_name(file)} can't be read: {error.strerror}") from None
    if len(data) > limit:
        raise click.UsageError(f"{_name(file)} holds more than {limit} bytes (max_envelope_bytes)")
    try:
        return Envelope.deserialize(data)
    except InvalidEnvelope as error:
        raise click.UsageError(f"{_name(file)}: {error}") from None


def _format_attempt(name: str, attempt: Attempt) -> str:
    subject = name if attempt.event_id is None else f"{name} {attempt.event_id}"
    lines = []
    if attempt.delivered:
        quantities = ", ".join(f"{category} {n}" for category, n in sorted(attempt.counts.items()))
        lines.append(
            f"{subject}: delivered in {attempt.seconds * 1000:.0f} ms"
            f" (status {attempt.status}{', ' if quantities else ''}{quantities})"
        )
    else:
        lines.append(f"{subject}: not delivered: {attempt.problem}")
    for reason, counts in sorted(attempt.discarded.items()):
        lines += [f"  discarded: {reason} {category} {n}" for category, n in sorted(counts.items())]
    if attempt.advice is not None:
        lines.append(f"  what to do: {attempt.advice}")
    for category, seconds in sorted(attempt.limits.items()):
        limited = "everything" if category == "*" else category
        lines.append(f"  the server asks for no more {limited} for {seconds:.0f} s")
    return "\n".join(
        one_line(line) if index == 0 else "  " + one_line(line) for index, line in enumerate(lines)
    )
