"""The contract's site in Starlette."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from tests.contract.adapters import LOGGER, Adapter, KnownError, ShopError
from tests.contract.adapters.asgi import AsgiApp
from transport_kit import Kit, Scope
from transport_kit_starlette import TransportMiddleware, get_kit


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello", headers={"X-Shop": "yes"})


async def boom(request: Request) -> Response:
    raise ShopError("boom")


async def logged(request: Request) -> Response:
    try:
        raise ShopError("logged")
    except ShopError:
        LOGGER.exception("it went wrong")
        raise


async def handled(request: Request) -> Response:
    try:
        raise ShopError("handled")
    except ShopError as error:
        return PlainTextResponse(get_kit(request).capture_exception(error))


async def answered(request: Request) -> Response:
    raise KnownError("known")


async def know(request: Request, error: Exception) -> Response:
    return PlainTextResponse("we know", 400)


async def page(request: Request, error: Exception) -> Response:
    return PlainTextResponse("our page", 500)


HANDLERS: Any = {KnownError: know, 500: page}


async def tagged(request: Request) -> Response:
    number = request.path_params["number"]
    Scope.current().set_tag("number", number)
    await asyncio.sleep(0)
    raise ShopError(f"tagged {number}")


@contextmanager
def make(dsn: Any, *, nested: bool = False, **options: Any) -> Iterator[AsgiApp]:
    routes: list[Any] = [
        Route("/", hello),
        Route("/boom", boom),
        Route("/logged", logged),
        Route("/handled", handled),
        Route("/answered", answered),
        Route("/tagged/{number}", tagged),
    ]
    if dsn is None:
        yield AsgiApp(Starlette(routes=routes, exception_handlers=HANDLERS), lambda: None)
        return
    kit = Kit({"dsn": dsn, **options}, source="test", environ={})
    if nested:
        routes = [Mount("/", TransportMiddleware(Starlette(routes=routes), kit=kit))]
    app = Starlette(routes=routes, exception_handlers=HANDLERS)
    app.add_middleware(TransportMiddleware, kit=kit)
    yield AsgiApp(app, lambda: kit)


ADAPTER = Adapter("starlette", make, route=("/tagged/{number}", "route"))
