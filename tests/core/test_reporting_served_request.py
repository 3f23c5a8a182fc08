"""Served requests: their scope, the facts in their events, and the handling of their exceptions."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest

from tests.core.reporting_support import Kept, raised, reporter_for
from transport_kit.envelope.item import Item
from transport_kit.reporting import Reporter, RequestInfo, Scope, attachment, new_scope
from transport_kit.reporting.unit_of_work import MAX_BREADCRUMBS


@pytest.fixture(name="kept")
def _kept() -> Iterator[Kept]:
    with Kept() as transport:
        yield transport


def named() -> tuple[str, str]:
    return ("/cart", "url")


def test_what_is_captured_in_a_request_knows_the_request(kept: Kept) -> None:
    """A capture deep in the app, or by a logging handler, needs no request passed to it."""
    reporter = reporter_for(kept, send_default_pii=True)
    route = ["/cart/1", "url"]
    with reporter.request(
        lambda: RequestInfo(method="GET", url="https://shop.example/cart/1", remote_addr="192.0.2.7"),
        named=lambda: (route[0], route[1]),
        user=lambda: {"id": 42},
    ) as served:
        reporter.capture_message("before routing")
        route[:] = ["/cart/{id}", "route"]
        served.scope.set_user({"email": "a@example.org"})
        reporter.capture_message("after routing")
    first, second = kept.events
    assert (first["transaction"], first["transaction_info"]) == ("/cart/1", {"source": "url"})
    assert first["request"]["url"] == "https://shop.example/cart/1"
    assert first["user"] == {"ip_address": "192.0.2.7", "id": "42"}
    assert second["transaction"] == "/cart/{id}"
    assert second["user"] == {"ip_address": "192.0.2.7", "id": "42", "email": "a@example.org"}


def test_without_pii_the_integrations_user_is_not_even_asked_for(kept: Kept) -> None:
    """The user is sent only if the app enables it; a user set by the app itself is always sent."""
    asked: list[int] = []
    reporter = reporter_for(kept)
    with reporter.request(
        lambda: RequestInfo(url="https://x.example/", remote_addr="192.0.2.7"),
        named=named,
        user=lambda: asked.append(1),
    ) as served:
        reporter.capture_message("m")
        served.scope.set_user({"id": 1})
        reporter.capture_message("m")
    assert asked == []
    assert ["user" in event for event in kept.events] == [False, True]
    assert "192.0.2.7" not in str(kept.sealed)


def test_an_events_own_fields_win_over_the_request(kept: Kept) -> None:
    """Call arguments beat the surrounding request."""
    reporter = reporter_for(kept)
    own = RequestInfo(method="PUT", url="https://own.example/")
    with reporter.request(lambda: RequestInfo(url="https://x.example/"), named=named):
        reporter.capture_exception(raised(ValueError()), request=own, transaction="mine")
        reporter.capture_event({"message": "m", "request": {"url": "https://third.example/"}})
    first, second = kept.events
    assert (first["request"], first["transaction"]) == (
        {"method": "PUT", "url": "https://own.example/"},
        "mine",
    )
    assert second["request"] == {"url": "https://third.example/"}


def test_an_escaped_exception_is_captured_once_and_goes_on(kept: Kept) -> None:
    """The framework's own error handling must see the same exception."""
    reporter = reporter_for(kept)
    error = ValueError("boom")

    def serve() -> None:
        with reporter.request(named=named, mechanism="auto.http.test") as served:
            try:
                raise error
            except ValueError:
                served.capture(error)
                raise

    with pytest.raises(ValueError, match="boom") as caught:
        serve()
    assert caught.value is error
    (event,) = kept.events
    assert event["exception"]["values"][0]["mechanism"]["type"] == "auto.http.test"
    assert event["exception"]["values"][0]["mechanism"]["handled"] is False


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(1), asyncio.CancelledError(), GeneratorExit()]
)
def test_what_only_ends_the_work_is_not_captured(kept: Kept, error: BaseException) -> None:
    """A worker that is asked to stop has not failed."""
    served = reporter_for(kept).request(named=named).begin()
    served.finish(error)
    assert kept.events == []


def test_an_expected_exception_is_not_captured(kept: Kept) -> None:
    """The integration knows them: a disconnected client, a 404 raised as an exception."""
    reporter = reporter_for(kept)
    for error, count in ((KeyError("x"), 0), (ValueError("x"), 1)):
        reporter.request(named=named, expected=lambda error: isinstance(error, KeyError)).begin().finish(
            error
        )
        assert len(kept.events) == count


