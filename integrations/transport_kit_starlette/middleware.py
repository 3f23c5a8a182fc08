"""`TransportMiddleware`: one ASGI layer around an app. It translates between ASGI and the kit.

Answers the four routes, serves every other request in a unit of work, and starts and closes the transport
(`lifespan_events.py`). Reads no body and changes no message.

Threads: runs on the event loop's thread. A capture builds and queues an event there, without I/O; closing and
flushing wait on another thread.
"""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from transport_kit import Kit, ServedRequest
from transport_kit_starlette.facts import StarletteFacts, Tee
from transport_kit_starlette.lifespan_events import live
from transport_kit_starlette.route_names import below
from transport_kit_starlette.routes import KIT_KEY, respond

__all__ = ["TransportMiddleware"]

#: Type of scope -> the operation and the mechanism of its exceptions.
_SERVED_TYPES: Final = {
    "http": ("http.server", "auto.http.starlette"),
    "websocket": ("websocket.server", "auto.websocket.starlette"),
}


class TransportMiddleware:
    """Captures and delivers errors of a Starlette, FastAPI or other ASGI app, and serves the health routes.

    Add it last, so that it is the outermost: `app.add_middleware(TransportMiddleware, dsn=DSN)`. Starlette
    builds middleware at the app's start, or with the first request; `TransportMiddleware(app, dsn=DSN)`
    builds it now, which is when `strict=True` raises.

    - `live`, `ready`, `health` and `flush` are answered here under `path`, before any other layer.
    - An exception that escapes the app is captured and propagates unchanged, also from a background task, a
      streamed body, a websocket, and the app's own startup and shutdown. A disconnected client is not an
      error: `ClientDisconnect`, `WebSocketDisconnect` and an `OSError` raised by the server's `send` are
      not captured. Cancellation is never captured.
    - Each request and each websocket has its own scope, and is a transaction if it is sampled.
    - The transport starts with the lifespan, or with the first request if there is no lifespan (mounted, or
      a server without it), and is closed before the server learns that shutdown is complete. For an app
      without a lifespan, the middleware answers the lifespan itself. A second start of the app makes a new
      transport.

    Args:
        app: The ASGI app to wrap; positional only, so that type checkers let `add_middleware` pass options.
        dsn: As for `make_transport`; None reads `TRANSPORT_KIT_DSN`, "" turns delivery off.
        kit: An existing kit, to share it; instead of `dsn` and options.
        options: Any transport, reporter or integration option.

    Raises:
        TransportKitError: An invalid configuration, with `strict=True` only; otherwise it is logged, and the
            health status is `fail`.
        TypeError: `kit` was passed together with a DSN or options.
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
        # Bodies are sent with `send_default_pii` only, so otherwise none is recorded.
        self._keeps_bodies = kit.reporter.options.send_default_pii

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        served_type = _SERVED_TYPES.get(scope["type"])
        if served_type is None:
            if scope["type"] == "lifespan":
                await live(self.app, self.kit, scope, receive, send)
            else:
                await self.app(scope, receive, send)
            return
        # Read before the app runs: an inner Mount changes them in the same dict.
        path, root_path = scope["path"], scope.get("root_path") or ""
        if scope["type"] == "http":
            leaf = self._match(below(path, root_path) if root_path else path)
            if leaf is not None:
                await respond(self.kit, leaf, scope, send)
                return
        scope[KIT_KEY] = self.kit
        tee = None
        if self._keeps_bodies:
            receive = tee = Tee(receive)
        facts = StarletteFacts(self.app, scope, path, root_path, send, tee)
        op, mechanism = served_type
        served = self.kit.serve(facts, op=op, mechanism=mechanism)
        if served.transaction is not None:
            send = _record_status(send, served)
        try:
            await self.app(scope, receive, send)
        except BaseException as error:
            served.finish(error)
            raise
        served.finish()


def _record_status(send: Send, served: ServedRequest) -> Send:
    """Return a `send` that also sets the status of the transaction."""

    async def record(message: Message) -> None:
        status = message.get("status")
        if status is not None:
            served.status = status
        await send(message)

    return record
