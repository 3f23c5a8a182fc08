"""One delivery for a command: the options, the transport that watches itself, what became of it.

Owns what `send` and `check` share. What they learn comes from a transport of the kind that apps use; it
differs in that it tries once, and remembers the answer.

Threads: a command runs on the main thread; `_request` on the transport's sender. What it leaves is read
after `flush` has seen the envelope settled.
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
from transport_kit.config.dsn import DSN_VARIABLE, Dsn
from transport_kit.config.options import ReporterOptions, TransportOptions, resolve
from transport_kit.config.reference import meaning
from transport_kit.envelope.envelope import Envelope
from transport_kit.reporting import Reporter, new_scope
from transport_kit.runtime.errors import InvalidDsn
from transport_kit.transport.http import HttpTransport
from transport_kit.transport.local import FunctionTransport
from transport_kit.transport.wire.connections import ConnectionPool
from transport_kit.transport.wire.exchange import ExchangeError, Response
from transport_kit.transport.wire.proxies import Proxy, choose_proxy

__all__ = [
    "Attempt",
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
    "said_by_the_library",
    "within",
]

T = TypeVar("T")
_Command = Callable[..., Any]

INTERRUPTED: Final = 130
#: Characters of an error answer that are shown.
SHOWN_BODY: Final = 200
#: Seconds that a wait goes on beyond the time that what it waits for has.
GRACE: Final = 0.5
PORTS: Final = {"http": 80, "https": 443}


# -- the command line ----------------------------------------------------------------------------------


def dsn_argument(command: _Command) -> _Command:
    """The argument DSN, or `TRANSPORT_KIT_DSN`."""
    return click.argument("dsn", required=False, envvar=DSN_VARIABLE, default="")(command)


def connection_options(command: _Command) -> _Command:
    """The options of every command that connects."""
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
    """Options for one attempt: what was given, the environment for what was not.

    Raises:
        OptionsError: A value can't be used.
    """
    given = {name: value for name, value in values.items() if value is not None}
    once = {
        "retry_window": 0.0,
        "retry_statuses": (),
        "backoff_base": 0.001,  # nothing waits for the breaker either
        "backoff_max": 0.001,
        "max_senders": 1,
        "connect_timeout": timeout,
        "request_timeout": timeout,
        "shutdown_timeout": 0.0,
        "send_client_reports": False,
        "handle_sigterm": False,
        "detect_release": False,  # the folder that a shell stands in is no app
    }
    return resolve({**once, **given}, (TransportOptions, ReporterOptions), source="command line")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ends the process with status 130 on Ctrl-C, as shells do."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        raise SystemExit(INTERRUPTED) from None


# -- waiting and listening -----------------------------------------------------------------------------


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises, if it does so in time.

    On a thread of its own, which is left behind otherwise: looking up a name can be neither bounded nor
    interrupted.

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
def said_by_the_library() -> Iterator[list[str]]:
    """Collects the library's warnings, in place of showing them as they come."""
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
    """The proxy that connections go through, or None.

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


def shown(proxy: Proxy | None) -> str | None:
    """The proxy's address without its login."""
    if proxy is None:
        return None
    host = f"[{proxy.host}]" if ":" in proxy.host else proxy.host
    return f"{proxy.scheme}://{host}:{proxy.port}"


