"""The transport starts with the app, and is closed before the server learns that the app has ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, MutableMapping
from pathlib import Path
from typing import Any

import fastapi
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.timing import SOON, scaled
from transport_kit import FlushReport, FunctionTransport, Kit, TransportOptions
from transport_kit.testing import FaultServer
from transport_kit_starlette import TransportMiddleware, lifespan

Message = MutableMapping[str, Any]
ROOT = Path(__file__).parents[2]


class Lived(FunctionTransport):
    """A custom transport that records its life cycle; the kit makes a new one for each start."""

    lives: list[Lived]

    def __init__(self, options: TransportOptions | None = None) -> None:
        super().__init__(self.keep, options)
        self.happened: list[str] = []
        self.threads: list[int] = []
        type(self).lives.append(self)

    def keep(self, envelope: Any) -> None:
        # Sessions are counted too, and are not what these tests are about.
        self.happened += ["captured" for item in envelope.items if item.type == "event"]

    def start(self) -> None:
        self.happened.append("started")

    def _close(self, timeout: float) -> FlushReport:
        self.happened.append("closed")
        self.threads.append(threading.get_ident())
        return super()._close(timeout)


@pytest.fixture(name="lived")
def _lived() -> type[Lived]:
    """A fresh class, so that each test counts its own instances."""
    return type("Lived", (Lived,), {"lives": []})


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def fail(request: Request) -> Response:
    raise ValueError("late")


def site(dsn: Any, lifespan: Any = None, **options: Any) -> Starlette:
    return Starlette(
        routes=[Route("/", hello), Route("/fail", fail)],
        middleware=[Middleware(TransportMiddleware, dsn=dsn, **options)],
        lifespan=lifespan,
    )


async def whole_life(app: Any, happened: list[str]) -> BaseException | None:
    """Act as a server: start the app, end it, and record the times of its messages."""
    incoming = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> Message:
        return incoming.pop(0)

    async def send(message: Message) -> None:
        happened.append(message["type"])

    try:
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    except Exception as error:
        return error
    return None


def test_the_transport_is_closed_before_shutdown_is_said_to_be_complete(lived: type[Lived]) -> None:
    """uvicorn ends the loop, and the process, right after that message."""
    happened: list[str] = []

    async def scenario() -> None:
        loop_thread = threading.get_ident()
        middleware = TransportMiddleware(Starlette(), dsn=lived)
        lived.lives[0].happened = happened
        assert await whole_life(middleware, happened) is None
        assert lived.lives[0].threads != [loop_thread]

    asyncio.run(scenario())
    assert happened == ["started", "lifespan.startup.complete", "closed", "lifespan.shutdown.complete"]


@pytest.mark.parametrize(("when", "message"), [("startup", "startup"), ("shutdown", "shutdown")])
def test_a_lifespan_that_fails_is_captured_and_delivered_before_the_server_hears_of_it(
    when: str, message: str, lived: type[Lived]
) -> None:
    """No request shows the error of an app that does not start."""
    happened: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if when == "startup":
            raise ValueError("no database")
        yield
        raise ValueError("no database")

    middleware = TransportMiddleware(Starlette(lifespan=lifespan), dsn=lived)
    lived.lives[0].happened = happened
    error = asyncio.run(whole_life(middleware, happened))
    assert isinstance(error, ValueError)
    assert happened[-3:] == ["captured", "closed", f"lifespan.{message}.failed"]


def test_a_lifespan_that_fails_is_not_captured_when_capturing_is_off(lived: type[Lived]) -> None:
    """`capture_errors=False` turns off all automatic captures."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        raise ValueError("no database")

    happened: list[str] = []
    asyncio.run(
        whole_life(
            TransportMiddleware(Starlette(lifespan=lifespan), dsn=lived, capture_errors=False), happened
        )
    )
    assert lived.lives[0].happened == ["started", "closed"]


