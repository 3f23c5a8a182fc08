"""What is known of a Flask request without asking anyone; each answer is made when it is asked for.

Owns the translation of an environ and a `Request` into plain values. Reads no stream, opens no session,
asks no database and calls no method of the app's objects.

Threads: one request's, on whichever thread asks.
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

__all__ = ["Facts", "KEY"]

#: Where the environ of a request holds its `Facts`, from the layer to the request's end.
KEY: Final = "transport_kit.facts"
#: Bytes of a body that are looked at; no event holds more.
_BODY_KEPT: Final = 8 * 1024 + 1
_PORTS: Final = {"http": "80", "https": "443"}


class Facts(RequestFacts):
    """One request as the reporter asks for it.

    Attributes:
        environ: Of WSGI, as the layer got it.
        request: Flask's, from when it has looked for the route to the end.
        streams: Whether its body is made after Flask is done.
    """

    __slots__ = ("environ", "request", "streams")

    def __init__(self, environ: WSGIEnvironment, request: Request | None = None) -> None:
        self.environ = environ
        self.request = request
        self.streams = False

    def named(self) -> tuple[str, str]:
        """The mount's prefix and the route; the path until there is a route, and when none fits."""
        rule = None if self.request is None else self.request.url_rule
        if rule is not None:
            prefix = self.environ.get("SCRIPT_NAME")
            return (_text(prefix) + rule.rule if prefix else rule.rule), "route"
        return _text(_path(self.environ)), "url"

    def header(self, name: str) -> str | None:
        """A header by its lower-case name."""
        value: str | None = self.environ.get(f"HTTP_{name.upper().replace('-', '_')}")
        return value

    def describe(self) -> RequestInfo:
        """The request as plain values; the body only as far as the app has read and kept it.

        Not through `Request.url`, which refuses the very hosts that an event should show.
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
        """The user that Flask-Login has loaded, as far as its attributes are in memory."""
        return self.user_in(getattr(g.get("_login_user"), "__dict__", {})) if has_app_context() else None

    def is_expected(self, error: BaseException) -> bool:
        """Whether the exception only says that the client went away."""
        return isinstance(error, ClientDisconnected)


def _path(environ: WSGIEnvironment) -> str:
    return str(environ.get("SCRIPT_NAME", "")) + str(environ.get("PATH_INFO", ""))


def _bytes(text: str) -> bytes:
    """What a WSGI string stands for: each of its characters is a byte (PEP 3333)."""
    return text.encode("latin-1", "replace")


def _text(text: str) -> str:
    return _bytes(text).decode("utf-8", "replace")


def _body(held: Mapping[str, Any]) -> object | None:
    """What the app has read of the body, from the request's own dict: parsed if it is a form, else bytes."""
    form = held.get("form")
    if form:
        return {name: found[0] if len(found) == 1 else found for name, found in form.lists()}
    data: bytes | None = held.get("_cached_data")
    return data[:_BODY_KEPT] if data else None
