"""Transactions and spans: the measurement of a request, and its cost if there is none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest

from tests.core.reporting_support import SPAN, TRACE, Kept, reporter_for
from transport_kit.config.options import ReporterOptions
from transport_kit.envelope.losses import LossReason
from transport_kit.reporting import Reporter, RequestInfo
from transport_kit.reporting.tracing.sampling import LOOK_EVERY, Sampler
from transport_kit.reporting.tracing.spans import MAX_SPANS, status_of
from transport_kit.reporting.tracing.trace import Trace
from transport_kit.transport.health import Health
from transport_kit.transport.local import NullTransport


@pytest.fixture(name="kept")
def _kept() -> Iterator[Kept]:
    with Kept() as transport:
        yield transport


def named() -> tuple[str, str]:
    return ("/cart/{id}", "route")


def describe() -> RequestInfo:
    return RequestInfo(method="GET", url="https://shop.example/cart/1")


def traced(kept: Kept, **options: Any) -> Reporter:
    return reporter_for(kept, traces_sample_rate=1.0, **options)


def test_a_sampled_request_becomes_one_transaction(kept: Kept) -> None:
    """A performance page needs name, times, trace and status."""
    reporter = traced(kept, release="shop@1", send_default_pii=True)
    with reporter.request(describe, named=named, mechanism="auto.http.test") as served:
        served.scope.set_tag("region", "eu")
        served.status = 404
    (event,) = kept.transactions
    assert (event["type"], event["transaction"], event["transaction_info"]) == (
        "transaction",
        "/cart/{id}",
        {"source": "route"},
    )
    assert event["start_timestamp"] <= event["timestamp"]
    trace = event["contexts"]["trace"]
    assert (trace["op"], trace["status"], trace["origin"]) == ("http.server", "not_found", "auto.http.test")
    assert trace["data"] == {"http.response.status_code": 404}
    assert event["request"]["url"] == "https://shop.example/cart/1"
    assert (event["tags"], event["release"]) == ({"region": "eu"}, "shop@1")
    assert event["contexts"]["runtime"]["name"] == "CPython"
    assert event["spans"] == []
    (envelope,) = kept.envelopes
    assert envelope.headers["trace"]["trace_id"] == trace["trace_id"]
    assert envelope.headers["trace"]["sample_rate"] == "1"
    assert envelope.headers["trace"]["sampled"] == "true"
    assert envelope.headers["trace"]["transaction"] == "/cart/{id}"


def test_without_tracing_nothing_is_measured_and_errors_carry_the_trace(kept: Kept) -> None:
    """The trace continues through a service that doesn't measure itself."""
    reporter = reporter_for(kept)
    headers = {"sentry-trace": f"{TRACE}-{SPAN}-1", "baggage": "sentry-sample_rate=0.5"}
    with reporter.request(named=named, header=headers.get), reporter.span("db"):
        reporter.capture_message("inside")
        out = reporter.outgoing_headers()
    assert kept.transactions == []
    assert kept.lost() == {}
    trace = kept.events[0]["contexts"]["trace"]
    assert (trace["trace_id"], trace["parent_span_id"]) == (TRACE, SPAN)
    assert kept.envelopes[0].headers["trace"] == {"sample_rate": "0.5"}
    assert out["sentry-trace"] == f"{TRACE}-{trace['span_id']}-1"


