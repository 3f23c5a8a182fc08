"""The names of requests: the route as the app declares it, below the prefixes of its mounts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fastapi
import pytest
from starlette.applications import Starlette
from starlette.convertors import CONVERTOR_TYPES, Convertor
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from transport_kit_starlette import TransportMiddleware, get_kit


class CartError(Exception):
    """An error of the app."""


async def fail(request: Request) -> Response:
    raise CartError("bad cart")


class Failing(HTTPEndpoint):
    """An endpoint class that answers several methods."""

    async def get(self, request: Request) -> Response:
        raise CartError("bad cart")


async def bare(scope: Any, receive: Any, send: Any) -> None:
    raise CartError("no route here")


class Copying:
    """A middleware that passes on a copy of the scope."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(dict(scope), receive, send)


class Hiding(Copying):
    """A middleware that does not expose the app that it wraps."""

    def __init__(self, app: Any) -> None:
        self._inner = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._inner(dict(scope), receive, send)


class Passing(BaseHTTPMiddleware):
    """A middleware that runs the app in another task."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


def routes() -> list[Any]:
    carts = Route("/carts/{number:int}", fail)
    return [
        carts,
        Route("/class/{name}", Failing),
        Mount("/shop", routes=[carts, Mount("/inner", routes=[Route("/", fail)])]),
        Mount("/tenants/{tenant}", app=Starlette(routes=[carts], middleware=[Middleware(Passing)])),
        Mount("/wrapped", app=Copying(Router([carts]))),
        Mount("/bare", app=bare),
        Host("api.shop.example", app=Router([Route("/v1", fail)])),
        Mount("/", routes=[Route("/last", fail)]),
    ]


def name(sink: Any) -> tuple[str, str]:
    event = sink.event
    return event["transaction"], event["transaction_info"]["source"]


NAMES = [
    ("/carts/7", "/carts/{number:int}"),
    ("/class/x", "/class/{name}"),
    ("/shop/carts/7", "/shop/carts/{number:int}"),
    ("/shop/inner/", "/shop/inner/"),
    ("/tenants/acme/carts/7", "/tenants/{tenant}/carts/{number:int}"),
    ("/wrapped/carts/7", "/wrapped/carts/{number:int}"),
    ("/bare/anything/12", "/bare"),
    ("/last", "/last"),
]
LAYERS: list[tuple[Any, ...]] = [(), (Copying,), (Hiding,), (Passing, Copying)]


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize(("path", "route"), NAMES)
def test_a_request_is_called_by_its_mounts_and_its_route(
    path: str, route: str, layers: tuple[Any, ...], sink: Any, client: Any
) -> None:
    """With numbers in the name, each cart would be a problem of its own; layers in between don't matter."""
    middleware = [Middleware(TransportMiddleware, dsn=sink), *map(Middleware, layers)]
    client(Starlette(routes=routes(), middleware=middleware), path)
    assert name(sink) == (route, "route")


@pytest.mark.parametrize("wrap", [lambda app: app, Copying])
@pytest.mark.parametrize(("path", "route"), NAMES)
def test_it_is_called_the_same_when_the_middleware_is_wrapped_around_the_app(
    path: str, route: str, wrap: Callable[[Any], Any], sink: Any, client: Any
) -> None:
    """Then the scope has no `app` before the app runs, and later that of the innermost one."""
    client(TransportMiddleware(wrap(Starlette(routes=routes())), dsn=sink), path)
    assert name(sink) == (route, "route")


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/proxy/shop/carts/1", "/proxy/shop/carts/{number:int}"),
        ("/proxy/carts/1", "/proxy/carts/{number:int}"),
        ("/carts/1", "/proxy/carts/{number:int}"),
    ],
)
def test_the_servers_prefix_is_part_of_the_name(path: str, route: str, sink: Any, client: Any) -> None:
    """As in Flask; servers differ in whether `path` holds it."""
    app = Starlette(routes=routes(), middleware=[Middleware(TransportMiddleware, dsn=sink)])
    client(app, path, root_path="/proxy")
    assert name(sink) == (route, "route")


@pytest.mark.parametrize("layers", [(), (Copying,)])
def test_a_host_route_adds_nothing(layers: tuple[Any, ...], sink: Any, client: Any) -> None:
    """The request's URL has the host."""
    middleware = [Middleware(TransportMiddleware, dsn=sink), *map(Middleware, layers)]
    app = Starlette(routes=routes(), middleware=middleware)
    client(app, "/v1", headers=[(b"host", b"api.shop.example")])
    assert name(sink) == ("/v1", "route")


def rejecting(app: Any) -> Any:
    """A middleware that fails before routing."""
    return bare


@pytest.mark.parametrize("path", ["/missing", "/carts/seven", "/shop"])
def test_what_fits_no_route_is_called_by_its_path(path: str, sink: Any, client: Any) -> None:
    """There is no better name, and the source is `url`."""
    middleware = [Middleware(TransportMiddleware, dsn=sink), Middleware(rejecting)]
    client(Starlette(routes=routes()[:3], middleware=middleware), path)
    assert name(sink) == (path, "url")


def test_an_app_without_routes_is_called_by_the_path(sink: Any, client: Any) -> None:
    """Quart, Litestar and Django have other kinds of routes."""
    client(TransportMiddleware(bare, dsn=sink), "/x/1", root_path="/proxy")
    assert name(sink) == ("/proxy/x/1", "url")


