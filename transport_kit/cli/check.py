"""`transport-kit check`: does what an app reports arrive, and if not, where it is stuck.

Owns the steps from a DSN to an accepted event. Showing them is `_output.py`'s, advice `_advice.py`'s;
connecting and sending are done by a transport of the kind that apps use, so that what is checked is what
an app will do.

Threads: the steps run in order on the main thread; what can't be interrupted (looking up a name) on a
thread that is left behind when its time is up.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import click

from transport_kit.cli._advice import advice_for_error, advice_for_name
from transport_kit.cli._connection import (
    GRACE,
    PORTS,
    MaskedCommand,
    OneShot,
    connection_options,
    dsn_argument,
    envelope_for,
    interruptible,
    parse_dsn,
    read_options,
    within,
)
from transport_kit.cli._output import Step, output_for
from transport_kit.config.dsn import Dsn
from transport_kit.config.options import ReporterOptions
from transport_kit.envelope import encoder
from transport_kit.kit.kit import Kit
from transport_kit.runtime.errors import InvalidDsn, OptionsError
from transport_kit.transport.wire.exchange import ExchangeError

__all__ = ["check_app", "command"]

#: Options of an app that say how to reach the server, and what events say of the app.
_OF_TRANSPORT = (
    "ca_certs",
    "client_cert",
    "client_key",
    "compression",
    "compression_level",
    "keep_alive",
    "no_proxy",
    "proxy",
    "proxy_headers",
    "trust_env",
)
_OF_REPORTER = ("dist", "environment", "release", "server_name")
#: Days before a certificate's end from which on the check says so.
EXPIRES_SOON = 14
_MESSAGE = "transport-kit check: this event shows that deliveries arrive"


@click.command(name="check", cls=MaskedCommand)
@dsn_argument
@connection_options
def command(dsn: str, timeout: float, as_json: bool, **connection: Any) -> None:
    """Checks, step by step, that an event reaches the server behind a DSN.

    The steps are: parse the DSN, resolve the host, connect (TLS included), send. Each is shown with its
    time and, when it fails, with what to do about it.

    What is sent is one event of level info with the message "transport-kit check: ...", this host's name
    and the versions of Python and the operating system. The project's members see it; repeated checks
    are one issue. Nothing else is sent.

    DSN may come from TRANSPORT_KIT_DSN, which keeps its key out of the shell's history. Other options of
    the transport are read from TRANSPORT_KIT_* as in an app.

    Exit status: 0 when the event arrived, 1 when a step failed, 2 when the call can't be used, 130 after
    Ctrl-C.

    \b
    Examples:
      transport-kit check https://key@sentry.example/42
      transport-kit check --timeout 3 --json
      transport-kit check --ca-certs company-ca.pem --proxy http://proxy.example:3128

    \b
    Completion in the shell:
      eval "$(_TRANSPORT_KIT_COMPLETE=bash_source transport-kit)"     also zsh_source, fish_source
    """
    raise SystemExit(_steps(dsn, connection, timeout, as_json))


def check_app(kit: Kit, *, timeout: float, as_json: bool, no_dsn: str) -> int:
    """The same for an app's kit, with the app's own options; prints, and returns the exit status.

    Args:
        timeout: Seconds for each step.
        no_dsn: What is said when the app has none.
    """
    dsn = kit.transport.dsn
    problem = kit.problem
    if problem is not None or dsn is None:
        problem = problem or no_dsn
        facts: dict[str, Any] = {"ok": False, "dsn": None, "steps": [], "problem": problem}
        click.echo(json.dumps(facts, indent=2) if as_json else problem)
        return 1
    given = {name: getattr(kit.transport.options, name) for name in _OF_TRANSPORT}
    given |= {name: getattr(kit.reporter.options, name) for name in _OF_REPORTER}
    return _steps(dsn.reveal(), given, timeout, as_json)


def _steps(dsn: str, connection: Mapping[str, object], timeout: float, as_json: bool) -> int:
    check = _Check(dsn, connection, timeout)
    with interruptible(), contextlib.closing(check), output_for(as_json) as output:
        ok = True
        for name, perform in check.steps:
            if not ok:
                output.show(Step(name, "skipped"))
                continue
            output.begin(name)
            step = _performed(name, perform)
            ok = step.state == "ok"
            output.show(step)
        output.end(ok, check.shown_dsn)
    return 0 if ok else 1


@dataclass(frozen=True, slots=True)
class _Found:
    """What a step found out: one line, further lines worth knowing, facts for machines."""

    detail: str
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class _Failed(Exception):
    """A step failed; `advice` is what to do about it."""

    def __init__(self, detail: str, advice: str | None, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(detail, advice)
        self.detail = detail
        self.advice = advice
        self.facts = facts or {}


def _performed(name: str, perform: Callable[[], _Found]) -> Step:
    began = time.monotonic()
    try:
        found = perform()
    except _Failed as failure:
        seconds = time.monotonic() - began
        return Step(name, "failed", seconds, failure.detail, advice=failure.advice, facts=failure.facts)
    return Step(name, "ok", time.monotonic() - began, found.detail, found.notes, facts=found.facts)


class _Check:
    """The steps, each of which leaves what the next one needs."""

    _dsn: Dsn
    _reporter_options: ReporterOptions
    _transport: OneShot | None = None

    def __init__(self, dsn_text: str, connection: Mapping[str, object], timeout: float) -> None:
        self.shown_dsn: str | None = None
        self._text = dsn_text
        self._connection = connection
        self._timeout = timeout
        self.steps: tuple[tuple[str, Callable[[], _Found]], ...] = (
            ("parse", self._parse),
            ("resolve", self._resolve),
            ("connect", self._connect),
            ("send", self._send),
        )

    def close(self) -> None:
        """End the transport; what it still waits for is given up."""
        if self._transport is not None:
            self._transport.kill()

    # -- the steps -------------------------------------------------------------------------------------

    def _parse(self) -> _Found:
        try:
            dsn = self._dsn = parse_dsn(self._text)
        except InvalidDsn as error:
            raise _Failed(f"invalid DSN ({error.reason})", error.hint, {"reason": error.reason}) from None
        self.shown_dsn = str(dsn)
        try:
            options, self._reporter_options = read_options(self._connection, self._timeout)
            self._transport = OneShot(dsn, options)
        except OptionsError as error:
            raise _Failed(
                f"option {error.field} ({error.source})", error.problem, {"option": error.field}
            ) from None
        try:
            self._transport.pool.prepare()
        except ExchangeError as error:
            raise _Failed(
                f"TLS settings: {error.detail}",
                "check the files of --ca-certs, --client-cert and --client-key, or their variables",
            ) from None
        notes = []
        if not dsn.key_looks_valid:
            notes.append("the key is not 32 hexadecimal digits; most servers refuse such a key")
        if dsn.scheme == "http" and not _stays_here(dsn.host):
            notes.append("http: the key and all events travel unencrypted")
        proxy = self._transport.proxy
        if proxy is not None:
            where = "given" if options.proxy is not None else "from the environment (*_PROXY)"
            notes.append(f"goes through the proxy {proxy}, {where}")
        facts = {"endpoint": dsn.envelope_url, "proxy": proxy, "encoder": encoder.NAME}
        written = encoder.NAME if encoder.REMARK is None else f"{encoder.NAME}; {encoder.REMARK}"
        detail = f"envelopes go to {dsn.envelope_url}; JSON is written by {written}"
        return _Found(detail, tuple(notes), facts)

    def _resolve(self) -> _Found:
        host, port, whose = self._first_hop()
        try:
            found = within(self._timeout, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except TimeoutError as error:
            raise _Failed(
                f"{host}: {error}", f"no name server answered for {whose}; check this machine's DNS"
            ) from None
        except (OSError, UnicodeError) as error:
            problem = error if isinstance(error, OSError) else OSError()
            raise _Failed(
                f"{host}: {problem.strerror or 'not a name'}", advice_for_name(problem, whose)
            ) from None
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        what = "an address" if addresses == [host] else ", ".join(addresses)
        return _Found(f"{host} is {what}", facts={"host": host, "addresses": addresses})

    def _connect(self) -> _Found:
        transport = self._begun()
        try:
            sock = within(self._timeout + GRACE, lambda: transport.pool.open(self._timeout))
        except TimeoutError as late:
            raise self._no_answer(ExchangeError("timeout", str(late))) from None
        except ExchangeError as error:
            raise self._no_answer(error) from None
        through = transport.proxy
        where = _address(sock) if through is None else f"{self._dsn.host} by way of {through}"
        if self._dsn.scheme == "http":
            return _Found(f"connected to {where}", facts={"address": where})
        notes, facts = _certificate(sock.getpeercert() or {}, time.time())
        version = str(sock.version())
        summary = f"connected to {where}, {version}, certificate of {facts['subject']} by {facts['issuer']}"
        return _Found(
            f"{summary}, valid until {facts['valid_until']}",
            notes,
            {"address": where, "tls": version, "certificate": facts},
        )

    def _send(self) -> _Found:
        event = {
            "message": _MESSAGE,
            "level": "info",
            "logger": "transport-kit.check",
            "fingerprint": ["transport-kit check"],
        }
        envelope = envelope_for(event, self._reporter_options, {})
        delivery = self._begun().deliver(envelope, self._timeout)
        facts = delivery.as_dict()
        if delivery.problem is not None:
            raise _Failed(delivery.problem, delivery.advice, facts)
        notes = tuple(
            f"the server asks for no more {'of anything' if category == '*' else category} for {left:.0f} s;"
            " it may have dropped the event"
            for category, left in sorted(delivery.limits.items())
        )
        return _Found(f"event {delivery.event_id} was taken, status {delivery.status}", notes, facts)

    # -- inside ----------------------------------------------------------------------------------------

    def _begun(self) -> OneShot:
        assert self._transport is not None
        return self._transport

    def _first_hop(self) -> tuple[str, int, str]:
        """Host and port that this machine itself connects to, and whose host that is."""
        proxy = self._begun().route
        if proxy is not None:
            return proxy.host, proxy.port, "the proxy's host"
        return self._dsn.host, self._dsn.port or PORTS[self._dsn.scheme], "the DSN's host"

    def _no_answer(self, error: ExchangeError) -> _Failed:
        advice = advice_for_error(error, scheme=self._dsn.scheme, proxy=self._begun().proxy)
        return _Failed(str(error), advice, {"kind": error.kind})


def _stays_here(host: str) -> bool:
    """Whether a host is this machine, as far as its name tells."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _address(sock: Any) -> str:
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return "an address that has hung up already"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _certificate(certificate: Mapping[str, Any], now: float) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What is worth knowing of a certificate that was verified, and a note when it ends soon."""
    ends = ssl.cert_time_to_seconds(certificate["notAfter"])
    days = int((ends - now) // 86400)
    facts = {
        "subject": _name(certificate.get("subject", ()), "commonName") or _alternative(certificate),
        "issuer": _name(certificate.get("issuer", ()), "organizationName", "commonName"),
        "valid_until": time.strftime("%Y-%m-%d", time.gmtime(ends)),
        "days_left": days,
    }
    notes = (f"the certificate ends in {days} days",) if days < EXPIRES_SOON else ()
    return notes, facts


def _name(parts: Any, *wanted: str) -> str:
    named = {key: value for part in parts for key, value in part}
    return next((str(named[key]) for key in wanted if key in named), "")


def _alternative(certificate: Mapping[str, Any]) -> str:
    return ", ".join(str(value) for _, value in certificate.get("subjectAltName", ()))
