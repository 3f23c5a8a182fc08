"""Options: frozen values, checked when built, the same names from arguments, settings and environment.

Owns the names, units, bounds and defaults of everything a user can set. Does no I/O: a CA file is looked for
when it is used. Unknown names are errors; a typo must not become a default.

Threads: instances never change, so one may be shared between transports and threads.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias, TypeVar, overload

from transport_kit.config import fields
from transport_kit.config.dsn import DSN_VARIABLE
from transport_kit.runtime.errors import OptionsError

__all__ = [
    "ENV_PREFIX",
    "field_kind",
    "IntegrationOptions",
    "ReporterOptions",
    "resolve",
    "TransportOptions",
]

ENV_PREFIX = "TRANSPORT_KIT_"
#: A path that every framework routes literally and every server passes on unchanged.
_PLAIN_PATH = re.compile(r"(/[A-Za-z0-9\-._~]+)+")


def _option(default: Any, kind: fields.FieldKind, *, secret: bool = False) -> Any:
    """A field whose value `kind` checks; a secret one is left out of the repr."""
    return field(default=default, repr=not secret, metadata={"kind": kind})


def field_kind(option: dataclasses.Field[Any]) -> fields.FieldKind:
    """The kind of value that a field of an options class accepts."""
    kind: fields.FieldKind = option.metadata["kind"]
    return kind


@dataclass(frozen=True, kw_only=True)
class _Options:
    """Base of the option classes: checks at construction, builds from a mapping."""

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            try:
                value = field_kind(option).accept(getattr(self, option.name))
            except ValueError as problem:
                raise OptionsError(option.name, str(problem)) from None
            object.__setattr__(self, option.name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle; raise TypeError while a secret is set, as the pickle would hold it."""
        for option in dataclasses.fields(self):
            if not option.repr and getattr(self, option.name):
                raise TypeError(f"{type(self).__name__} is not pickled while {option.name}, a secret, is set")
        return self.__dict__

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @classmethod
    def names(cls) -> frozenset[str]:
        """The names this class accepts."""
        return frozenset(option.name for option in dataclasses.fields(cls))

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], *, source: str) -> Self:
        """Build from lower- or upper-case names.

        Raises:
            OptionsError: A name is unknown (the nearest known one is suggested) or a value is wrong.
        """
        (built,) = resolve(values, (cls,), source=source, environ={})
        return built


