"""docs/integrations/custom.md: an integration for an unknown framework, written from scratch.

`Toy` is the framework, `ToyReporting` all of its integration. The tests are the page's claims.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.timing import SOON
from transport_kit import Kit, RequestFacts, RequestInfo, Scope
from transport_kit.testing import CapturedTransport, FaultServer

PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "custom.md"


# -- the framework -------------------------------------------------------------------------------------


@dataclass
class Request:
    """A request; `route` is set after routing."""

    path: str
    method: str = "GET"
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    route: str | None = None


@dataclass
class Response:
    """A response."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


View = Callable[[Request], Response]


class ClientLeft(Exception):
    """The client has disconnected."""


class Toy:
    """A framework with numbers in routes, middleware, and a hook for exceptions that it turns into a 500."""

    def __init__(self, routes: Mapping[str, View]) -> None:
        self.routes = routes
        self.layers: list[Callable[[View], View]] = []
        self.on_error: list[Callable[[Exception], object]] = []

    def __call__(self, request: Request) -> Response:
        call: View = self._dispatch
        for layer in self.layers:
            call = layer(call)
        return call(request)

    def _dispatch(self, request: Request) -> Response:
        for route, view in self.routes.items():
            if re.fullmatch(route.replace("<n>", r"\d+"), request.path):
                request.route = route
                try:
                    return view(request)
                except ArithmeticError as error:
                    for hook in self.on_error:
                        hook(error)
                    return Response(500, b"sorry")
        return Response(404)


# -- its integration -----------------------------------------------------------------------------------


class ToyFacts(RequestFacts):
    """The facts of a request, computed on demand."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def named(self) -> tuple[str, str]:
        request = self._request
        return (request.route, "route") if request.route else (request.path, "url")

    def describe(self) -> RequestInfo:
        return RequestInfo(
            method=self._request.method,
            url=f"http://toy.example{self._request.path}",
            query_string=self._request.query,
            headers=tuple(self._request.headers.items()),
        )

    def header(self, name: str) -> str | None:
        return self._request.headers.get(name)

    def is_expected(self, error: BaseException) -> bool:
        return isinstance(error, ClientLeft)


class ToyReporting:
    """The complete integration; each method is one of the five moments."""

    def __init__(self, app: Toy, settings: Mapping[str, object]) -> None:
        self.kit = Kit(settings, source="settings.REPORTING", environ={})
        app.layers.append(self._layer)  # the last one is the outermost
        app.on_error.append(self._on_error)

    def _layer(self, inner: View) -> View:
        def call(request: Request) -> Response:
            answer = self._answer(request)
            if answer is not None:
                return answer
            with self.kit.serve(ToyFacts(request), mechanism="auto.http.toy") as served:
                response = inner(request)
                served.status = response.status
                return response

        return call

    def _on_error(self, error: Exception) -> None:
        self.kit.capture_unhandled(error, mechanism="auto.http.toy")

    def _answer(self, request: Request) -> Response | None:
        leaf = self.kit.match(request.path)
        if leaf is None:
            return None
        answer = self.kit.answer(
            leaf,
            method=request.method,
            query_string=request.query,
            accept=request.headers.get("accept"),
            authorization=request.headers.get("authorization"),
        )
        return Response(answer.status, answer.body, answer.headers)

    def shutdown(self) -> None:
        """The framework's shutdown."""
        self.kit.close()


# -- what the page says --------------------------------------------------------------------------------


def boom(request: Request) -> Response:
    Scope.current().set_tag("path", request.path)
    raise ValueError("boom")