def test_spans_nest_and_measure(kept: Kept) -> None:
    """Each span's parent is the span that was running when it began."""
    reporter = traced(kept)
    with reporter.request(named=named):
        with reporter.span("view", "cart") as outer:
            with reporter.span("db", "SELECT 1") as inner:
                inner.set_data("rows", 3)
                inner.set_data("password", "hunter2")
                inner.set_tag("db", "main")
                inner.set_status("ok")
            with reporter.span("http.client") as call:
                call.set_http_status(503)
        with reporter.span("after"):
            pass
    (event,) = kept.transactions
    by_op = {span["op"]: span for span in event["spans"]}
    root = event["contexts"]["trace"]["span_id"]
    assert list(by_op) == ["db", "http.client", "view", "after"]
    assert by_op["view"]["parent_span_id"] == by_op["after"]["parent_span_id"] == root
    assert by_op["db"]["parent_span_id"] == by_op["http.client"]["parent_span_id"] == outer.span_id
    assert by_op["db"]["data"] == {"rows": 3, "password": "[Filtered]"}
    assert (by_op["db"]["tags"], by_op["db"]["status"]) == ({"db": "main"}, "ok")
    assert by_op["db"]["description"] == "SELECT 1"
    assert by_op["http.client"]["status"] == "unavailable"
    for span in event["spans"]:
        assert event["start_timestamp"] <= span["start_timestamp"] <= span["timestamp"] <= event["timestamp"]
        assert span["trace_id"] == event["contexts"]["trace"]["trace_id"]


def test_an_error_in_a_span_names_that_span(kept: Kept) -> None:
    """Servers show the error at its place in the tree."""
    reporter = traced(kept)
    with (
        pytest.raises(ValueError, match="boom"),
        reporter.request(named=named),
        reporter.span("db", "SELECT 1") as span,
    ):
        raise ValueError("boom")
    (event,) = kept.events
    (transaction,) = kept.transactions
    root = transaction["contexts"]["trace"]
    # The error escaped from the span before it was captured further out.
    assert event["contexts"]["trace"]["span_id"] == root["span_id"]
    assert event["contexts"]["trace"]["trace_id"] == root["trace_id"]
    assert transaction["spans"][0]["status"] == "internal_error"
    assert transaction["spans"][0]["span_id"] == span.span_id
    assert root["status"] == "internal_error"
    with reporter.request(named=named), reporter.span("cache") as inner:
        reporter.capture_message("here")
    assert kept.events[-1]["contexts"]["trace"]["span_id"] == inner.span_id
    assert kept.events[-1]["contexts"]["trace"]["op"] == "cache"


@pytest.mark.parametrize(
    ("http", "status"),
    [
        (200, "ok"),
        (302, "ok"),
        (400, "invalid_argument"),
        (401, "unauthenticated"),
        (403, "permission_denied"),
        (404, "not_found"),
        (409, "already_exists"),
        (413, "failed_precondition"),
        (418, "invalid_argument"),
        (429, "resource_exhausted"),
        (499, "cancelled"),
        (500, "internal_error"),
        (501, "unimplemented"),
        (502, "internal_error"),
        (503, "unavailable"),
        (504, "deadline_exceeded"),
        (600, "unknown_error"),
        (0, "unknown_error"),
    ],
)
def test_each_response_status_has_its_span_status(http: int, status: str) -> None:
    """Servers know a fixed set of words, and discard any other."""
    assert status_of(http) == status


def test_a_cancelled_request_says_so_and_is_no_error(kept: Kept) -> None:
    """A client that closed the connection is no failure of the app."""
    reporter = traced(kept)
    with pytest.raises(asyncio.CancelledError), reporter.request(named=named):
        raise asyncio.CancelledError
    assert kept.events == []
    assert kept.transactions[0]["contexts"]["trace"]["status"] == "cancelled"


def test_spans_of_tasks_and_threads_hang_where_they_were_begun(kept: Kept) -> None:
    """`gather` runs two tasks at a time: neither is the other's parent."""
    reporter = traced(kept)

    async def query(number: int, both: asyncio.Barrier) -> None:
        with reporter.span("db", str(number)):
            await both.wait()
            with reporter.span("row", str(number)):
                await both.wait()

    async def main() -> None:
        both = asyncio.Barrier(2)
        with reporter.request(named=named), reporter.span("view"):
            await asyncio.gather(query(1, both), query(2, both))
            await asyncio.to_thread(lambda: reporter.span("thread").__enter__().finish())

    asyncio.run(main())
    (event,) = kept.transactions
    spans = {(span["op"], span.get("description")): span for span in event["spans"]}
    view = spans["view", None]["span_id"]
    assert spans["db", "1"]["parent_span_id"] == spans["db", "2"]["parent_span_id"] == view
    assert spans["row", "1"]["parent_span_id"] == spans["db", "1"]["span_id"]
    assert spans["row", "2"]["parent_span_id"] == spans["db", "2"]["span_id"]
    assert spans["thread", None]["parent_span_id"] == view


