"""Captured and ignored errors of a Django site; capturing changes nothing and causes no I/O."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from wsgiref.util import FileWrapper

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import got_request_exception, request_started
from django.http import HttpRequest, HttpResponse
from django.test import override_settings

from tests.integrations.django_support import Reply, Site, acall, call_asgi, call_wsgi
from transport_kit import Scope
from transport_kit_django.asgi import with_lifespan
from transport_kit_django.wsgi import with_capture

OURS = "transport_kit_django.TransportMiddleware"


@pytest.fixture(name="site", params=["wsgi", "asgi"])
def _site(request: Any) -> Iterator[Site]:
    """Django under both kinds of server."""
    with ExitStack() as stack:
        yield Site(request.param, stack)


def wrapper(site: Site) -> Callable[[Any], Any]:
    return with_capture if site.kind == "wsgi" else with_lifespan


class Answers:
    """A middleware that turns every exception into a response."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse:
        return HttpResponse("sorry", status=503)


class Fails(Answers):
    """A middleware with a bug."""

    def __call__(self, request: HttpRequest) -> HttpResponse:
        raise ValueError("in a middleware")


@pytest.mark.parametrize("path", ["/carts/7", "/acarts/7"])
def test_an_unhandled_exception_is_captured_once_with_its_route(path: str, site: Site, sink: Any) -> None:
    """The events of thousands of carts are one problem: they share the route."""
    get = site.serve(TRANSPORT_KIT={"DSN": sink})
    reply = get(path, query="page=2&token=x")
    assert (reply.status, reply.error) == (500, None)
    assert (sink.exception["type"], sink.exception["value"]) == ("CartError", "cart 7")
    assert sink.exception["mechanism"]["type"] == "auto.http.django"
    assert sink.exception["mechanism"]["handled"] is False
    assert sink.event["transaction"] == f"{path[1:-1]}<int:number>"
    assert sink.event["transaction_info"] == {"source": "route"}
    request = sink.event["request"]
    assert request["url"] == f"http://shop.example{path}"
    assert request["method"] == "GET"
    assert "page=2" in request["query_string"]
    assert "token=x" not in request["query_string"]
    assert request["env"] == {"SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8000"}


def test_an_included_pattern_is_named_with_what_it_is_included_under(site: Site, sink: Any) -> None:
    """Two apps may both have a pattern `old/`."""
    site.serve(TRANSPORT_KIT={"DSN": sink})("/shop/old/3")
    assert sink.event["transaction"] == r"shop/old/(?P<number>\d+)$"


def test_an_exception_that_is_propagated_is_captured_once(site: Site, sink: Any) -> None:
    """With DEBUG_PROPAGATE_EXCEPTIONS each layer of middleware signals it again, also around ours."""
    said: list[object] = []

    def receive(**_: object) -> None:
        said.append(None)

    got_request_exception.connect(receive)
    try:
        site.serve(
            TRANSPORT_KIT={"DSN": sink},
            DEBUG_PROPAGATE_EXCEPTIONS=True,
            MIDDLEWARE=[
                "django.middleware.common.CommonMiddleware",
                OURS,
                "django.middleware.gzip.GZipMiddleware",
            ],
        )("/carts/7")
    finally:
        got_request_exception.disconnect(receive)
    assert len(said) > 2
    assert sink.exception["value"] == "cart 7"


@pytest.mark.parametrize(
    ("path", "status"), [("/gone", 404), ("/no-such-page", 404), ("/forbidden", 403), ("/suspicious", 400)]
)
def test_what_django_answers_on_purpose_is_not_captured(
    path: str, status: int, site: Site, sink: Any
) -> None:
    """A 404 is the client's mistake, and scanners cause thousands."""
    assert site.serve(TRANSPORT_KIT={"DSN": sink})(path).status == status
    assert sink.events == []


def test_what_process_exception_answers_is_the_sites_to_report(site: Site, sink: Any) -> None:
    """Django sends no signal then; the documentation describes how to report it."""
    get = site.serve(TRANSPORT_KIT={"DSN": sink}, MIDDLEWARE=[OURS, f"{__name__}.Answers"])
    assert get("/carts/7").status == 503
    assert sink.events == []
    reply = get("/handled")
    assert reply.body.decode() == sink.event["event_id"]
    assert sink.exception["mechanism"]["handled"] is True
    assert sink.event["transaction"] == "handled"
    assert sink.event["request"]["url"] == "http://shop.example/handled"