def envelope_for(event: Mapping[str, Any], options: ReporterOptions, tags: Mapping[str, str]) -> Envelope:
    """An envelope around `event`, which holds plain texts, filled in as an app's reporter does it."""
    made: list[Envelope] = []
    with new_scope() as scope:
        for key, value in tags.items():
            scope.set_tag(key, value)
        Reporter(FunctionTransport(made.append), options).capture_event(event)
    return made[0]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one envelope.

    Attributes:
        delivered: The server took all of it.
        event_id: The envelope's, or None.
        status: The server's answer, or None when there was none.
        seconds: From handing it over to knowing.
        counts: Quantity delivered per data category.
        discarded: Quantity per reason and category.
        problem: Why it was not delivered; None when it was.
        advice: What to do about that.
        limits: Seconds per data category that the server asked us to pause for; `*` is all.
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
        """Plain values, ready for any JSON encoder."""
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
    """Delivers as an app's transport does, once, and remembers what the server said.

    Attributes:
        met: The answers so far, or why there is none, in order.
        route: The proxy in use, or None; `proxy` is its address without its login.
        pool: What it connects with.

    Args:
        dsn: Where to.
        options: Made by `read_options`.

    Raises:
        OptionsError: An option asks for what is not there.
    """

    def __init__(self, dsn: Dsn, options: TransportOptions) -> None:
        self.met: list[Response | ExchangeError] = []
        self.route = proxy_for(dsn, options)
        self.proxy = shown(self.route)
        super().__init__(dsn, options)

    def _make_pool(self) -> ConnectionPool:
        self.pool = OpeningPool(self.dsn.envelope_url, self.options)
        return self.pool

    def _request(
        self, method: str, url: str, body: bytes, headers: dict[str, str], *, timeout: float
    ) -> Response:
        try:
            response = super()._request(method, url, body, headers, timeout=timeout)
        except ExchangeError as error:
            self.met.append(error)
            raise
        self.met.append(response)
        return response

    def deliver(self, envelope: Envelope, timeout: float) -> Attempt:
        """Send the envelope and wait up to `timeout` seconds for its fate."""
        self.met.clear()
        before = self.health()
        began = time.monotonic()
        with said_by_the_library() as lines:
            self.capture_envelope(envelope)
            # The request ends by itself within `timeout`, and says more than a flush that ran out.
            self.flush(timeout + GRACE)
        seconds = time.monotonic() - began
        after = self.health()
        counts = _difference(after.delivered, before.delivered)
        discarded = {
            reason: changed
            for reason, totals in after.discarded_by_category.items()
            if (changed := _difference(totals, before.discarded_by_category.get(reason, {})))
        }
        event_id = envelope.headers.get("event_id")
        met = self.met[-1] if self.met else None
        problem, advice = self._verdict(met, discarded, lines, timeout)
        return Attempt(
            delivered=problem is None,
            event_id=event_id if isinstance(event_id, str) else None,
            status=met.status if isinstance(met, Response) else None,
            seconds=seconds,
            counts=counts,
            discarded=discarded,
            problem=problem,
            advice=advice,
            limits=after.limits,
        )

    def _verdict(
        self,
        met: Response | ExchangeError | None,
        discarded: Mapping[str, Mapping[str, int]],
        lines: list[str],
        timeout: float,
    ) -> tuple[str | None, str | None]:
        """Problem and advice; two times None when all was delivered."""
        if isinstance(met, ExchangeError):
            return str(met), advice_for_error(met, scheme=self.dsn.scheme, proxy=self.proxy)
        if isinstance(met, Response):
            advice = advice_for_answer(met)
            if advice is not None:
                return self.said(met), advice
            if discarded:
                return f"a part was left out: {'; '.join(lines) or _named(discarded)}", None
            return None, None
        if "ratelimit_backoff" in discarded:
            return "not sent: the server asked for a pause a moment ago", "wait, and send it again"
        if discarded or lines:
            return f"not sent: {'; '.join(lines) or _named(discarded)}", None
        late = ExchangeError("timeout", f"no answer within {timeout:g} s")
        return str(late), advice_for_error(late, scheme=self.dsn.scheme, proxy=self.proxy)

    def said(self, response: Response) -> str:
        """The answer in one line, without our key."""
        words = f"the server answered {response.status}"
        target = redirect_target(response) if 300 <= response.status < 400 else None
        if target is not None:
            return f"{words}, a redirect to {target}"
        if is_page(response):
            return f"{words} with a web page"
        shown = response.body[: SHOWN_BODY * 4].decode("utf-8", "replace")
        for secret in (self.dsn.public_key, self.dsn.secret_key):
            if secret:  # a server may echo what it was sent
                shown = shown.replace(secret, "***")
        shown = one_line(shown)[:SHOWN_BODY]
        return f"{words}: {shown}" if shown else words


class OpeningPool(ConnectionPool):
    """A pool whose first connection may be opened, and looked at, before anything is sent on it."""

    _opened: Any = None

    def prepare(self) -> None:
        """Load what connecting needs: certificates, and urllib3, so that neither counts as connecting.

        Raises:
            ExchangeError: A file of certificates or keys can't be used.
        """
        self._connection(self._options.connect_timeout)

    def open(self, timeout: float) -> Any:
        """A connected socket, kept for the next POST.

        Raises:
            ExchangeError: It can't be opened.
        """
        sock = self._opened = self._open(timeout)
        if self._closed:  # given up meanwhile
            self.close()
            raise ExchangeError("connect", "the pool is closed")
        return sock

    def _open(self, timeout: float) -> Any:
        sock, self._opened = self._opened, None
        return super()._open(timeout) if sock is None else sock

    def close(self) -> None:
        sock, self._opened = self._opened, None
        if sock is not None:
            sock.close()
        super().close()


def parse_dsn(text: str) -> Dsn:
    """The DSN of a command.

    Raises:
        InvalidDsn: It can't be used; the text says why and never shows it.
    """
    if not text.strip():
        raise InvalidDsn("invalid_url", f"give a DSN, or set {DSN_VARIABLE}")
    return Dsn.parse(text)


def _difference(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {name: n for name in after if (n := after[name] - before.get(name, 0))}


def _named(discarded: Mapping[str, Mapping[str, int]]) -> str:
    return ", ".join(
        f"{reason} ({', '.join(f'{name} {n}' for name, n in counts.items())})"
        for reason, counts in sorted(discarded.items())
    )
