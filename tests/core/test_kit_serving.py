"""The kit around requests: its start, its captures, and failing integrations."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import pytest

from transport_kit.envelope.envelope import Envelope
from transport_kit.kit.kit import Kit
from transport_kit.reporting import RequestFacts, RequestInfo, Scope


def make(**values: Any) -> Kit:
    return Kit(values, environ={})


class Cart(RequestFacts):
    """The facts of a request that an integration supplies."""

    def named(self) -> tuple[str, str]:
        return "/cart/{id}", "route"

    def describe(self) -> RequestInfo:
        return RequestInfo(method="GET", url="http://shop.example/cart/7")


def test_a_capture_hands_on_what_the_integration_knows() -> None:
    """Mechanism, handled and transaction determine how a server groups and shows an event."""
    sink: list[Envelope] = []
    kit = make(dsn=sink.append)
    event_id = kit.capture_exception(
        ValueError("boom"),
        mechanism="auto.http.test",
        handled=False,
        facts=Cart(),
    )
    (item,) = sink[0].items
    event = json.loads(item.get_bytes())
    assert event["event_id"] == event_id
    mechanism = event["exception"]["values"][-1]["mechanism"]
    assert (mechanism["type"], mechanism["handled"]) == ("auto.http.test", False)
    assert event["transaction"] == "/cart/{id}"
    assert event["transaction_info"] == {"source": "route"}
    assert event["request"]["url"] == "http://shop.example/cart/7"


def events(sink: list[Envelope]) -> list[dict[str, Any]]:
    return [json.loads(item.get_bytes()) for envelope in sink for item in envelope.items]


def test_a_request_that_is_served_knows_more_than_the_facts_of_a_capture() -> None:
    """Only the served request has its scope, trace and outcome, so its own facts win."""
    sink: list[Envelope] = []
    kit = make(dsn=sink.append)

    class Other(Cart):
        def named(self) -> tuple[str, str]:
            return "/other", "route"

    with kit.serve(Other()) as served:
        kit.capture_exception(ValueError("by hand"), facts=Cart())
        before = served.crashed
        kit.capture_unhandled(ValueError("by a hook"), mechanism="auto.http.test", facts=Cart())
        assert (before, served.crashed) == (False, True)
    assert [event["transaction"] for event in events(sink)] == ["/other", "/other"]


def test_facts_that_fail_cost_themselves_and_not_the_event(caplog: pytest.LogCaptureFixture) -> None:
    """A bug in an integration must not hide a bug in the app."""
    sink: list[Envelope] = []

    class Broken(RequestFacts):
        def describe(self) -> RequestInfo:
            raise OSError

    with caplog.at_level(logging.WARNING, "transport_kit"):
        assert make(dsn=sink.append).capture_exception(ValueError("boom"), facts=Broken()) is not None
    (event,) = events(sink)
    assert "request" not in event
    assert [record.getMessage() for record in caplog.records] == [
        "the name of a request could not be told: NotImplementedError",
        "the request of a request could not be told: OSError",
    ]


@pytest.mark.parametrize("wrong", [None, 5, (), ("a", "b", "c"), "text", {}, object()])
def test_facts_of_the_wrong_type_cost_themselves_and_not_the_event(wrong: Any) -> None:
    """The same for a bug that raises nothing."""
    sink: list[Envelope] = []

    class Wrong(RequestFacts):
        def named(self) -> Any:
            return wrong

        describe = user = named

        def header(self, name: str) -> Any:
            return wrong

        def is_expected(self, error: BaseException) -> Any:
            return None

    kit = make(dsn=sink.append, traces_sample_rate=1.0, send_default_pii=True)
    kit.serve(Wrong()).finish(ValueError("boom"))
    kit.capture_exception(ValueError("apart"), facts=Wrong())
    kinds = [item.type for envelope in sink for item in envelope.items]
    assert sorted(kinds) == ["event", "event", "transaction"]


def test_what_an_app_did_not_handle_is_reported_unless_capturing_is_off() -> None:
    """`capture_errors` is checked in one place; an exit that was requested is not an error."""
    sink: list[Envelope] = []
    kit = make(dsn=sink.append)
    assert kit.capture_unhandled(None, mechanism="x") is None
    assert kit.capture_unhandled(SystemExit(3), mechanism="x") is None
    assert sink == []
    error = ValueError("boom")
    assert kit.capture_unhandled(error, mechanism="x") is not None
    assert kit.capture_unhandled(error, mechanism="x") is None
    off = make(dsn=sink.append, capture_errors=False)
    assert off.capture_unhandled(ValueError("off"), mechanism="x") is None
    served = off.serve(Cart())
    assert served.capture(ValueError("off")) is None
    assert served.capture(ValueError("by hand"), handled=True) is not None
    served.finish(ValueError("escapes"))
    assert not served.crashed
    assert [event["exception"]["values"][-1]["value"] for event in events(sink)] == ["boom", "by hand"]


def test_a_request_that_is_served_is_one_scope_and_one_session() -> None:
    """`serve` returns a request that has begun; only an op that ends with `.server` is a session."""
    sink: list[Envelope] = []
    kit = make(dsn=sink.append, release="shop@1")
    before = Scope.current()
    for op in ("http.server", "queue.task"):
        with kit.serve(Cart(), op=op) as served:
            assert Scope.current() is served.scope is not before
        assert Scope.current() is before
    kit.transport.flush()
    assert [event["aggregates"][0].get("exited") for event in events(sink)] == [1]


def test_the_first_request_of_each_process_starts_the_kit_and_none_after_a_close(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A durable queue may hold a backlog; a closed kit stays closed."""
    started: list[str] = []
    kit = make(dsn="")
    monkeypatch.setattr(kit.transport, "start", lambda: started.append("start"))
    for _ in range(2):
        kit.serve(Cart()).finish()
    assert started == ["start"]
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    kit.serve(Cart()).finish()
    assert started == ["start", "start"]
    kit.close()
    kit.serve(Cart()).finish()
    assert kit.transport.closed

    def fail() -> None:
        raise OSError("disk")

    other = make(dsn="")
    monkeypatch.setattr(other.transport, "start", fail)
    with caplog.at_level(logging.ERROR, "transport_kit"):
        for _ in range(2):
            other.serve(Cart()).finish()
    assert [record.getMessage() for record in caplog.records] == ["the transport could not be started"]