@pytest.mark.parametrize(
    "order", [[OURS, f"{__name__}.Fails"], [f"{__name__}.Fails", OURS], [f"{__name__}.Fails"]]
)
def test_a_middleware_that_fails_is_captured_with_the_path(order: list[str], site: Site, sink: Any) -> None:
    """There is no route yet. Outside of our layer, or without it, the signal is still sent."""
    assert site.serve(TRANSPORT_KIT={"DSN": sink}, MIDDLEWARE=order)("/carts/7").status == 500
    assert sink.exception["value"] == "in a middleware"
    assert sink.event["transaction"] == "/carts/7"
    assert sink.event["transaction_info"] == {"source": "url"}
    assert sink.event["request"]["url"] == "http://shop.example/carts/7"


def test_the_signal_without_a_request_is_captured_too(sink: Any) -> None:
    """Other libraries send it outside of requests."""
    with override_settings(TRANSPORT_KIT={"DSN": sink}):
        try:
            raise ValueError("elsewhere")
        except ValueError:
            got_request_exception.send(sender=None)
        got_request_exception.send(sender=None)  # and with nothing being handled it says nothing
    assert sink.exception["value"] == "elsewhere"
    assert "request" not in sink.event


@pytest.mark.parametrize("propagate", [False, True])
def test_nothing_is_captured_when_capturing_is_off(propagate: bool, site: Site, sink: Any) -> None:
    """`CAPTURE_ERRORS: False` leaves life cycle, health and flush."""
    get = site.serve(
        wrapper(site),
        TRANSPORT_KIT={"DSN": sink, "CAPTURE_ERRORS": False},
        DEBUG_PROPAGATE_EXCEPTIONS=propagate,
    )
    get("/carts/7")
    get("/stream", query="fail")
    assert sink.events == []


def test_a_host_that_is_not_allowed_is_shown_as_it_was_sent(site: Site, sink: Any) -> None:
    """`request.get_host()` would raise during the capture."""
    get = site.serve(TRANSPORT_KIT={"DSN": sink}, ALLOWED_HOSTS=[], MIDDLEWARE=[OURS])
    get("/carts/7")
    assert sink.event["request"]["url"] == "http://shop.example/carts/7"


def test_the_forwarded_host_counts_where_the_site_trusts_it(site: Site, sink: Any) -> None:
    """Behind a proxy, the other host is an internal address."""
    get = site.serve(TRANSPORT_KIT={"DSN": sink}, USE_X_FORWARDED_HOST=True, ALLOWED_HOSTS=["*"])
    get("/carts/7", headers=[("X-Forwarded-Host", "www.shop.example")])
    assert sink.event["request"]["url"] == "http://www.shop.example/carts/7"


# -- bodies that are streamed --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/stream", "/astream"])
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume:Warning")
def test_an_error_in_a_streaming_body_is_captured_by_the_wrapper(path: str, site: Site, sink: Any) -> None:
    """The client got 200 and half a body, and Django sends no signal: only the event shows the error."""
    get = site.serve(wrapper(site), TRANSPORT_KIT={"DSN": sink})
    reply = get(path, query="fail")
    assert reply.status == 200
    assert type(reply.error).__name__ == "CartError"
    assert sink.exception["value"] == "row two"
    assert sink.event["transaction"] == path[1:]
    assert sink.event["request"]["url"] == f"http://shop.example{path}"
    if path == "/astream" or site.kind == "wsgi":
        assert sink.event["tags"]["row"] == "second"


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_streaming_body_goes_out_piece_by_piece(wrapped: bool, sink: Any) -> None:
    """A body may be gigabytes or endless, so it must not be collected first."""
    with override_settings(TRANSPORT_KIT={"DSN": sink}):
        app = with_capture(WSGIHandler()) if wrapped else WSGIHandler()
        response: Any = app(call_environ("/stream", "fail"), lambda *_: lambda data: None)
        pieces = iter(response)
        assert next(pieces) == b"one,"
        assert Scope.current().unit.name() == ("stream", "route")
        with pytest.raises(Exception, match="row two"):
            next(pieces)
        response.close()
        assert Scope.current().unit.name() is None
    assert len(sink.events) == wrapped


