"""Captured and ignored errors of a Flask app; capturing changes nothing."""

from __future__ import annotations

import gc
import io
import json
import threading
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import pytest
from flask import Blueprint, Flask, Request, Response, abort, request, send_file, stream_with_context
from flask.sessions import SessionInterface
from werkzeug.exceptions import ClientDisconnected
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client, create_environ, run_wsgi_app
from werkzeug.wsgi import FileWrapper

from tests.integrations.flask_support import CartError, Site, fail, kit, site_for
from tests.timing import SOON
from transport_kit import Scope
from transport_kit_flask import get_kit


@pytest.fixture(name="site")
def _site(sink: Any) -> Site:
    """Make an app whose events go to the sink."""
    return site_for(sink)


def test_an_unhandled_exception_is_captured_with_its_route_and_request(site: Site, sink: Any) -> None:
    """Flask returns its 500 as usual; the event has the details."""
    app = site()
    app.add_url_rule("/carts/<int:number>", view_func=fail)
    answer = app.test_client().get("/carts/1?page=2&token=x")
    assert answer.status_code == 500
    assert (sink.exception["type"], sink.exception["value"]) == ("CartError", "bad cart")
    assert sink.exception["mechanism"]["type"] == "auto.http.flask"
    assert sink.exception["mechanism"]["handled"] is False
    assert sink.exception["stacktrace"]["frames"][-1]["function"] == "fail"
    assert sink.event["transaction"] == "/carts/<int:number>"
    assert sink.event["transaction_info"] == {"source": "route"}
    described = sink.event["request"]
    assert described["url"] == "http://localhost/carts/1"
    assert described["method"] == "GET"
    assert "page=2" in described["query_string"]
    assert "token=x" not in described["query_string"]
    assert described["env"] == {"SERVER_NAME": "localhost", "SERVER_PORT": "80"}
    assert described["headers"]["Host"] == "localhost"


@pytest.mark.parametrize("setting", ["TESTING", "DEBUG", "PROPAGATE_EXCEPTIONS"])
def test_an_exception_that_flask_lets_through_is_captured_once(setting: str, site: Site, sink: Any) -> None:
    """The signal comes first, then the exception passes through the layer."""
    app = site()
    app.config[setting] = True
    app.add_url_rule("/", view_func=fail)
    with pytest.raises(CartError):
        app.test_client().get("/")
    assert sink.exception["type"] == "CartError"


@pytest.mark.parametrize("handled", [Exception, CartError])
def test_what_an_error_handler_answers_is_handled(handled: type[Exception], site: Site, sink: Any) -> None:
    """The app has handled it; `capture_exception` reports it nevertheless."""
    app = site()
    app.add_url_rule("/carts/<number>", view_func=fail)

    @app.errorhandler(handled)
    def answer(error: Exception) -> tuple[str, int]:
        if "report" in request.args:
            assert kit.capture_exception() is not None
            assert kit.capture_exception(error) is None
        return "sorry", 500

    assert app.test_client().get("/carts/1").text == "sorry"
    assert sink.events == []
    assert app.test_client().get("/carts/1?report").text == "sorry"
    assert sink.exception["mechanism"]["type"] == "generic"
    assert sink.exception["mechanism"]["handled"] is True
    assert sink.event["transaction"] == "/carts/<number>"
    assert sink.event["request"]["query_string"] == "report"


def test_what_an_error_handler_for_500_answers_is_captured(site: Site, sink: Any) -> None:
    """The handler renders the page; the exception is still unhandled."""
    app = site()
    app.add_url_rule("/", view_func=fail)
    app.register_error_handler(500, lambda error: ("our own page", 500))
    assert app.test_client().get("/").text == "our own page"
    assert sink.exception["type"] == "CartError"


def test_http_exceptions_are_answers(site: Site, sink: Any) -> None:
    """`abort` is a view's way to respond, also with a 500."""
    app = site()
    app.add_url_rule("/<int:code>", view_func=abort)
    browser = app.test_client()
    assert [browser.get(path).status_code for path in ("/404", "/500", "/nowhere")] == [404, 500, 404]
    assert sink.events == []


