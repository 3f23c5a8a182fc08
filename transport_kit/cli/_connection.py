"""One delivery for a command: its options, a transport that records answers, and the result.

This module owns what `send` and `check` share. The transport is of the kind that apps use, but tries once and
records the answer.

Threads: a command runs on the main thread, and the transport's sender records answers. The main thread reads
them after `flush` has reported the envelope settled, or has given up on it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import click

from transport_kit.cli._advice import advice_for_answer, advice_for_error, is_page, redirect_target
from transport_kit.cli._text import MaskedCommand, masked, one_line
from transport_kit.config.dsn import Dsn, mask_keys
from transport_kit.config.environment import DSN_VARIABLE
from transport_kit.config.options import ReporterOptions, TransportOptions, resolve
from transport_kit.config.reference import meaning
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.losses import Quantities
from transport_kit.reporting import Reporter, new_scope
from transport_kit.runtime.errors import InvalidDsn
from transport_kit.transport.http import HttpTransport
from transport_kit.transport.local import FunctionTransport
from transport_kit.transport.wire.connections import ConnectionPool
from transport_kit.transport.wire.exchange import ExchangeError, Response
from transport_kit.transport.wire.proxies import Proxy, choose_proxy

__all__ = [
    "Attempt",
    "collected_warnings",
    "connection_options",
    "dsn_argument",
    "envelope_for",
    "GRACE",
    "interruptible",
    "masked",
    "MaskedCommand",
    "one_line",
    "OneShot",
    "parse_dsn",
    "PORTS",
    "read_options",
    "within",
]

T = TypeVar("T")
_Command = Callable[..., Any]

INTERRUPTED: Final = 130
#: Characters of an error answer that are shown.
SHOWN_BODY: Final = 200
#: Seconds that a wait is longer than the timeout of what it waits for.
GRACE: Final = 0.5
PORTS: Final = {"http": 80, "https": 443}


# -- options ----------------------------------------------------------------------------------


def dsn_argument(command: _Command) -> _Command:
    """Add the argument DSN, whose default is `TRANSPORT_KIT_DSN`."""
    return click.argument("dsn", required=False, envvar=DSN_VARIABLE, default="")(command)


def connection_options(command: _Command) -> _Command:
    """Add the options of every command that connects."""
    file = click.Path(exists=True, dir_okay=False)
    for decorate in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines."),
        click.option("--client-key", type=file, help=meaning("client_key")),
        click.option("--client-cert", type=file, help=meaning("client_cert")),
        click.option("--ca-certs", type=file, help=meaning("ca_certs")),
        click.option("--no-proxy", metavar="HOSTS", help=meaning("no_proxy")),
        click.option("--proxy", metavar="URL", help=meaning("proxy")),
        click.option(
            "--timeout",
            type=click.FloatRange(0.1, 300),
            default=10.0,
            show_default=True,
            metavar="SECONDS",
            help="How long to wait for the network, at each step.",
        ),
    ):
        command = decorate(command)
    return command


def read_options(values: Mapping[str, object], timeout: float) -> tuple[TransportOptions, ReporterOptions]:
    """Resolve options for one attempt from `values`, and from the environment for those that are None.

    Args:
        values: Options of the call by name.
        timeout: Seconds to connect, and for the request.

    Raises:
        OptionsError: A value can't be used.
    """
    explicit = {name: value for name, value in values.items() if value is not None}
    once = {
        "retry_window": 0.0,
        "retry_statuses": (),
        "backoff_base": 0.001,  # a pause of the breaker is as short
        "backoff_max": 0.001,
        "max_senders": 1,
        "connect_timeout": timeout,
        "request_timeout": timeout,
        "shutdown_timeout": 0.0,
        "send_client_reports": False,
        "handle_sigterm": False,
        "detect_release": False,  # the working directory of a shell is not an app
    }
    return resolve({**once, **explicit}, (TransportOptions, ReporterOptions), source="command line")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """End the process with status 130 on Ctrl-C, as shells do."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        raise SystemExit(INTERRUPTED) from None


