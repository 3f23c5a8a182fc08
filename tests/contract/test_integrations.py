"""The contract of the integrations: the same tests for every framework.

A framework joins with one module in `adapters/`, whose docstring describes the site that it must make.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.adapters import LOGGER, Adapter, Sink, adapters
from transport_kit.reporting.log_handler import TransportHandler

TOKEN = "a-long-enough-token"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(name="framework", params=adapters(), ids=lambda adapter: adapter.name)
def _framework(request: Any) -> Adapter:
    """Return each framework in turn."""
    adapter: Adapter = request.param
    reason = adapter.not_yet.get(request.node.originalname)
    if reason is not None:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    return adapter


@pytest.fixture(name="sink")
def _sink() -> Sink:
    """Return the transport function that receives the envelopes of a test."""
    return Sink()


def test_an_escaping_error_is_captured_once(framework: Adapter, sink: Sink) -> None:
    """An error is neither lost nor reported twice."""
    with framework.make(sink) as app, app.serve() as site:
        assert site.get("/boom?page=2").status == 500
    assert (sink.exception["type"], sink.exception["value"]) == ("ShopError", "boom")
    assert sink.exception["mechanism"]["handled"] is False
    assert sink.event["request"]["url"] == "http://shop.example/boom"
    assert sink.event["request"]["query_string"] == "page=2"


def test_an_error_that_passes_several_of_our_layers_is_captured_once(framework: Adapter, sink: Sink) -> None:
    """A mounted app may have the integration too, and a framework may report one error several times."""
    with framework.make(sink, nested=True) as app, app.serve() as site:
        site.get("/boom")
    assert sink.exception["value"] == "boom"


@pytest.fixture(name="handler")
def _handler() -> Iterator[list[Any]]:
    """Add the logging handler, with events; the test appends the kit that it reports to."""
    kits: list[Any] = []
    handler = TransportHandler(lambda: kits[0].reporter, event_level=logging.ERROR)
    LOGGER.addHandler(handler)
    yield kits
    LOGGER.removeHandler(handler)


def test_an_error_that_is_logged_and_escapes_is_captured_once(
    framework: Adapter, sink: Sink, handler: list[Any]
) -> None:
    """Many apps call `logger.exception()` and then raise; handler and integration both see the error."""
    with framework.make(sink) as app, app.serve() as site:
        handler.append(app.kit)
        assert site.get("/logged").status == 500
    assert sink.exception["value"] == "logged"
    assert sink.event["request"]["url"] == "http://shop.example/logged"


def test_an_error_that_the_app_handles_is_the_apps_to_report(framework: Adapter, sink: Sink) -> None:
    """An event that the app captures itself has the request's facts too."""
    with framework.make(sink) as app, app.serve() as site:
        reply = site.get("/handled")
        assert (reply.status, reply.body.decode()) == (200, sink.event["event_id"])
    assert sink.exception["mechanism"]["handled"] is True
    assert sink.event["request"]["url"] == "http://shop.example/handled"


def test_an_error_that_the_apps_own_handler_answers_is_handled(framework: Adapter, sink: Sink) -> None:
    """The app expects an error of a class for which it has a handler; the handler may report it."""
    with framework.make(sink) as app, app.serve() as site:
        reply = site.get("/answered")
    assert (reply.status, reply.body) == (400, b"we know")
    assert sink.events == []


def test_an_error_whose_page_the_app_draws_is_captured_once(framework: Adapter, sink: Sink) -> None:
    """A handler that renders the page for a 500 does not handle the error."""
    with framework.make(sink) as app, app.serve() as site:
        reply = site.get("/boom")
    assert (reply.status, reply.body) == (500, b"our page")
    assert sink.exception["value"] == "boom"
    assert sink.exception["mechanism"]["handled"] is False


def test_nothing_is_captured_when_capturing_is_off(framework: Adapter, sink: Sink) -> None:
    """With `capture_errors=False` the routes and manual captures remain."""
    with framework.make(sink, capture_errors=False) as app, app.serve() as site:
        assert site.get("/boom").status == 500
        assert site.get("/transport/live").status == 200
    assert sink.events == []


def test_a_hundred_concurrent_requests_have_a_scope_each(framework: Adapter, sink: Sink) -> None:
    """An event with the tag of another request would leak data."""
    with framework.make(sink) as app, app.serve() as site:
        replies = site.many(f"/tagged/{number}" for number in range(100))
    assert {reply.status for reply in replies} == {500}
    pairs = [(event["tags"]["number"], event["exception"]["values"][-1]["value"]) for event in sink.events]
    assert sorted(pairs) == sorted((str(number), f"tagged {number}") for number in range(100))


def test_errors_of_one_route_share_a_name(framework: Adapter, sink: Sink) -> None:
    """A name with a number in it would make a separate problem of every cart."""
    with framework.make(sink) as app, app.serve() as site:
        site.many(["/tagged/1", "/tagged/2"])
    names = {(event["transaction"], event["transaction_info"]["source"]) for event in sink.events}
    assert names == {framework.route}