def test_a_failed_message_without_an_exception_closes_all_the_same(lived: type[Lived]) -> None:
    """Other frameworks send it after they have handled the exception."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.failed", "message": "no"})

    asyncio.run(whole_life(TransportMiddleware(app, dsn=lived), []))
    assert lived.lives[0].happened == ["started", "closed"]


@pytest.mark.parametrize("answer", ["raises", "returns"])
def test_for_an_app_without_lifespan_the_server_is_answered_and_the_transport_closed(
    answer: str, lived: type[Lived], client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A bare ASGI function raises or returns, and uvicorn's workers give no other sign of their end."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            assert answer == "returns"
            return
        await PlainTextResponse("hello")(scope, receive, send)

    happened: list[str] = []
    middleware = TransportMiddleware(app, dsn=lived)
    lived.lives[0].happened = happened
    with caplog.at_level(logging.INFO, "transport_kit"):
        assert asyncio.run(whole_life(middleware, happened)) is None
    assert happened == ["started", "lifespan.startup.complete", "closed", "lifespan.shutdown.complete"]
    assert ["AssertionError" in record.getMessage() for record in caplog.records] == [True][
        : answer == "raises"
    ]
    assert client(middleware).body == b"hello"


@pytest.mark.parametrize("asks", [True, False])
def test_an_app_that_fails_after_it_spoke_of_its_lifespan_raises_as_without_us(
    asks: bool, lived: type[Lived]
) -> None:
    """The app has a lifespan, and the server decides how to handle its failure."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (receive() if asks else send({"type": "lifespan.startup.complete"}))
        raise ValueError("no database")

    happened: list[str] = []
    error = asyncio.run(whole_life(TransportMiddleware(app, dsn=lived), happened))
    assert isinstance(error, ValueError)
    assert happened == ([] if asks else ["lifespan.startup.complete"])


def test_a_second_start_of_the_same_app_makes_a_new_transport(lived: type[Lived]) -> None:
    """Test suites enter TestClient many times with one app."""
    app = site(lived, health_details="always")
    for _ in range(3):
        with TestClient(app, raise_server_exceptions=False) as browser:
            assert browser.get("/fail").status_code == 500
            assert browser.get("/transport/health").status_code == 200
    assert [life.happened for life in lived.lives] == [["started", "captured", "closed"]] * 3


def test_without_a_lifespan_the_first_request_starts_it_once(lived: type[Lived], client: Any) -> None:
    """Mounted apps and some servers have no lifespan."""
    app = site(lived)
    for _ in range(3):
        assert client(app).body == b"hello"
    assert client(app, "/fail").status == 500
    assert lived.lives[0].happened == ["started", "captured"]


def test_with_a_lifespan_requests_start_nothing_more_even_after_its_end(
    lived: type[Lived], client: Any
) -> None:
    """A late request during shutdown must not restart a closed transport."""
    app = site(lived)
    with TestClient(app) as browser:
        browser.get("/")
    client(app)
    assert lived.lives[0].happened == ["started", "closed"]
    assert len(lived.lives) == 1


