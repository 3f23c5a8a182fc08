"""Captured and ignored errors of a Starlette, FastAPI or bare ASGI app; capturing changes nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, MutableMapping
from typing import Any

import fastapi
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.integrations.starlette_support import CartError, Passing, fail, failing, pages, site
from transport_kit import Kit, Scope
from transport_kit_starlette import TransportMiddleware, get_kit, transport_routes

Message = MutableMapping[str, Any]


def test_an_exception_that_escapes_is_captured_and_goes_on_unchanged(sink: Any, client: Any) -> None:
    """Error handler, server log and response are the same as without the middleware."""
    seen = client(site(sink, Route("/cart/{id}", fail)), "/cart/1", query_string=b"page=2&token=x")
    assert isinstance(seen.error, CartError)
    assert seen.status == 500
    assert (sink.exception["type"], sink.exception["value"]) == ("CartError", "bad cart")
    assert sink.exception["mechanism"]["type"] == "auto.http.starlette"
    assert sink.exception["mechanism"]["handled"] is False
    assert sink.exception["stacktrace"]["frames"][-1]["function"] == "fail"
    assert sink.event["transaction"] == "/cart/{id}"
    assert sink.event["transaction_info"] == {"source": "route"}
    request = sink.event["request"]
    assert request["url"] == "http://shop.example/cart/1"
    assert request["method"] == "GET"
    assert "page=2" in request["query_string"]
    assert "token=x" not in request["query_string"]
    assert request["env"] == {"SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8000"}


def test_it_works_on_fastapi(sink: Any, client: Any) -> None:
    """Uses the line of the documentation."""
    app = fastapi.FastAPI()

    @app.get("/cart/{number}")
    async def cart(number: int) -> None:
        raise CartError(f"cart {number}")

    app.add_middleware(TransportMiddleware, dsn=sink)
    assert client(app, "/cart/7").status == 500
    assert sink.exception["value"] == "cart 7"
    assert client(app, "/cart/seven").status == 422
    assert len(sink.events) == 1


def shop() -> fastapi.FastAPI:
    """Everything that may fail before and after a route of FastAPI. The annotations of dependencies are texts
    here, which FastAPI can't resolve to local names: so they are defaults."""
    app = fastapi.FastAPI()

    def database() -> str:
        raise CartError("dependency")

    def nested(name: str = fastapi.Depends(database)) -> str:
        return name

    async def session() -> AsyncIterator[str]:
        yield "session"
        raise CartError("after the route")

    @app.get("/depends")
    async def depends(name: str = fastapi.Depends(nested)) -> str:
        return name

    @app.get("/yields")
    async def yields(name: str = fastapi.Depends(session)) -> str:
        return name

    @app.get("/number/{number}")
    async def number(number: int) -> int:
        return number

    @app.get("/answer", response_model=int)
    async def answer() -> str:
        return "not a number"

    return app


@pytest.mark.parametrize(
    ("path", "captured"),
    [
        ("/depends", "CartError"),
        ("/yields", "CartError"),
        ("/answer", "ResponseValidationError"),
        ("/number/seven", None),
    ],
)
def test_fastapis_dependencies_and_validation_fail_as_they_should(
    path: str, captured: str | None, sink: Any, client: Any
) -> None:
    """An invalid request gets a 422; an invalid response or a failing dependency is a bug."""
    plain = client(shop(), path)
    app = shop()
    app.add_middleware(TransportMiddleware, dsn=sink)
    seen = client(app, path)
    assert seen.messages == plain.messages
    assert [event["exception"]["values"][-1]["type"] for event in sink.events] == [captured] * bool(captured)
    assert [event["transaction"] for event in sink.events] == [path] * bool(captured)


def test_nothing_of_ours_is_in_the_openapi_schema(sink: Any, client: Any) -> None:
    """An API's documentation must contain only the API."""
    plain, app = shop(), shop()
    app.add_middleware(TransportMiddleware, dsn=sink)
    app.router.routes.extend(transport_routes())
    app.mount("/internal", Starlette(routes=transport_routes()))
    assert client(app, "/openapi.json").body == client(plain, "/openapi.json").body
    assert [client(app, path).status for path in ("/transport/live", "/live", "/internal/live")] == [200] * 3


def test_it_works_on_a_bare_asgi_function(sink: Any, client: Any) -> None:
    """Quart, Litestar and Django's ASGI handler are such functions."""
    error = CartError("bare")
    seen = client(TransportMiddleware(failing(error), dsn=sink), "/x")
    assert seen.error is error
    assert sink.exception["value"] == "bare"


