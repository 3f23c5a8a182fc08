"""`transport-kit forward`: drain the spools of a directory, from a shell, systemd or a container.

This module owns the options, the printed lines and the signals. `forwarder/forwarder.py` drains, and
`forwarder/status_server.py` serves health and metrics over HTTP.

Threads: main thread only; signal handlers only call methods that are safe there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from transport_kit.cli._text import MaskedCommand, one_line
from transport_kit.config.dsn import Dsn
from transport_kit.config.environment import DSN_VARIABLE, ENV_PREFIX
from transport_kit.config.options import TransportOptions, resolve
from transport_kit.runtime.errors import InvalidDsn, OptionsError

if TYPE_CHECKING:
    from transport_kit.forwarder.forwarder import Forwarder

__all__ = ["command"]

#: Seconds for the requests in flight at the end: below the ten that container runtimes grant.
SHUTDOWN_TIMEOUT: Final = 8.0
_MAX_FILE_CHARS: Final = 1024 * 1024


@click.command(name="forward", cls=MaskedCommand)
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--dsn",
    "dsns",
    multiple=True,
    envvar=DSN_VARIABLE,
    metavar="DSN",
    help=f"Deliver what was captured for this DSN. Repeatable; {DSN_VARIABLE} keeps it out of ps.",
)
@click.option(
    "--dsn-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Read DSNs from this file, one a line; SIGHUP reads it anew.",
)
@click.option(
    "--max-rate",
    type=click.FloatRange(0.01, 1_000_000),
    metavar="N",
    help="Send at most N envelopes a second, all DSNs together.",
)
@click.option("--once", is_flag=True, help="End when nothing waits any more, or nothing can be delivered.")
@click.option(
    "--wait", is_flag=True, help="Wait for DIR if it is missing. /ready is 503 and health warns meanwhile."
)
@click.option(
    "--metrics",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Serve /metrics for Prometheus. 0: a free port; the port of --health: both there.",
)
@click.option(
    "--health", type=click.IntRange(0, 65535), metavar="PORT", help="Serve /health, /ready and /live."
)
@click.option(
    "--listen",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Where --metrics and --health listen.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def command(
    directory: Path,
    dsns: tuple[str, ...],
    dsn_file: Path | None,
    max_rate: float | None,
    once: bool,
    wait: bool,
    metrics: int | None,
    health: int | None,
    listen: str,
    as_json: bool,
) -> None:
    """Delivers what apps put into the spool DIR, so that they only write.

    Envelopes go to the DSN they were captured for: one of --dsn or --dsn-file, or the one that the app
    stored with spool_credentials. What has neither waits, and a log line says so. Other options of the
    transport are read from TRANSPORT_KIT_* as in an app.

    After an outage envelopes are sent 100 ms apart for 5 s. SIGTERM and Ctrl-C finish the requests in
    flight, a second one does not; SIGHUP reads DSNs, stored credentials and certificates anew.

    Exit status: 0 after a signal, and with --once when nothing is left; 1 when something is; 2 when the
    call or the directory can't be used, a missing one included unless --wait is given.

    \b
    Examples:
      transport-kit forward /var/spool/shop
      transport-kit forward /var/spool/shop --dsn-file /etc/shop/dsns --health 8125 --metrics 8125
      transport-kit forward /var/spool/shop --once --max-rate 20
      transport-kit forward /spool/shop --wait --health 8125
    """
    from transport_kit.forwarder.forwarder import Forwarder, ForwarderView

    if wait and once:
        raise click.UsageError("--wait and --once exclude each other")
    values: dict[str, object] = {"queue": f"file://{directory.absolute()}", "handle_sigterm": False}
    if ENV_PREFIX + "SHUTDOWN_TIMEOUT" not in os.environ:
        values["shutdown_timeout"] = SHUTDOWN_TIMEOUT
    (options,) = resolve(values, (TransportOptions,), source="command line")
    printer = _JsonLines() if as_json else _PlainLines()
    forwarder = Forwarder(
        str(directory.absolute()),
        options,
        dsns=lambda: _read_dsns(dsns, dsn_file),
        max_rate=max_rate,
        wait=wait,
        on_event=printer.event,
    )
    view = ForwarderView(forwarder)
    with (
        contextlib.closing(forwarder),
        _log_lines(printer),
        _signals(forwarder),
        contextlib.ExitStack() as servers,
    ):
        if health is not None or metrics is not None:
            _start_status_servers(servers, forwarder, view, listen, health, metrics, printer)
        summary = forwarder.run(once=once)
    facts = {
        "delivered": summary.delivered,
        "discarded": summary.discarded,
        "left": summary.left,
    }
    printer.event("ended", facts)
    raise SystemExit(0 if summary.ok else 1)


def _start_status_servers(
    servers: contextlib.ExitStack,
    forwarder: Forwarder,
    view: Any,
    listen: str,
    health: int | None,
    metrics: int | None,
    printer: _Printer,
) -> None:
    from transport_kit.forwarder.metrics import metrics_writer
    from transport_kit.forwarder.status_server import StatusServer

    writer = None if metrics is None else metrics_writer(forwarder.healths)
    shared = health == metrics and health != 0
    if health is not None:
        server = servers.enter_context(
            StatusServer(
                listen,
                health,
                subject=view,
                ready=lambda: forwarder.ready,
                metrics=writer if shared else None,
            )
        )
        printer.event("health", {"url": f"{server.url}/health"})
        if shared:
            printer.event("metrics", {"url": f"{server.url}/metrics"})
    if metrics is not None and not shared:
        server = servers.enter_context(StatusServer(listen, metrics, metrics=writer))
        printer.event("metrics", {"url": f"{server.url}/metrics"})


def _read_dsns(dsns: tuple[str, ...], file: Path | None) -> list[Dsn]:
    """Parse the DSNs of the options and of the file.

    Raises:
        OptionsError: One can't be used; the text names its place and never contains it.
    """
    sources = [(text, f"--dsn, number {number}") for number, text in enumerate(dsns, 1)]
    if file is not None:
        try:
            # Not a pipe: opening one waits for its writer, and after SIGHUP it would be empty.
            if not stat.S_ISREG(file.stat().st_mode):
                raise OSError(errno.EINVAL, "is not a regular file")
            with file.open(encoding="utf-8") as lines:
                text = lines.read(_MAX_FILE_CHARS + 1)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "is not UTF-8"
            raise OptionsError("dsn_file", f"{file}: {why}", "command line") from None
        if len(text) > _MAX_FILE_CHARS:
            raise OptionsError("dsn_file", f"{file} is larger than 1 MiB", "command line")
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                sources.append((line.strip(), f"{file}, line {number}"))
    parsed = []
    for text, where in sources:
        try:
            parsed.append(Dsn.parse(text))
        except InvalidDsn as error:
            raise OptionsError("dsn", str(error), where) from None
    return parsed


@contextlib.contextmanager
def _signals(forwarder: Forwarder) -> Iterator[None]:
    def end(_number: int, _frame: FrameType | None) -> None:
        forwarder.stop()

    def reload(_number: int, _frame: FrameType | None) -> None:
        forwarder.reload()

    handlers = {signal.SIGINT: end, signal.SIGTERM: end, signal.SIGHUP: reload}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- printing ------------------------------------------------------------------------------------------


class _Printer:
    """Prints events and log lines as they come. Neither contains a key."""

    def event(self, word: str, facts: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def log(self, level: str, text: str) -> None:
        raise NotImplementedError


class _JsonLines(_Printer):
    def event(self, word: str, facts: Mapping[str, Any]) -> None:
        self._print({"event": word, **facts})

    def log(self, level: str, text: str) -> None:
        self._print({"event": "log", "level": level, "text": text})

    def _print(self, facts: Mapping[str, Any]) -> None:
        _echo(json.dumps({"at": round(time.time(), 3), **facts}))


class _PlainLines(_Printer):
    def event(self, word: str, facts: Mapping[str, Any]) -> None:
        if word == "ended":
            _echo(f"ended: delivered {_totals(facts['delivered'])}")
            for reason, counts in sorted(facts["discarded"].items()):
                _echo(f"  discarded: {reason} {_totals(counts)}")
            for identity, why in sorted(facts["left"].items()):
                _echo(one_line(f"  left: {identity}: {why}"))
        elif word != "waiting":  # the log has a line for it
            _echo(one_line(" ".join((word, *(str(value) for value in facts.values())))))

    def log(self, level: str, text: str) -> None:
        _echo(one_line(f"{level.lower()}: {text}"), err=True)


@contextlib.contextmanager
def _log_lines(printer: _Printer) -> Iterator[None]:
    """Print the library's own log lines."""

    class LogPrinter(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            printer.log(record.levelname, record.getMessage())

    logger = logging.getLogger("transport_kit")
    handler, level = LogPrinter(logging.INFO), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _totals(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{category} {n}" for category, n in sorted(counts.items())) or "nothing"


def _echo(line: str, *, err: bool = False) -> None:
    try:
        click.echo(line, err=err)
        (sys.stderr if err else sys.stdout).flush()
    except OSError:
        pass  # the reader of a pipe has gone; the forwarder continues
