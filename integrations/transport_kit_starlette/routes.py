"""Routes: the four routes of the kit as ASGI apps.

This module owns the translation of the kit's answers into messages. Threads: runs on the event loop's thread;
a flush waits on another thread.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from transport_kit import LEAVES, Kit, Leaf

__all__ = ["get_kit", "header", "KIT_KEY", "respond", "transport_routes"]

#: Key of the middleware's kit in the scope of each request.
KIT_KEY: Final = "transport_kit"


def get_kit(request: HTTPConnection | Scope) -> Kit:
    """Return the kit of the nearest `TransportMiddleware` around a request, a websocket or a bare ASGI scope.

    `get_kit(request).capture_exception()` reports an exception that the app handles itself.

    Raises:
        RuntimeError: No `TransportMiddleware` is around the app.
    """
    kit = request.get(KIT_KEY)
    if not isinstance(kit, Kit):
        raise RuntimeError("no TransportMiddleware is around this app; add it with app.add_middleware")
    return kit


def transport_routes(kit: Kit | None = None) -> list[BaseRoute]:
    """Return the four routes for a router, such as `Mount("/transport", routes=transport_routes())`.

    For apps that want them behind their own layers, together with `TransportMiddleware(path=None)`. Unlike
    the middleware's own routes, they come after all layers around the router, such as host checks, redirects
    and login.

    Args:
        kit: The kit whose state they show; by default that of the `TransportMiddleware` around the app.
    """
    return [
        Route(f"/{leaf}", _Endpoint(leaf, kit), name=f"transport_{leaf}", include_in_schema=False)
        for leaf in LEAVES
    ]


class _Endpoint:
    """An ASGI app for one leaf; being no function, it gets requests of all methods from the router."""

    def __init__(self, leaf: Leaf, kit: Kit | None) -> None:
        self._leaf = leaf
        self._kit = kit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond(self._kit or get_kit(scope), self._leaf, scope, send)


async def respond(kit: Kit, leaf: Leaf, scope: Scope, send: Send) -> None:
    """Answer one HTTP request for a leaf, without reading its body."""
    answer = await kit.aanswer(
        leaf,
        method=scope["method"],
        query_string=scope.get("query_string", b""),
        accept=header(scope, b"accept"),
        authorization=header(scope, b"authorization"),
    )
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def header(scope: Scope, name: bytes) -> str | None:
    """Return a header's text, several of the same name joined by a comma; None if it is absent."""
    values = [value.decode("latin-1") for key, value in scope["headers"] if key == name]
    return ", ".join(values) if values else None