def test_a_background_task_that_fails_is_captured(sink: Any, client: Any) -> None:
    """The response was sent long before: nothing else shows the error."""

    def task() -> None:
        raise CartError("in the background")

    async def page(request: Request) -> Response:
        return PlainTextResponse("done", background=BackgroundTask(task))

    seen = client(site(sink, Route("/", page)))
    assert (seen.status, seen.body) == (200, b"done")
    assert sink.exception["value"] == "in the background"


def test_a_body_that_breaks_while_it_is_streamed_is_captured(sink: Any, client: Any) -> None:
    """The client got 200 and half a body: only the event shows the error."""

    async def rows() -> AsyncIterator[bytes]:
        yield b"one,"
        raise CartError("row two")

    async def export(request: Request) -> Response:
        return StreamingResponse(rows())

    seen = client(site(sink, Route("/", export)), incoming=[])
    assert seen.status == 200
    assert b"".join(m.get("body", b"") for m in seen.messages[1:]) == b"one,"
    assert "row two" in json.dumps(sink.event["exception"])


def test_a_websocket_that_fails_is_captured_with_its_request(sink: Any) -> None:
    """An access log has no status for it."""

    async def chat(socket: WebSocket) -> None:
        await socket.accept()
        raise CartError(await socket.receive_text())

    app = site(sink, WebSocketRoute("/chat", chat))

    def talk() -> None:
        with TestClient(app) as browser, browser.websocket_connect("/chat?room=1") as socket:
            socket.send_text("hello")
            socket.receive_text()

    with pytest.raises(CartError, match="hello"):
        talk()
    assert sink.exception["mechanism"]["type"] == "auto.websocket.starlette"
    assert sink.event["request"]["url"] == "ws://testserver/chat"
    assert sink.event["request"]["query_string"] == "room=1"
    assert sink.event["request"]["method"] == "GET"


def test_what_the_app_handles_is_not_captured(sink: Any, client: Any) -> None:
    """A 404, a 422 or an exception with a handler is the app's response, no failure."""

    async def gone(request: Request) -> Response:
        raise HTTPException(503, "later")

    async def handled(request: Request, error: Exception) -> Response:
        return PlainTextResponse("sorry", status_code=409)

    app = site(sink, Route("/gone", gone), Route("/cart", fail))
    app.add_exception_handler(CartError, handled)
    assert [client(app, path).status for path in ("/gone", "/cart", "/missing")] == [503, 409, 404]
    assert sink.events == []


@pytest.mark.parametrize("key", [Exception, 500])
def test_a_handler_that_draws_the_page_of_a_500_changes_nothing(key: Any, sink: Any, client: Any) -> None:
    """Starlette raises the exception again after such a handler: it is still unhandled."""

    async def page(request: Request, error: Exception) -> Response:
        return PlainTextResponse("sorry", status_code=500)

    app = site(sink, Route("/cart", fail))
    app.add_exception_handler(key, page)
    seen = client(app, "/cart")
    assert (seen.body, type(seen.error)) == (b"sorry", CartError)
    assert sink.exception["mechanism"]["handled"] is False


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(1), GeneratorExit()]
)
def test_the_end_of_a_task_or_process_is_not_captured(error: BaseException, sink: Any) -> None:
    """A server cancels the request of a disconnected client, and Ctrl-C is no bug."""
    scope = {"type": "http", "path": "/", "headers": []}
    running = TransportMiddleware(failing(error), dsn=sink)(scope, None, None)  # type: ignore[arg-type]
    with pytest.raises(type(error)):
        running.send(None)
    assert sink.events == []


async def server_send(message: Message) -> None:
    raise BrokenPipeError("client gone")


class Server:
    """A server whose `send` is a method or a callable object."""

    async def send(self, message: Message) -> None:
        raise ConnectionResetError("client gone")

    async def __call__(self, message: Message) -> None:
        raise ConnectionResetError("client gone")


