"""Options: frozen values that are checked when built; arguments, settings and environment use the same names.

This module owns the names, units, bounds and defaults of all options, and the substitutes for values that
can't be used. It does no I/O: a CA file is opened when it is used.

Threads: instances never change, so one may be shared between transports and threads.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeAlias, TypeVar, overload

from transport_kit.config import fields
from transport_kit.config.environment import DSN_VARIABLE, ENV_PREFIX, nearest, warn_of_variables
from transport_kit.runtime.errors import OptionsError

__all__ = [
    "Effect",
    "field_kind",
    "field_substitute",
    "IntegrationOptions",
    "OptionProblem",
    "ReporterOptions",
    "resolve",
    "shown_default",
    "TransportOptions",
]

#: A path that every framework routes literally and every server passes on unchanged.
_PLAIN_PATH = re.compile(r"(/[A-Za-z0-9\-._~]+)+")


class Effect(enum.Enum):
    """The effect of an option that could not be used, beyond an ERROR line.

    Attributes:
        WARNS: Deliveries continue; health is `warn`.
        FAILS: Deliveries continue, without a guarantee that the option gives; health is `fail`.
        STOPS: Nothing is sent over HTTP, as it could take a route that the user excluded; health is `fail`.
    """

    WARNS = "warn"
    FAILS = "fail"
    STOPS = "stop"


@dataclass(frozen=True, slots=True)
class Substitute:
    """The value that is used for an option whose own value can't be used.

    Attributes:
        value: The value; never laxer than the one that the user may have meant.
        words: The consequence, as the end of a sentence.
        effect: The effect on deliveries and health.
    """

    value: Any
    words: str
    effect: Effect = Effect.WARNS


@dataclass(frozen=True, slots=True)
class OptionProblem:
    """An option that could not be used, and the consequence. Never contains the rejected value.

    Attributes:
        name: The option, or the unknown name as it was given.
        problem: The fault of the value or the name.
        source: The origin of the value, such as `environment TRANSPORT_KIT_PROXY`.
        consequence: The consequence, such as `its default, 8, is used`.
        effect: The effect on deliveries and health.
    """

    name: str
    problem: str
    source: str
    consequence: str
    effect: Effect

    def __str__(self) -> str:
        return f"{self.name} ({self.source}): {self.problem}; {self.consequence}"


def _option(
    default: Any,
    kind: fields.FieldKind,
    *,
    secret: bool = False,
    substitute: Substitute | None = None,
    shown: str | None = None,
) -> Any:
    """Return a field whose value `kind` checks. A secret one is left out of the repr.

    Without a `substitute` the default is used for a value that can't be used. `shown` is a short form of the
    default for the documentation.
    """
    metadata = {"kind": kind, "substitute": substitute, "shown": shown}
    return field(default=default, repr=not secret, metadata=metadata)


def shown_default(option: dataclasses.Field[Any]) -> str:
    """Return the default as the documentation shows it; `none` and `empty` for None and an empty tuple."""
    shown: str | None = option.metadata["shown"]
    if shown is not None:
        return shown
    default: Any = option.default
    return "none" if default is None else "empty" if default == () else str(default)


def field_kind(option: dataclasses.Field[Any]) -> fields.FieldKind:
    """Return the kind of value of a field of an options class."""
    kind: fields.FieldKind = option.metadata["kind"]
    return kind


def field_substitute(option: dataclasses.Field[Any]) -> Substitute:
    """Return the value to use if the option's own value can't be used."""
    substitute: Substitute | None = option.metadata["substitute"]
    if substitute is not None:
        return substitute
    return Substitute(option.default, f"its default, {shown_default(option)}, is used")


def _drop_event(event: dict[str, Any], hint: dict[str, Any]) -> None:
    """Drop every event, for a `before_send` that can't be used."""


def _sample_none(context: dict[str, Any]) -> float:
    """Sample no transaction, for a `traces_sampler` that can't be used."""
    return 0.0


_STOPS: Final = "nothing is delivered until it is mended"
_UNSAMPLED: Final = Substitute(_sample_none, "no transaction is sent until it is mended")
_UNFILTERED: Final = Substitute(_drop_event, "no event is sent until it is mended")


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
        """Return the names of the class's options."""
        return frozenset(option.name for option in dataclasses.fields(cls))

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], *, source: str) -> Self:
        """Build from a mapping whose names are in lower or upper case.

        Raises:
            OptionsError: A name is unknown (the nearest known one is suggested) or a value is wrong.
        """
        (built,) = resolve(values, (cls,), source=source, environ={})
        return built


