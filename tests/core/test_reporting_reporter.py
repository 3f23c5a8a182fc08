"""The reporter: makes events that servers accept, captures each exception once, and never raises."""

from __future__ import annotations

import logging
import pickle
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.core.reporting_support import Kept, raised
from tests.timing import SOON, steps
from transport_kit.config.options import ReporterOptions
from transport_kit.envelope import encoder
from transport_kit.envelope.envelope import Envelope
from transport_kit.reporting import Reporter, RequestInfo, Scope, is_own_logger, new_scope
from transport_kit.transport.local import NullTransport


@pytest.fixture(name="inbox")
def _inbox() -> Iterator[Kept]:
    with Kept() as kept:
        yield kept


def test_an_exception_becomes_an_event_with_all_that_servers_ask_for(inbox: Kept) -> None:
    """The required fields of the protocol, and the facts by which servers group by release and host."""
    options = ReporterOptions(release="shop@1.2.0", environment="staging", dist="7", server_name="web-1")
    before = time.time()
    event_id = Reporter(inbox, options).capture_exception(raised(ValueError("boom")))
    (event,) = inbox.events
    assert event["event_id"] == event_id
    assert len(event_id or "") == 32
    assert before <= event["timestamp"] <= time.time()
    assert (event["platform"], event["level"]) == ("python", "error")
    assert (event["release"], event["environment"], event["dist"]) == ("shop@1.2.0", "staging", "7")
    assert event["server_name"] == "web-1"
    assert event["sdk"]["name"] == "transport-kit.python"
    assert event["sdk"]["version"]
    assert event["contexts"]["runtime"]["name"] == "CPython"
    assert event["contexts"]["os"]["name"]
    assert not {"extra", "tags", "user", "request", "transaction"} & set(event)
    (value,) = event["exception"]["values"]
    assert (value["type"], value["value"]) == ("ValueError", "boom")
    assert value["mechanism"] == {"type": "generic", "handled": True, "exception_id": 0}


def test_the_exception_being_handled_is_taken_when_none_is_given(inbox: Kept) -> None:
    """`except: reporter.capture_exception()` is the common call."""
    try:
        raise KeyError("sku")
    except KeyError:
        event_id = Reporter(inbox).capture_exception()
    assert event_id == inbox.events[0]["event_id"]
    assert inbox.events[0]["exception"]["values"][0]["value"] == "'sku'"


@pytest.mark.parametrize("nothing", [None, "boom", ValueError, 42])
def test_what_is_no_exception_is_not_reported(inbox: Kept, nothing: Any) -> None:
    """A wrong argument gives None, and no error in the app's error handler."""
    assert Reporter(inbox).capture_exception(nothing) is None
    assert inbox.events == []


def test_mechanism_transaction_and_request_are_told_as_the_integration_says(inbox: Kept) -> None:
    """Servers show unhandled errors differently, and group by transaction."""
    Reporter(inbox).capture_exception(
        raised(ValueError()),
        mechanism="starlette",
        handled=False,
        transaction="/cart/{id}",
        transaction_source="route",
        request=RequestInfo(method="get", url="https://shop.example/cart/1"),
        level="fatal",
    )
    (event,) = inbox.events
    assert event["exception"]["values"][0]["mechanism"] == {
        "type": "starlette",
        "handled": False,
        "exception_id": 0,
    }
    assert (event["transaction"], event["transaction_info"]) == ("/cart/{id}", {"source": "route"})
    assert event["request"] == {"method": "GET", "url": "https://shop.example/cart/1"}
    assert event["level"] == "fatal"


