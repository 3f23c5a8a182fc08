"""Facts: a Flask request as plain values, computed on demand.

This module owns the translation of an environ and a `Request` into plain values. It reads no stream, opens no
session, queries no database and calls no method of the app's objects.

Threads: an instance belongs to one request; its methods run on the thread that makes an event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from flask import Request, g, has_app_context
from werkzeug.exceptions import ClientDisconnected

from transport_kit import RequestFacts, RequestInfo

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["FlaskFacts", "KEY"]

#: Key of a request's `FlaskFacts` in its environ, from the layer to the request's end.
KEY: Final = "transport_kit.facts"
#: Bytes of a body that are read; no event contains more.
_BODY_KEPT: Final = 8 * 1024 + 1
_PORTS: Final = {"http": "80", "https": "443"}


class FlaskFacts(RequestFacts):
    """The facts of one request.

    Attributes:
        environ: The WSGI environ.
        request: Flask's request, set after routing.
        streams: True if the body is generated after Flask has returned the response.
    """

    __slots__ = ("environ", "request", "streams")

    def __init__(self, environ: WSGIEnvironment, request: Request | None = None) -> None:
        self.environ = environ
        self.request = request
        self.streams = False

    def named(self) -> tuple[str, str]:
        """Return the mount's prefix and the route; the path before routing, and if no route matches."""
        rule = None if self.request is None else self.request.url_rule
        if rule is not None:
            prefix = self.environ.get("SCRIPT_NAME")
            return (_text(prefix) + rule.rule if prefix else rule.rule), "route"
        return _text(_path(self.environ)), "url"

    def header(self, name: str) -> str | None:
        """Return a header by its lower-case name; None if it is absent."""
        value: str | None = self.environ.get(f"HTTP_{name.upper().replace('-', '_')}")
        return value

    def describe(self) -> RequestInfo:
        """Return the request as plain values; the body only if the app has read and cached it.

        Not by `Request.url`, which raises for invalid hosts, which an event should show.
        """
        environ = self.environ
        scheme = environ.get("wsgi.url_scheme", "http")
        name, port = str(environ.get("SERVER_NAME", "")), str(environ.get("SERVER_PORT", ""))
        host = environ.get("HTTP_HOST") or (name if port in ("", _PORTS.get(scheme)) else f"{name}:{port}")
        return RequestInfo.from_environ(
            environ,
            url=f"{scheme}://{host}{quote(_bytes(_path(environ)))}",
            data=None if self.request is None else _body(vars(self.request)),
        )

    def user(self) -> Mapping[str, object] | None:
        """Return the user that Flask-Login has loaded, with the attributes that are in memory."""
        return self.user_in(getattr(g.get("_login_user"), "__dict__", {})) if has_app_context() else None

    def is_expected(self, error: BaseException) -> bool:
        """Return True if the exception means that the client disconnected."""
        return isinstance(error, ClientDisconnected)


def _path(environ: WSGIEnvironment) -> str:
    return str(environ.get("SCRIPT_NAME", "")) + str(environ.get("PATH_INFO", ""))


def _bytes(text: str) -> bytes:
    """Return the bytes of a WSGI string, in which each character stands for a byte (PEP 3333)."""
    return text.encode("latin-1", "replace")


def _text(text: str) -> str:
    return _bytes(text).decode("utf-8", "replace")


def _body(attributes: Mapping[str, Any]) -> object | None:
    """Return the body that the app has read, from the request's instance dict: a parsed form, else bytes."""
    form = attributes.get("form")
    if form:
        return {name: values[0] if len(values) == 1 else values for name, values in form.lists()}
    data: bytes | None = attributes.get("_cached_data")
    return data[:_BODY_KEPT] if data else None