def test_an_async_view_is_captured_in_its_requests_scope(site: Site, sink: Any) -> None:
    """Flask runs it on another event loop, in a copy of the context."""
    app = site()

    @app.get("/<name>")
    async def view(name: str) -> str:
        Scope.current().set_tag("name", name)
        raise CartError(name)

    assert app.test_client().get("/tea").status_code == 500
    assert sink.exception["value"] == "tea"
    assert sink.event["tags"] == {"name": "tea"}
    assert Scope.current().unit.errored is False


def test_the_transaction_of_a_nested_blueprint_is_the_whole_rule(site: Site, sink: Any) -> None:
    """Developers search for the complete rule."""
    app = site()
    outer, inner = Blueprint("outer", __name__), Blueprint("inner", __name__)
    inner.add_url_rule("/<int:number>", view_func=fail)
    outer.register_blueprint(inner, url_prefix="/carts")
    app.register_blueprint(outer, url_prefix="/api")
    app.test_client().get("/api/carts/3")
    assert sink.event["transaction"] == "/api/carts/<int:number>"


def test_the_prefix_of_a_mounted_app_is_part_of_its_names(site: Site, sink: Any) -> None:
    """Two apps under one server both have a route `/`."""
    app = site()
    app.add_url_rule("/carts", view_func=fail)
    mounted = DispatcherMiddleware(Flask("outer"), {"/shop": app})
    Client(mounted).get("/shop/carts")
    assert sink.event["transaction"] == "/shop/carts"
    assert sink.event["request"]["url"] == "http://localhost/shop/carts"


@pytest.mark.parametrize(
    "hook", ["url_value_preprocessor", "before_request", "after_request", "teardown_request"]
)
def test_errors_in_hooks_are_captured(hook: str, site: Site, sink: Any) -> None:
    """One of the hooks fails before our hook, another after the view has returned."""
    app = site()
    app.add_url_rule("/é", view_func=lambda: "fine")

    def broken(*arguments: object) -> Any:
        raise CartError(hook)

    getattr(app, hook)(broken)
    browser = app.test_client()
    if hook == "teardown_request":
        with pytest.raises(CartError):
            browser.get("/é")
    else:
        assert browser.get("/é").status_code == 500
    assert sink.exception["value"] == hook
    assert sink.event["transaction"] == "/é"
    assert sink.event["request"]["url"] == "http://localhost/%C3%A9"


def test_an_error_before_routing_has_the_path_for_a_name(site: Site, sink: Any) -> None:
    """A session that can't be opened fails before routing."""
    app = site()

    class Broken(SessionInterface):
        def open_session(self, app: Flask, request: Request) -> NoReturn:
            raise CartError("no store")

    app.session_interface = Broken()
    assert app.test_client().get("/carts/1").status_code == 500
    assert sink.event["transaction"] == "/carts/1"
    assert sink.event["transaction_info"] == {"source": "url"}


def rows(error: Exception | None = None) -> Iterator[str]:
    yield "first\n"
    if error is not None:
        raise error
    yield "second\n"


@pytest.mark.parametrize("wrap", [lambda body: body, stream_with_context], ids=["plain", "context"])
def test_an_error_in_a_streamed_body_is_captured_with_its_route(wrap: Any, site: Site, sink: Any) -> None:
    """The client got 200 and half a body, and Flask notices nothing."""
    app = site()

    @app.get("/export/<name>")
    def export(name: str) -> Any:
        Scope.current().set_tag("name", name)
        return wrap(rows(CartError("no price")))

    chunks, status, _ = run_wsgi_app(app, create_environ("/export/tea"))
    assert status == "200 OK"
    iterator = iter(chunks)
    assert next(iterator) == b"first\n"
    with pytest.raises(CartError):
        next(iterator)
    chunks.close()  # type: ignore[attr-defined]
    assert sink.exception["value"] == "no price"
    assert sink.event["transaction"] == "/export/<name>"
    assert sink.event["tags"] == {"name": "tea"}
    assert sink.event["request"]["url"] == "http://localhost/export/tea"
    assert Scope.current().unit.errored is False


def test_an_error_when_a_body_is_closed_is_captured(site: Site, sink: Any) -> None:
    """Apps use `call_on_close` to clean up after a download."""
    app = site()

    @app.get("/")
    def export() -> Response:
        response = Response(rows())
        response.call_on_close(fail)
        return response

    with pytest.raises(CartError):
        run_wsgi_app(app, create_environ("/"), buffered=True)
    assert sink.exception["type"] == "CartError"


