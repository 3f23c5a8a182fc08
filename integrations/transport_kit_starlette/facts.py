"""Facts: an ASGI request as plain values, computed on demand.

This module owns the translation of a scope into plain values, and the list of exceptions that mean a
disconnected client. It reads no body and calls no method of the app's objects; `route_names.py` finds the
route.

Threads: an instance belongs to one request; its methods run on the thread that makes an event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from transport_kit import RequestFacts, RequestInfo
from transport_kit_starlette.route_names import below, route_of
from transport_kit_starlette.routes import header

__all__ = ["BODY_KEPT", "StarletteFacts", "Tee"]

#: Bytes of a body that are kept, and only with `send_default_pii`; no event holds more.
BODY_KEPT: Final = 8 * 1024 + 1


class StarletteFacts(RequestFacts):
    """The facts of one request.

    Args:
        app: The wrapped app, whose routes name the request if the scope doesn't.
        scope: The request's scope.
        path: The scope's `path` before the app ran: an inner Mount changes it in the same dict.
        root_path: The scope's `root_path` before the app ran.
        send: The server's `send`.
        tee: Records the beginning of the body; None if bodies are not sent.
    """

    __slots__ = ("_app", "_outer", "_path", "_root_path", "_scope", "_send", "_tee")

    def __init__(
        self, app: ASGIApp, scope: Scope, path: str, root_path: str, send: Send, tee: Tee | None
    ) -> None:
        self._app = app
        self._outer: object = scope.get("app")
        self._scope = scope
        self._path = path
        self._root_path = root_path
        self._send = send
        self._tee = tee

    def named(self) -> tuple[str, str]:
        """Return the mount's prefix and the route; the path before routing, and if no route matches."""
        route = route_of(self._scope, self._path, self._root_path, (self._app, self._outer))
        if route:
            return self._root_path + route, "route"
        return self._whole_path(), "url"

    def header(self, name: str) -> str | None:
        """Return a header by its lower-case name; None if it is absent."""
        return header(self._scope, name.encode("latin-1"))

    def describe(self) -> RequestInfo:
        """Return the request as plain values; the body only as far as the app has read it."""
        scope = self._scope
        server, client = scope.get("server"), scope.get("client")
        env = {}
        if server:
            env = {"SERVER_NAME": str(server[0]), "SERVER_PORT": str(server[1])}
        host = header(scope, b"host") or ":".join(env.values())
        return RequestInfo(
            method=scope.get("method", "GET"),  # a websocket begins with a GET (RFC 6455 section 4.1)
            url=f"{scope.get('scheme', 'http')}://{host}{quote(self._whole_path())}",
            query_string=scope.get("query_string", b"").decode("latin-1"),
            headers=tuple(
                (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
            ),
            data=(self._tee.body or None) if self._tee is not None else None,
            env=env,
            remote_addr=client[0] if client else None,
        )

    def user(self) -> Mapping[str, object] | None:
        """Return the user that an authentication middleware put into the scope, without loading anything."""
        user = self._scope.get("user")
        return self.user_in(user if isinstance(user, dict) else getattr(user, "__dict__", {}))

    def is_expected(self, error: BaseException) -> bool:
        """Return True if the exception means that the client disconnected."""
        if isinstance(error, ClientDisconnect | WebSocketDisconnect):
            return True
        if isinstance(error, BaseExceptionGroup):
            return all(self.is_expected(one) for one in error.exceptions)
        # ASGI allows a server's `send` to raise OSError then; an OSError from elsewhere is an error of the
        # app.
        return isinstance(error, OSError) and _raised_by_send(self._send, error)

    def _whole_path(self) -> str:
        """Return the path that the client requested, whether or not the server prepends `root_path`."""
        return self._root_path + below(self._path, self._root_path)


class Tee:
    """A `receive` that records the beginning of the body."""

    __slots__ = ("_receive", "body")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.body = b""

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and len(self.body) < BODY_KEPT:
            self.body += message.get("body", b"")[: BODY_KEPT - len(self.body)]
        return message


def _raised_by_send(send: Send, error: BaseException) -> bool:
    """Return True if `send` (a function, method or callable object) is in the exception's traceback."""
    codes = {
        getattr(function, "__code__", None)
        for function in (send, getattr(send, "__func__", None), type(send).__call__)
    }
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False