def test_a_thread_of_its_own_is_not_in_the_request(kept: Kept) -> None:
    """A pool's thread serves many requests: its work belongs to none, unless the context is passed to it."""
    reporter = traced(kept)

    def work() -> None:
        with reporter.span("work"):
            pass

    with reporter.request(named=named), ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
        pool.submit(copy_context().run, work).result()
    assert [span["op"] for span in kept.transactions[0]["spans"]] == ["work"]


def test_a_request_within_a_request_has_a_transaction_of_its_own(kept: Kept) -> None:
    """A test client calls the app within a request; the inner spans must not be the outer request's."""
    reporter = traced(kept)
    with reporter.request(named=lambda: ("outer", "route")), reporter.span("client"):
        with reporter.request(named=lambda: ("inner", "route")), reporter.span("in"):
            pass
        with reporter.span("out"):
            pass
    inner, outer = kept.transactions
    assert [span["op"] for span in inner["spans"]] == ["in"]
    assert inner["spans"][0]["parent_span_id"] == inner["contexts"]["trace"]["span_id"]
    assert [span["op"] for span in outer["spans"]] == ["out", "client"]


def test_what_outlives_its_transaction_is_left_out(kept: Kept) -> None:
    """A background task that still runs keeps the trace, but measures nothing."""
    reporter = traced(kept)
    served = reporter.request(named=named).begin()
    running = reporter.span("late").__enter__()
    context = copy_context()
    served.finish()
    running.finish()
    running.finish()
    assert kept.transactions[0]["spans"] == []
    context.run(lambda: reporter.span("after").__enter__().finish())
    context.run(reporter.capture_message, "late")
    trace = kept.transactions[0]["contexts"]["trace"]["trace_id"]
    assert kept.events[0]["contexts"]["trace"]["trace_id"] == trace
    assert len(kept.transactions) == 1


def test_a_transaction_has_room_for_a_thousand_spans_and_counts_the_rest(kept: Kept) -> None:
    """A loop of queries must not fill the memory; the missing spans are counted."""
    reporter = traced(kept)
    with reporter.request(named=named):
        for _ in range(MAX_SPANS + 7):
            with reporter.span("db"):
                pass
    assert len(kept.transactions[0]["spans"]) == MAX_SPANS
    assert kept.lost() == {"buffer_overflow": {"span": 7}}


def test_span_data_is_bounded(kept: Kept) -> None:
    """Span data may contain any values."""
    reporter = traced(kept)
    with reporter.request(named=named), reporter.span("x" * 500, "d" * 9000) as span:
        for number in range(200):
            span.set_data(f"k{number}", "v" * 5000)
            span.set_tag(f"t{number}", "v" * 5000)
        span.set_status("no such status")
    (told,) = kept.transactions[0]["spans"]
    assert (len(told["op"]), len(told["description"])) == (128, 2048)
    assert (len(told["data"]), len(told["tags"])) == (50, 50)
    assert max(len(value) for value in told["data"].values()) <= 1024
    assert told["status"] == "unknown_error"


def test_an_unsampled_request_is_counted_and_its_spans_measure_nothing(kept: Kept) -> None:
    """The loss is counted, and calls on an unsampled span are safe."""
    reporter = reporter_for(kept, traces_sample_rate=0.0)
    with reporter.request(named=named), reporter.span("db") as span:
        span.set_data("a", 1)
        span.set_tag("a", 1)
        span.set_http_status(200)
        assert reporter.outgoing_headers()["sentry-trace"].endswith("-0")
    with reporter.request(named=named), reporter.span("db") as again:
        assert (again._data, again._tags) == (None, None)
    assert kept.sealed == []
    assert kept.lost() == {"sample_rate": {"transaction": 2, "span": 2}}