def test_requests_do_not_see_each_other(kept: Kept) -> None:
    """On threads, in tasks and in sequence: each has its own data, and the data set before all of them."""
    reporter = reporter_for(kept)
    Scope.current().set_tag("app", "shop")

    def serve(number: int) -> None:
        with reporter.request(named=named) as served:
            served.scope.set_tag("number", number)
            served.scope.set_context("cart", {"number": number})
            reporter.add_breadcrumb(f"crumb {number}")
            reporter.capture_message(str(number))

    async def tasks() -> None:
        await asyncio.gather(*(asyncio.to_thread(serve, number) for number in range(4)))

    async def task(number: int) -> None:
        serve(number)

    async def plain() -> None:
        await asyncio.gather(*(task(number) for number in range(4, 8)))

    try:
        asyncio.run(tasks())
        asyncio.run(plain())
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(serve, range(8, 12)))
    finally:
        Scope.current()._tags.clear()
    assert len(kept.events) == 12
    for event in kept.events:
        number = event["message"]
        assert event["tags"] == {"app": "shop", "number": number}
        assert event["contexts"]["cart"] == {"number": int(number)}
        assert [crumb["message"] for crumb in event["breadcrumbs"]["values"]] == [f"crumb {number}"]


def test_a_scope_for_a_block_shares_the_requests_breadcrumbs(kept: Kept) -> None:
    """A tag ends with its block, but breadcrumbs belong to the whole request."""
    reporter = reporter_for(kept)
    with reporter.request(named=named):
        with reporter.scope() as scope:
            scope.set_tag("step", "pay")
            scope.set_level("fatal")
            scope.set_fingerprint(["{{ default }}", "pay"])
            scope.add_breadcrumb("in", category="step")
            reporter.capture_message("inside")
        reporter.capture_message("outside")
    inside, outside = kept.events
    assert (inside["tags"], inside["level"]) == ({"step": "pay"}, "fatal")
    assert inside["fingerprint"] == ["{{ default }}", "pay"]
    assert "tags" not in outside
    assert "fingerprint" not in outside
    assert outside["level"] == "info"
    assert [crumb["message"] for crumb in outside["breadcrumbs"]["values"]] == ["in"]


def test_the_last_hundred_breadcrumbs_are_kept(kept: Kept) -> None:
    """The steps right before an error matter most."""
    reporter = reporter_for(kept)
    few = reporter_for(kept, max_breadcrumbs=3)
    none = reporter_for(kept, max_breadcrumbs=0)
    with reporter.request(named=named):
        for number in range(MAX_BREADCRUMBS + 50):
            reporter.add_breadcrumb(str(number))
        for one in (reporter, few, none):
            one.capture_message("m")
        one.capture_event({"message": "own", "breadcrumbs": {"values": []}})
    told = [
        [c["message"] for c in event.get("breadcrumbs", {"values": []})["values"]] for event in kept.events
    ]
    assert told[0] == [str(number) for number in range(50, 150)]
    assert told[1] == ["147", "148", "149"]
    assert told[2:] == [[], []]


def test_a_breadcrumb_is_bounded_and_scrubbed(kept: Kept) -> None:
    """A hundred of them are sent with each event."""
    reporter = reporter_for(kept)
    with reporter.request(named=named):
        reporter.add_breadcrumb(
            "GET https://bob:hunter2@x.example/ " + "m" * 9000,
            category="c" * 500,
            type="http",
            level="WARN",
            data={"password": "hunter2", "big": ["x" * 500] * 500, 7: object()},  # type: ignore[dict-item]
        )
        reporter.add_breadcrumb(data=7, level=None)  # type: ignore[arg-type]
        reporter.capture_message("m")
    first, second = kept.events[0]["breadcrumbs"]["values"]
    assert "hunter2" not in str(first)
    assert (len(first["message"]), len(first["category"]), first["level"]) == (2048, 128, "warning")
    assert len(str(first["data"])) < 5000
    assert (second["level"], "message" in second, "data" in second) == ("error", False, False)