@dataclass(frozen=True, kw_only=True)
class TransportOptions(_Options):
    """Options of a transport: how envelopes are queued, sent, and given up on.

    Attributes:
        max_queue_items: Envelopes held, claimed ones included; at least 1. A full queue gives up the
            oldest of the lowest class, and counts it.
        max_queue_bytes: Bytes held, claimed ones included. Past a quarter of it an envelope is
            compressed as it is put.
        max_event_bytes: An event or transaction larger than this is trimmed (frame variables, then
            breadcrumbs, then extra), and refused when that does not suffice.
        max_attachment_bytes: An attachment larger than this is refused.
        max_envelope_bytes: An envelope larger than this is refused.
        max_senders: Threads that deliver while envelopes wait; one at rest.
        shutdown_timeout: Seconds `Transport.close` and `flush` wait by default; 0 skips the wait.
        connect_timeout: Seconds to open a connection, TLS included.
        request_timeout: Seconds from the first byte sent to the last byte of the answer.
        retry_window: Seconds an envelope is kept and retried before it is given up and counted.
        retry_statuses: HTTP statuses after which an envelope is kept and retried. `()` restores the
            strict rule that any answer is final.
        backoff_base: Seconds; the first delay is drawn from 0 to this, doubling per failure.
        backoff_max: Seconds; no delay exceeds it.
        compression: `gzip`, `isal` (gzip made by the package isal), `br`, `zstd` or `none`.
        compression_level: The codec's own level, which `compression.py` checks; None takes our measured
            default.
        ca_certs: A CA bundle file, instead of certifi's.
        client_cert: A client certificate file (PEM); may hold the key too.
        client_key: The key file of `client_cert`.
        proxy: `http://`, `https://`, `socks5://` or `socks5h://` URL; overrides the environment.
        proxy_headers: Headers for the proxy, such as `Proxy-Authorization`: a mapping, kept as pairs.
        no_proxy: Hosts to reach directly, as `requests` reads it, `*` for all; overrides the environment.
        trust_env: Whether HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY are read.
        keep_alive: Whether connections are kept open between envelopes, with TCP keep-alive probes.
        send_client_reports: Whether losses are reported to the server.
        client_report_interval: Seconds between reports while nothing flushes.
        handle_sigterm: Whether a default-disposed SIGTERM drains before it ends the process.
        queue: `memory`, or `file:///` and the path of a directory: a spool, which survives the process and
            is shared by all processes that name it. The directory is made when its parent exists.
        spool_max_bytes: Bytes of all that a spool holds for one DSN; past it the oldest of the lowest class
            goes, and is counted.
        spool_max_count: Envelopes that a spool holds for one DSN; None for no bound.
        spool_max_age: Seconds after which an envelope in a spool is given up and counted.
        spool_segment_bytes: A file of a spool past this is closed, and the next one begun.
        spool_durability: `process`: accepted survives the death of every process; `host`: and the loss of
            power, at the price of a disk's sync before a capture returns.
        spool_drain: Whether this process may deliver what is in the spool; False leaves that to others.
        spool_credentials: Whether the DSN is stored in the spool, readable to its owner only, for a
            forwarder that is not given it otherwise.
        spool_force: Whether a spool on a network filesystem is taken all the same.

    Raises:
        OptionsError: A value is out of range or of the wrong type. Names the field.
    """

    max_queue_items: int = _option(10_000, fields.Number(1, 10_000_000, whole=True))
    max_queue_bytes: int = _option(64 * 1024 * 1024, fields.Number(1024, 1 << 40, whole=True))
    max_event_bytes: int = _option(1_000_000, fields.Number(1024, 1 << 30, whole=True))
    max_attachment_bytes: int = _option(20 * 1024 * 1024, fields.Number(1, 1 << 30, whole=True))
    max_envelope_bytes: int = _option(100 * 1024 * 1024, fields.Number(1024, 1 << 30, whole=True))
    max_senders: int = _option(8, fields.Number(1, 64, whole=True))
    shutdown_timeout: float = _option(2.0, fields.Number(0, 3600, "seconds"))
    connect_timeout: float = _option(5.0, fields.Number(0.001, 300, "seconds"))
    request_timeout: float = _option(30.0, fields.Number(0.001, 3600, "seconds"))
    retry_window: float = _option(3600.0, fields.Number(0, 30 * 86400, "seconds"))
    retry_statuses: tuple[int, ...] = _option((502, 503, 504), fields.ListOf(fields.Status(), ordered=True))
    backoff_base: float = _option(0.5, fields.Number(0.001, 3600, "seconds"))
    backoff_max: float = _option(60.0, fields.Number(0.001, 86400, "seconds"))
    compression: str = _option("gzip", fields.Choice(("gzip", "isal", "br", "zstd", "none")))
    compression_level: int | None = _option(None, fields.Number(0, 22, whole=True, optional=True))
    ca_certs: str | None = _option(None, fields.Text(path=True))
    client_cert: str | None = _option(None, fields.Text(path=True))
    client_key: str | None = _option(None, fields.Text(path=True))
    proxy: str | None = _option(None, fields.Text(), secret=True)
    proxy_headers: tuple[tuple[str, str], ...] = _option((), fields.HeaderPairs(), secret=True)
    no_proxy: str | None = _option(None, fields.Text())
    trust_env: bool = _option(True, fields.Flag())
    keep_alive: bool = _option(True, fields.Flag())
    send_client_reports: bool = _option(True, fields.Flag())
    client_report_interval: float = _option(60.0, fields.Number(0.01, 86400, "seconds"))
    handle_sigterm: bool = _option(True, fields.Flag())
    queue: str = _option("memory", fields.Text(optional=False))
    spool_max_bytes: int = _option(512 * 1024 * 1024, fields.Number(1024 * 1024, 1 << 50, whole=True))
    spool_max_count: int | None = _option(None, fields.Number(1, 1 << 40, whole=True, optional=True))
    spool_max_age: float = _option(7 * 86400.0, fields.Number(1, 3650 * 86400, "seconds"))
    spool_segment_bytes: int = _option(1024 * 1024, fields.Number(64 * 1024, 1 << 30, whole=True))
    spool_durability: str = _option("process", fields.Choice(("process", "host")))
    spool_drain: bool = _option(True, fields.Flag())
    spool_credentials: bool = _option(False, fields.Flag())
    spool_force: bool = _option(False, fields.Flag())

    @property
    def spool_path(self) -> str | None:
        """The directory that `queue` names, or None."""
        return self.queue.removeprefix("file://") if self.queue.startswith("file:///") else None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queue != "memory" and (self.spool_path is None or self.spool_path == "/"):
            raise OptionsError("queue", "must be memory, or file:/// and an absolute path")
        if self.backoff_max < self.backoff_base:
            raise OptionsError("backoff_max", "must not be smaller than backoff_base")
        if self.client_key is not None and self.client_cert is None:
            raise OptionsError("client_key", "needs client_cert too")