def test_the_callers_decision_beats_the_rate(kept: Kept) -> None:
    """A trace with gaps is of no use."""
    for rate, flag, expected in ((0.0, "1", 1), (1.0, "0", 0)):
        kept.clear()
        reporter = reporter_for(kept, traces_sample_rate=rate)
        header = {"sentry-trace": f"{TRACE}-{SPAN}-{flag}"}.get
        with reporter.request(named=named, header=header):
            pass
        assert len(kept.transactions) == expected


def test_a_sampler_is_told_what_there_is_and_beats_the_caller(kept: Kept) -> None:
    """Health checks need no transaction, whatever the caller decided."""
    told: list[dict[str, Any]] = []

    def sampler(context: dict[str, Any]) -> float | None:
        told.append(context)
        return None if context["name"] == "/else" else 0.0

    reporter = traced(kept, traces_sampler=sampler)
    header = {"sentry-trace": f"{TRACE}-{SPAN}-1"}.get
    with reporter.request(describe, named=named, header=header, op="http.server"):
        pass
    with reporter.request(named=lambda: ("/else", "url")):
        pass
    assert told[0] == {
        "name": "/cart/{id}",
        "source": "route",
        "op": "http.server",
        "parent_sampled": True,
        "request": describe(),
    }
    assert [event["transaction"] for event in kept.transactions] == ["/else"]


@pytest.mark.parametrize("answer", [2, -1, "1", float("nan"), object()])
def test_a_sampler_that_is_wrong_samples_nothing_and_is_named_once(
    kept: Kept, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    """A log line with each request would flood the log."""
    reporter = traced(kept, traces_sampler=lambda context: answer)
    for _ in range(3):
        with reporter.request(named=named):
            pass
    assert kept.transactions == []
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_sampler_that_raises_samples_nothing(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """The app's mistake must not break the request."""

    def sampler(context: dict[str, Any]) -> float:
        raise KeyError("password=hunter2")

    with traced(kept, traces_sampler=sampler).request(named=named):
        pass
    assert kept.transactions == []
    assert "KeyError" in caplog.text
    assert "hunter2" not in caplog.text


class Filling(NullTransport):
    """A transport whose queue has the fill level that the test sets."""

    waiting = 0
    held_bytes = 0

    def health(self) -> Health:
        return Health(
            pid=1,
            state="running",
            kind="Filling",
            waiting=self.waiting,
            queue_capacity=100,
            queue_bytes=self.held_bytes,
            queue_bytes_capacity=1000,
        )


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_queue_over_half_halves_the_rate_every_ten_seconds_and_back() -> None:
    """Envelopes that can't be sent should not be made; the rate recovers by itself."""
    transport, clock = Filling(), Clock()
    sampler = Sampler(transport, ReporterOptions(traces_sample_rate=0.8), clock)

    def look() -> int:
        clock.now += LOOK_EVERY
        return sampler.halvings()

    transport.waiting = 50
    assert look() == 0
    transport.waiting = 51
    assert [look() for _ in range(12)] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10]
    clock.now += LOOK_EVERY / 2
    assert sampler.halvings() == 10
    transport.waiting = 0
    assert [look() for _ in range(11)] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]
    transport.held_bytes = 501
    assert look() == 1


def test_what_backpressure_costs_is_counted_as_such() -> None:
    """The server shows why its numbers are low."""
    transport, clock = Filling(), Clock()
    sampler = Sampler(transport, ReporterOptions(traces_sample_rate=0.8), clock)
    transport.waiting = 99
    clock.now = LOOK_EVERY

    def decide(rand: float) -> tuple[LossReason | None, bool | None, float | None]:
        trace = Trace()
        trace.sample_rand = rand
        return sampler.decide(trace, dict), trace.sampled, trace.sample_rate

    assert decide(0.1) == (None, True, 0.4)
    assert decide(0.5) == (LossReason.BACKPRESSURE, False, 0.4)
    assert decide(0.9) == (LossReason.SAMPLE_RATE, False, 0.4)