def divide(request: Request) -> Response:
    return Response(1 // 0)


def leave(request: Request) -> Response:
    raise ClientLeft


def fine(request: Request) -> Response:
    return Response(200, b"fine", (("X-Toy", "1"),))


ROUTES = {"/boom/<n>": boom, "/divide": divide, "/leave": leave, "/": fine}


def site(**settings: object) -> tuple[Toy, ToyReporting, CapturedTransport]:
    transport = CapturedTransport()
    app = Toy(ROUTES)
    return app, ToyReporting(app, {"dsn": transport, **settings}), transport


def test_an_escaping_exception_is_captured_with_its_route_and_goes_on() -> None:
    """The moments of the request and of the exception."""
    app, _, transport = site()
    for number in (1, 2):
        with pytest.raises(ValueError, match="boom"):
            app(Request(f"/boom/{number}", query="page=1"))
    assert {event["transaction"] for event in transport.events} == {"/boom/<n>"}
    assert [event["tags"] for event in transport.events] == [{"path": "/boom/1"}, {"path": "/boom/2"}]
    described = transport.events[0]["request"]
    assert (described["url"], described["query_string"]) == ("http://toy.example/boom/1", "page=1")
    mechanism = transport.events[0]["exception"]["values"][-1]["mechanism"]
    assert (mechanism["type"], mechanism["handled"]) == ("auto.http.toy", False)


def test_an_exception_that_became_a_response_is_captured_by_the_hook() -> None:
    """It does not escape; the event has the request all the same."""
    app, _, transport = site()
    assert app(Request("/divide")).body == b"sorry"
    (event,) = transport.events
    assert event["transaction"] == "/divide"
    assert event["request"]["url"] == "http://toy.example/divide"


def test_what_is_expected_is_not_captured_and_capturing_can_be_off() -> None:
    """A disconnected client is no error; without `capture_errors` nothing is captured."""
    app, _, transport = site()
    with pytest.raises(ClientLeft):
        app(Request("/leave"))
    assert transport.events == []
    app, _, transport = site(capture_errors=False)
    with pytest.raises(ValueError, match="boom"):
        app(Request("/boom/1"))
    assert app(Request("/divide")).status == 500
    assert transport.events == []


def test_a_trace_is_continued_and_measured() -> None:
    """The caller's header is read by its lower-case name."""
    app, _, transport = site(traces_sample_rate=1.0)
    trace = "0123456789abcdef0123456789abcdef"
    assert app(Request("/", headers={"sentry-trace": f"{trace}-0123456789abcdef-1"})) == fine(Request("/"))
    (transaction,) = transport.payloads("transaction")
    assert transaction["transaction"] == "/"
    assert transaction["contexts"]["trace"]["trace_id"] == trace
    assert transaction["contexts"]["trace"]["status"] == "ok"


def test_the_routes_answer_before_anything_else_and_start_nothing() -> None:
    """The moment of health: the layer is the outermost."""
    app, _, transport = site(flush_token="a-long-enough-token", path="/_toy")
    assert [app(Request(f"/_toy/{leaf}")).status for leaf in ("live", "ready", "health")] == [200] * 3
    bearer = {"authorization": "Bearer a-long-enough-token"}
    flushed = app(Request("/_toy/flush", method="POST", query="timeout=10", headers=bearer))
    assert (flushed.status, json.loads(flushed.body)["ok"]) == (200, True)
    assert app(Request("/_toy/flush", method="POST")).status == 404
    assert app(Request("/_toy")).status == 404
    assert transport.sealed == []


def test_the_end_delivers_and_another_start_makes_a_new_transport() -> None:
    """The moments of start and end."""
    with FaultServer() as server:
        server.delay = 0.05
        app = Toy(ROUTES)
        reporting = ToyReporting(app, {"DSN": server.dsn, "SHUTDOWN_TIMEOUT": SOON})
        app(Request("/divide"))
        reporting.shutdown()
        assert len(server.event_ids()) == 1
        assert app(Request("/transport/health")).status == 503
        reporting.kit.start()
        app(Request("/divide"))
        reporting.shutdown()
        assert len(set(server.event_ids())) == 2


def test_a_wrong_setting_is_a_line_in_the_users_words(caplog: pytest.LogCaptureFixture) -> None:
    """The moment of set-up raises nothing."""
    with caplog.at_level(logging.ERROR, "transport_kit"):
        app, _, _ = site(relaese="1")
    assert "settings.REPORTING" in caplog.text
    assert "did you mean release?" in caplog.text
    assert app(Request("/")).body == b"fine"
    health = app(Request("/transport/health"))
    assert (health.status, json.loads(health.body)["status"]) == (200, "warn")


def test_the_page_names_what_there_is() -> None:
    """A name in its snippets or reference that no longer exists would mislead readers."""
    text = PAGE.read_text(encoding="utf-8")
    known = Kit({"dsn": ""}, environ={})
    reference = text.partition("## API reference")[2]
    named = set(re.findall(r"`\.(\w+)", reference.partition("·")[0]))
    assert named >= {"start", "serve", "close", "capture_unhandled", "match", "answer"}
    assert [name for name in named if not hasattr(known, name)] == []
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    namespaces: list[dict[str, Any]] = []
    for snippet in snippets:
        namespaces.append({})
        exec(snippet.replace("<key>", "0123456789abcdef0123456789abcdef"), namespaces[-1])
    (serve,) = (found["serve"] for found in namespaces if "serve" in found)
    (routes,) = (found["routes"] for found in namespaces if "routes" in found)
    transport = CapturedTransport()
    kit = Kit({"dsn": transport}, environ={})

    class Theirs(Request):
        """The request class of the snippets."""

        url = "http://toy.example/"
        query_string = ""

        def header(self, name: str) -> str | None:
            return self.headers.get(name)

    theirs = Theirs("/boom/1")
    assert routes(kit, theirs) is None
    assert routes(kit, Theirs("/transport/live")).status == 200
    assert serve(kit, fine, theirs).status == 200
    with pytest.raises(ValueError, match="boom"):
        serve(kit, boom, theirs)
    assert transport.events[0]["transaction"] == "/boom/1"