def test_a_client_that_went_away_is_not_an_error(site: Site, sink: Any) -> None:
    """No developer can fix it."""
    app = site()
    app.add_url_rule("/", view_func=lambda: Response(rows(ClientDisconnected())))
    with pytest.raises(ClientDisconnected):
        run_wsgi_app(app, create_environ("/"), buffered=True)
    assert sink.events == []


def test_a_stream_that_is_complete_reports_nothing_and_is_handed_on_unchanged(site: Site, sink: Any) -> None:
    """Chunk by chunk, as the app yields it."""
    app = site()
    app.add_url_rule("/", view_func=lambda: Response(rows()))
    chunks, _, _ = run_wsgi_app(app, create_environ("/"))
    assert list(chunks) == [b"first\n", b"second\n"]
    assert sink.events == []


def test_a_request_whose_body_nobody_reads_leaves_no_scope_behind(site: Site) -> None:
    """Tests that check only the status would otherwise nest each request in the previous one."""
    app = site()
    outside = Scope.current()
    seen: list[Scope] = []

    @app.get("/")
    def view() -> str:
        seen.append(Scope.current())
        Scope.current().set_tag("left", "behind")
        return "fine"

    app.add_url_rule("/fail", view_func=fail)
    browser = app.test_client()
    kept = [browser.get("/"), browser.get("/"), browser.get("/nowhere"), browser.get("/fail")]
    assert [answer.status_code for answer in kept] == [200, 200, 404, 500]
    assert Scope.current() is outside
    assert len({id(scope) for scope in seen}) == 2


def test_a_file_that_the_server_sends_stays_one(site: Site) -> None:
    """Servers detect their own file wrapper and send the file without reading it into Python."""
    app = site()
    app.add_url_rule("/", view_func=lambda: send_file(io.BytesIO(b"file"), mimetype="text/plain"))
    body = app(create_environ("/"), lambda *_: lambda data: None)
    assert type(body) is FileWrapper
    body.close()


@pytest.mark.parametrize("as_generator", [True, False])
def test_an_error_of_a_wsgi_middleware_further_in_is_captured(
    as_generator: bool, site: Site, sink: Any
) -> None:
    """An inner WSGI middleware has no error handling of Flask around it."""
    app = site(init=False)
    inner = app.wsgi_app

    def at_once(environ: Any, start_response: Any) -> Iterable[bytes]:
        raise CartError("at once")

    def later(environ: Any, start_response: Any) -> Iterable[bytes]:
        yield from inner(environ, start_response)
        raise CartError("later")

    app.wsgi_app = later if as_generator else at_once  # type: ignore[method-assign]
    kit.init_app(app)
    with pytest.raises(CartError):
        list(app(create_environ("/nowhere"), lambda *_: lambda data: None))
    assert sink.exception["value"] == ("later" if as_generator else "at once")
    assert sink.event["transaction"] == "/nowhere"


def test_a_body_without_close_can_be_closed(site: Site) -> None:
    """PEP 3333 makes `close` optional for bodies; our wrapper always has one."""
    from transport_kit_flask.facts import FlaskFacts
    from transport_kit_flask.layer import _Stream

    app = site()
    served = get_kit(app).reporter.request(named=lambda: ("/", "url")).begin()
    stream = _Stream([b"x"], app.extensions["transport_kit"], served, FlaskFacts({}))
    assert list(stream) == [b"x"]
    stream.close()


def test_capturing_can_be_switched_off(site: Site, sink: Any) -> None:
    """Life cycle, health, flush and `capture_exception` remain."""
    app = site(capture_errors=False)
    app.add_url_rule("/", view_func=fail)
    app.add_url_rule("/stream", view_func=lambda: Response(rows(CartError())))
    assert app.test_client().get("/").status_code == 500
    with pytest.raises(CartError):
        run_wsgi_app(app, create_environ("/stream"), buffered=True)
    assert sink.events == []
    with app.app_context():
        kit.capture_exception(CartError("by hand"))
    assert sink.exception["value"] == "by hand"