def test_an_app_that_seems_to_wrap_itself_is_called_by_the_path(sink: Any, client: Any) -> None:
    """Some objects return a value for any attribute; the search must end."""

    class Endless:
        @property
        def app(self) -> Any:
            return self

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            raise CartError("endless")

    client(TransportMiddleware(Endless(), dsn=sink), "/x")
    assert name(sink) == ("/x", "url")


@pytest.mark.parametrize(
    ("method", "status", "route"), [("GET", 500, "/{kind}/x"), ("DELETE", 405, "/carts/{number}")]
)
def test_of_routes_that_fit_the_method_decides_and_then_the_order(
    method: str, status: int, route: str, sink: Any, client: Any
) -> None:
    """As in routers: the first route that matches but for the method answers the 405."""

    class Strict(Copying):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(dict(scope), receive, send)
            raise CartError("after a 405")

    app = Starlette(
        routes=[Route("/carts/{number}", fail, methods=["POST"]), Route("/{kind}/x", fail)],
        middleware=[Middleware(TransportMiddleware, dsn=sink), Middleware(Strict)],
    )
    assert client(app, "/carts/x", method=method).status == status
    assert name(sink) == (route, "route")


def test_a_websocket_is_called_by_its_route(sink: Any) -> None:
    """Websockets have routes too."""

    async def chat(socket: WebSocket) -> None:
        await socket.accept()
        raise CartError("chat")

    app = Starlette(
        routes=[Mount("/chat", routes=[WebSocketRoute("/{room}", chat)])],
        middleware=[Middleware(TransportMiddleware, dsn=sink)],
    )
    with TestClient(app) as browser, pytest.raises(CartError):  # noqa: SIM117 - the socket raises
        with browser.websocket_connect("/chat/7") as socket:
            socket.receive_text()
    assert name(sink) == ("/chat/{room}", "route")


class Broken(Convertor[str]):
    """A convertor that raises when called outside of its request."""

    regex = "x+"
    asked = 0

    def convert(self, value: str) -> str:
        self.asked += 1
        if self.asked > 1:
            raise RuntimeError("asked twice")
        return value

    def to_string(self, value: str) -> str:
        return value


@pytest.mark.parametrize("layers", [(), (Copying,)])
def test_an_apps_own_convertor_that_fails_costs_the_name_and_not_the_event(
    layers: tuple[Any, ...], sink: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If routes must be matched again, they run the app's code; on failure the name comes from the scope."""
    monkeypatch.setitem(CONVERTOR_TYPES, "broken", Broken())
    left: list[bool] = []

    async def page(request: Request) -> Response:
        left.append("route" in request.scope and not layers)
        raise CartError("bad cart")

    app = Starlette(
        routes=[Mount("/shop", routes=[Route("/{name:broken}", page)])],
        middleware=[Middleware(TransportMiddleware, dsn=sink), *map(Middleware, layers)],
    )
    client(app, "/shop/xx")
    assert name(sink) == (("/shop/{name:broken}", "route") if left[0] else ("/shop/xx", "url"))


def fastapi_site(sink: Any) -> fastapi.FastAPI:
    app, sub = fastapi.FastAPI(), fastapi.FastAPI()
    inner = fastapi.APIRouter(prefix="/carts")
    outer = fastapi.APIRouter(prefix="/shop")

    async def cart(number: int, rest: str) -> None:
        raise CartError(rest)

    for router in (inner, sub):
        router.get("/{number}/{rest:path}")(cart)
    plain = fastapi.APIRouter()
    plain.add_route("/plain", fail)
    app.include_router(plain, prefix="/plain")
    outer.include_router(inner)
    app.include_router(outer, prefix="/api")
    app.mount("/sub", sub)
    app.get("/{number}/{rest:path}")(cart)
    app.add_middleware(TransportMiddleware, dsn=sink)
    return app


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/7/x", "/{number}/{rest:path}"),
        ("/api/shop/carts/7/x", "/api/shop/carts/{number}/{rest:path}"),
        ("/plain/plain", "/plain/plain"),
        ("/sub/7/x", "/sub/{number}/{rest:path}"),
    ],
)
def test_fastapis_routers_and_mounts_are_in_the_name(path: str, route: str, sink: Any, client: Any) -> None:
    """The newest FastAPI keeps included routers, and the route does not contain their prefixes."""
    client(fastapi_site(sink), path)
    assert name(sink) == (route, "route")


def test_a_sampler_is_told_the_name_that_the_event_will_have(sink: Any, client: Any) -> None:
    """It runs before routing, but must decide by the route."""
    told: list[Any] = []

    def sampler(facts: dict[str, Any]) -> float:
        told.append((facts["name"], facts["source"]))
        return 0.0

    async def page(request: Request) -> Response:
        get_kit(request).capture_exception(CartError("by hand"))
        return PlainTextResponse("ok")

    app = Starlette(
        routes=[Route("/carts/{number}", page)],
        middleware=[Middleware(TransportMiddleware, dsn=sink, traces_sampler=sampler)],
    )
    assert client(app, "/carts/7").status == 200
    assert [name(sink)] == told == [("/carts/{number}", "route")]