def test_a_job_that_is_no_request_is_measured_too(kept: Kept) -> None:
    """A worker continues the trace of the job's caller; an exception is captured and propagates."""
    reporter = traced(kept, release="a@1")
    headers = {"Sentry-Trace": f"{TRACE}-{SPAN}-1"}
    with pytest.raises(ValueError, match="x"), reporter.transaction("import", headers=headers):
        raise ValueError("x")
    with reporter.transaction("fine", op="queue.task", source="task"):
        pass
    failed, fine = kept.transactions
    assert (failed["transaction"], failed["contexts"]["trace"]["trace_id"]) == ("import", TRACE)
    assert failed["contexts"]["trace"]["status"] == "internal_error"
    assert (fine["contexts"]["trace"]["op"], fine["contexts"]["trace"]["status"]) == ("queue.task", "ok")
    assert fine["transaction_info"] == {"source": "task"}
    assert kept.events[0]["transaction"] == "import"
    kept.flush()
    assert kept.payloads("sessions") == []


def broken() -> Any:
    raise RuntimeError("password=hunter2")


@pytest.mark.parametrize("which", ["describe", "named", "header", "user", "expected"])
def test_a_callback_that_fails_costs_its_part_only(
    kept: Kept, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    """The integration's mistake must cost neither the app's response nor the event."""
    callbacks: dict[str, Callable[..., Any]] = {
        "describe": describe,
        "named": named,
        "header": {}.get,
        "user": lambda: {"id": 7},
        "expected": lambda error: False,
    }
    callbacks[which] = lambda *_: broken()
    reporter = traced(kept, send_default_pii=True)
    with pytest.raises(ValueError, match="boom"), reporter.request(**callbacks):  # type: ignore[arg-type]
        raise ValueError("boom")
    (event,) = kept.events
    assert ("request" in event) is (which != "describe")
    assert ("transaction" in event) is (which != "named")
    assert ("user" in event) is (which != "user")
    assert len(kept.transactions) == 1
    assert "hunter2" not in caplog.text


def test_a_request_may_be_finished_by_another_thread_and_twice(kept: Kept) -> None:
    """A streamed response ends on the thread on which the server closes it."""
    reporter = traced(kept)
    served = reporter.request(named=named).begin()
    thread = threading.Thread(target=served.finish)
    thread.start()
    thread.join(timeout=30)
    served.finish()
    never = reporter.request(named=named)
    never.finish(ValueError("not begun"))
    assert len(kept.transactions) == 1
    assert kept.events == []


def test_a_failure_around_a_request_is_counted_and_never_the_apps(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The response is sent, whatever fails in the reporting."""
    reporter = traced(kept, release="a@1")

    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError("password=hunter2")

    monkeypatch.setattr(Sampler, "decide", fail)
    with reporter.request(named=named):
        pass
    monkeypatch.undo()
    monkeypatch.setattr("transport_kit.reporting.served_request.Transaction.set_status", fail)
    with pytest.raises(ValueError, match="mine"), reporter.request(named=named):
        raise ValueError("mine")
    monkeypatch.undo()
    assert kept.lost()["internal_sdk_error"] == {"transaction": 1}
    assert caplog.text.count("MemoryError") == 2
    assert "hunter2" not in caplog.text


def test_a_span_left_in_another_context_is_left_without_an_error(kept: Kept) -> None:
    """An event loop closes abandoned generators in another context."""
    reporter = traced(kept)
    with reporter.request(named=named):
        span = copy_context().run(reporter.span("db").__enter__)
        span.__exit__(None, None, None)
    assert [told["op"] for told in kept.transactions[0]["spans"]] == ["db"]


def test_a_span_that_never_ended_is_not_told(kept: Kept) -> None:
    """Without an end there is no duration to report."""
    reporter = traced(kept)
    with reporter.request(named=named):
        reporter.span("forgotten").__enter__()
    assert kept.transactions[0]["spans"] == []
