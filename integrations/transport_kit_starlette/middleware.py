"""`TransportMiddleware`: one ASGI layer around an app. It translates, starts and stops; the kit decides.

Owns the translation of ASGI: which request is one of ours, what an escaped exception was about, and the
moment before the server is told that the app has shut down. Reads no body and changes no message.

Threads: runs on the event loop's thread. Capturing there is building and queueing an event, no I/O;
closing and flushing wait on a thread of their own.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Final
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from transport_kit import Kit, RequestInfo, new_scope
from transport_kit_starlette.routes import KIT_KEY, header, respond

__all__ = ["TransportMiddleware"]

logger = logging.getLogger("transport_kit")

_MECHANISMS: Final = {"http": "auto.http.starlette", "websocket": "auto.websocket.starlette"}
_LIFESPAN: Final = "auto.lifespan.starlette"
#: After each of these the server may end the event loop.
_LAST_MESSAGES: Final = frozenset(
    {"lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed"}
)
#: Bytes of a body that are kept, and only with `send_default_pii`; no event holds more.
_BODY_KEPT: Final = 8 * 1024 + 1


class TransportMiddleware:
    """Delivers what goes wrong in a Starlette, FastAPI or other ASGI app, and says how that goes.

    Add it last, so that it is the outermost: `app.add_middleware(TransportMiddleware, dsn=DSN)`. Starlette
    builds middleware at the app's start, or with the first request; `TransportMiddleware(app, dsn=DSN)`
    builds it now, which is when `strict=True` raises.

    - `live`, `ready`, `health` and `flush` are answered here under `path`, before any other layer.
    - An exception that escapes the app is captured and goes on unchanged, also from a background task, a
      body that is being streamed, a websocket, and the app's own startup and shutdown. A client that went
      away is not an error: `ClientDisconnect`, `WebSocketDisconnect` and an `OSError` that the server's
      `send` raised are not captured. Cancellation never is.
    - The transport starts with the lifespan, or the first request where none comes (mounted, or a server
      without it), and is closed before the server learns that shutdown is complete. A second start of the
      app makes a new one.

    Args:
        app: The ASGI app to wrap; by position only, so that type checkers let `add_middleware` pass options.
        dsn: What `make_transport` takes; None reads `TRANSPORT_KIT_DSN`, "" is off.
        kit: A kit of your own, to share it; instead of `dsn` and options.
        options: Any transport, reporter or integration option.

    Raises:
        TransportKitError: With `strict=True` only; otherwise a configuration error is one line in the log,
            and health says `fail`.
        TypeError: `kit` was given together with a DSN or options.
    """

    def __init__(
        self, app: ASGIApp, /, dsn: object = None, *, kit: Kit | None = None, **options: object
    ) -> None:
        if kit is None:
            kit = Kit({"dsn": dsn, **options}, source="TransportMiddleware")
        elif dsn is not None or options:
            raise TypeError("give TransportMiddleware either a kit, or a dsn and options")
        self.app = app
        self.kit = kit
        self._match = kit.match
        self._captures = kit.options.capture_errors
        # Bodies are sent with `send_default_pii` only, so without it no request pays for keeping one.
        self._keeps_bodies = kit.reporter.options.send_default_pii
        # The process in which the kit was started. Compared with each request: in a server without
        # lifespan the first one starts the kit, and the first one after a fork starts the child's.
        self._started_in = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind != "http" and kind != "websocket":
            if kind == "lifespan":
                await self._lifespan(scope, receive, send)
            else:
                await self.app(scope, receive, send)
            return
        # Kept from here: a Mount further in changes them in this very dict.
        path, root_path = scope["path"], scope.get("root_path", "")
        if kind == "http":
            leaf = self._match(_below(path, root_path) if root_path else path)
            if leaf is not None:
                await respond(self.kit, leaf, scope, send)
                return
        if self._started_in != os.getpid():
            self._start()
        scope[KIT_KEY] = self.kit
        if self._keeps_bodies:
            receive = _Tee(receive)
        with new_scope():
            try:
                await self.app(scope, receive, send)
            except Exception as error:
                if self._captures and not _is_disconnect(error, send):
                    self._capture(error, scope, path, root_path, receive)
                raise

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def close_before_last(message: Message) -> None:
            if message["type"] in _LAST_MESSAGES:
                # The app sends `failed` while it handles what failed: captured now, or never delivered.
                error = sys.exc_info()[1]
                if self._captures and isinstance(error, Exception) and message["type"].endswith("failed"):
                    self.kit.capture_exception(error, mechanism=_LIFESPAN, handled=False)
                await self._close()
            await send(message)

        self._start()
        await self.app(scope, receive, close_before_last)

    def _start(self) -> None:
        self._started_in = os.getpid()
        try:
            self.kit.start()
        except Exception:
            logger.exception("the transport could not be started")

    async def _close(self) -> None:
        try:
            await self.kit.aclose()
        except Exception:
            logger.exception("the transport could not be closed")

    def _capture(self, error: Exception, scope: Scope, path: str, root_path: str, receive: Receive) -> None:
        try:
            request = _request_info(scope, path, root_path, receive)
        except Exception:
            # A scope that breaks the ASGI specification: the exception is still worth its report.
            logger.warning("the request of an event could not be read", exc_info=True)
            request = None
        self.kit.capture_exception(
            error,
            mechanism=_MECHANISMS[scope["type"]],
            handled=False,
            request=request,
            transaction=_whole(path, root_path),
        )


class _Tee:
    """Hands on what `receive` brings, and keeps the beginning of the body."""

    __slots__ = ("_receive", "body")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.body = b""

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and len(self.body) < _BODY_KEPT:
            self.body += message.get("body", b"")[: _BODY_KEPT - len(self.body)]
        return message


def _below(path: str, root_path: str) -> str:
    """The path below the mount point. Some servers put `root_path` in front of `path`, some leave it out."""
    if path.startswith(root_path) and path[len(root_path) : len(root_path) + 1] in ("", "/"):
        return path[len(root_path) :]
    return path


def _whole(path: str, root_path: str) -> str:
    """The path as the client knows it, whether or not the server put `root_path` in front."""
    return root_path + _below(path, root_path)


def _request_info(scope: Scope, path: str, root_path: str, receive: Receive) -> RequestInfo:
    server, client = scope.get("server"), scope.get("client")
    env = {}
    if server:
        env = {"SERVER_NAME": str(server[0]), "SERVER_PORT": str(server[1])}
    host = header(scope, b"host") or ":".join(env.values())
    return RequestInfo(
        method=scope.get("method", "GET"),  # a websocket begins with a GET (RFC 6455 section 4.1)
        url=f"{scope.get('scheme', 'http')}://{host}{quote(_whole(path, root_path))}",
        query_string=scope.get("query_string", b"").decode("latin-1"),
        headers=tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]),
        data=receive.body if isinstance(receive, _Tee) and receive.body else None,
        env=env,
        remote_addr=client[0] if client else None,
    )


def _is_disconnect(error: BaseException, send: Send) -> bool:
    """Whether the exception only says that the client went away."""
    if isinstance(error, ClientDisconnect | WebSocketDisconnect):
        return True
    if isinstance(error, BaseExceptionGroup):
        return all(_is_disconnect(one, send) for one in error.exceptions)
    # ASGI lets a server's `send` raise OSError then; an OSError from anywhere else is the app's own.
    return isinstance(error, OSError) and _came_through(send, error)


def _came_through(send: Send, error: BaseException) -> bool:
    """Whether `send`, a function, a method or an object, is among the frames that the exception left."""
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