def call_environ(path: str, query: str = "") -> dict[str, Any]:
    seen: list[dict[str, Any]] = []

    def keep(environ: dict[str, Any], start: Any) -> list[bytes]:
        seen.append(environ)
        return []

    call_wsgi(keep, path, query=query)
    return seen[0]


def test_a_streaming_body_that_ends_well_reports_nothing_and_leaves_the_scope(site: Site, sink: Any) -> None:
    """The next request on this thread must not inherit the scope."""
    get = site.serve(wrapper(site), TRANSPORT_KIT={"DSN": sink})
    assert get("/astream" if site.kind == "asgi" else "/stream").body == b"one,"
    assert sink.events == []
    get("/carts/7")
    assert sink.event.get("tags", {}) == {}


def test_a_streaming_body_that_is_closed_early_leaves_the_scope(sink: Any) -> None:
    """If the client disconnects, the server closes the unread body."""
    with override_settings(TRANSPORT_KIT={"DSN": sink}):
        app = with_capture(WSGIHandler())
        body: Any = app(call_environ("/stream"), lambda *_: None)
        assert next(iter(body)) == b"one,"
        body.close()
        call_wsgi(app, "/carts/7")
    assert sink.event.get("tags", {}) == {}


def test_a_file_stays_a_file_for_the_server(sink: Any) -> None:
    """`wsgi.file_wrapper` is how servers send a file without reading it."""
    with override_settings(TRANSPORT_KIT={"DSN": sink}):
        reply = call_wsgi(with_capture(WSGIHandler()), "/file")
    assert isinstance(reply.result, FileWrapper)
    assert b"import" in reply.body


def test_a_client_that_goes_away_is_no_error(sink: Any) -> None:
    """ASGI servers may raise an OSError from `send` then."""
    with override_settings(TRANSPORT_KIT={"DSN": sink}):
        for messages in (0, 1):
            reply = call_asgi(with_lifespan(ASGIHandler()), "/astream", fail_after=messages)
            assert isinstance(reply.error, OSError)
    assert sink.events == []


def test_what_escapes_from_django_itself_is_captured_by_the_wrapper(site: Site, sink: Any) -> None:
    """A receiver of `request_started` fails before there is a request."""

    def receive(**_: object) -> None:
        raise ValueError("at the start")

    get = site.serve(wrapper(site), TRANSPORT_KIT={"DSN": sink})
    request_started.connect(receive)
    try:
        reply = get("/carts/7")
    finally:
        request_started.disconnect(receive)
    assert isinstance(reply.error, ValueError)
    assert sink.exception["value"] == "at the start"
    assert sink.event["transaction"] == "/carts/7"


def test_an_error_after_a_stream_was_handed_over_ends_that_request(sink: Any) -> None:
    """A WSGI layer between Django and the wrapper may fail while it has the response."""

    def between(app: Any) -> Any:
        def layer(environ: Any, start: Any) -> Any:
            app(environ, start)
            raise ValueError("between")

        return layer

    with override_settings(TRANSPORT_KIT={"DSN": sink}):
        reply = call_wsgi(with_capture(between(WSGIHandler())), "/stream")
    assert isinstance(reply.error, ValueError)
    assert sink.exception["value"] == "between"
    assert sink.event["transaction"] == "stream"


# -- nothing is caused ---------------------------------------------------------------------------------

FORM = [("Content-Type", "application/x-www-form-urlencoded")]


def test_a_form_that_the_view_has_read_is_in_the_event(site: Site, sink: Any) -> None:
    """By field name, so that secrets are filtered."""
    get = site.serve(TRANSPORT_KIT={"DSN": sink, "SEND_DEFAULT_PII": True})
    get("/form", method="POST", headers=FORM, body=b"item=tea&item=cup&password=hunter2&n=1")
    data = sink.event["request"]["data"]
    assert (data["item"], data["n"]) == (["tea", "cup"], "1")
    assert "hunter2" not in json.dumps(sink.event)


def test_a_body_that_the_view_has_read_is_in_the_event(site: Site, sink: Any) -> None:
    """It is in memory already."""
    get = site.serve(TRANSPORT_KIT={"DSN": sink, "SEND_DEFAULT_PII": True})
    get("/body", method="POST", headers=[("Content-Type", "application/json")], body=b'{"item": "tea"}')
    assert sink.event["request"]["data"] == {"item": "tea"}