def test_values_a_server_would_null_are_replaced_or_shortened(inbox: Kept) -> None:
    """A wrong level or source costs the field, not the event."""
    reporter = Reporter(inbox)
    reporter.capture_exception(
        raised(ValueError()), transaction="x" * 500, transaction_source="?", level="bad"
    )
    reporter.capture_message("m" * 10_000, level="WARN")
    reporter.capture_message("m", level=3)  # type: ignore[arg-type]
    first, second, third = inbox.events
    assert (len(first["transaction"]), first["transaction_info"]["source"]) == (200, "custom")
    assert first["level"] == "error"
    assert (len(second["message"]), second["level"]) == (8192, "warning")
    assert third["level"] == "error"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("release", "feature/login"),
        ("release", "latest"),
        ("release", " "),
        ("environment", "a/b"),
        ("environment", "None"),
        ("environment", "e" * 65),
        ("dist", "d" * 65),
    ],
)
def test_an_option_that_a_server_would_null_is_left_out_and_said_once(
    inbox: Kept, caplog: pytest.LogCaptureFixture, name: str, value: str
) -> None:
    """Servers discard it silently; the log names the option when the app starts."""
    reporter = Reporter(inbox, ReporterOptions(**{name: value}))  # type: ignore[arg-type]
    reporter.capture_message("hello")
    assert name not in inbox.events[0]
    assert [record.getMessage().startswith(f"option {name} ") for record in caplog.records] == [True]


def test_an_exception_is_captured_once_in_a_scope_and_again_in_the_next_request(inbox: Kept) -> None:
    """Middleware, logging handler and error handler see the same object. A later request counts anew."""
    reporter = Reporter(inbox)
    error = raised(ValueError("once"))
    with new_scope():
        assert reporter.capture_exception(error) is not None
        assert reporter.capture_exception(error) is None
    with new_scope():
        assert reporter.capture_exception(error) is not None
    assert len(inbox.events) == 2


def test_an_outer_scope_knows_what_an_inner_one_captured(inbox: Kept) -> None:
    """A scope for a block inside a request must not make the middleware capture the exception again."""
    reporter = Reporter(inbox)
    error = raised(ValueError("inner"))
    with new_scope():
        with new_scope():
            assert reporter.capture_exception(error) is not None
        assert reporter.capture_exception(error) is None
    assert reporter.capture_exception(error) is None


def test_exceptions_that_guard_their_attributes_are_marked_all_the_same(inbox: Kept) -> None:
    """Frozen exceptions, slotted ones and ones that override `__dict__` would be reported twice."""

    class Frozen(Exception):
        __slots__ = ()

        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(name)

        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise RuntimeError("mine")

    class Guarded(dict[str, Any]):
        def fail(self, *arguments: object) -> Any:
            raise RuntimeError("mine")

        get = pop = __getitem__ = __setitem__ = fail

    reporter = Reporter(inbox)
    odd = ValueError("y")
    odd.__dict__ = Guarded()
    for error in (Frozen("x"), odd):
        assert reporter.capture_exception(error) is not None
        assert reporter.capture_exception(error) is None


def test_the_mark_is_plain_text_and_survives_a_pickle(inbox: Kept) -> None:
    """Worker processes pickle exceptions for their parent: the mark must not break that."""
    error = ValueError("x")
    Reporter(inbox).capture_exception(error)
    marks = [
        value for name, value in pickle.loads(pickle.dumps(error)).__dict__.items() if "captured" in name
    ]
    assert marks == [Scope.current().id]


def test_scope_data_is_added_and_the_events_own_wins(inbox: Kept) -> None:
    """Call arguments beat the scope, by the merge order of the protocol."""
    reporter = Reporter(inbox)
    with new_scope() as scope:
        scope.set_user({"id": 42})
        scope.set_tag("region", "eu")
        scope.set_extra("cart", {"items": [1, 2]})
        reporter.capture_event({"message": "m", "tags": {"region": "us"}, "extra": {"n": 1}})
    (event,) = inbox.events
    assert event["user"] == {"id": "42"}
    assert event["tags"] == {"region": "us"}
    assert event["extra"] == {"cart": {"items": [1, 2]}, "n": 1}


def test_an_event_of_the_apps_own_is_completed_and_not_changed(inbox: Kept) -> None:
    """The caller may send the same dict again; its own fields win."""
    own = {"message": "hi", "platform": "other", "contexts": {"os": {"name": "mine"}, "app": {"a": 1}}}
    kept = encoder.dumps(own)
    event_id = Reporter(inbox).capture_event(own)
    (event,) = inbox.events
    assert event["event_id"] == event_id
    assert event["platform"] == "other"
    assert event["contexts"]["os"] == {"name": "mine"}
    assert event["contexts"]["runtime"]["name"] == "CPython"
    assert encoder.dumps(own) == kept