# -- routes --------------------------------------------------------------------------------------------


def test_health_says_the_status_to_strangers_and_the_rest_to_the_token(
    framework: Adapter, sink: Sink
) -> None:
    """Every framework gives the same answer, headers included."""
    with framework.make(sink, flush_token=TOKEN) as app, app.serve() as site:
        assert [site.get(f"/transport/{leaf}").status for leaf in ("live", "ready", "health")] == [200] * 3
        reply = site.get("/transport/health")
        assert json.loads(reply.body) == {"status": "pass"}
        headers = dict(reply.headers)
        assert headers["content-type"] == "application/health+json"
        assert headers["cache-control"] == "no-store"
        assert headers["vary"] == "Accept"
        assert headers["content-length"] == str(len(reply.body))
        assert "checks" in json.loads(site.get("/transport/health", headers=BEARER).body)
        assert site.get("/transport/health", headers={"Accept": "text/html"}).body.startswith(b"<!doctype")
        assert site.get("/transport/health?format=text").body == b"status: pass\n"
        assert site.get("/transport/health", method="HEAD").body == b""
        assert site.get("/transport/health", method="POST").status == 405
    assert sink.events == []


def test_flush_is_for_the_token_alone(framework: Adapter, sink: Sink) -> None:
    """A flush makes the app wait; without the token nobody can detect that it is on."""
    with framework.make(sink, flush_token=TOKEN) as app, app.serve() as site:
        assert site.get("/transport/flush", method="POST").status == 404
        assert (
            site.get("/transport/flush", method="POST", headers={"Authorization": "Bearer x"}).status == 404
        )
        assert site.get("/transport/flush", headers=BEARER).status == 405
        assert site.get("/transport/flush?timeout=99", method="POST", headers=BEARER).status == 400
        reply = site.get("/transport/flush?timeout=10", method="POST", headers=BEARER)
        assert (reply.status, json.loads(reply.body)["ok"]) == (200, True)
    with framework.make(sink) as app, app.serve() as site:
        assert site.get("/transport/flush", method="POST", headers=BEARER).status == 404


# -- start and close ----------------------------------------------------------------------------------------


def test_the_transport_closes_with_the_app_and_a_second_start_makes_a_new_one(
    framework: Adapter, sink: Sink
) -> None:
    """A closed transport stays closed, but an app that is started again, as in tests, must report again."""
    with framework.make(sink) as app:
        with app.serve() as site:
            site.get("/boom")
            first = app.kit.transport
            before = first.closed
        assert (before, first.closed) == (False, True)
        with app.serve() as site:
            assert app.kit.transport is not first
            assert not app.kit.transport.closed
            site.get("/boom")
            assert json.loads(site.get("/transport/health").body) == {"status": "pass"}
    assert len(sink.events) == 2


def test_two_apps_in_one_process_report_each_to_its_own(framework: Adapter, sink: Sink) -> None:
    """A shop and its back office may be different projects."""
    if not framework.several_apps:
        pytest.skip(f"{framework.name} has one site per process")
    other = Sink()
    with framework.make(sink) as app, framework.make(other) as second, app.serve() as site, second.serve():
        site.get("/boom")
    assert (len(sink.events), len(other.events)) == (1, 0)


@pytest.mark.parametrize("path", ["/", "/boom", "/logged", "/answered", "/no-such-page"])
def test_no_byte_and_no_header_of_a_response_is_changed(path: str, framework: Adapter, sink: Sink) -> None:
    """The app's clients must not notice the integration."""
    with framework.make(None) as app, app.serve() as site:
        before = site.get(path)
    with framework.make(sink) as app, app.serve() as site:
        after = site.get(path)
    assert after == before


@pytest.mark.parametrize(
    ("wrong", "answer", "line"),
    [
        ({"dsn": "https://topsecret@/1"}, (503, "fail"), "nothing will be delivered"),
        ({"dsn": "", "max_sender": 2}, (200, "warn"), "an option can't be used"),
    ],
)
def test_a_configuration_that_is_wrong_harms_nothing(
    wrong: dict[str, Any],
    answer: tuple[int, str],
    line: str,
    framework: Adapter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The app works; one log line and health show that it can't report."""
    with caplog.at_level(logging.ERROR, "transport_kit"), framework.make(**wrong) as app, app.serve() as site:
        assert site.get("/").body == b"hello"
        assert site.get("/boom").status == 500
        assert site.get("/transport/live").status == 200
        reply = site.get("/transport/health")
        assert (reply.status, json.loads(reply.body)["status"]) == answer
    lines = [record.getMessage() for record in caplog.records if record.name == "transport_kit"]
    assert len(lines) == 1
    assert line in lines[0]
    assert "topsecret" not in caplog.text