def test_hooks_change_or_drop_events_and_what_they_drop_is_counted(kept: Kept) -> None:
    """Processors run first, in order, then `before_send`; each loss has its own reason."""
    seen: list[str] = []

    def step(name: str) -> Any:
        def processor(event: dict[str, Any], hint: dict[str, Any]) -> dict[str, Any] | None:
            seen.append(name)
            event.setdefault("tags", {})[name] = "1"
            return None if event.get("message") == f"drop {name}" else event

        return processor

    reporter = reporter_for(kept, before_send=step("last"))
    with reporter.request(named=named) as served:
        served.scope.add_event_processor(step("first"))
        served.scope.add_event_processor(7)  # type: ignore[arg-type]
        with reporter.scope() as scope:
            scope.add_event_processor(step("second"))
            scope.add_attachment(b"abc", filename="a.txt")
            reporter.capture_message("keep")
            reporter.capture_message("drop first")
            reporter.capture_message("drop last")
    assert seen == ["first", "second", "last", "first", "first", "second", "last"]
    assert kept.events[0]["tags"] == {"first": "1", "second": "1", "last": "1"}
    assert len(kept.events) == 1
    assert kept.lost() == {
        "event_processor": {"error": 1, "attachment": 3},
        "before_send": {"error": 1, "attachment": 3},
    }


def test_a_processor_may_drop_a_transaction(kept: Kept) -> None:
    """It is counted with its spans; `before_send` is not called for transactions."""
    reporter = reporter_for(
        kept, traces_sample_rate=1.0, before_send=lambda event, hint: pytest.fail("asked for a transaction")
    )
    with reporter.request(named=named) as served:
        served.scope.add_event_processor(lambda event, hint: None)
        with reporter.span("db"):
            pass
    assert kept.sealed == []
    assert kept.lost() == {"event_processor": {"transaction": 1, "span": 2}}


def test_sampled_out_errors_are_counted_and_still_errors(kept: Kept) -> None:
    """The session counts the error, whether or not the event is sent."""
    reporter = reporter_for(kept, sample_rate=0.0)
    with reporter.request(named=named) as served:
        assert reporter.capture_message("m", level="error") is None
        assert served.errored
    assert reporter.capture_feedback("not sampled") is not None
    assert kept.lost() == {"sample_rate": {"error": 1}}


def test_half_of_the_errors_at_a_rate_of_a_half(kept: Kept) -> None:
    """The random numbers are fixed: an event below the rate is sent."""
    reporter = reporter_for(kept, sample_rate=0.5)
    draws = iter([0.4, 0.5, 0.6, 0.1])
    reporter.pipeline._draw = lambda: next(draws)
    assert [reporter.capture_message("m") is not None for _ in range(4)] == [True, False, False, True]


def test_attachments_travel_with_their_event(kept: Kept, tmp_path: Any) -> None:
    """Bytes, text or a file; of the scope, or of one call."""
    path = tmp_path / "report.bin"
    path.write_bytes(b"\x00\x01")
    reporter = reporter_for(kept, traces_sample_rate=1.0)
    with reporter.request(named=named) as served:
        served.scope.add_attachment("text", filename="note.txt", content_type="text/plain")
        reporter.capture_exception(
            raised(ValueError()),
            attachments=[attachment(path, "report.bin", attachment_type="event.attachment")],
        )
        for _ in range(50):
            served.scope.add_attachment(b"x", filename="")
        assert len(served.scope.attachments) == 30
    event, transaction = kept.envelopes
    assert [item.type for item in event] == ["event", "attachment", "attachment"]
    files = {item.headers["filename"]: item for item in event if item.type == "attachment"}
    assert files["report.bin"].get_bytes() == b"\x00\x01"
    assert (files["note.txt"].get_bytes(), files["note.txt"].headers["content_type"]) == (
        b"text",
        "text/plain",
    )
    assert [item.type for item in transaction] == ["transaction"]


def test_a_file_that_is_too_big_costs_itself_only(tmp_path: Any) -> None:
    """The error is sent without the attachment, and the loss is counted."""
    path = tmp_path / "big.bin"
    path.write_bytes(b"x" * 2000)
    with Kept(max_attachment_bytes=1000) as kept:
        item = attachment(path, "big.bin")
        assert reporter_for(kept).capture_message("m", attachments=[item]) is not None
        assert [item.type for item in kept.envelopes[0]] == ["event"]
        assert kept.lost() == {"internal_sdk_error": {"attachment": 2000}}