@pytest.mark.parametrize(
    ("given", "same"),
    [("9EC79C33-EC99-42AB-8353-589FCB2E04DC", True), ("nonsense", False), (7, False), (None, False)],
)
def test_the_returned_id_is_the_one_that_servers_keep(inbox: Kept, given: object, same: bool) -> None:
    """A server replaces an id that is no UUID: the id shown to a user would match no event."""
    event_id = Reporter(inbox).capture_event({"message": "m", "event_id": given})
    assert event_id == inbox.events[0]["event_id"]
    assert (event_id == "9ec79c33ec9942ab8353589fcb2e04dc") is same


def test_a_hook_may_change_an_event(inbox: Kept) -> None:
    """`before_send` runs last, and gets the exception in its hint."""

    def hook(event: dict[str, Any], hint: dict[str, Any]) -> dict[str, Any]:
        event["fingerprint"] = [hint["exc_info"][0].__name__]
        del event["event_id"]
        return event

    event_id = Reporter(inbox, ReporterOptions(before_send=hook)).capture_exception(raised(OSError("x")))
    assert inbox.events[0]["fingerprint"] == ["OSError"]
    assert inbox.events[0]["event_id"] == event_id


def test_an_event_that_the_hook_drops_is_counted(inbox: Kept) -> None:
    """The server learns how many events the app dropped."""
    reporter = Reporter(inbox, ReporterOptions(before_send=lambda event, hint: None))
    assert reporter.capture_message("drop me") is None
    assert inbox.events == []
    assert inbox.lost() == {"before_send": {"error": 1}}