_BeforeSend: TypeAlias = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any] | None]
_TracesSampler: TypeAlias = Callable[[dict[str, Any]], float | bool | None]


@dataclass(frozen=True, kw_only=True)
class ReporterOptions(_Options):
    """Options of a reporter: what events contain, and what they leave out.

    Attributes:
        release: The app's version, such as `shop@1.2.0`; at most 200 characters.
        environment: Such as `production` (the default) or `staging`.
        dist: A build of the release.
        server_name: This host's name; None asks the operating system.
        send_default_pii: Whether user identity, client addresses, cookies and bodies are sent.
        in_app_include: Module prefixes that are the app's own; wins over `in_app_exclude`.
        in_app_exclude: Module prefixes that are not the app's own.
        before_send: Called with `(event, hint)`; returns the event to send, or None to drop it, as
            a failure does too. A dropped one is counted as `before_send`.
        detect_release: Whether a `release` that is not given is looked for once, at the start: in the
            environment of known platforms, in the git checkout, in `pyproject.toml`.
        sample_rate: Share of error events that are sent; the others are counted.
        max_breadcrumbs: Breadcrumbs that go with an event; at most 100.
        max_request_body_size: Bodies that are sent, with `send_default_pii`: `never`, `small` (up to
            1000 bytes), `medium` (10 000) or `always`; no event holds more than 8 KiB of one.
        traces_sample_rate: Share of new traces whose transactions are sent; None (the default) turns
            tracing off: traces are continued and handed on, and nothing is measured.
        traces_sampler: Called with a dict (`name`, `source`, `op`, `parent_sampled`, `request`); returns
            the rate for this transaction, or None for `traces_sample_rate`. Overrides the caller's decision.
        trace_propagation_targets: URLs that `outgoing_headers` makes headers for: texts that they hold, or
            compiled patterns; None is all.
        propagate_traceparent: Whether W3C `traceparent` is read where there is no `sentry-trace`, and sent.
        strict_trace_continuation: Whether a trace is only continued when it says that it is of the same
            organisation.
        auto_session_tracking: Whether each request's outcome is counted in sessions; needs a release.
    """

    release: str | None = _option(None, fields.Text(longest=200))
    environment: str = _option("production", fields.Text(optional=False))
    dist: str | None = _option(None, fields.Text())
    server_name: str | None = _option(None, fields.Text())
    send_default_pii: bool = _option(False, fields.Flag())
    in_app_include: tuple[str, ...] = _option((), fields.ListOf(fields.Word()))
    in_app_exclude: tuple[str, ...] = _option((), fields.ListOf(fields.Word()))
    before_send: _BeforeSend | None = _option(None, fields.Callback())  # noqa: RUF009 - makes a field
    detect_release: bool = _option(True, fields.Flag())
    sample_rate: float = _option(1.0, fields.Number(0, 1))
    max_breadcrumbs: int = _option(100, fields.Number(0, 100, whole=True))
    max_request_body_size: str = _option("medium", fields.Choice(("never", "small", "medium", "always")))
    traces_sample_rate: float | None = _option(None, fields.Number(0, 1, optional=True))
    traces_sampler: _TracesSampler | None = _option(None, fields.Callback())  # noqa: RUF009 - makes a field
    trace_propagation_targets: tuple[str | re.Pattern[str], ...] | None = _option(
        None, fields.ListOf(fields.Target(), optional=True)
    )
    propagate_traceparent: bool = _option(False, fields.Flag())
    strict_trace_continuation: bool = _option(False, fields.Flag())
    auto_session_tracking: bool = _option(True, fields.Flag())


