"""Starlette apps for tests, and their errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from transport_kit_starlette import TransportMiddleware


class CartError(Exception):
    """An error of the app."""


async def fail(request: Request) -> Response:
    raise CartError("bad cart")


def failing(error: BaseException) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise error

    return app


def site(sink: Any, *routes: Any, middleware: tuple[Middleware, ...] = (), **options: Any) -> Starlette:
    return Starlette(
        routes=[*routes],
        middleware=[Middleware(TransportMiddleware, dsn=sink, **options), *middleware],
    )


class Passing(BaseHTTPMiddleware):
    """A middleware that runs the app in another task."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


def pages() -> list[Any]:
    async def plain(request: Request) -> Response:
        response = PlainTextResponse("hello", headers={"X-Own": "1"})
        response.set_cookie("a", "b")
        return response

    async def rows(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            for n in range(3):
                yield str(n).encode()

        return StreamingResponse(body(), media_type="text/csv")

    async def echo(request: Request) -> Response:
        return Response(await request.body())

    return [
        Route("/plain", plain),
        Route("/rows", rows),
        Route("/echo", echo, methods=["POST"]),
        Route("/fail", fail),
    ]
