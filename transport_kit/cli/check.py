"""`transport-kit check`: finds the step at which an event of an app fails to arrive.

This module owns the steps from a DSN to an accepted event. `_output.py` shows them, `_advice.py` writes the
advice. A transport of the kind that apps use connects and sends, so that the check does what an app will do.

Threads: the steps run in order on the main thread. A DNS lookup can't be interrupted: it runs on a thread
that is abandoned when its time is up.
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
from transport_kit.cli._output import CheckStep, output_for
from transport_kit.config.dsn import Dsn
from transport_kit.config.environment import DSN_VARIABLE
from transport_kit.config.options import ReporterOptions
from transport_kit.envelope import encoder
from transport_kit.kit.kit import Kit
from transport_kit.runtime.errors import InvalidDsn, OptionsError
from transport_kit.transport.wire.exchange import ExchangeError

__all__ = ["check_app", "command"]

#: Options of an app that decide how it reaches the server, and those that its events carry.
_TRANSPORT_FIELDS = (
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
_REPORTER_FIELDS = ("dist", "environment", "release", "server_name")
#: Days before a certificate's end from which the check notes it.
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
    if not dsn.strip():
        raise click.UsageError(f"give a DSN, or set {DSN_VARIABLE}")
    raise SystemExit(_run_steps(dsn, connection, timeout, as_json))


def check_app(kit: Kit, *, timeout: float, as_json: bool, no_dsn: str) -> int:
    """Run the check for an app's kit, with the app's own options; return the exit status.

    Args:
        kit: The app's kit.
        timeout: Seconds for each step.
        as_json: Print one JSON object.
        no_dsn: The problem that is printed for an app without a DSN.
    """
    dsn = kit.transport.dsn
    problem = kit.problem
    if problem is not None or dsn is None:
        problem = problem or no_dsn
        facts: dict[str, Any] = {"ok": False, "dsn": None, "steps": [], "problem": problem}
        click.echo(json.dumps(facts, indent=2) if as_json else problem)
        return 1
    connection = {name: getattr(kit.transport.options, name) for name in _TRANSPORT_FIELDS}
    connection |= {name: getattr(kit.reporter.options, name) for name in _REPORTER_FIELDS}
    return _run_steps(dsn.reveal(), connection, timeout, as_json)


def _run_steps(dsn: str, connection: Mapping[str, object], timeout: float, as_json: bool) -> int:
    check = _Check(dsn, connection, timeout)
    with interruptible(), contextlib.closing(check), output_for(as_json) as output:
        ok = True
        for name, perform in check.steps:
            if not ok:
                output.show(CheckStep(name, "skipped"))
                continue
            output.begin(name)
            step = _run_step(name, perform)
            ok = step.state == "ok"
            output.show(step)
        output.end(ok, check.shown_dsn)
    return 0 if ok else 1


@dataclass(frozen=True, slots=True)
class _Finding:
    """The result of a step that succeeded: one line, further lines, and facts for machines."""

    detail: str
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class _StepError(Exception):
    """A step failed; `advice` is a remedy."""

    def __init__(self, detail: str, advice: str | None, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(detail, advice)
        self.detail = detail
        self.advice = advice
        self.facts = facts or {}


def _run_step(name: str, perform: Callable[[], _Finding]) -> CheckStep:
    began = time.monotonic()
    try:
        finding = perform()
    except _StepError as error:
        seconds = time.monotonic() - began
        return CheckStep(name, "failed", seconds, error.detail, advice=error.advice, facts=error.facts)
    return CheckStep(name, "ok", time.monotonic() - began, finding.detail, finding.notes, facts=finding.facts)


class _Check:
    """The steps in order; each stores what the next one needs."""

    _dsn: Dsn
    _reporter_options: ReporterOptions
    _transport: OneShot | None = None

    def __init__(self, dsn_text: str, connection: Mapping[str, object], timeout: float) -> None:
        self.shown_dsn: str | None = None
        self._text = dsn_text
        self._connection = connection
        self._timeout = timeout
        self.steps: tuple[tuple[str, Callable[[], _Finding]], ...] = (
            ("parse", self._parse),
            ("resolve", self._resolve),
            ("connect", self._connect),
            ("send", self._send),
        )

    def close(self) -> None:
        """End the transport and abandon its request."""
        if self._transport is not None:
            self._transport.kill()

    # -- the steps -------------------------------------------------------------------------------------

    def _parse(self) -> _Finding:
        try:
            dsn = self._dsn = parse_dsn(self._text)
        except InvalidDsn as error:
            raise _StepError(f"invalid DSN ({error.reason})", error.hint, {"reason": error.reason}) from None
        self.shown_dsn = str(dsn)
        try:
            options, self._reporter_options = read_options(self._connection, self._timeout)
            self._transport = OneShot(dsn, options)
        except OptionsError as error:
            raise _StepError(
                f"option {error.field} ({error.source})", error.problem, {"option": error.field}
            ) from None
        try:
            self._transport.pool.prepare()
        except ExchangeError as error:
            raise _StepError(
                f"TLS settings: {error.detail}",
                "check the files of --ca-certs, --client-cert and --client-key, or their variables",
            ) from None
        notes = []
        if not dsn.key_looks_valid:
            notes.append("the key is not 32 hexadecimal digits; most servers refuse such a key")
        if dsn.scheme == "http" and not _is_loopback(dsn.host):
            notes.append("http: the key and all events travel unencrypted")
        proxy = self._transport.proxy
        if proxy is not None:
            where = "given" if options.proxy is not None else "from the environment (*_PROXY)"
            notes.append(f"goes through the proxy {proxy}, {where}")
        facts = {"endpoint": dsn.envelope_url, "proxy": proxy, "encoder": encoder.NAME}
        encoding = encoder.NAME if encoder.REMARK is None else f"{encoder.NAME}; {encoder.REMARK}"
        detail = f"envelopes go to {dsn.envelope_url}; JSON is written by {encoding}"
        return _Finding(detail, tuple(notes), facts)

    def _resolve(self) -> _Finding:
        host, port, whose = self._first_hop()
        try:
            infos = within(self._timeout, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except TimeoutError as error:
            raise _StepError(
                f"{host}: {error}", f"no name server answered for {whose}; check this machine's DNS"
            ) from None
        except (OSError, UnicodeError) as error:
            problem = error if isinstance(error, OSError) else OSError()
            raise _StepError(
                f"{host}: {problem.strerror or 'not a name'}", advice_for_name(problem, whose)
            ) from None
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in infos))
        listed = "an address" if addresses == [host] else ", ".join(addresses)
        return _Finding(f"{host} is {listed}", facts={"host": host, "addresses": addresses})

    def _connect(self) -> _Finding:
        transport = self._open_transport()
        try:
            sock = within(self._timeout + GRACE, lambda: transport.pool.open(self._timeout))
        except TimeoutError as error:
            raise self._exchange_failure(ExchangeError("timeout", str(error))) from None
        except ExchangeError as error:
            raise self._exchange_failure(error) from None
        proxy = transport.proxy
        where = _address(sock) if proxy is None else f"{self._dsn.host} by way of {proxy}"
        if self._dsn.scheme == "http":
            return _Finding(f"connected to {where}", facts={"address": where})
        notes, facts = _certificate(sock.getpeercert() or {}, time.time())
        version = str(sock.version())
        summary = f"connected to {where}, {version}, certificate of {facts['subject']} by {facts['issuer']}"
        return _Finding(
            f"{summary}, valid until {facts['valid_until']}",
            notes,
            {"address": where, "tls": version, "certificate": facts},
        )

    def _send(self) -> _Finding:
        event = {
            "message": _MESSAGE,
            "level": "info",
            "logger": "transport-kit.check",
            "fingerprint": ["transport-kit check"],
        }
        envelope = envelope_for(event, self._reporter_options, {})
        attempt = self._open_transport().deliver(envelope, self._timeout)
        facts = attempt.as_dict()
        if attempt.problem is not None:
            raise _StepError(attempt.problem, attempt.advice, facts)
        notes = tuple(
            f"the server asks for no more {'of anything' if category == '*' else category}"
            f" for {seconds:.0f} s; it may have dropped the event"
            for category, seconds in sorted(attempt.limits.items())
        )
        return _Finding(f"event {attempt.event_id} was taken, status {attempt.status}", notes, facts)

    # -- helpers ---------------------------------------------------------------------------------------

    def _open_transport(self) -> OneShot:
        assert self._transport is not None
        return self._transport

    def _first_hop(self) -> tuple[str, int, str]:
        """Return host and port that this machine connects to, and a phrase for that host."""
        proxy = self._open_transport().route
        if proxy is not None:
            return proxy.host, proxy.port, "the proxy's host"
        return self._dsn.host, self._dsn.port or PORTS[self._dsn.scheme], "the DSN's host"

    def _exchange_failure(self, error: ExchangeError) -> _StepError:
        advice = advice_for_error(error, scheme=self._dsn.scheme, proxy=self._open_transport().proxy)
        return _StepError(str(error), advice, {"kind": error.kind})


def _is_loopback(host: str) -> bool:
    """Return True if the host's name alone shows that it is this machine."""
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
    """Return a note if a verified certificate ends soon, and its facts."""
    ends = ssl.cert_time_to_seconds(certificate["notAfter"])
    days = int((ends - now) // 86400)
    facts = {
        "subject": _name(certificate.get("subject", ()), "commonName") or _alternative_names(certificate),
        "issuer": _name(certificate.get("issuer", ()), "organizationName", "commonName"),
        "valid_until": time.strftime("%Y-%m-%d", time.gmtime(ends)),
        "days_left": days,
    }
    notes = (f"the certificate ends in {days} days",) if days < EXPIRES_SOON else ()
    return notes, facts


def _name(parts: Any, *keys: str) -> str:
    values = {key: value for part in parts for key, value in part}
    return next((str(values[key]) for key in keys if key in values), "")


def _alternative_names(certificate: Mapping[str, Any]) -> str:
    return ", ".join(str(value) for _, value in certificate.get("subjectAltName", ()))