def test_a_body_that_nobody_has_read_stays_unread(sink: Any) -> None:
    """Reading may block on a slow client, and would take the stream from the view."""
    stream = io_that_counts()
    with override_settings(TRANSPORT_KIT={"DSN": sink, "SEND_DEFAULT_PII": True}):
        headers = [*FORM, ("X-Length", "5")]
        source = {"wsgi.input": stream, "CONTENT_LENGTH": "5"}
        call_wsgi(WSGIHandler(), "/nothing", method="POST", headers=headers, environ=source)
    assert stream.reads == 0
    assert "data" not in sink.event["request"]


class io_that_counts:  # noqa: N801 - reads as a function
    """A request's stream that records whether it is read."""

    reads = 0

    def read(self, *_: int) -> bytes:
        self.reads += 1
        return b""

    readline = read


@pytest.mark.parametrize("path", ["/looked-at", "/evaluated"])
def test_a_user_that_was_looked_up_is_in_the_event(path: str, site: Site, sink: Any) -> None:
    """The affected user matters for every error."""
    site.serve(TRANSPORT_KIT={"DSN": sink, "SEND_DEFAULT_PII": True})(path)
    user = sink.event["user"]
    assert (user["id"], user["username"], user["email"]) == ("7", "ada", "ada@example.com")
    assert user["ip_address"] == "192.0.2.7"


def test_a_user_that_nobody_looked_up_is_not_looked_up(site: Site, sink: Any) -> None:
    """The database may be the cause of the error: a query would fail again."""
    site.serve(TRANSPORT_KIT={"DSN": sink, "SEND_DEFAULT_PII": True})("/not-looked-at")
    assert sink.exception["value"] == "for nobody"
    assert sink.event["user"] == {"ip_address": "192.0.2.7"}


def test_fields_that_were_deferred_stay_so(site: Site, sink: Any) -> None:
    """Each would need a query."""
    site.serve(TRANSPORT_KIT={"DSN": sink, "SEND_DEFAULT_PII": True})("/deferred")
    assert sink.event["user"] == {"id": "7", "ip_address": "192.0.2.7"}


def test_a_user_that_is_no_object_of_a_class_is_left_out(site: Site, sink: Any) -> None:
    """Any code may set `request.user`."""
    site.serve(TRANSPORT_KIT={"DSN": sink, "SEND_DEFAULT_PII": True})("/unusual")
    assert sink.event["user"] == {"ip_address": "192.0.2.7"}


def test_no_user_is_sent_without_permission(site: Site, sink: Any) -> None:
    """`SEND_DEFAULT_PII` is off by default."""
    site.serve(TRANSPORT_KIT={"DSN": sink})("/looked-at")
    assert "user" not in sink.event
    assert "ada" not in json.dumps(sink.event["request"])


# -- nothing is changed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/ahello", "/astream", "/carts/7", "/gone", "/app/health", "/nothing-here"]
)
def test_no_byte_and_no_header_of_a_response_is_changed(path: str, sink: Any) -> None:
    """Responses must be the same as without the middleware."""
    common = ["django.middleware.common.CommonMiddleware"]
    with override_settings(MIDDLEWARE=common):
        before = call_asgi(ASGIHandler(), path)
    with override_settings(MIDDLEWARE=[OURS, *common], TRANSPORT_KIT={"DSN": sink}):
        after = call_asgi(with_lifespan(ASGIHandler()), path)
    assert (after.status, after.headers, after.body) == (before.status, before.headers, before.body)


def test_each_of_a_hundred_concurrent_requests_has_a_scope_of_its_own(sink: Any) -> None:
    """A tag of another customer on an event would be a leak."""

    async def storm() -> list[Reply]:
        app = with_lifespan(ASGIHandler())
        return await asyncio.gather(*(acall(app, f"/tagged/{number}") for number in range(100)))

    with override_settings(TRANSPORT_KIT={"DSN": sink}):
        assert {reply.status for reply in asyncio.run(storm())} == {500}
    seen = {(event["tags"]["number"], event["exception"]["values"][-1]["value"]) for event in sink.events}
    assert seen == {(str(number), f"tagged {number}") for number in range(100)}