# -- waiting and logs ---------------------------------------------------------------------------------


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what `call` returns, or raise what it raises, if it ends within `seconds`.

    The call runs on its own daemon thread, which is abandoned after that: a DNS lookup can be neither bounded
    nor interrupted.

    Raises:
        TimeoutError: It did not end within `seconds`.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)
        done.set()

    threading.Thread(target=run, name="transport-kit-step", daemon=True).start()
    if not done.wait(seconds):
        raise TimeoutError(f"no end within {seconds:g} s")
    if errors:
        raise errors[0]
    return results[0]


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect the library's warnings instead of having them printed."""
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.getLogger("transport_kit")
    handler = Collect(logging.WARNING)
    propagated = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


# -- delivering ----------------------------------------------------------------------------------------


def proxy_for(dsn: Dsn, options: TransportOptions) -> Proxy | None:
    """Return the proxy that connections go through, or None.

    Raises:
        OptionsError: The proxy can't be used.
    """
    return choose_proxy(
        dsn.scheme,
        dsn.host,
        dsn.port or PORTS[dsn.scheme],
        proxy=options.proxy,
        no_proxy=options.no_proxy,
        trust_env=options.trust_env,
        environ=os.environ,
    )


def proxy_address(proxy: Proxy | None) -> str | None:
    """Return the proxy's address without its login."""
    if proxy is None:
        return None
    host = f"[{proxy.host}]" if ":" in proxy.host else proxy.host
    return f"{proxy.scheme}://{host}:{proxy.port}"


def envelope_for(event: Mapping[str, Any], options: ReporterOptions, tags: Mapping[str, str]) -> Envelope:
    """Return an envelope with `event`, whose values are plain texts, completed by a reporter as in an app."""
    envelopes: list[Envelope] = []
    with new_scope() as scope:
        for key, value in tags.items():
            scope.set_tag(key, value)
        Reporter(FunctionTransport(envelopes.append), options).capture_event(event)
    return envelopes[0]


