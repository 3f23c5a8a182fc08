"""The Starlette example, with a slow view; and a plain ASGI app without lifespan support."""

from __future__ import annotations

from tests.process.servers import noting  # isort: skip - watches before the app is made

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from example_apps.starlette_app.app import app
from transport_kit_starlette import TransportMiddleware

__all__ = ["app", "bare"]


def later(request: Request) -> Response:
    """The slow view; Starlette runs it on a thread, as it sleeps."""
    noting.later()


app.add_route("/later", later)


async def _bare(scope: Scope, receive: Receive, send: Send) -> None:
    """Raise for a lifespan, as the specification allows."""
    assert scope["type"] == "http", "only http"
    if scope["path"] == "/later":
        await asyncio.to_thread(noting.later)
    if scope["path"] != "/carts/1":
        raise RuntimeError(f"there is no {scope['path']}")
    await JSONResponse({"items": []})(scope, receive, send)


# The DSN comes from the environment.
bare = TransportMiddleware(_bare)