def test_no_byte_and_no_header_is_changed(site: Site, sink: Any) -> None:
    """A visible integration could break clients."""

    def answers(app: Flask) -> list[object]:
        app.secret_key = "x"

        @app.get("/session")
        def session() -> str:
            from flask import session

            session["n"] = 1
            return "stored"

        app.add_url_rule("/fail", view_func=fail)
        app.add_url_rule("/stream", view_func=lambda: Response(rows()))
        browser = app.test_client()
        seen: list[object] = []
        for method, path in (
            ("GET", "/session"),
            ("GET", "/fail"),
            ("GET", "/stream"),
            ("HEAD", "/stream"),
            ("OPTIONS", "/fail"),
            ("GET", "/nowhere"),
        ):
            answer = browser.open(path, method=method)
            headers = [pair for pair in answer.headers if pair[0] != "Set-Cookie"]
            seen.append((answer.status, headers, answer.data, "Set-Cookie" in answer.headers))
        return seen

    assert answers(site()) == answers(site(init=False))


def test_a_trace_is_continued_from_the_headers(site: Site, sink: Any) -> None:
    """The error belongs to the trace of the frontend's page load."""
    app = site()
    app.add_url_rule("/", view_func=fail)
    trace = "0123456789abcdef0123456789abcdef"
    app.test_client().get("/", headers={"Sentry-Trace": f"{trace}-0123456789abcdef-1"})
    assert sink.event["contexts"]["trace"]["trace_id"] == trace


def test_a_transaction_has_the_route_and_the_status(site: Site, sink: Any) -> None:
    """Also for a request that ends in a 500, and for one without a route."""
    app = site(traces_sample_rate=1.0)
    app.add_url_rule("/carts/<int:number>", view_func=lambda number: "fine" if number else fail())
    browser = app.test_client()
    for path in ("/carts/1", "/carts/0", "/nowhere"):
        browser.get(path)
    items = [item for envelope in sink.envelopes for item in envelope.items if item.type == "transaction"]
    payloads = [json.loads(item.get_bytes()) for item in items]
    seen = [(payload["transaction"], payload["contexts"]["trace"]["status"]) for payload in payloads]
    assert seen == [
        ("/carts/<int:number>", "ok"),
        ("/carts/<int:number>", "internal_error"),
        ("/nowhere", "not_found"),
    ]


def test_a_hundred_requests_at_once_keep_their_scopes_apart(site: Site, sink: Any) -> None:
    """A tag of another customer on an event would be a leak."""
    app = site()
    together = threading.Barrier(10)

    @app.get("/<int:number>")
    def view(number: int) -> NoReturn:
        Scope.current().set_tag("number", number)
        together.wait(SOON)
        raise CartError(str(number))

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda number: app.test_client().get(f"/{number}").status_code, range(100)))
    assert answers == [500] * 100
    seen = {(event["exception"]["values"][-1]["value"], event["tags"]["number"]) for event in sink.events}
    assert seen == {(str(number), str(number)) for number in range(100)}


def test_an_exception_dispatched_by_hand_is_captured_with_its_request(site: Site, sink: Any) -> None:
    """A test of the app may bypass the WSGI layer; the signal is sent all the same."""
    app = site()
    app.add_url_rule("/carts", view_func=fail)
    with app.test_request_context("/carts"):
        try:
            app.full_dispatch_request()
        except CartError as error:
            app.handle_exception(error)
    assert sink.exception["type"] == "CartError"
    assert sink.event["transaction"] == "/carts"
    assert sink.event["request"]["url"] == "http://localhost/carts"


def test_capture_exception_outside_of_any_app_is_a_line_in_the_log(
    sink: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It never raises, as it is called while handling another error."""
    assert kit.capture_exception(CartError()) is None
    with Flask("bare").app_context():
        assert kit.capture_exception(CartError()) is None
    assert [record.levelname for record in caplog.records if record.name == "transport_kit"] == ["ERROR"] * 2
    assert sink.events == []


def test_a_request_leaves_no_cycle_behind(site: Site) -> None:
    """Flask leaves no garbage for the collector, and neither must the extension."""
    app = site()
    app.add_url_rule("/", "plain", lambda: "fine")
    app.add_url_rule("/stream", "stream", lambda: Response(rows()))
    refs: list[weakref.ref[object]] = []

    @app.before_request
    def keep() -> None:
        refs.append(weakref.ref(request._get_current_object()))  # type: ignore[attr-defined]

    gc.collect()
    gc.disable()
    try:
        for path in ("/", "/stream"):
            run_wsgi_app(app, create_environ(path), buffered=True)
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()