@dataclass(frozen=True, slots=True)
class Attempt:
    """The result of one attempt to deliver an envelope.

    Attributes:
        delivered: The server took all of it.
        event_id: The envelope's event id, or None.
        status: The server's answer, or None when there was none.
        seconds: From the capture to the result.
        counts: Delivered quantity by data category.
        discarded: Discarded quantity by reason and category.
        problem: The reason that it was not delivered; None when it was.
        advice: A remedy for the problem.
        limits: Seconds by data category for which the server asked to pause; `*` means all categories.
    """

    delivered: bool
    event_id: str | None
    status: int | None
    seconds: float
    counts: Mapping[str, int] = field(default_factory=dict)
    discarded: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    problem: str | None = None
    advice: str | None = None
    limits: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for any JSON encoder."""
        return {
            "delivered": self.delivered,
            "event_id": self.event_id,
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "counts": dict(self.counts),
            "discarded": {reason: dict(counts) for reason, counts in self.discarded.items()},
            "problem": self.problem,
            "advice": self.advice,
            "limits": {category: round(left, 1) for category, left in self.limits.items()},
        }


class OneShot(HttpTransport):
    """A transport that tries each envelope once and records the answers.

    Attributes:
        outcomes: The answer of each request, or the error in its place, in order.
        route: The proxy in use, or None.
        proxy: The address of that proxy without its login, or None.
        pool: The connections.

    Args:
        dsn: The server and project.
        options: Made by `read_options`.

    Raises:
        OptionsError: An option needs a file or a package that is missing.
    """

    def __init__(self, dsn: Dsn, options: TransportOptions) -> None:
        self.outcomes: list[Response | ExchangeError] = []
        self.route = proxy_for(dsn, options)
        self.proxy = proxy_address(self.route)
        super().__init__(dsn, options, on_answer=self.outcomes.append)

    def _make_pool(self) -> ConnectionPool:
        self.pool = OpeningPool(self.dsn.envelope_url, self.options)
        return self.pool

    def deliver(self, envelope: Envelope, timeout: float) -> Attempt:
        """Send the envelope and wait up to `timeout` seconds for the result."""
        self.outcomes.clear()
        before = self.health()
        began = time.monotonic()
        with collected_warnings() as lines:
            self.capture_envelope(envelope)
            # The request ends by itself within `timeout`; its error is more precise than a flush's report.
            self.flush(timeout + GRACE)
        seconds = time.monotonic() - began
        after = self.health()
        counts = _difference(after.delivered, before.delivered)
        discarded = {
            reason: added
            for reason, totals in after.discarded_by_category.items()
            if (added := _difference(totals, before.discarded_by_category.get(reason, {})))
        }
        event_id = envelope.headers.get("event_id")
        outcome = self.outcomes[-1] if self.outcomes else None
        problem, advice = self._verdict(outcome, discarded, lines, timeout)
        return Attempt(
            delivered=problem is None,
            event_id=event_id if isinstance(event_id, str) else None,
            status=outcome.status if isinstance(outcome, Response) else None,
            seconds=seconds,
            counts=counts,
            discarded=discarded,
            problem=problem,
            advice=advice,
            limits=after.limits,
        )

    def _verdict(
        self,
        outcome: Response | ExchangeError | None,
        discarded: Mapping[str, Mapping[str, int]],
        lines: list[str],
        timeout: float,
    ) -> tuple[str | None, str | None]:
        """Return problem and advice; both are None when all was delivered."""
        if isinstance(outcome, ExchangeError):
            return str(outcome), advice_for_error(outcome, scheme=self.dsn.scheme, proxy=self.proxy)
        if isinstance(outcome, Response):
            advice = advice_for_answer(outcome)
            if advice is not None:
                return self.describe(outcome), advice
            if discarded:
                return f"a part was left out: {'; '.join(lines) or _format_losses(discarded)}", None
            return None, None
        if "ratelimit_backoff" in discarded:
            return "not sent: the server asked for a pause a moment ago", "wait, and send it again"
        if discarded or lines:
            return f"not sent: {'; '.join(lines) or _format_losses(discarded)}", None
        late = ExchangeError("timeout", f"no answer within {timeout:g} s")
        return str(late), advice_for_error(late, scheme=self.dsn.scheme, proxy=self.proxy)

    def describe(self, response: Response) -> str:
        """Return a server's answer in one line, with masked keys."""
        summary = f"the server answered {response.status}"
        target = redirect_target(response) if 300 <= response.status < 400 else None
        if target is not None:
            return f"{summary}, a redirect to {target}"
        if is_page(response):
            return f"{summary} with a web page"
        body = response.body[: SHOWN_BODY * 4].decode("utf-8", "replace")
        body = mask_keys(body, (self.dsn.public_key, self.dsn.secret_key))  # a server may echo the request
        body = one_line(body)[:SHOWN_BODY]
        return f"{summary}: {body}" if body else summary


class OpeningPool(ConnectionPool):
    """A pool whose first connection can be opened and inspected before a request is sent on it."""

    _spare: Any = None

    def prepare(self) -> None:
        """Load certificates and urllib3, so that a later connect is not timed with them.

        Raises:
            ExchangeError: A file of certificates or keys can't be used.
        """
        self._connection(self._options.connect_timeout)

    def open(self, timeout: float) -> Any:
        """Return a connected socket, which the next POST uses.

        Raises:
            ExchangeError: It can't be opened.
        """
        sock = self._spare = self._open(timeout)
        if self._closed:  # the caller gave up in the meantime
            self.close()
            raise ExchangeError("connect", "the pool is closed")
        return sock

    def _open(self, timeout: float) -> Any:
        sock, self._spare = self._spare, None
        return super()._open(timeout) if sock is None else sock

    def close(self) -> None:
        sock, self._spare = self._spare, None
        if sock is not None:
            sock.close()
        super().close()


def parse_dsn(text: str) -> Dsn:
    """Parse the DSN of a command.

    Raises:
        InvalidDsn: It can't be used; the text contains the reason and never the DSN.
    """
    if not text.strip():
        raise InvalidDsn("invalid_url", f"give a DSN, or set {DSN_VARIABLE}")
    return Dsn.parse(text)


def _difference(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return (Quantities(after.items()) - before.items()).by_category


def _format_losses(discarded: Mapping[str, Mapping[str, int]]) -> str:
    return ", ".join(
        f"{reason} ({', '.join(f'{name} {n}' for name, n in counts.items())})"
        for reason, counts in sorted(discarded.items())
    )
