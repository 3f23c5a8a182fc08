"""The factory: the single place that picks a transport and its parts.

Owns what a target means. Returns a transport or raises; it never falls back to another kind silently.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from transport_kit.dsn import Dsn
from transport_kit.errors import InvalidDsn, OptionsError
from transport_kit.http import BaseHttpTransport, HttpTransport
from transport_kit.log import log
from transport_kit.options import ENV_PREFIX, TransportOptions, resolve
from transport_kit.transport import FunctionTransport, NullTransport, Transport

__all__ = ["DSN_VARIABLE", "Target", "build_transport", "make_transport"]

#: The environment variable that names the DSN when no target is given.
DSN_VARIABLE = ENV_PREFIX + "DSN"
#: What `make_transport` takes; see there.
Target = str | Dsn | Transport | type[Transport] | Callable[..., object] | None


def make_transport(target: Target = None, **options: Any) -> Transport:
    """A transport for `target`, with `TransportOptions` fields as keyword arguments.

    Args:
        target: DSN text or a `Dsn`: delivers there over HTTP. A callable: called with each envelope, in
            the caller. A `Transport`: itself. A class of transport: an instance of it. None: what
            `TRANSPORT_KIT_DSN` says. "", or None without that variable: nothing is delivered.
        options: Fields of `TransportOptions`. What is not given here is read from `TRANSPORT_KIT_*`.

    Raises:
        InvalidDsn: The DSN can't be used; the text says why and never shows it.
        OptionsError: An option is unknown (the nearest one is suggested) or can't be used.
    """
    if isinstance(target, Transport):
        if options:
            raise OptionsError(min(options), "can't be set: the transport given as target exists already")
        return target
    (resolved,) = resolve(options, (TransportOptions,))
    if target is None:
        target = _dsn_of_environment()
    return build_transport(target, resolved)


def build_transport(target: Target, options: TransportOptions) -> Transport:
    """`make_transport` for options that are resolved. Reads no environment, so None means off; only the
    DSN for a class of HTTP transport has no other place to come from.
    """
    if isinstance(target, Transport):
        return target
    if isinstance(target, type) and issubclass(target, BaseHttpTransport):
        dsn = _dsn_of_environment()
        if dsn is None:
            raise OptionsError("target", f"{target.__name__} needs a DSN: set {DSN_VARIABLE}")
        return target(dsn, options)
    if isinstance(target, type) and issubclass(target, Transport):
        return target(options)
    if isinstance(target, Dsn):
        return HttpTransport(target, options)
    if target is None or (isinstance(target, str) and not target.strip()):
        return NullTransport(options)
    if isinstance(target, str):
        return HttpTransport(_parsed(target), options)
    if callable(target):
        return FunctionTransport(target, options)
    raise OptionsError("target", f"must be a DSN, a callable or a transport, not {type(target).__name__}")


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
