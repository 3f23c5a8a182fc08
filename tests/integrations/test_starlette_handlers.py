"""Deliberate 5xx responses, reported on request; the client gets the same response."""

from __future__ import annotations

import threading
from typing import Any

import fastapi
import pytest
from fastapi.exception_handlers import http_exception_handler
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from transport_kit_starlette import TransportMiddleware, report_server_errors


async def answer(request: Request) -> Response:
    """Raise an exception with the status of the path; some statuses have no body."""
    raise HTTPException(request.path_params["status"], "said so", headers={"X-Shop": "yes"})


def site(sink: Any, handler: Any, **options: Any) -> Starlette:
    return Starlette(
        routes=[Route("/{status:int}", answer)],
        middleware=[Middleware(TransportMiddleware, dsn=sink, **options)],
        exception_handlers={} if handler is None else {HTTPException: handler},
    )


def test_a_deliberate_503_is_reported_as_handled_with_its_request_and_route(sink: Any, client: Any) -> None:
    """A middleware can't see the exception, only the response."""
    seen = client(site(sink, report_server_errors(), release="shop@1"), "/503")
    assert (seen.status, seen.body) == (503, b"said so")
    assert sink.exception["type"] == "HTTPException"
    assert sink.exception["mechanism"]["type"] == "auto.http.starlette"
    assert sink.exception["mechanism"]["handled"] is True
    assert sink.event["transaction"] == "/{status:int}"
    assert sink.event["request"]["url"] == "http://shop.example/503"


def test_what_is_the_clients_fault_is_not_reported(sink: Any, client: Any) -> None:
    """A 404 is a normal response."""
    app = site(sink, report_server_errors())
    assert [client(app, f"/{status}").status for status in (404, 499)] == [404, 499]
    assert sink.events == []


def test_capture_errors_off_is_off_here_too(sink: Any, client: Any) -> None:
    """The option turns off all automatic captures."""
    assert client(site(sink, report_server_errors(), capture_errors=False), "/500").status == 500
    assert sink.events == []


@pytest.mark.parametrize("status", [204, 304, 404, 500, 503])
def test_the_answer_is_starlettes_own_to_the_byte(status: int, sink: Any, client: Any) -> None:
    """204 and 304 have no body, and the exception's headers are kept."""
    plain = client(site(sink, None), f"/{status}")
    handled = client(site(sink, report_server_errors()), f"/{status}")
    assert handled.messages == plain.messages
    assert handled.headers["x-shop"] == "yes"


@pytest.mark.parametrize("status", [404, 503])
def test_the_answer_is_fastapis_own_to_the_byte(status: int, sink: Any, client: Any) -> None:
    """With the handler that FastAPI exports."""

    def make(handler: Any) -> fastapi.FastAPI:
        app = fastapi.FastAPI()

        @app.get("/")
        async def page() -> None:
            raise fastapi.HTTPException(status, {"why": "said so"}, headers={"X-Shop": "yes"})

        if handler is not None:
            app.add_exception_handler(HTTPException, handler)
        app.add_middleware(TransportMiddleware, dsn=sink)
        return app

    plain = client(make(None))
    handled = client(make(report_server_errors(http_exception_handler)))
    assert handled.messages == plain.messages
    assert len(sink.events) == (status == 503)


def test_a_handler_that_is_no_coroutine_runs_off_the_loop(sink: Any, client: Any) -> None:
    """It may block, so it runs on a thread, as in the framework."""
    threads: list[int] = []

    def handler(request: Request, error: Exception) -> Response:
        threads.append(threading.get_ident())
        return PlainTextResponse("mine", status_code=503)

    class Mine:
        async def __call__(self, request: Request, error: Exception) -> Response:
            threads.append(threading.get_ident())
            return PlainTextResponse("mine", status_code=503)

    assert client(site(sink, report_server_errors(handler)), "/503").body == b"mine"
    assert client(site(sink, report_server_errors(Mine())), "/503").body == b"mine"
    assert [thread == threading.get_ident() for thread in threads] == [False, True]
    assert len(sink.events) == 2


def test_without_the_middleware_the_answer_is_the_same_and_the_log_says_what_is_missing(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Reporting must not turn a 503 into a 500."""
    app = Starlette(
        routes=[Route("/{status:int}", answer)], exception_handlers={HTTPException: report_server_errors()}
    )
    assert client(app, "/503").status == 503
    assert [record.getMessage() for record in caplog.records] == [
        "an HTTPException was not reported: no TransportMiddleware is around this app"
    ]
