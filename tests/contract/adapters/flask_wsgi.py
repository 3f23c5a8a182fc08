"""The contract's site in Flask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask, Response

from tests.contract.adapters import LOGGER, Adapter, KnownError, ShopError
from tests.contract.adapters.wsgi import WsgiApp
from transport_kit import Scope
from transport_kit_flask import TransportKit, get_kit

kit = TransportKit()


def site() -> Flask:
    app = Flask("shop")
    app.logger.disabled = True

    @app.get("/")
    def hello() -> Response:
        return Response("hello", headers={"X-Shop": "yes"})

    @app.get("/boom")
    def boom() -> str:
        raise ShopError("boom")

    @app.get("/logged")
    def logged() -> str:
        try:
            raise ShopError("logged")
        except ShopError:
            LOGGER.exception("it went wrong")
            raise

    @app.get("/handled")
    def handled() -> str:
        try:
            raise ShopError("handled")
        except ShopError as error:
            return str(kit.capture_exception(error))

    @app.get("/answered")
    def answered() -> str:
        raise KnownError("known")

    @app.errorhandler(KnownError)
    def know(error: KnownError) -> tuple[str, int]:
        return "we know", 400

    @app.errorhandler(500)
    def page(error: Exception) -> tuple[str, int]:
        return "our page", 500

    @app.get("/tagged/<int:number>")
    async def tagged(number: int) -> str:
        Scope.current().set_tag("number", number)
        raise ShopError(f"tagged {number}")

    return app


@contextmanager
def make(dsn: Any, *, nested: bool = False, **options: Any) -> Iterator[WsgiApp]:
    app = site()
    if dsn is None:
        yield WsgiApp(app, None)
        return
    settings = {f"TRANSPORT_KIT_{name.upper()}": value for name, value in {"dsn": dsn, **options}.items()}
    app.config.update(settings)
    kit.init_app(app)
    if nested:
        app.config["PROPAGATE_EXCEPTIONS"] = True
        outer = Flask("outer")
        outer.wsgi_app = app.wsgi_app  # type: ignore[method-assign]
        outer.config.update(settings)
        kit.init_app(outer)
        app = outer
    yield WsgiApp(app, lambda: get_kit(app))


ADAPTER = Adapter("flask", make, route=("/tagged/<int:number>", "route"))
