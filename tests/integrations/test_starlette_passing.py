"""The middleware passes on everything unchanged."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from tests.integrations.starlette_support import CartError, Passing, fail, pages, site
from transport_kit import NullTransport
from transport_kit_starlette import TransportMiddleware


def test_a_basehttpmiddleware_in_between_changes_nothing(sink: Any, client: Any) -> None:
    """The most common kind of middleware handles exceptions in its own way."""
    app = site(sink, Route("/", fail), middleware=(Middleware(Passing),))
    assert isinstance(client(app).error, CartError)
    assert sink.exception["value"] == "bad cart"


@pytest.mark.parametrize(
    ("path", "facts"),
    [
        ("/plain", {}),
        ("/plain", {"method": "HEAD"}),
        ("/plain", {"method": "OPTIONS"}),
        ("/rows", {}),
        ("/echo", {"method": "POST", "incoming": [{"type": "http.request", "body": b"\x00\xff"}]}),
        ("/fail", {}),
        ("/missing", {}),
        ("/transport/other", {}),
        ("/transport/health/", {}),
    ],
)
@pytest.mark.parametrize("pii", [False, True])
def test_no_message_of_the_app_is_changed(path: str, facts: dict[str, Any], pii: bool, client: Any) -> None:
    """Same messages, same order, same bytes: the middleware can't be seen from outside."""
    plain = client(Starlette(routes=pages()), path, **facts)
    wrapped = client(site(NullTransport(), *pages(), send_default_pii=pii), path, **facts)
    assert wrapped.messages == plain.messages
    assert type(wrapped.error) is type(plain.error)


def test_websockets_pass_through_even_on_our_own_paths(sink: Any) -> None:
    """The four routes are HTTP; a websocket of the same path is the app's."""

    async def echo(socket: WebSocket) -> None:
        await socket.accept(subprotocol="v1")
        await socket.send_text(await socket.receive_text())
        await socket.close(4000)

    app = site(sink, WebSocketRoute("/transport/health", echo))
    with (
        TestClient(app) as browser,
        browser.websocket_connect("/transport/health", subprotocols=["v1"]) as socket,
    ):
        assert str(socket.accepted_subprotocol) == "v1"
        socket.send_text("hello")
        assert socket.receive_text() == "hello"
        assert socket.receive() == {"type": "websocket.close", "code": 4000, "reason": ""}
        assert sink.events == []


def test_a_scope_of_another_type_goes_to_the_app_as_it_is(sink: Any) -> None:
    """ASGI may get new types of scope."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    scope, receive, send = {"type": "webtransport"}, object(), object()
    asyncio.run(TransportMiddleware(app, dsn=sink)(scope, receive, send))  # type: ignore[arg-type]
    assert seen == [(scope, receive, send)]
    assert scope == {"type": "webtransport"}