@pytest.mark.parametrize("send", [server_send, Server().send, Server()])
def test_an_oserror_of_the_servers_send_is_a_client_that_went_away(
    send: Callable[..., Any], sink: Any, client: Any
) -> None:
    """ASGI allows `send` to raise OSError after a disconnect; an aborted download is no bug."""

    async def download(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    seen = client(TransportMiddleware(download, dsn=sink), send=send)
    assert isinstance(seen.error, OSError)
    assert sink.events == []


@pytest.mark.parametrize("send", [server_send, Server().send, Server()])
def test_an_oserror_of_the_app_is_captured(send: Callable[..., Any], sink: Any, client: Any) -> None:
    """A full disk or a refused database connection is an OSError too."""
    client(TransportMiddleware(failing(ConnectionRefusedError("database")), dsn=sink), send=send)
    assert sink.exception["type"] == "ConnectionRefusedError"


@pytest.mark.parametrize(
    ("error", "captured"),
    [
        (ClientDisconnect(), False),
        (WebSocketDisconnect(1001), False),
        (ExceptionGroup("tasks", [ClientDisconnect(), WebSocketDisconnect(1006)]), False),
        (ExceptionGroup("tasks", [ClientDisconnect(), CartError("real")]), True),
    ],
)
def test_a_disconnect_is_not_an_error_alone_or_in_a_group(
    error: Exception, captured: bool, sink: Any, client: Any
) -> None:
    """Task groups wrap what their tasks raise."""
    assert client(TransportMiddleware(failing(error), dsn=sink)).error is error
    assert len(sink.events) == captured


def test_what_a_task_group_raises_is_one_event_with_all_of_it(sink: Any, client: Any) -> None:
    """Two concurrent calls that both fail are one failed request."""

    async def page(request: Request) -> Response:
        async def call(name: str) -> None:
            raise CartError(name)

        async with asyncio.TaskGroup() as calls:
            calls.create_task(call("stock"))
            calls.create_task(call("price"))
        return Response()

    seen = client(site(sink, Route("/", page), middleware=(Middleware(Passing),)))
    assert isinstance(seen.error, ExceptionGroup)
    values = sink.event["exception"]["values"]
    assert {value["value"] for value in values if value["type"] == "CartError"} == {"stock", "price"}
    assert "ExceptionGroup" in {value["type"] for value in values}


def test_a_cancelled_request_is_no_error_and_ends_as_cancelled(sink: Any, client: Any) -> None:
    """Servers cancel the request of a disconnected client: its transaction is cancelled, its session fine."""
    app = TransportMiddleware(
        failing(asyncio.CancelledError()), dsn=sink, traces_sample_rate=1.0, release="shop@1"
    )
    assert isinstance(client(app, "/cart").error, asyncio.CancelledError)
    app.kit.transport.flush()
    assert sink.events == []
    (transaction,) = sink.of("transaction")
    assert transaction["contexts"]["trace"]["status"] == "cancelled"
    (sessions,) = sink.of("sessions")
    assert [bucket["exited"] for bucket in sessions["aggregates"]] == [1]


@pytest.mark.parametrize(
    ("path", "status"), [("/plain", "ok"), ("/missing", "not_found"), ("/fail", "internal_error")]
)
def test_a_sampled_request_is_a_transaction_with_its_route_and_status(
    path: str, status: str, sink: Any, client: Any
) -> None:
    """It continues the caller's trace; messages are not changed."""
    trace = "0123456789abcdef0123456789abcdef"
    headers = [(b"host", b"shop.example"), (b"sentry-trace", f"{trace}-0123456789abcdef-1".encode())]
    plain = client(Starlette(routes=pages()), path, headers=headers)
    seen = client(site(sink, *pages(), traces_sample_rate=0.0), path, headers=headers)
    assert seen.messages == plain.messages
    (transaction,) = sink.of("transaction")
    assert transaction["transaction"] == path
    assert transaction["transaction_info"] == {"source": "url" if path == "/missing" else "route"}
    context = transaction["contexts"]["trace"]
    assert (context["op"], context["status"]) == ("http.server", status)
    assert (context["trace_id"], context["parent_span_id"]) == (trace, "0123456789abcdef")
    assert [event["contexts"]["trace"]["trace_id"] for event in sink.events] == [trace] * (path == "/fail")


def test_a_websocket_is_a_transaction_of_its_own_kind(sink: Any) -> None:
    """It has no HTTP status."""

    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    app = site(sink, WebSocketRoute("/chat", echo), traces_sample_rate=1.0)
    with TestClient(app) as browser, browser.websocket_connect("/chat") as socket:
        socket.send_text("hello")
        assert socket.receive_text() == "hello"
    (transaction,) = sink.of("transaction")
    assert transaction["transaction"] == "/chat"
    assert transaction["contexts"]["trace"]["op"] == "websocket.server"
    assert transaction["contexts"]["trace"]["status"] == "ok"


def test_requests_are_counted_as_sessions_of_the_release(sink: Any, client: Any) -> None:
    """Error rates need the number of successes; probes of the four routes don't count."""
    app = site(sink, *pages(), release="shop@1")
    for path in ("/plain", "/plain", "/fail", "/missing", "/transport/live"):
        client(app, path)
    with TestClient(app):
        pass  # its end sends what was counted
    (sessions,) = sink.of("sessions")
    counted = [bucket.get(kind, 0) for kind in ("exited", "crashed") for bucket in sessions["aggregates"]]
    assert sum(counted) == 4
    assert sessions["attrs"]["release"] == "shop@1"


def test_capture_errors_off_leaves_routes_and_life_cycle(sink: Any, client: Any) -> None:
    """Some apps capture by other means and need only the transport."""
    app = TransportMiddleware(failing(CartError("x")), dsn=sink, capture_errors=False)
    assert isinstance(client(app).error, CartError)
    assert client(app, "/transport/live").status == 200
    assert sink.events == []
    assert app.kit.capture_exception(CartError("by hand")) is not None


def test_two_middlewares_capture_one_exception_once(sink: Any, client: Any) -> None:
    """A mounted app may have its own, or a line was copied twice."""
    inner = site(sink, Route("/fail", fail))
    outer = site(sink, Mount("/inner", app=inner), middleware=(Middleware(TransportMiddleware, dsn=sink),))
    assert isinstance(client(outer, "/inner/fail").error, CartError)
    assert len(sink.events) == 1


def test_the_same_exception_object_counts_again_in_a_later_request(sink: Any, client: Any) -> None:
    """Some apps raise one module-level instance; each request has failed."""
    app = TransportMiddleware(failing(CartError("shared")), dsn=sink)
    client(app)
    client(app)
    assert len(sink.events) == 2


def test_what_the_app_captured_by_hand_is_not_captured_again_when_it_escapes(sink: Any, client: Any) -> None:
    """To capture and then raise is a common pattern."""

    async def page(request: Request) -> Response:
        try:
            raise CartError("once")
        except CartError:
            get_kit(request).capture_exception()
            raise

    client(site(sink, Route("/", page)))
    assert sink.exception["mechanism"]["type"] == "generic"


def test_get_kit_finds_the_kit_in_a_request_and_says_what_is_missing(sink: Any, client: Any) -> None:
    """A handler that captures by hand needs no global kit."""
    found: list[Kit] = []

    async def page(request: Request) -> Response:
        found.extend((get_kit(request), get_kit(request.scope)))
        return Response()

    own = Kit({"dsn": sink}, source="test", environ={})
    client(Starlette(routes=[Route("/", page)], middleware=[Middleware(TransportMiddleware, kit=own)]))
    assert found == [own, own]
    with pytest.raises(RuntimeError, match="add_middleware"):
        get_kit({"type": "http"})


def test_a_kit_comes_instead_of_a_dsn_and_options(sink: Any) -> None:
    """One of the two must not be ignored silently."""
    own = Kit({"dsn": sink}, source="test", environ={})
    for more in ({"dsn": sink}, {"path": "/x"}):
        with pytest.raises(TypeError, match="either a kit"):
            TransportMiddleware(failing(CartError()), kit=own, **more)


def test_among_100_concurrent_requests_the_one_that_fails_is_the_one_reported(sink: Any, client: Any) -> None:
    """Scopes must not mix, whatever runs in between."""
    gate: list[asyncio.Event] = []

    async def page(request: Request) -> Response:
        number = request.path_params["number"]
        Scope.current().set_tag("number", number)
        gate[0].set() if number == 99 else await gate[0].wait()
        if number == 42:
            raise CartError(f"request {number}")
        return PlainTextResponse(str(number))

    app = site(sink, Route("/{number:int}", page))

    async def scenario() -> list[Any]:
        gate.append(asyncio.Event())
        return await asyncio.gather(*(client.arequest(app, f"/{number}") for number in range(100)))

    answers = asyncio.run(scenario())
    assert [seen.status for seen in answers] == [500 if number == 42 else 200 for number in range(100)]
    assert [seen.body for seen in answers if seen.error is None] == [
        str(n).encode() for n in range(100) if n != 42
    ]
    assert sink.exception["value"] == "request 42"
    assert sink.event["tags"] == {"number": "42"}
    assert sink.event["transaction"] == "/{number:int}"
    assert "number" not in Scope.current()._tags
