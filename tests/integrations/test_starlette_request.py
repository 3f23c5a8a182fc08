"""The request in events of an ASGI app: only data that is in memory, and only data that may be sent."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.authentication import SimpleUser, UnauthenticatedUser
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from tests.integrations.starlette_support import CartError, fail, failing, site
from transport_kit_starlette import TransportMiddleware
from transport_kit_starlette.facts import Tee


class Loaded:
    """A user as set by an authentication backend, with attributes that must not be read."""

    def __init__(self) -> None:
        self.id = 7
        self.username = "ada"
        self.password = "caramel"

    @property
    def email(self) -> str:
        raise AssertionError("this would ask the database")


@pytest.mark.parametrize(
    ("user", "sent"),
    [
        (Loaded(), {"id": "7", "username": "ada"}),
        (SimpleUser("ada"), {"username": "ada"}),
        ({"id": "7", "email": "ada@shop.example", "token": "x"}, {"id": "7", "email": "ada@shop.example"}),
        ({"id": object(), "username": "ada"}, {"username": "ada"}),
        (UnauthenticatedUser(), {}),
        (None, {}),
        ("ada", {}),
    ],
)
def test_the_user_that_a_backend_has_loaded_is_sent_with_pii_only(
    user: object, sent: dict[str, str], sink: Any, client: Any
) -> None:
    """It is read from memory, without running the user's own code."""

    class Authenticating:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            scope["user"] = user
            await self.app(scope, receive, send)

    for pii in (False, True):
        client(site(sink, Route("/", fail), middleware=(Middleware(Authenticating),), send_default_pii=pii))
    without, with_pii = ((event.get("user") or {}) for event in sink.events)
    assert without == {}
    assert {key: value for key, value in with_pii.items() if key != "ip_address"} == sent


@pytest.mark.parametrize(
    ("path", "root_path"),
    [("/proxy/shop/cart/1", "/proxy"), ("/shop/cart/1", "/proxy"), ("/proxyshop", "/proxy")],
)
def test_the_request_is_told_as_the_client_made_it_although_mounts_change_the_scope(
    path: str, root_path: str, sink: Any, client: Any
) -> None:
    """A Mount changes `root_path` in the same dict; servers differ in the content of `path`."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise CartError("mounted")

    app = site(sink, Mount("/shop", app=broken), Route("/proxyshop", fail))
    client(app, path, root_path=root_path)
    whole = path if path.startswith("/proxy/") else root_path + path
    assert sink.event["request"]["url"] == f"http://shop.example{whole}"


def test_cookies_bodies_and_addresses_stay_in_by_default(sink: Any, client: Any) -> None:
    """Personal data is sent only if the app enables it."""

    async def login(request: Request) -> Response:
        await request.body()
        raise CartError("x")

    headers = [
        (b"host", b"shop.example"),
        (b"cookie", b"sid=chocolate"),
        (b"authorization", b"Bearer vanilla"),
        (b"content-type", b"application/json"),
        (b"user-agent", b"Mozilla"),
    ]
    incoming = [
        {"type": "http.request", "body": b'{"name": "Ada", "password": "caramel"}', "more_body": False}
    ]
    for pii in (False, True):
        app = site(sink, Route("/", login, methods=["POST"]), send_default_pii=pii)
        client(app, method="POST", headers=headers, incoming=[*incoming])
    # The frames quote this test's own lines, secrets and all: what counts is what came from the request.
    without, with_pii = (json.dumps(event["request"]) for event in sink.events)
    for secret in ("chocolate", "vanilla", "caramel", "Ada", "192.0.2.7"):
        assert secret not in without
    for secret in ("vanilla", "caramel"):
        assert secret not in with_pii
    assert sink.events[1]["request"]["data"]["name"] == "Ada"
    assert sink.events[1]["request"]["env"]["REMOTE_ADDR"] == "192.0.2.7"
    assert sink.events[0]["request"]["headers"]["user-agent"] == "Mozilla"


def test_only_the_beginning_of_a_body_that_was_read_is_kept(sink: Any, client: Any) -> None:
    """An upload of a gigabyte must not be held for an event that may never be made."""

    async def upload(request: Request) -> Response:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
        raise CartError(str(size))

    app = site(sink, Route("/", upload, methods=["POST"]), send_default_pii=True)
    incoming = [{"type": "http.request", "body": b"x" * 5000, "more_body": n < 9} for n in range(10)]
    client(app, method="POST", incoming=incoming)
    assert sink.exception["value"] == "50000"
    assert 0 < len(sink.event["request"]["data"]) <= 8192


def test_of_a_body_no_more_is_held_than_an_event_can_say() -> None:
    """The bound applies to the memory of each request, not only to the event."""
    chunks = [b"a" * 100, b"b" * 10**6, b"c"]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    tee = Tee(receive)

    async def scenario() -> list[int]:
        return [len((await tee())["body"]) for _ in range(3)]

    assert asyncio.run(scenario()) == [100, 10**6, 1]
    assert tee.body == b"a" * 100 + b"b" * (8 * 1024 + 1 - 100)


def test_an_exception_is_captured_although_its_scope_breaks_the_specification(sink: Any, client: Any) -> None:
    """The exception matters more than its request."""
    app = TransportMiddleware(failing(CartError("x")), dsn=sink, path=None)
    client(app, headers=[("host", "text, not bytes")])
    assert sink.exception["value"] == "x"
    assert "request" not in sink.event


def test_a_request_without_server_client_or_host_is_reported(sink: Any, client: Any) -> None:
    """HTTP/1.0 over a unix socket has none of them."""
    client(TransportMiddleware(failing(CartError("x")), dsn=sink), headers=[], server=None, client=None)
    assert sink.event["request"]["method"] == "GET"
    assert "env" not in sink.event["request"]


def test_what_a_server_leaves_out_of_a_scope_is_empty(sink: Any, client: Any) -> None:
    """Old servers and test harnesses omit `root_path` or set it to None; a route needs no query."""
    app = TransportMiddleware(failing(CartError("x")), dsn=sink)
    client(app, "/carts", root_path=None)
    assert sink.event["transaction"] == "/carts"
    assert sink.event["request"]["url"] == "http://shop.example/carts"
    scope = client.scope("/transport/live")
    del scope["query_string"], scope["root_path"]
    answered = client(lambda given, receive, send: app(scope, receive, send))
    assert answered.status == 200
