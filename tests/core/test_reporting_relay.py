"""Events as a real server reads them: Relay's own normaliser must find nothing to correct."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.relay import normalised
from transport_kit.config.options import ReporterOptions
from transport_kit.envelope import encoder
from transport_kit.envelope.envelope import Envelope
from transport_kit.reporting import Reporter, RequestInfo, TransportHandler, new_scope
from transport_kit.transport.local import FunctionTransport

#: Stands in variables; as a name, for the source lines around a frame are part of an event.
PASSWORD = "hunter2"


@pytest.fixture(name="sent")
def _sent() -> list[dict[str, Any]]:
    return []


def reporter_to(sent: list[dict[str, Any]], **options: Any) -> Reporter:
    """A reporter whose events are appended to the list, as parsed from the bytes sent."""

    def take(envelope: Envelope) -> None:
        sent.extend(encoder.loads(item.get_bytes()) for item in envelope)

    return Reporter(FunctionTransport(take), ReporterOptions(**{"detect_release": False, **options}))


class Awkward(Exception):
    """Has no useful text."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def fail(depth: int, password: str) -> None:
    """Raise below `depth` calls, with variables of many kinds."""
    held = {
        "a": [1, None, 2**63, -(2**70), 1e308, float("nan")],
        "\ud800": "\udfff",
        7: {1: {2: {3: {4: 5}}}},
    }
    if depth:
        fail(depth - 1, password)
    raise ValueError("line one\nline two \x00", held)


def caught(error: BaseException | None = None, depth: int = 3) -> Exception:
    """Return an exception with a traceback of `depth` frames, and `error` as its cause."""
    try:
        fail(depth, PASSWORD)
    except ValueError as found:
        found.__cause__ = error
        return found
    raise AssertionError("nothing was raised")


def errors() -> dict[str, Exception]:
    """Exceptions of every shape, by name."""
    member = caught(KeyError("cause of a member"))
    noted = caught()
    noted.add_note("a note")
    return {
        "plain": caught(),
        "never raised": ValueError(),
        "chained": caught(caught(OSError(2, "gone"))),
        "group": ExceptionGroup("tasks", [member, ExceptionGroup("inner", [TypeError("x")]), Awkward()]),
        "awkward": Awkward(),
        "noted": noted,
        "deep": caught(depth=400),
        "long": ValueError("x" * 100_000),
        "syntax": SyntaxError("invalid", ("broken.py", 3, 1, "b = = 2\n")),
    }


REQUEST = RequestInfo(
    method="post",
    url="https://bob:hunter2@shop.example/cart/" + "p" * 500,
    query_string="a=1&token=hunter2&flag&%zz=1",
    headers=(
        ("host", "shop.example"),
        ("cookie", "theme=dark; sessionid=hunter2"),
        ("authorization", "Basic hunter2"),
        ("x-forwarded-for", "192.0.2.7"),
        ("content-type", "application/json"),
        ("x-odd", "\udcff\x00"),
    ),
    cookies={"theme": "dark", "sessionid": "hunter2"},
    data='{"user": "bob", "password": "hunter2", "items": [1, [2, [3, [4, [5, [6]]]]]]}',
    env={"SERVER_NAME": "web-1", "SERVER_PORT": "443"},
    remote_addr="192.0.2.7",
)


@pytest.mark.parametrize("pii", [False, True])
@pytest.mark.parametrize("name", list(errors()))
def test_relay_finds_nothing_to_correct_in_an_exceptions_event(
    sent: list[dict[str, Any]], name: str, pii: bool
) -> None:
    """Relay discards invalid values, and shows the errors to the user."""
    reporter = reporter_to(sent, send_default_pii=pii, release="shop@1.2.0", dist="7", server_name="web-1")
    with new_scope() as scope:
        scope.set_user({"id": 42, "email": "bob@shop.example", "plan": {"name": "gold"}})
        scope.set_tag("region / eu", "two\nlines")
        scope.set_extra("deep", {"a": {"b": {"c": {"d": {"e": {"f": {"g": 1}}}}}}})
        event_id = reporter.capture_exception(
            errors()[name],
            mechanism="starlette",
            handled=False,
            request=REQUEST,
            transaction="/cart/{id}",
            transaction_source="route",
            level="fatal",
        )
    result = normalised(sent[-1])
    before, after = sent[-1], result
    assert after["event_id"] == event_id
    assert b"hunter2" not in encoder.dumps(before)
    assert (after["release"], after["dist"], after["environment"]) == ("shop@1.2.0", "7", "production")
    assert (after["transaction"], after["transaction_info"]) == ("/cart/{id}", {"source": "route"})
    assert after["user"]["id"] == "42"
    assert ["region-_-eu", "two lines"] in after["tags"]
    assert after["request"]["method"] == "POST"
    for ours, theirs in zip(before["exception"]["values"], after["exception"]["values"], strict=True):
        assert theirs["type"] == ours["type"]
        assert theirs["mechanism"] == ours["mechanism"]
        assert len(theirs.get("stacktrace", {}).get("frames", [])) == len(
            ours.get("stacktrace", {}).get("frames", [])
        )


