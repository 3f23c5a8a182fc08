"""The contract's site in FastAPI, on the middleware for Starlette."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse

from tests.contract.adapters import LOGGER, Adapter, KnownError, ShopError
from tests.contract.adapters.asgi import AsgiApp
from transport_kit import Kit, Scope
from transport_kit_starlette import TransportMiddleware, get_kit


def site() -> FastAPI:
    app = FastAPI()

    @app.get("/")
    async def hello() -> Response:
        return PlainTextResponse("hello", headers={"X-Shop": "yes"})

    @app.get("/boom")
    def boom() -> None:  # not async: FastAPI runs it on a thread
        raise ShopError("boom")

    @app.get("/logged")
    async def logged() -> None:
        try:
            raise ShopError("logged")
        except ShopError:
            LOGGER.exception("it went wrong")
            raise

    @app.get("/handled")
    async def handled(request: Request) -> Response:
        try:
            raise ShopError("handled")
        except ShopError as error:
            return PlainTextResponse(get_kit(request).capture_exception(error))

    @app.get("/answered")
    async def answered() -> None:
        raise KnownError("known")

    @app.exception_handler(KnownError)
    async def know(request: Request, error: KnownError) -> Response:
        return PlainTextResponse("we know", 400)

    @app.exception_handler(500)
    async def page(request: Request, error: Exception) -> Response:
        return PlainTextResponse("our page", 500)

    @app.get("/tagged/{number}")
    async def tagged(number: int) -> None:
        Scope.current().set_tag("number", number)
        await asyncio.sleep(0)
        raise ShopError(f"tagged {number}")

    return app


@contextmanager
def make(dsn: Any, *, nested: bool = False, **options: Any) -> Iterator[AsgiApp]:
    app = site()
    if dsn is None:
        yield AsgiApp(app, lambda: None)
        return
    kit = Kit({"dsn": dsn, **options}, source="test", environ={})
    if nested:
        app.add_middleware(TransportMiddleware, kit=kit)
        outer = FastAPI()
        outer.mount("/", app)
        app = outer
    app.add_middleware(TransportMiddleware, kit=kit)
    yield AsgiApp(app, lambda: kit)


ADAPTER = Adapter("fastapi", make, route=("/tagged/{number}", "route"))
