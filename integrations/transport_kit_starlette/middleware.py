"""`TransportMiddleware`: one ASGI layer around an app. It translates, starts and stops; the kit decides.

Owns the translation of ASGI: which request is one of ours, where each other one begins and ends, and the
life of the transport (`lifespan_events.py`). Reads no body and changes no message.

Threads: runs on the event loop's thread. Capturing there is building and queueing an event, no I/O;
closing and flushing wait on a thread of their own.
"""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from transport_kit import Kit, ServedRequest
from transport_kit_starlette.facts import Facts, Tee
from transport_kit_starlette.lifespan_events import live
from transport_kit_starlette.route_names import below
from transport_kit_starlette.routes import KIT_KEY, respond

__all__ = ["TransportMiddleware"]

#: Per type of scope: the operation, and how its exceptions are caught.
_KINDS: Final = {
    "http": ("http.server", "auto.http.starlette"),
    "websocket": ("websocket.server", "auto.websocket.starlette"),
}


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
    - Each request and each websocket has a scope of its own, and is a transaction when it is sampled.
    - The transport starts with the lifespan, or the first request where none comes (mounted, or a server
      without it), and is closed before the server learns that shutdown is complete. Where the app knows no
      lifespan, it is answered here. A second start of the app makes a new transport.

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
        # Bodies are sent with `send_default_pii` only, so without it no request pays for keeping one.
        self._keeps_bodies = kit.reporter.options.send_default_pii

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = _KINDS.get(scope["type"])
        if kind is None:
            if scope["type"] == "lifespan":
                await live(self.app, self.kit, scope, receive, send)
            else:
                await self.app(scope, receive, send)
            return
        # Kept from here: a Mount further in changes them in this very dict.
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
        facts = Facts(self.app, scope, path, root_path, send, tee)
        op, mechanism = kind
        served = self.kit.serve(facts, op=op, mechanism=mechanism)
        if served.transaction is not None:
            send = _noting_status(send, served)
        try:
            await self.app(scope, receive, send)
        except BaseException as error:
            served.finish(error)
            raise
        served.finish()


def _noting_status(send: Send, served: ServedRequest) -> Send:
    """`send`, telling a transaction what the client is told. Nothing else asks for it."""

    async def note(message: Message) -> None:
        status = message.get("status")
        if status is not None:
            served.status = status
        await send(message)

    return note