@dataclass(frozen=True, kw_only=True)
class TransportOptions(_Options):
    """Options of a transport: queueing, sending and giving up envelopes.

    Attributes:
        max_queue_items: Largest number of envelopes in the queue, claimed ones included. A full queue drops
            the oldest of the lowest class, and counts it.
        max_queue_bytes: Largest number of bytes in the queue, claimed ones included. Above a quarter of
            it, envelopes are compressed when they are put.
        max_event_bytes: An event or transaction larger than this is trimmed (frame variables, then
            breadcrumbs, then extra), and refused if that does not suffice.
        max_attachment_bytes: An attachment larger than this is refused.
        max_envelope_bytes: An envelope larger than this is refused.
        max_senders: Largest number of threads that deliver; one remains at rest.
        shutdown_timeout: Seconds that `Transport.close` and `flush` wait by default; 0 for no wait.
        connect_timeout: Seconds to open a connection: name, all addresses, proxy and TLS together.
        request_timeout: Seconds from the first byte sent to the last byte of the answer.
        retry_window: Seconds for which an envelope is retried before it is dropped and counted.
        retry_statuses: HTTP statuses after which an envelope is kept and retried: after a 500 at most 4
            times, and after 500, 504, 520 or 524 only if the server recognises a repeat. With `()` every
            answer is final.
        backoff_base: Seconds; the first delay is drawn from 0 to this, doubling per failure.
        backoff_max: Seconds; no delay exceeds it.
        compression: `gzip`, `isal` (gzip made by the package isal), `br`, `zstd` or `none`.
        compression_level: The codec's own level, which `compression.py` checks; None takes our measured
            default.
        ca_certs: A file or directory of authorities. None takes `SSL_CERT_FILE` and `SSL_CERT_DIR`, else
            `REQUESTS_CA_BUNDLE`, else certifi's. Like the next two, read anew when it changes.
        client_cert: A client certificate file (PEM); may hold the key too.
        client_key: The key file of `client_cert`.
        proxy: `http://`, `https://`, `socks5://` or `socks5h://` URL; overrides the environment.
        proxy_headers: Headers for the proxy, such as `Proxy-Authorization`: a mapping, kept as pairs.
        no_proxy: Hosts to reach directly, as `requests` reads it, `*` for all; overrides the environment.
        trust_env: Whether HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY are read, and the variables of
            `ca_certs`.
        keep_alive: Whether connections are kept open between envelopes, with TCP keep-alive probes.
        send_client_reports: Whether losses are reported to the server.
        client_report_interval: Seconds between reports while nothing flushes.
        handle_sigterm: Whether a default-disposed SIGTERM drains before it ends the process.
        queue: `memory`, or `file:///` and the path of a directory: a spool, which survives the process and
            is shared by all processes that name it. The directory is made when its parent exists.
        spool_max_bytes: Largest number of bytes in a spool for one DSN; above it the oldest envelopes of the
            lowest class are dropped, and counted.
        spool_max_count: Largest number of envelopes in a spool for one DSN; None for no bound.
        spool_max_age: Seconds after which an envelope in a spool is dropped and counted.
        spool_segment_bytes: Size in bytes above which a file of a spool is closed, and the next one begun.
        spool_durability: `process`: accepted envelopes survive the end of every process. `host`: they also
            survive a loss of power; each capture waits for a sync of the disk.
        spool_drain: Whether this process may deliver from the spool; False leaves that to other processes.
        spool_credentials: Whether the DSN is stored in the spool, readable to its owner only, for a
            forwarder that does not get it in another way.
        spool_force: Whether a spool on a network filesystem is allowed.

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
    retry_statuses: tuple[int, ...] = _option(
        (407, 408, 421, 425, *(status for status in range(500, 600) if status not in (501, 505, 510))),
        fields.ListOf(fields.Status(), ordered=True),
        shown="407, 408, 421, 425, 5xx but 501, 505, 510",
    )
    backoff_base: float = _option(0.5, fields.Number(0.001, 3600, "seconds"))
    backoff_max: float = _option(60.0, fields.Number(0.001, 86400, "seconds"))
    compression: str = _option("gzip", fields.Choice(("gzip", "isal", "br", "zstd", "none")))
    compression_level: int | None = _option(None, fields.Number(0, 22, whole=True, optional=True))
    ca_certs: str | None = _option(
        None, fields.Text(path=True), substitute=Substitute(None, _STOPS, Effect.STOPS)
    )
    client_cert: str | None = _option(
        None, fields.Text(path=True), substitute=Substitute(None, _STOPS, Effect.STOPS)
    )
    client_key: str | None = _option(
        None, fields.Text(path=True), substitute=Substitute(None, _STOPS, Effect.STOPS)
    )
    proxy: str | None = _option(
        None, fields.Text(), secret=True, substitute=Substitute(None, _STOPS, Effect.STOPS)
    )
    proxy_headers: tuple[tuple[str, str], ...] = _option(
        (), fields.HeaderPairs(), secret=True, substitute=Substitute((), _STOPS, Effect.STOPS)
    )
    no_proxy: str | None = _option(None, fields.Text(), substitute=Substitute(None, _STOPS, Effect.STOPS))
    trust_env: bool = _option(True, fields.Flag(), substitute=Substitute(False, _STOPS, Effect.STOPS))
    keep_alive: bool = _option(True, fields.Flag())
    send_client_reports: bool = _option(
        True, fields.Flag(), substitute=Substitute(False, "no client reports are sent")
    )
    client_report_interval: float = _option(60.0, fields.Number(0.01, 86400, "seconds"))
    handle_sigterm: bool = _option(True, fields.Flag())
    queue: str = _option(
        "memory",
        fields.Text(optional=False),
        substitute=Substitute(
            "memory", "envelopes wait in memory only, and end with the process", Effect.FAILS
        ),
    )
    spool_max_bytes: int = _option(512 * 1024 * 1024, fields.Number(1024 * 1024, 1 << 50, whole=True))
    spool_max_count: int | None = _option(None, fields.Number(1, 1 << 40, whole=True, optional=True))
    spool_max_age: float = _option(7 * 86400.0, fields.Number(1, 3650 * 86400, "seconds"))
    spool_segment_bytes: int = _option(1024 * 1024, fields.Number(64 * 1024, 1 << 30, whole=True))
    spool_durability: str = _option(
        "process",
        fields.Choice(("process", "host")),
        substitute=Substitute("host", "host, the stronger one, is used"),
    )
    spool_drain: bool = _option(True, fields.Flag())
    spool_credentials: bool = _option(False, fields.Flag())
    spool_force: bool = _option(False, fields.Flag())

    def without(self, error: OptionsError, source: str) -> tuple[OptionProblem, TransportOptions]:
        """The options with a substitute for the one that `error` names, and the problem to show."""
        (option,) = (option for option in dataclasses.fields(self) if option.name == error.field)
        substitute = field_substitute(option)
        problem = OptionProblem(error.field, error.problem, source, substitute.words, substitute.effect)
        return problem, dataclasses.replace(self, **{error.field: substitute.value})

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
    """Options of a reporter: the contents of events.

    Attributes:
        release: The app's version, such as `shop@1.2.0`; at most 200 characters.
        environment: Such as `production` (the default) or `staging`.
        dist: A build of the release.
        server_name: This host's name; None for the operating system's.
        send_default_pii: Whether user identity, client addresses, cookies and bodies are sent.
        in_app_include: Module prefixes that are the app's own; wins over `in_app_exclude`.
        in_app_exclude: Module prefixes that are not the app's own.
        before_send: Called with `(event, hint)`; returns the event to send, or None to drop it. An
            exception drops it too. Dropped events are counted as `before_send`.
        detect_release: Whether a missing `release` is detected once, at the start: from the environment of
            known platforms, the git checkout, or `pyproject.toml`.
        sample_rate: Share of error events that are sent; the others are counted.
        max_breadcrumbs: Largest number of breadcrumbs in an event; at most 100.
        max_request_body_size: Bodies that are sent, with `send_default_pii`: `never`, `small` (up to
            1000 bytes), `medium` (10 000) or `always`; an event contains at most 8 KiB of one.
        traces_sample_rate: Share of new traces whose transactions are sent; None (the default) turns
            tracing off: traces are continued and propagated, but nothing is measured.
        traces_sampler: Called with a dict (`name`, `source`, `op`, `parent_sampled`, `request`); returns
            the rate for this transaction, or None for `traces_sample_rate`. Overrides the caller's decision.
        trace_propagation_targets: URLs for which `outgoing_headers` makes headers: texts that they contain,
            or compiled patterns; None for all.
        propagate_traceparent: Whether W3C `traceparent` is sent, and read if there is no `sentry-trace`.
        strict_trace_continuation: Whether a trace is continued only if it names the same organisation.
        auto_session_tracking: Whether each request's outcome is counted in sessions; needs a release.
    """

    release: str | None = _option(None, fields.Text(longest=200))
    environment: str = _option("production", fields.Text(optional=False))
    dist: str | None = _option(None, fields.Text())
    server_name: str | None = _option(None, fields.Text())
    send_default_pii: bool = _option(
        False, fields.Flag(), substitute=Substitute(False, "no personal data is sent")
    )
    in_app_include: tuple[str, ...] = _option((), fields.ListOf(fields.Word()))
    in_app_exclude: tuple[str, ...] = _option((), fields.ListOf(fields.Word()))
    before_send: _BeforeSend | None = _option(None, fields.Callback(), substitute=_UNFILTERED)  # noqa: RUF009 - makes a field
    detect_release: bool = _option(
        True, fields.Flag(), substitute=Substitute(False, "no release is looked for")
    )
    sample_rate: float = _option(
        1.0, fields.Number(0, 1), substitute=Substitute(0.0, "no error event is sent until it is mended")
    )
    max_breadcrumbs: int = _option(
        100, fields.Number(0, 100, whole=True), substitute=Substitute(0, "no breadcrumbs are sent")
    )
    max_request_body_size: str = _option(
        "medium",
        fields.Choice(("never", "small", "medium", "always")),
        substitute=Substitute("never", "no body is sent"),
    )
    traces_sample_rate: float | None = _option(
        None, fields.Number(0, 1, optional=True), substitute=Substitute(None, "nothing is traced")
    )
    traces_sampler: _TracesSampler | None = _option(None, fields.Callback(), substitute=_UNSAMPLED)  # noqa: RUF009 - makes a field
    trace_propagation_targets: tuple[str | re.Pattern[str], ...] | None = _option(
        None,
        fields.ListOf(fields.Target(), optional=True),
        substitute=Substitute((), "no trace headers are sent"),
    )
    propagate_traceparent: bool = _option(False, fields.Flag())
    strict_trace_continuation: bool = _option(
        False,
        fields.Flag(),
        substitute=Substitute(True, "only traces of the same organisation are continued"),
    )
    auto_session_tracking: bool = _option(
        True, fields.Flag(), substitute=Substitute(False, "no sessions are sent")
    )


@dataclass(frozen=True, kw_only=True)
class IntegrationOptions(_Options):
    """Options of an integration: routes, health details, and the treatment of configuration errors.

    Attributes:
        path: Where live, ready, health and flush answer; None leaves the routes out.
        flush_token: Bearer token for `POST flush` and for health details; None turns flush off.
        health_details: `always`, or `token`: without the token only the status is shown.
        server_url: Where commands of the app ask its running server, such as http://127.0.0.1:8000.
        ready_requires_delivery: Whether `ready` answers 503 while health is `fail`.
        strict: Whether a configuration error is raised instead of reported by health.
        capture_errors: Whether exceptions that escape a request are captured.
    """

    path: str | None = _option("/transport", fields.Text())
    flush_token: str | None = _option(
        None,
        fields.Text(),
        secret=True,
        substitute=Substitute(None, "flush is off and health shows no details"),
    )
    health_details: str = _option("token", fields.Choice(("token", "always")))
    server_url: str | None = _option(None, fields.Text())
    ready_requires_delivery: bool = _option(False, fields.Flag())
    strict: bool = _option(False, fields.Flag())
    capture_errors: bool = _option(
        True, fields.Flag(), substitute=Substitute(False, "exceptions that escape a request are not captured")
    )

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
    problems: list[OptionProblem] | None = ...,
    tolerant: bool = ...,
) -> tuple[_A]: ...
@overload
def resolve(
    values: Mapping[str, object],
    classes: tuple[type[_A], type[_B]],
    *,
    source: str = ...,
    environ: Mapping[str, str] | None = ...,
    problems: list[OptionProblem] | None = ...,
    tolerant: bool = ...,
) -> tuple[_A, _B]: ...
@overload
def resolve(
    values: Mapping[str, object],
    classes: tuple[type[_A], type[_B], type[_C]],
    *,
    source: str = ...,
    environ: Mapping[str, str] | None = ...,
    problems: list[OptionProblem] | None = ...,
    tolerant: bool = ...,
) -> tuple[_A, _B, _C]: ...
def resolve(
    values: Mapping[str, object],
    classes: tuple[type[_Options], ...],
    *,
    source: str = "arguments",
    environ: Mapping[str, str] | None = None,
    problems: list[OptionProblem] | None = None,
    tolerant: bool = False,
) -> tuple[_Options, ...]:
    """Return one instance of each class, from `values`, and from `TRANSPORT_KIT_*` for other options.

    Variables with the prefix that are no option are ignored, and named in one log line: Kubernetes and Docker
    set some for a service that has this library's name.

    Args:
        values: Names in lower or upper case. A name outside `classes` can't be used.
        source: The origin of `values`, for messages.
        environ: None reads `os.environ`.
        problems: Receives the options in the environment that can't be used; a substitute is used for each.
            None to raise an error instead.
        tolerant: True to treat options in `values` in the same way.

    Raises:
        OptionsError: Names the field, its source, and for an unknown name the nearest known one.
    """
    resolution = _Resolution(classes, problems, source if tolerant else None)
    for key, value in values.items():
        resolution.take(str(key), value, source)
    resolution.take_environment(os.environ if environ is None else environ)
    resolution.settle_unknown()
    return tuple(resolution.build(cls, source) for cls in classes)


class _Resolution:
    """Collects values from several sources and builds options; an error is raised, or stored as a problem.

    Args:
        classes: The option classes.
        problems: See `resolve`.
        tolerated: The source whose errors are stored like those of the environment, or None.
    """

    def __init__(
        self, classes: tuple[type[_Options], ...], problems: list[OptionProblem] | None, tolerated: str | None
    ) -> None:
        self._fields = {option.name: option for cls in classes for option in dataclasses.fields(cls)}
        # Only the settings of an integration contain the DSN too.
        self._near = (*self._fields, "dsn") if IntegrationOptions in classes else tuple(self._fields)
        self._problems = problems
        self._tolerated = tolerated
        self._values: dict[str, Any] = {}
        self._sources: dict[str, str] = {}
        self._unknown: list[OptionsError] = []

    def take(self, key: str, value: object, source: str) -> None:
        name = key.lower()
        if name not in self._fields:
            self._unknown.append(OptionsError(key, _unknown_option(name, self._near), source))
        elif name in self._sources:
            self._settle(name, OptionsError(key, "given twice, in upper and in lower case", source))
        else:
            self._values[name] = value
            self._sources[name] = source

    def take_environment(self, environ: Mapping[str, str]) -> None:
        unknown = []
        for key, text in environ.items():
            if not key.startswith(ENV_PREFIX) or key == DSN_VARIABLE:
                continue
            name = key[len(ENV_PREFIX) :].lower()
            if name not in _ALL_NAMES:
                unknown.append(key)
            elif name in self._fields and name not in self._sources:
                self._sources[name] = f"environment {key}"
                try:
                    self._values[name] = field_kind(self._fields[name]).parse(text)
                except ValueError as problem:
                    self._settle(name, OptionsError(name, str(problem), self._sources[name]))
        warn_of_variables(unknown, _ALL_NAMES)

    def settle_unknown(self) -> None:
        """Store the unknown names of the mapping as problems, or raise an error for the first."""
        for error in self._unknown:
            self._settle_unknown(error)

    def build(self, cls: type[_Options], source: str) -> _Options:
        # Each round but the last settles one field.
        while True:
            values = {name: self._values[name] for name in cls.names() if name in self._values}
            try:
                return cls(**values)
            except OptionsError as error:
                name, problem = error.field, error.problem
                if name not in values and name in _PARTNERS and self._problems is not None:
                    name, problem = _PARTNERS[name], f"is refused: {name} {problem}"
                self._settle(name, OptionsError(name, problem, self._sources.get(name, source)))

    def _settle(self, name: str, error: OptionsError) -> None:
        """Store the error as a problem and use the substitute, or raise the error."""
        substitute = field_substitute(self._fields[name])
        self._collect(error, name, substitute.words, substitute.effect)
        self._values[name] = substitute.value

    def _settle_unknown(self, error: OptionsError) -> None:
        # A misspelt safeguard, such as `before_sned`, counts as one that can't be used.
        near = difflib.get_close_matches(error.field.lower(), list(self._fields), n=1, cutoff=0.8)
        if near and near[0] not in self._values and self._fields[near[0]].metadata["substitute"] is not None:
            substitute = field_substitute(self._fields[near[0]])
            self._collect(error, error.field, substitute.words, substitute.effect)
            self._values[near[0]] = substitute.value
        else:
            self._collect(error, error.field, "it is ignored", Effect.WARNS)

    def _collect(self, error: OptionsError, name: str, consequence: str, effect: Effect) -> None:
        source = error.source or ""
        if self._problems is None or not (source.startswith("environment ") or source == self._tolerated):
            raise error from None
        self._problems.append(OptionProblem(name, error.problem, source, consequence, effect))


#: The option at fault when the default of another one is refused because of it, by that other option.
_PARTNERS: Final = {"backoff_max": "backoff_base"}
_ALL_NAMES: Final = frozenset(name for cls in _ALL for name in cls.names())


def _unknown_option(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    if near is not None:
        return f"unknown option; did you mean {near}?"
    return "unknown option; docs/reference/options.md lists the known ones"
