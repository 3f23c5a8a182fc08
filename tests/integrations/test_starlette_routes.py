"""The four routes of a Starlette app: answered by the middleware before all layers, or by a router."""

from __future__ import annotations

import asyncio
import http.client
import json
from typing import Any

import fastapi
import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, BaseUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.httpsredirect import HTTPSRedirectMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.testclient import TestClient

from tests.timing import SOON
from transport_kit import FlushReport, FunctionTransport, Kit, TransportOptions
from transport_kit_starlette import TransportMiddleware, transport_routes

LEAVES = ("live", "ready", "health", "flush")
TOKEN = "a-long-enough-token"
BEARER = (b"authorization", f"Bearer {TOKEN}".encode())


class NoEntry(AuthenticationBackend):
    """A middleware that refuses every request."""

    async def authenticate(self, connection: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        raise AuthenticationError("no")


class Session(BaseHTTPMiddleware):
    """A middleware that sets a cookie."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.set_cookie("session", "1")
        return response


async def everything(request: Request) -> Response:
    return PlainTextResponse(f"app: {request.url.path}", status_code=418)


def site(
    sink: Any, *middleware: Middleware, routes: list[BaseRoute] | None = None, **options: Any
) -> Starlette:
    return Starlette(
        routes=routes or [Route("/{path:path}", everything, methods=["GET", "POST"])],
        middleware=[Middleware(TransportMiddleware, dsn=sink, **options), *middleware],
    )


def test_the_four_leaves_answer_under_the_default_path(sink: Any, client: Any) -> None:
    """One line in the app gives an orchestrator its probes."""
    app = site(sink, flush_token=TOKEN)
    assert [client(app, f"/transport/{leaf}").status for leaf in ("live", "ready", "health")] == [
        200,
        200,
        200,
    ]
    seen = client(app, "/transport/flush", method="POST", headers=[BEARER])
    assert (seen.status, json.loads(seen.body)["ok"]) == (200, True)
    assert seen.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "inside",
    [
        Middleware(TrustedHostMiddleware, allowed_hosts=["elsewhere.example"]),
        Middleware(HTTPSRedirectMiddleware),
        Middleware(AuthenticationMiddleware, backend=NoEntry()),
        Middleware(Session),
    ],
    ids=["host", "https", "auth", "session"],
)
def test_they_answer_before_host_checks_redirects_login_and_sessions(
    inside: Middleware, sink: Any, client: Any
) -> None:
    """A probe has no session, speaks plain HTTP, and sends the pod's address as host."""
    app = site(sink, inside, flush_token=TOKEN)
    assert [client(app, f"/transport/{leaf}").status for leaf in ("live", "ready", "health")] == [
        200,
        200,
        200,
    ]
    seen = client(app, "/transport/flush", method="POST", headers=[BEARER])
    assert seen.status == 200
    assert "set-cookie" not in seen.headers


@pytest.mark.parametrize(
    "path",
    [
        "/transport",
        "/transport/",
        "/transport/health/",
        "/transport/healthy",
        "/transport//health",
        "/Transport/health",
        "/x/transport/health",
        "/health",
    ],
)
def test_every_other_path_is_the_apps(path: str, sink: Any, client: Any) -> None:
    """Only four paths are taken: no prefix, and no variants with slashes."""
    assert client(site(sink), path).status == 418


@pytest.mark.parametrize(
    ("path", "root_path", "ours"),
    [
        ("/api/transport/health", "/api", True),  # uvicorn, granian, a Mount: root_path is part of path
        ("/transport/health", "/api", True),  # hypercorn behind a proxy that strips: it is not
        ("/apitransport/health", "/api", False),
        ("/api", "/api", False),
        ("/transport/health", "", True),
        ("/api/transport/health", "", False),
    ],
)
def test_they_are_found_below_root_path_as_each_server_tells_it(
    path: str, root_path: str, ours: bool, sink: Any, client: Any
) -> None:
    """The routes follow the prefix of the proxy."""
    assert (client(site(sink), path, root_path=root_path).status == 200) is ours


def test_a_mounted_app_answers_below_its_mount(sink: Any, client: Any) -> None:
    """A mounted app has its own health."""
    inner = Starlette(middleware=[Middleware(TransportMiddleware, dsn="nonsense")])
    outer = site(sink, routes=[Mount("/inner", app=inner), Mount("/deep", routes=[Mount("/er", app=inner)])])
    assert client(outer, "/transport/health").status == 200
    assert client(outer, "/inner/transport/health").status == 503
    assert client(outer, "/deep/er/transport/health").status == 503
    assert client(outer, "/proxy/inner/transport/health", root_path="/proxy").status == 503


def test_another_path_or_none_can_be_chosen(sink: Any, client: Any) -> None:
    """`/transport` may be a page of the app."""
    assert client(site(sink, path="/_internal"), "/_internal/live").status == 200
    assert client(site(sink, path="/_internal"), "/transport/live").status == 418
    assert client(site(sink, path=None), "/transport/live").status == 418


@pytest.mark.parametrize("leaf", ["live", "ready", "health"])
def test_head_and_wrong_methods_are_answered_as_http_says(leaf: str, sink: Any, client: Any) -> None:
    """HEAD has the length that GET would have; the answer to another method lists the allowed ones."""
    app = site(sink)
    get, head = (client(app, f"/transport/{leaf}", method=method) for method in ("GET", "HEAD"))
    assert (head.status, head.headers, head.body) == (get.status, get.headers, b"")
    assert int(get.headers["content-length"]) == len(get.body) > 0
    wrong = client(app, f"/transport/{leaf}", method="DELETE")
    assert (wrong.status, wrong.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("token", "headers"),
    [(None, [BEARER]), (TOKEN, []), (TOKEN, [(b"authorization", b"Bearer x")]), (TOKEN, [BEARER, BEARER])],
)
def test_flush_is_404_without_a_token_set_and_given_once(
    token: str | None, headers: list[tuple[bytes, bytes]], sink: Any, client: Any
) -> None:
    """Other clients must not learn that the route exists."""
    assert (
        client(site(sink, flush_token=token), "/transport/flush", method="POST", headers=headers).status
        == 404
    )


def test_several_accept_headers_are_read_as_one(sink: Any, client: Any) -> None:
    """RFC 9110 section 5.3: a list may be in several fields."""
    headers = [(b"accept", b"image/png"), (b"accept", b"text/html")]
    assert (
        client(site(sink), "/transport/health", headers=headers)
        .headers["content-type"]
        .startswith("text/html")
    )


def test_a_flush_does_not_stop_the_event_loop(client: Any) -> None:
    """While one client waits for ten seconds, others are served."""

    class Held(FunctionTransport):
        def _flush(self, timeout: float, until: str) -> FlushReport:
            entered.set()
            return FlushReport(released.wait(timeout))

    import threading

    entered, released = threading.Event(), threading.Event()
    app = site(Held(lambda envelope: None), flush_token=TOKEN)

    async def scenario() -> Any:
        flush = asyncio.ensure_future(
            client.arequest(
                app, "/transport/flush", method="POST", query_string=b"timeout=10", headers=[BEARER]
            )
        )
        while not entered.is_set():
            await asyncio.sleep(0)
        assert (await client.arequest(app, "/x")).status == 418
        assert not flush.done()
        released.set()
        return await flush

    assert asyncio.run(scenario()).status == 200


def test_the_routes_are_not_captured_and_start_nothing(client: Any) -> None:
    """A probe per second must not be reported, nor start a thread in a parent that forks."""
    started: list[int] = []

    class Counting(FunctionTransport):
        def __init__(self, options: TransportOptions | None = None) -> None:
            super().__init__(lambda envelope: None, options)

        def start(self) -> None:
            started.append(1)

    app = site(Counting)
    for leaf in LEAVES:
        client(app, f"/transport/{leaf}")
    assert started == []
    client(app, "/x")
    client(app, "/x")
    assert started == [1]


def test_transport_routes_show_the_kit_of_the_middleware_around(sink: Any, client: Any) -> None:
    """An app that requires a login for health puts the routes behind it."""
    routes: list[BaseRoute] = [Mount("/ops", routes=transport_routes())]
    app = site(sink, routes=routes, path=None, flush_token=TOKEN)
    assert [client(app, f"/ops/{leaf}").status for leaf in ("live", "ready", "health")] == [200, 200, 200]
    assert client(app, "/ops/flush", method="POST", headers=[BEARER]).status == 200
    assert client(app, "/ops/flush").status == 404
    wrong = client(app, "/ops/health", method="DELETE")
    assert (wrong.status, wrong.headers["allow"]) == (405, "GET, HEAD")
    assert client(app, "/ops/health", method="HEAD").body == b""


def test_transport_routes_stand_behind_what_is_around_the_router(sink: Any, client: Any) -> None:
    """Unlike the middleware's own routes, they come after the layers around the router."""
    login = Middleware(AuthenticationMiddleware, backend=NoEntry())
    app = site(sink, login, routes=[Mount("/ops", routes=transport_routes())], path=None)
    assert client(app, "/ops/health").status == 400


def test_transport_routes_take_a_kit_where_no_middleware_is(sink: Any, client: Any) -> None:
    """Health and flush for an app that captures by other means."""
    kit = Kit({"dsn": sink, "health_details": "always"}, source="test", environ={})
    kit.capture_exception(ValueError("one"))
    app = Starlette(routes=[Mount("/ops", routes=transport_routes(kit))])
    body = json.loads(client(app, "/ops/health").body)
    assert body["checks"]["items:delivered"][0]["observedValue"] == {"error": 1}


def test_transport_routes_without_a_kit_say_what_is_missing(client: Any) -> None:
    """A 404 without a message would mislead."""
    seen = client(Starlette(routes=transport_routes()), "/health")
    assert isinstance(seen.error, RuntimeError)
    assert "add_middleware" in str(seen.error)


def test_nothing_of_ours_is_in_a_fastapi_schema(sink: Any, client: Any) -> None:
    """An API's documentation must contain only the API."""
    app = fastapi.FastAPI(routes=[Mount("/ops", routes=transport_routes())])
    app.router.routes.extend(transport_routes())
    app.add_middleware(TransportMiddleware, dsn=sink)
    assert app.openapi()["paths"] == {}
    assert [client(app, path).status for path in ("/ops/live", "/live", "/transport/live")] == [200, 200, 200]


def test_names_lead_to_the_routes(sink: Any) -> None:
    """Starlette apps make links by `url_path_for`."""
    app = site(sink, routes=[Mount("/ops", name="ops", routes=transport_routes())])
    assert app.url_path_for("ops:transport_health") == "/ops/health"


def test_a_bad_dsn_leaves_the_app_up_and_health_says_fail(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A typo must not stop the app."""
    key = "0123456789abcdef0123456789abcdef"
    app = site(f"http://{key}@/nowhere", health_details="always")
    with TestClient(app) as browser:
        assert browser.get("/shop").status_code == 418
        health = browser.get("/transport/health")
    assert health.status_code == 503
    assert health.json()["status"] == "fail"
    assert "TransportMiddleware" in health.json()["output"]
    (record,) = (record for record in caplog.records if record.name == "transport_kit")
    assert record.levelname == "ERROR"
    assert key not in caplog.text
    assert key not in health.text


def test_a_bad_dsn_is_raised_when_strict_at_construction(sink: Any) -> None:
    """Wrapped by hand it raises at import; with `add_middleware`, when Starlette builds its stack."""
    with pytest.raises(ValueError, match="invalid DSN"):
        TransportMiddleware(Starlette(), dsn="nonsense", strict=True)
    app = site("nonsense", strict=True)
    with pytest.raises(ValueError, match="invalid DSN"), TestClient(app):
        pass


def test_a_browser_gets_a_page_from_a_real_server(sink: Any, serve: Any) -> None:
    """Status line, length and headers as they come over a socket, on a connection that stays usable."""
    served = serve(site(sink, health_details="always"))
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=SOON)
    for method, path, headers, status in (
        ("GET", "/transport/health", {"Accept": "text/html"}, 200),
        ("HEAD", "/transport/health", {}, 200),
        ("POST", "/transport/health", {}, 405),
        ("POST", "/transport/flush", {}, 404),
        ("GET", "/shop", {}, 418),
    ):
        connection.request(method, path, body=b"x" * 2000 if method == "POST" else None, headers=headers)
        reply = connection.getresponse()
        body = reply.read()
        assert reply.status == status
        if headers:
            assert body.startswith(b"<!doctype html>")
            assert "default-src 'none'" in (reply.getheader("content-security-policy") or "")
    connection.close()