FORKED = """
import asyncio, os, sys
from starlette.responses import PlainTextResponse
from transport_kit import FunctionTransport
from transport_kit_starlette import TransportMiddleware, lifespan

class Lived(FunctionTransport):
    started = []
    def __init__(self, options=None):
        super().__init__(lambda envelope: None, options)
    def start(self):
        self.started.append(os.getpid())

app = TransportMiddleware(PlainTextResponse("hello"), dsn=Lived)

def request():
    async def receive(): return {"type": "http.request"}
    async def send(message): pass
    asyncio.run(app({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send))

assert Lived.started == []
request(); request()
parent = os.getpid()
assert Lived.started == [parent]
child = os.fork()
if child == 0:
    request(); request()
    os._exit(0 if Lived.started == [parent, os.getpid()] else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_the_first_request_after_a_fork_starts_the_childs_transport() -> None:
    """A durable queue may hold a backlog, which must not wait for a capture."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "integrations")])}
    done = subprocess.run(
        [sys.executable, "-c", FORKED], check=False, env=environ, timeout=30, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_transport_that_fails_to_start_or_close_does_not_stop_the_app(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A custom transport may raise; the app starts, serves and ends."""

    class Broken(FunctionTransport):
        def __init__(self, options: TransportOptions | None = None) -> None:
            super().__init__(lambda envelope: None, options)

        def start(self) -> None:
            raise RuntimeError("no thread")

        def _close(self, timeout: float) -> FlushReport:
            raise RuntimeError("no way")

    with TestClient(site(Broken)) as browser:
        assert browser.get("/").text == "hello"
    said = [record.getMessage() for record in caplog.records if record.name == "transport_kit"]
    assert said == ["the transport could not be started", "the transport could not be closed"]


def test_the_users_own_lifespan_and_state_are_as_without_us(sink: Any) -> None:
    """The state that a lifespan yields reaches requests."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield {"greeting": "hello"}

    async def page(request: Request) -> Response:
        return PlainTextResponse(request.state.greeting)

    app = Starlette(
        routes=[Route("/", page)], middleware=[Middleware(TransportMiddleware, dsn=sink)], lifespan=lifespan
    )
    with TestClient(app) as browser:
        assert browser.get("/").text == "hello"


def shop_lifespan(happened: list[str], *, fails: str = "") -> Any:
    """The app's own lifespan, which records its events and may fail in one of them."""

    @contextlib.asynccontextmanager
    async def shop(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        happened.append("shop up")
        if fails == "startup":
            raise ValueError("no database")
        yield {"greeting": "hello"}
        happened.append("shop down")
        if fails == "shutdown":
            raise ValueError("no database")

    return shop


async def greet(request: Request) -> Response:
    return PlainTextResponse(request.state.greeting)


def test_a_composed_lifespan_keeps_the_apps_state_within_the_life_of_the_transport(
    lived: type[Lived],
) -> None:
    """For an app without our middleware; captures during its shutdown must still be delivered."""
    kit = Kit({"dsn": lived}, source="test", environ={})
    happened = lived.lives[0].happened
    app = Starlette(routes=[Route("/", greet)], lifespan=lifespan(shop_lifespan(happened), kit=kit))
    with TestClient(app) as browser:
        assert browser.get("/").text == "hello"
        assert kit.capture_exception(ValueError("by hand")) is not None
    assert happened == ["started", "shop up", "captured", "shop down", "closed"]


@pytest.mark.parametrize("fails", ["startup", "shutdown"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_composed_lifespan_that_fails_is_reported_once_and_fails(
    fails: str, wrapped: bool, lived: type[Lived]
) -> None:
    """The server sees the same failure, and the event is delivered by then, also with the middleware."""
    kit = Kit({"dsn": lived}, source="test", environ={})
    happened = lived.lives[0].happened
    app: Any = Starlette(lifespan=lifespan(shop_lifespan(happened, fails=fails), kit=kit))
    error = asyncio.run(whole_life(TransportMiddleware(app, kit=kit) if wrapped else app, happened))
    assert isinstance(error, ValueError)
    assert happened.count("captured") == 1
    assert happened.index("captured") < happened.index("closed")
    assert happened[-1] == f"lifespan.{fails}.failed"


def test_a_composed_lifespan_reports_nothing_when_capturing_is_off(lived: type[Lived]) -> None:
    """The failure is the same."""
    kit = Kit({"dsn": lived, "capture_errors": False}, source="test", environ={})
    app = Starlette(lifespan=lifespan(shop_lifespan([], fails="startup"), kit=kit))
    assert isinstance(asyncio.run(whole_life(app, [])), ValueError)
    assert lived.lives[0].happened == ["started", "closed"]


def test_an_app_with_no_lifespan_of_its_own_is_composed_too_and_may_start_again(lived: type[Lived]) -> None:
    """`lifespan(kit=kit)` only starts and closes the kit; on FastAPI as on Starlette."""
    kit = Kit({"dsn": lived}, source="test", environ={})
    app = fastapi.FastAPI(lifespan=lifespan(kit=kit))
    for _ in range(2):
        with TestClient(app) as browser:
            assert browser.get("/missing").status_code == 404
    assert [life.happened for life in lived.lives] == [["started", "closed"]] * 2


def test_a_transport_handed_in_is_flushed_at_the_end_and_stays_open(lived: type[Lived]) -> None:
    """Two apps may share one; the end of the first must not close it."""
    own = lived()
    with TestClient(site(own)) as browser:
        browser.get("/")
    assert not own.closed
    assert own.happened == ["started"]


def test_two_apps_in_one_process_have_their_own(lived: type[Lived], client: Any) -> None:
    """Closing one transport must not stop the other."""
    one, two = site(lived), site(lived)
    with TestClient(two, raise_server_exceptions=False) as browser:
        with TestClient(one):
            pass
        assert browser.get("/fail").status_code == 500
    first, second = sorted(lived.lives, key=lambda life: len(life.happened))
    assert first.happened == ["started", "closed"]
    assert second.happened == ["started", "captured", "closed"]


def error_of(url: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url, timeout=SOON)
    caught.value.close()
    return caught.value.code


def test_an_error_under_uvicorn_reaches_the_receiver_though_the_server_stops_at_once(serve: Any) -> None:
    """The whole way with real sockets, and without a wait in between."""
    with FaultServer() as receiver:
        served = serve(site(receiver.dsn, shutdown_timeout=SOON), lifespan="on")
        assert error_of(f"{served.url}/fail?a=1") == 500
        served.stop()
        request = receiver.accepted[0]
        (event,) = (
            json.loads(item.get_bytes())
            for one in receiver.accepted
            for item in one.envelope.items
            if item.type == "event"
        )
    assert request.headers["content-encoding"] == "gzip"
    assert event["exception"]["values"][-1]["value"] == "late"
    assert event["request"]["url"] == f"{served.url}/fail"
    assert event["request"]["query_string"] == "a=1"


def test_a_receiver_that_hangs_delays_the_end_by_the_shutdown_timeout_at_most(serve: Any) -> None:
    """A rolling deployment waits for each process."""
    with FaultServer() as receiver:
        receiver.fault("hang")
        timeout = scaled(0.5)
        served = serve(site(receiver.dsn, shutdown_timeout=timeout), lifespan="on")
        assert error_of(f"{served.url}/fail") == 500
        assert receiver.wait_for_requests(1, SOON)
        before = time.monotonic()
        served.stop()
        took = time.monotonic() - before
    # uvicorn looks for its end every 0.1 s.
    assert 0.95 * timeout <= took < timeout + scaled(1.5)


def test_under_a_root_path_of_uvicorn_routes_and_requests_are_the_clients(serve: Any, sink: Any) -> None:
    """`--root-path` is how an app behind a prefix is run."""
    served = serve(site(sink), root_path="/shop")
    with urllib.request.urlopen(f"{served.url}/transport/live", timeout=SOON) as reply:
        assert reply.status == 200
    assert error_of(f"{served.url}/fail") == 500
    assert sink.event["request"]["url"] == f"{served.url}/shop/fail"


def test_a_shared_kit_is_closed_with_the_app_and_opened_by_the_next_start(sink: Any) -> None:
    """A global kit may serve both scripts and the app."""
    kit = Kit({"dsn": sink}, source="test", environ={})
    app = Starlette(routes=[Route("/", hello)], middleware=[Middleware(TransportMiddleware, kit=kit)])
    first = kit.transport
    with TestClient(app):
        assert kit.transport is first
    assert first.closed
    with TestClient(app):
        assert kit.capture_exception(ValueError("again")) is not None
