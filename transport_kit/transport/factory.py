"""The factory: the single place that picks a transport and its parts.

Owns what a target means. Returns a transport or raises; it never falls back to another kind silently.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from transport_kit.config.dsn import DSN_VARIABLE, Dsn
from transport_kit.config.options import ENV_PREFIX, Effect, OptionProblem, TransportOptions, resolve
from transport_kit.queues.protocol import Queue
from transport_kit.runtime.errors import InvalidDsn, OptionsError
from transport_kit.runtime.log import log
from transport_kit.transport.base import Transport
from transport_kit.transport.http import BaseHttpTransport, HttpTransport
from transport_kit.transport.local import FunctionTransport, NullTransport

__all__ = ["Target", "build_transport", "make_transport", "spool_arguments"]

#: What `make_transport` takes; see there.
Target = str | Dsn | Transport | type[Transport] | Callable[..., object] | None


def make_transport(target: Target = None, **options: Any) -> Transport:
    """A transport for `target`, with `TransportOptions` fields as keyword arguments.

    Args:
        target: DSN text or a `Dsn`: delivers there over HTTP. A callable: called with each envelope, in
            the caller. A `Transport`: itself. A class of transport: an instance of it. None: what
            `TRANSPORT_KIT_DSN` says. "", or None without that variable: nothing is delivered.
        options: Fields of `TransportOptions`. What is not given here is read from `TRANSPORT_KIT_*`; of
            these a value that can't be used is logged, shown by health, and replaced by one that is safe.

    Raises:
        InvalidDsn: The DSN can't be used; the text says why and never shows it.
        OptionsError: An argument is unknown (the nearest option is suggested) or can't be used.
    """
    if isinstance(target, Transport):
        if options:
            raise OptionsError(min(options), "can't be set: the transport given as target exists already")
        return target
    problems: list[OptionProblem] = []
    (resolved,) = resolve(options, (TransportOptions,), problems=problems)
    for problem in problems:
        log.error("an option can't be used: %s", problem)
    if target is None:
        target = _dsn_of_environment()
    given = {name.lower() for name in options}
    tolerated = {
        name: f"environment {ENV_PREFIX}{name.upper()}"
        for name in TransportOptions.names()
        if name not in given
    }
    return build_transport(target, resolved, problems, tolerated)


def build_transport(
    target: Target,
    options: TransportOptions,
    problems: Iterable[OptionProblem] = (),
    tolerated: Mapping[str, str] | None = None,
) -> Transport:
    """`make_transport` for options that are resolved. Reads no environment, so None means off; only the
    DSN for a class of HTTP transport has no other place to come from.

    Args:
        problems: Options that could not be used; the transport's health shows them. One that stops HTTP
            makes a `NullTransport` of what would be an HTTP transport.
        tolerated: Options, and where each was given, for which a substitute is used, logged and shown by
            health where the transport can't be built with them. The errors of others are raised.
    """
    problems = list(problems)
    while True:
        stop = next((str(problem) for problem in problems if problem.effect is Effect.STOPS), None)
        try:
            transport = _build(target, options, stop)
        except OptionsError as error:
            name = error.field
            if not tolerated or name not in tolerated or any(problem.name == name for problem in problems):
                raise
            problem, options = options.without(error, tolerated[name])
            log.error("an option can't be used: %s", problem)
            problems.append(problem)
        else:
            transport.note_option_problems(problems)
            return transport


def _build(target: Target, options: TransportOptions, stop: str | None) -> Transport:
    if isinstance(target, Transport):
        return target
    if isinstance(target, type) and issubclass(target, BaseHttpTransport):
        dsn = _dsn_of_environment()
        if dsn is None:
            raise OptionsError("target", f"{target.__name__} needs a DSN: set {DSN_VARIABLE}")
        return _over_http(target, dsn, options, stop)
    if isinstance(target, type) and issubclass(target, Transport):
        return target(options)
    if isinstance(target, Dsn):
        return _over_http(HttpTransport, target, options, stop)
    if target is None or (isinstance(target, str) and not target.strip()):
        return NullTransport(options)
    if isinstance(target, str):
        return _over_http(HttpTransport, _parsed(target), options, stop)
    if callable(target):
        return FunctionTransport(target, options)
    raise OptionsError("target", f"must be a DSN, a callable or a transport, not {type(target).__name__}")


def _over_http(
    kind: type[BaseHttpTransport], dsn: Dsn, options: TransportOptions, stop: str | None
) -> Transport:
    if stop is not None:
        return NullTransport(options, problem=stop)
    if options.spool_path is None:
        return kind(dsn, options)
    return kind(dsn, options, make_queue=_spool_maker(dsn, options, options.spool_path))


def spool_arguments(options: TransportOptions) -> dict[str, Any]:
    """What the options say of a spool, as arguments of `FileSpool`."""
    return {
        "max_bytes": options.spool_max_bytes,
        "max_count": options.spool_max_count,
        "max_age": options.spool_max_age,
        "segment_bytes": options.spool_segment_bytes,
        "durability": options.spool_durability,
        "memory_items": options.max_queue_items,
        "memory_bytes": options.max_queue_bytes,
        "force": options.spool_force,
    }


def _spool_maker(dsn: Dsn, options: TransportOptions, path: str) -> Callable[[], Queue]:
    """Makes a process's queue. What a person has to put right is an error for the first, and only trouble
    for that of a forked child: nobody expects an exception there."""
    try:
        from transport_kit.queues.spool import FileSpool, identity_of
    except ImportError:
        raise OptionsError("queue", "a spool needs a POSIX system") from None
    first = True

    def make() -> Queue:
        nonlocal first
        strict, first = first, False
        return FileSpool(
            path,
            identity_of(dsn),
            **spool_arguments(options),
            drain=options.spool_drain,
            credentials=dsn.reveal() if options.spool_credentials else None,
            strict=strict,
        )

    return make


def _dsn_of_environment() -> Dsn | None:
    text = os.environ.get(DSN_VARIABLE, "")
    try:
        return _parsed(text) if text.strip() else None
    except InvalidDsn as error:
        raise InvalidDsn(error.reason, f"{error.hint} (environment {DSN_VARIABLE})") from None


def _parsed(text: str) -> Dsn:
    dsn = Dsn.parse(text)
    if not dsn.key_looks_valid:
        log.warning("the DSN's key is not 32 hexadecimal digits; most servers refuse such a key")
    return dsn