def test_a_hook_that_fails_drops_the_event(inbox: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """The hook may be there to remove secrets, so an event that it did not process must not be sent."""

    def hook(event: dict[str, Any], hint: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("password=hunter2")

    reporter = Reporter(inbox, ReporterOptions(before_send=hook))
    assert reporter.capture_exception(raised(ValueError("card 4111"))) is None
    assert inbox.sealed == []
    assert inbox.lost() == {"before_send": {"error": 1}}
    assert [record.getMessage() for record in caplog.records] == [
        "before_send failed, the event is dropped: RuntimeError"
    ]


def test_an_event_processor_that_fails_drops_the_event(inbox: Kept) -> None:
    """As for `before_send`, but counted under its own reason."""
    with new_scope() as scope:
        scope.add_event_processor(lambda event, hint: event["no such key"])
        assert Reporter(inbox).capture_message("card 4111") is None
    assert inbox.sealed == []
    assert inbox.lost() == {"event_processor": {"error": 1}}


def test_a_hook_that_returns_something_else_drops_the_event(
    inbox: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    """A coroutine of an `async def` has scrubbed nothing yet; the log names the mistake."""
    options = ReporterOptions(before_send=lambda event, hint: True)  # type: ignore[arg-type,return-value]
    assert Reporter(inbox, options).capture_message("m") is None
    assert inbox.lost() == {"before_send": {"error": 1}}
    assert "not bool" in caplog.text


def test_what_a_hook_changes_in_place_does_not_reach_the_next_event(inbox: Kept) -> None:
    """Source lines are cached: a hook that blanks them in one event must not blank them in all."""
    seen: list[int] = []

    def hook(event: dict[str, Any], hint: dict[str, Any]) -> dict[str, Any]:
        frame = event["exception"]["values"][0]["stacktrace"]["frames"][-1]
        seen.append(len(frame["pre_context"]))
        frame["pre_context"].clear()  # a list in a hook's copy
        event["contexts"]["runtime"].clear()
        return event

    reporter = Reporter(inbox, ReporterOptions(before_send=hook))
    for _ in range(2):
        reporter.capture_exception(raised(ValueError()))
    assert seen == [5, 5]
    plain = Reporter(inbox)
    plain.capture_message("m")
    assert inbox.events[-1]["contexts"]["runtime"]["name"] == "CPython"


def test_an_event_that_holds_itself_many_times_is_copied_in_time() -> None:
    """A hook gets a copy, and copying containers that hold themselves would never end."""
    endless: list[Any] = []
    endless += [endless, endless]
    seen: list[Any] = []
    reporter = Reporter(NullTransport(), ReporterOptions(before_send=lambda event, hint: seen.append(event)))
    event = {"message": "m", "extra": {"endless": endless}}
    # Half a million; without the bound, two to the power of the depth.
    assert steps(lambda: reporter.capture_event(event)) < 2_000_000
    assert len(seen) == 1
    assert [part is endless for part in endless] == [True, True]


def test_a_transaction_passes_without_the_hook(inbox: Kept) -> None:
    """`before_send` is for errors; such a hook would fail on a transaction."""
    options = ReporterOptions(before_send=lambda event, hint: None)
    transaction = {
        "type": "transaction",
        "transaction": "/",
        "start_timestamp": 1.0,
        "timestamp": 2.0,
        "contexts": {"trace": {"trace_id": "7" * 32, "span_id": "a" * 16}},
        "spans": [],
    }
    assert Reporter(inbox, options).capture_event(transaction) is not None
    assert inbox.transactions[0]["type"] == "transaction"


def test_a_capture_inside_a_capture_ends(inbox: Kept) -> None:
    """A hook or logging handler that captures would otherwise recurse until the stack is full."""
    reporter: Reporter

    def hook(event: dict[str, Any], hint: dict[str, Any]) -> dict[str, Any]:
        reporter.capture_message("from the hook")
        return event

    reporter = Reporter(inbox, ReporterOptions(before_send=hook))
    assert reporter.capture_message("outer") is not None
    assert [event["message"] for event in inbox.events] == ["from the hook", "outer"]
    assert inbox.lost() == {"reentrant": {"error": 1}}
    assert reporter.capture_message("next") is not None


def test_a_transport_that_refuses_gives_no_id() -> None:
    """An id shown to a user must belong to an accepted event."""
    assert Reporter(NullTransport()).capture_message("off") is None


def test_nothing_is_raised_when_the_transport_or_an_argument_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A failure of reporting must not break the app's error handler."""

    class Broken(NullTransport):
        """A transport whose methods all raise."""

        def capture_envelope(self, envelope: Envelope) -> bool:
            raise RuntimeError("token=abc")

        def record_lost_event(self, *arguments: Any, **fields: Any) -> None:
            raise RuntimeError("worse")

    reporter = Reporter(Broken())
    assert reporter.capture_message("m") is None
    assert reporter.capture_exception(raised(ValueError())) is None
    assert reporter.capture_event(None) is None  # type: ignore[arg-type]
    assert "abc" not in caplog.text


def test_a_failure_of_ours_is_counted(inbox: Kept) -> None:
    """An event that could not be built counts as lost."""
    assert Reporter(inbox).capture_event(7) is None  # type: ignore[arg-type]
    assert inbox.lost() == {"internal_sdk_error": {"error": 1}}


def test_an_exception_that_could_not_be_reported_may_be_reported_further_out(inbox: Kept) -> None:
    """Near the end of the stack the event can't be built; the middleware further out has room for it."""
    reporter = Reporter(inbox)
    error = raised(ValueError("kept"))
    facts: Any = [7]
    assert reporter.capture_exception(error, facts=facts) is None
    assert reporter.capture_exception(error) is not None


def test_a_request_of_wrong_types_costs_the_request_and_not_the_event(inbox: Kept) -> None:
    """The exception matters more than its request."""
    request = RequestInfo(method=b"GET", headers=((1, 2),))  # type: ignore[arg-type]
    assert Reporter(inbox).capture_exception(raised(ValueError()), request=request) is not None
    assert "request" not in inbox.events[0]


@pytest.mark.parametrize("name", ["transport_kit", "transport_kit.http", "transport_kit_starlette"])
def test_records_of_our_own_loggers_are_skipped(inbox: Kept, name: str) -> None:
    """A failing delivery that reports itself would never end."""
    assert is_own_logger(name)
    assert Reporter(inbox).capture_event({"message": "m", "logger": name}) is None
    assert (inbox.events, inbox.lost()) == ([], {})
    assert not is_own_logger("transport_kitchen")
    assert not is_own_logger(None)


def test_the_client_address_is_sent_only_when_pii_is_wanted(inbox: Kept) -> None:
    """Off by default. If on, the address identifies the user, unless the app has set one."""
    request = RequestInfo(url="https://shop.example/", remote_addr="192.0.2.7")
    Reporter(inbox).capture_exception(raised(ValueError()), request=request)
    reporter = Reporter(inbox, ReporterOptions(send_default_pii=True))
    with new_scope() as scope:
        scope.set_user({"id": "42"})
        reporter.capture_exception(raised(ValueError()), request=request)
    off, on = inbox.events
    assert b"192.0.2.7" not in encoder.dumps(off)
    assert on["user"] == {"id": "42", "ip_address": "192.0.2.7"}
    assert on["request"]["env"] == {"REMOTE_ADDR": "192.0.2.7"}


def test_threads_share_a_reporter(inbox: Kept) -> None:
    """Concurrent request threads must not affect each other's nesting depth or lose events."""
    reporter = Reporter(inbox)
    barrier = threading.Barrier(8)
    ids: list[str | None] = []

    def work() -> None:
        barrier.wait(timeout=SOON)
        ids.extend(reporter.capture_exception(raised(ValueError("t"))) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=SOON)
    assert len(ids) == 160
    assert len({event["event_id"] for event in inbox.events} & set(ids)) == len(inbox.events) == 160


def test_a_capture_near_the_end_of_the_stack_raises_nothing(inbox: Kept) -> None:
    """A RecursionError is caught where the stack is nearly full, with little room left for a capture."""
    reporter = Reporter(inbox)
    results: list[str | None] = []

    def deeper() -> None:
        try:
            deeper()
        except RecursionError as error:
            if len(results) < 60:
                with new_scope():
                    results.append(reporter.capture_exception(error))
            raise

    with pytest.raises(RecursionError) as caught:
        deeper()
    assert len(results) == 60
    with new_scope():
        assert reporter.capture_exception(caught.value) is not None
    assert len(inbox.events[-1]["exception"]["values"][-1]["stacktrace"]["frames"]) == 250


def test_an_error_caught_again_and_again_up_a_full_stack_is_reported_once_there_is_room(inbox: Kept) -> None:
    """Each layer tries in turn; a failed attempt must not keep the next layer from trying."""
    reporter = Reporter(inbox)
    ids: list[str | None] = []

    def deeper() -> None:
        try:
            deeper()
        except RecursionError as error:
            ids.append(reporter.capture_exception(error))
            raise

    with pytest.raises(RecursionError):
        deeper()
    assert [event["event_id"] for event in inbox.events] == [found for found in ids if found is not None]
    assert len(inbox.events) == 1


def test_twenty_frames_with_locals_are_captured_cheaply() -> None:
    """A failing request may pay half a millisecond: some five thousand lines, with warm caches."""

    def call(depth: int, user: str, items: list[int]) -> None:
        total, data = 3.5, {"a": 1, "b": [1, 2]}
        if depth == 0:
            raise ValueError(f"boom {total} {data} {user}")
        call(depth - 1, user, items)

    errors: list[BaseException] = []
    for _ in range(2):
        try:
            call(18, "bob", [1, 2, 3])
        except ValueError as caught:
            errors.append(caught)

    class Sink(NullTransport):
        """Accepts events and drops them, so that only building them is measured."""

        def capture_envelope(self, envelope: Envelope) -> bool:
            return True

    reporter = Reporter(Sink())
    reporter.capture_exception(errors.pop())
    assert steps(lambda: reporter.capture_exception(errors.pop())) < 8000


def test_construction_logs_nothing_and_starts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Reporters are made when the app's settings are imported: no thread and no log line."""
    before = set(threading.enumerate())
    with caplog.at_level(logging.DEBUG):
        Reporter(NullTransport())
    assert set(threading.enumerate()) <= before
    assert caplog.records == []
