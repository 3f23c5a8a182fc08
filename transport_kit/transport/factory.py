"""The factory: chooses and builds the transport for a target.

This module owns the meaning of targets. It returns a transport or raises; it never falls back silently to
another kind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from transport_kit.config.dsn import Dsn
from transport_kit.config.environment import DSN_VARIABLE, ENV_PREFIX
from transport_kit.config.options import Effect, OptionProblem, TransportOptions, resolve
from transport_kit.queues.protocol import Queue
from transport_kit.runtime.errors import InvalidDsn, OptionsError
from transport_kit.runtime.log import log
from transport_kit.transport.base import Transport
from transport_kit.transport.http import BaseHttpTransport, HttpTransport
from transport_kit.transport.local import FunctionTransport, NullTransport

__all__ = ["Target", "build_transport", "make_transport", "spool_arguments"]

#: The targets that `make_transport` accepts; described there.
Target = str | Dsn | Transport | type[Transport] | Callable[..., object] | None


def make_transport(target: Target = None, **options: Any) -> Transport:
    """Return a transport for `target`.

    Args:
        target: DSN text or a `Dsn`: delivers there over HTTP. A callable: called with each envelope, on the
            capturing thread. A `Transport`: returned as it is. A class of transport: an instance of it.
            None: the DSN in `TRANSPORT_KIT_DSN`. "", or None without that variable: delivers nothing.
        options: Fields of `TransportOptions`. Others are read from `TRANSPORT_KIT_*`; an unusable value
            there is logged, shown by health, and replaced by a safe one.

    Raises:
        InvalidDsn: The DSN can't be used; the text contains the reason and never the DSN.
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
    """Return a transport for `target` with resolved options.

    Reads no environment, so None means off. The exception: a class of HTTP transport gets its DSN there.

    Args:
        target: As for `make_transport`.
        options: The options of the transport.
        problems: Options that could not be used; the transport's health shows them. If one of them stops
            HTTP, a `NullTransport` takes the place of an HTTP transport.
        tolerated: Option names and the source of each value. If the transport can't be built with such an
            option, a substitute is used, logged and shown by health. The errors of others are raised.
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
        return _over_http(HttpTransport, _parse_dsn(target), options, stop)
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
    """Return the spool options as keyword arguments of `FileSpool`."""
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
    """Return a function that makes one process's queue.

    An error that needs an intervention is raised for the first process. A forked child gets a queue that
    reports it as trouble instead, as no caller there expects an exception.
    """
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
        return _parse_dsn(text) if text.strip() else None
    except InvalidDsn as error:
        raise InvalidDsn(error.reason, f"{error.hint} (environment {DSN_VARIABLE})") from None


def _parse_dsn(text: str) -> Dsn:
    dsn = Dsn.parse(text)
    if not dsn.key_looks_valid:
        log.warning("the DSN's key is not 32 hexadecimal digits; most servers refuse such a key")
    return dsn