def test_relay_keeps_every_frames_place_and_variables(sent: list[dict[str, Any]]) -> None:
    """Values cut to Relay's limits here are not cut again there."""
    reporter_to(sent).capture_exception(caught(depth=400))
    result = normalised(sent[-1])
    ours = sent[-1]["exception"]["values"][0]["stacktrace"]["frames"]
    theirs = result["exception"]["values"][0]["stacktrace"]["frames"]
    assert len(ours) == len(theirs) == 250
    for mine, kept in zip(ours, theirs, strict=True):
        for name in (
            "filename",
            "abs_path",
            "function",
            "module",
            "lineno",
            "in_app",
            "context_line",
            "vars",
        ):
            assert kept.get(name) == mine.get(name)


def test_relay_finds_nothing_to_correct_in_messages_and_events(sent: list[dict[str, Any]]) -> None:
    """Built by hand or by `capture_message`, with the same fields."""
    reporter = reporter_to(sent)
    reporter.capture_message("hello\x00 \ud800 world", level="critical")
    assert normalised(sent[-1])["level"] == "fatal"
    event_id = reporter.capture_event({"message": "mine", "event_id": "9EC79C33-EC99-42AB-8353-589FCB2E04DC"})
    assert normalised(sent[-1])["event_id"] == event_id == "9ec79c33ec9942ab8353589fcb2e04dc"


@pytest.mark.parametrize(
    "headers", [{}, {"sentry-trace": f"{'7' * 32}-{'a' * 16}-1", "baggage": "sentry-a=1"}]
)
def test_relay_finds_nothing_to_correct_in_a_transaction(
    sent: list[dict[str, Any]], headers: dict[str, str]
) -> None:
    """Relay refuses a whole transaction for one wrong time or id, and discards an unknown status."""
    reporter = reporter_to(sent, traces_sample_rate=1.0, release="shop@1", auto_session_tracking=False)
    with reporter.request(lambda: REQUEST, named=lambda: ("/cart", "route"), header=headers.get) as served:
        served.scope.set_tag("region", "eu")
        served.scope.set_context("cart", {"items": 3})
        served.scope.set_fingerprint(["a"])
        served.status = 503
        with reporter.span("db", "SELECT 1") as outer, reporter.span("row") as inner:
            outer.set_data("rows", [1, 2**70, None])
            inner.set_status("no such status")
            inner.set_tag("a b", "two\nlines")
        leftover = reporter.span("late")
    leftover.finish()
    before, after = sent[-1], normalised(sent[-1])
    assert after["type"] == "transaction"
    assert after["contexts"]["trace"]["status"] == "unavailable"
    assert (after["start_timestamp"], after["timestamp"]) == pytest.approx(
        (before["start_timestamp"], before["timestamp"]), abs=0.001
    )
    assert [span["span_id"] for span in after["spans"]] == [span["span_id"] for span in before["spans"]]
    assert [span["op"] for span in after["spans"]] == ["row", "db"]
    assert after["contexts"]["trace"]["trace_id"] == before["contexts"]["trace"]["trace_id"]
    assert after["contexts"]["cart"]["items"] == 3


def test_relay_finds_nothing_to_correct_in_an_error_with_all_that_a_scope_knows(
    sent: list[dict[str, Any]],
) -> None:
    """Breadcrumbs, contexts, fingerprint and trace of an error in a span."""
    reporter = reporter_to(sent, send_default_pii=True)
    with reporter.request(
        lambda: REQUEST, named=lambda: ("/cart", "route"), user=lambda: {"id": 7, "plan": "gold"}
    ) as served:
        served.scope.set_fingerprint(["{{ default }}", "cart"])
        served.scope.set_context("cart", {"deep": {"a": {"b": {"c": [1]}}}})
        served.scope.set_level("warning")
        for number in range(120):
            reporter.add_breadcrumb(f"n {number}", category="step", level="debug", data={"n": number})
        reporter.capture_exception(caught())
    before, after = sent[-1], normalised(sent[-1])
    assert [crumb["message"] for crumb in after["breadcrumbs"]["values"]] == [
        crumb["message"] for crumb in before["breadcrumbs"]["values"]
    ]
    assert after["fingerprint"] == ["{{ default }}", "cart"]
    assert (after["level"], after["user"]["id"]) == ("warning", "7")
    assert after["user"]["ip_address"] == "192.0.2.7"
    assert after["contexts"]["trace"]["span_id"] == before["contexts"]["trace"]["span_id"]


def test_relay_finds_nothing_to_correct_in_feedback_and_log_events(sent: list[dict[str, Any]]) -> None:
    """Users' texts and log records."""
    reporter = reporter_to(sent)
    reporter.capture_feedback("it broke", name="Bob", email="bob@example.org", associated_event_id="a" * 32)
    result = normalised(sent[-1])
    assert result["contexts"]["feedback"]["message"] == "it broke"
    handler = TransportHandler(reporter, log_level=None, event_level=logging.INFO)
    handler.handle(logging.LogRecord("shop", logging.CRITICAL, "f.py", 1, "%s failed", ("it",), None))
    result = normalised(sent[-1])
    assert (result["level"], result["logger"]) == ("fatal", "shop")
    assert result["logentry"]["formatted"] == "it failed"
