"""The contract's site in Flask. WSGI knows no end of an app: the kit is closed as an app does it itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from flask import Flask, Response
from werkzeug.test import EnvironBuilder, run_wsgi_app

from tests.contract.adapters import LOGGER, Adapter, Reply, ShopError
from tests.letting_go import let_go
from transport_kit import Kit, Scope
from transport_kit_flask import TransportKit, get_kit

kit = TransportKit()


class WsgiApp:
    """An `App`, served in this process without a socket."""

    def __init__(self, app: Flask, kit: Kit | None) -> None:
        self._app = app
        self._kit = kit

    @property
    def kit(self) -> Any:
        return self._kit

    @contextmanager
    def serve(self) -> Iterator[WsgiSite]:
        if self._kit is not None:
            self._kit.start()
        site = WsgiSite(self._app)
        yield site
        let_go(*site.escaped)
        if self._kit is not None:
            self._kit.close()


class WsgiSite:
    """A `Site`: calls the app as a server does, on as many threads as there are requests."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self.escaped: list[BaseException] = []

    def get(self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Reply:
        request = EnvironBuilder(path, "http://shop.example", method=method, headers=dict(headers or {}))
        try:
            body, status, answered = run_wsgi_app(self._app, request.get_environ(), buffered=True)
        except Exception as error:
            self.escaped.append(error)  # a server logs it, and makes a response itself
            return Reply(500, (), b"")
        lowered = tuple((name.lower(), value) for name, value in answered.items())
        return Reply(int(status.split()[0]), lowered, b"".join(body))

    def many(self, paths: Iterable[str]) -> list[Reply]:
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(self.get, paths))


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
    yield WsgiApp(app, get_kit(app))


ADAPTER = Adapter("flask", make, route=("/tagged/<int:number>", "route"))