@dataclass(frozen=True, kw_only=True)
class IntegrationOptions(_Options):
    """Options of an integration: routes, health details, and how configuration errors are treated.

    Attributes:
        path: Where live, ready, health and flush answer; None leaves the routes out.
        flush_token: Bearer token for `POST flush` and for health details; None turns flush off.
        health_details: `always`, or `token`: strangers see the status only.
        ready_requires_delivery: Whether `ready` answers 503 while health is `fail`.
        strict: Whether a configuration error is raised instead of reported by health.
        capture_errors: Whether exceptions that escape a request are captured.
    """

    path: str | None = _option("/transport", fields.Text())
    flush_token: str | None = _option(None, fields.Text(), secret=True)
    health_details: str = _option("token", fields.Choice(("token", "always")))
    ready_requires_delivery: bool = _option(False, fields.Flag())
    strict: bool = _option(False, fields.Flag())
    capture_errors: bool = _option(True, fields.Flag())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is not None and (not self.path.startswith("/") or self.path.endswith("/")):
            raise OptionsError("path", "must start with a slash and not end with one, such as /transport")
        if self.path is not None and not _PLAIN_PATH.fullmatch(self.path):
            raise OptionsError("path", "must be letters, digits and -._~ between slashes, such as /transport")


_ALL: tuple[type[_Options], ...] = (TransportOptions, ReporterOptions, IntegrationOptions)
_A = TypeVar("_A", bound=_Options)
_B = TypeVar("_B", bound=_Options)
_C = TypeVar("_C", bound=_Options)


@overload
def resolve(
    values: Mapping[str, object],
    classes: tuple[type[_A]],
    *,
    source: str = ...,
    environ: Mapping[str, str] | None = ...,
) -> tuple[_A]: ...
@overload
def resolve(
    values: Mapping[str, object],
    classes: tuple[type[_A], type[_B]],
    *,
    source: str = ...,
    environ: Mapping[str, str] | None = ...,
) -> tuple[_A, _B]: ...
@overload
def resolve(
    values: Mapping[str, object],
    classes: tuple[type[_A], type[_B], type[_C]],
    *,
    source: str = ...,
    environ: Mapping[str, str] | None = ...,
) -> tuple[_A, _B, _C]: ...
def resolve(
    values: Mapping[str, object],
    classes: tuple[type[_Options], ...],
    *,
    source: str = "arguments",
    environ: Mapping[str, str] | None = None,
) -> tuple[_Options, ...]:
    """One instance of each class: `values` first, `TRANSPORT_KIT_*` for what they leave out.

    Args:
        values: Names in lower or upper case. A name outside `classes` is an error.
        source: Where `values` come from, for messages.
        environ: None reads `os.environ`. A variable that no option class knows is an error, except
            `TRANSPORT_KIT_DSN`, which is the target and not an option.

    Raises:
        OptionsError: Names the field, its source, and for an unknown name the nearest known one.
    """
    known = {name: cls for cls in classes for name in cls.names()}
    chosen: dict[type[_Options], dict[str, Any]] = {cls: {} for cls in classes}
    sources: dict[str, str] = {}
    for key, value in values.items():
        name = str(key).lower()
        if name not in known:
            # Only an integration takes the DSN in the same mapping.
            near = (*known, "dsn") if IntegrationOptions in classes else known
            raise OptionsError(str(key), _unknown(name, near), source)
        if name in sources:
            raise OptionsError(str(key), "given twice, in upper and in lower case", source)
        chosen[known[name]][name] = value
        sources[name] = source
    everywhere = {option.name: option for cls in _ALL for option in dataclasses.fields(cls)}
    for key, text in (os.environ if environ is None else environ).items():
        if not key.startswith(ENV_PREFIX) or key == DSN_VARIABLE:
            continue
        name = key[len(ENV_PREFIX) :].lower()
        if name not in everywhere:
            raise OptionsError(key, _unknown(name, (*everywhere, "dsn"), ENV_PREFIX), "environment")
        if name not in known or name in sources:
            continue
        try:
            chosen[known[name]][name] = field_kind(everywhere[name]).parse(text)
        except ValueError as problem:
            raise OptionsError(name, str(problem), f"environment {key}") from None
        sources[name] = f"environment {key}"
    built = []
    for cls in classes:
        try:
            built.append(cls(**chosen[cls]))
        except OptionsError as error:
            raise OptionsError(error.field, error.problem, sources.get(error.field, source)) from None
    return tuple(built)


def _unknown(name: str, known: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    if near:
        suggestion = prefix + near[0].upper() if prefix else near[0]
        return f"unknown option; did you mean {suggestion}?"
    return "unknown option; docs/reference/options.md lists the known ones"