def test_feedback_is_sent_as_it_was_written(kept: Kept) -> None:
    """No hook and no sampling applies to feedback; files may be attached."""
    reporter = reporter_for(kept, before_send=lambda event, hint: None, sample_rate=0.0, release="shop@1")
    event_id = "9EC79C33-EC99-42AB-8353-589FCB2E04DC"
    with reporter.request(named=named):
        found = reporter.capture_feedback(
            "it broke " + "x" * 9000,
            name="Bob",
            email="bob@example.org",
            url="https://shop.example/cart",
            associated_event_id=event_id,
            attachments=[Item(b"png", type="attachment", filename="screenshot.png")],
        )
    (envelope,) = kept.envelopes
    (payload,) = kept.payloads("feedback")
    said = payload["contexts"]["feedback"]
    assert (found, payload["release"]) == (payload["event_id"], "shop@1")
    assert len(said.pop("message")) == 4096
    assert said == {
        "name": "Bob",
        "contact_email": "bob@example.org",
        "url": "https://shop.example/cart",
        "associated_event_id": event_id.replace("-", "").lower(),
    }
    assert [item.type for item in envelope] == ["feedback", "attachment"]


def test_a_breadcrumb_that_cannot_be_made_raises_nothing(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A breadcrumb must not break the app's work."""
    monkeypatch.setattr(Scope, "add_breadcrumb", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(Scope, "current", lambda: 1 / 0)
    reporter = reporter_for(kept)
    reporter.add_breadcrumb("m")
    assert reporter.outgoing_headers() == {}
    assert caplog.text.count("ZeroDivisionError") == 2


def test_a_context_may_be_replaced_and_removed(kept: Kept) -> None:
    """Sections are bounded, and copied for each event."""
    with new_scope() as scope:
        for number in range(80):
            scope.set_context(f"c{number}", {"n": number})
        scope.set_context("c0", {"big": ["x" * 1000] * 100})
        scope.set_context("c1", None)
        event: dict[str, Any] = {"contexts": {"c2": {"own": True}}}
        scope.apply(event)
        assert len(event["contexts"]) == 49
        assert len(str(event["contexts"]["c0"])) < 9000
        assert event["contexts"]["c2"] == {"own": True}
        event["contexts"]["c3"].clear()
        again: dict[str, Any] = {}
        scope.apply(again)
        assert again["contexts"]["c3"] == {"n": 3}
        scope.set_level(None)
        scope.set_fingerprint(None)
        scope.set_fingerprint("abc")
        assert scope._fingerprint == ()


def test_a_request_left_in_another_context_leaves_nothing_behind(kept: Kept) -> None:
    """Servers may close a streamed response in another context."""
    reporter = reporter_for(kept)
    before = Scope.current()
    served = copy_context().run(reporter.request(named=named).begin)
    thread = threading.Thread(target=served.finish)
    thread.start()
    thread.join(timeout=30)
    assert Scope.current() is before


def test_two_reporters_share_the_request(kept: Kept) -> None:
    """A library with its own transport reports to its own project, with the same request."""
    with Kept() as other:
        theirs: Reporter = reporter_for(other)
        with reporter_for(kept).request(lambda: RequestInfo(url="https://x.example/"), named=named):
            theirs.capture_message("m")
        assert other.events[0]["request"]["url"] == "https://x.example/"


def test_a_request_finished_elsewhere_tells_the_next_one_nothing(kept: Kept) -> None:
    """A stream may end on another thread: tags must not leak to later requests, nor scopes accumulate."""
    reporter = reporter_for(kept)
    alive: list[weakref.ref[Any]] = []

    def serve() -> None:
        for number in range(100):
            served = reporter.request(named=named).begin()
            served.scope.set_tag(f"t{number}", 1)
            if number % 2:
                with reporter.scope():
                    thread = threading.Thread(target=served.finish)
            else:
                thread = threading.Thread(target=served.finish)
            thread.start()
            thread.join(timeout=30)
            alive.append(weakref.ref(served))
        with reporter.request(named=named):
            reporter.capture_message("m")

    copy_context().run(serve)
    gc.collect()
    assert "tags" not in kept.events[0]
    assert sum(ref() is not None for ref in alive) <= 2


def test_a_chain_of_scopes_is_not_kept_without_end() -> None:
    """A timer that starts its successor in its own scope may run for months."""
    scope = Scope()
    for _ in range(1000):
        scope = Scope(scope)
    chain = 0
    walked: Scope | None = scope
    while walked is not None:
        chain += 1
        walked = walked._parent
    assert chain <= 32
    assert len(scope.id) < 32 * 17


def test_a_finished_request_is_freed_at_once(kept: Kept) -> None:
    """Its body may be megabytes, and must not wait for the garbage collector."""
    reporter = reporter_for(kept, traces_sample_rate=1.0, release="a@1")
    gc.disable()
    try:
        served = reporter.request(named=named).begin()
        reporter.capture_message("m")
        served.finish()
        ref = weakref.ref(served)
        del served
        assert ref() is None
    finally:
        gc.enable()
