"""The HTTP transport apart from a server's answers: what is sent, what is refused, what is reported."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import logging
import os
import pickle
import sys
import threading
import time
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from types import FrameType
from typing import Any

import pytest

from tests.core.worker_support import until
from tests.timing import SOON
from transport_kit.config.dsn import Dsn
from transport_kit.config.options import TransportOptions
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.item import Item
from transport_kit.envelope.losses import LossReason
from transport_kit.queues.memory import MemoryQueue
from transport_kit.runtime.errors import OptionsError
from transport_kit.runtime.version import CLIENT
from transport_kit.testing import FaultServer
from transport_kit.transport.health import Health
from transport_kit.transport.http import BaseHttpTransport, HttpTransport
from transport_kit.transport.wire.exchange import ExchangeError, ExchangeErrorKind, Response
from transport_kit.transport.worker.client_reports import MAX_QUANTITY

KEY = "0123456789abcdef0123456789abcdef"
SECRET = "fedcba9876543210fedcba9876543210"
DSN = f"https://{KEY}:{SECRET}@sentry.example:8443/relay/42"
LOST = ExchangeError("reset", "ConnectionResetError", body_sent=True)
AMBIGUOUS = ExchangeError("timeout", "the deadline has passed", body_sent=True)


def answered(status: int = 200, body: bytes = b"{}", **headers: str) -> Response:
    return Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, body, True)


class Scripted(BaseHttpTransport):
    """A transport whose network is a list of answers; an exception in it is raised, a callable called.

    Attributes:
        sent: Method, URL, headers and parsed envelope of each request.
    """

    def __init__(self, *answers: object, dsn: str = DSN, **fields: Any) -> None:
        self.answers = deque(answers)
        self.sent: list[tuple[str, str, Mapping[str, str], Envelope]] = []
        options = {"backoff_base": 0.001, "backoff_max": 0.001, "shutdown_timeout": SOON, **fields}
        super().__init__(Dsn.parse(dsn), TransportOptions(**options))

    def _make_pool(self) -> None:
        return None

    def _request(self, pool: Any, body: bytes, headers: dict[str, str], *, timeout: float) -> Response:
        plain = zlib.decompress(body, 31) if "Content-Encoding" in headers else body
        self.sent.append(("POST", self._url, headers, Envelope.deserialize(plain)))
        answer = self.answers.popleft() if self.answers else answered()
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, Response):
            return answer
        assert callable(answer)
        answer()
        return answered()

    def reports(self) -> list[list[tuple[str, str, int]]]:
        """The client reports of each request."""
        return [
            [
                (entry["reason"], entry["category"], entry["quantity"])
                for item in envelope.items
                if item.type == "client_report"
                for entry in json.loads(item.get_bytes())["discarded_events"]
            ]
            for _, _, _, envelope in self.sent
        ]


@pytest.fixture(name="make")
def _make() -> Iterator[Callable[..., Scripted]]:
    """Makes scripted transports, and ends them after the test."""
    made: list[Scripted] = []

    def make(*answers: object, **fields: Any) -> Scripted:
        made.append(Scripted(*answers, **fields))
        return made[-1]

    yield make
    for transport in made:
        transport.kill()


# -- what is sent ------------------------------------------------------------------------------------------


def test_the_error_of_a_client_with_eleven_kilobytes_of_baggage_arrives() -> None:
    """An envelope that another SDK made and an app hands on: its `trace` is what the client sent."""
    header = json.dumps({"event_id": "a" * 32, "trace": {"trace_id": "b" * 32, "user": "x" * 11_000}})
    item = b'\n{"type":"event"}\n{"message":"boom"}'
    with FaultServer() as server:
        transport = HttpTransport(Dsn.parse(server.dsn), TransportOptions(compression="none"))
        try:
            assert transport.capture_envelope(Envelope.deserialize(header.encode() + item))
            assert transport.flush(SOON).ok
            assert not transport.health().discarded
        finally:
            transport.kill()
        (request,) = server.requests
    line, _, rest = request.body.partition(b"\n")
    assert len(line) < 8192
    assert json.loads(line)["trace"] == {"trace_id": "b" * 32}
    assert b'"message":"boom"' in rest


def test_a_request_says_who_sends_what(make: Callable[..., Scripted]) -> None:
    """docs/protocol.md, section 4, the request; the key travels in one header only."""
    transport = make()
    assert transport.capture_event({"message": "x" * 300})
    assert transport.flush().ok
    ((method, url, headers, envelope),) = transport.sent
    assert (method, url) == ("POST", "https://sentry.example:8443/relay/api/42/envelope/")
    assert headers == {
        "Content-Type": "application/x-sentry-envelope",
        "User-Agent": CLIENT,
        "X-Sentry-Auth": f"Sentry sentry_key={KEY}, sentry_version=7, sentry_client={CLIENT}, "
        f"sentry_secret={SECRET}",
        "Content-Encoding": "gzip",
    }
    assert envelope.headers["sdk"] == {"name": "transport-kit.python", "version": CLIENT.partition("/")[2]}
    assert "dsn" not in envelope.headers


def test_the_time_of_sending_is_written_at_each_attempt(make: Callable[..., Scripted]) -> None:
    """Servers correct clocks by it; hours in a queue must not look like a wrong clock."""
    transport = make(LOST, LOST)
    transport.capture_event({"message": "x"})
    transport.flush()
    sent_at = [datetime.fromisoformat(envelope.headers["sent_at"]) for *_, envelope in transport.sent]
    assert len(sent_at) == 3
    assert sent_at == sorted(set(sent_at))
    assert all(moment.utcoffset() == timedelta(0) for moment in sent_at)


@pytest.mark.parametrize(
    ("compression", "encoding"),
    [("gzip", "gzip"), ("isal", "gzip"), ("br", "br"), ("zstd", "zstd"), ("none", None)],
)
def test_each_codec_is_named_and_can_be_undone(compression: str, encoding: str | None) -> None:
    """A body whose encoding is misnamed is a 400 for everything the app ever reports."""
    with FaultServer() as server:
        transport = HttpTransport(
            Dsn.parse(server.dsn), TransportOptions(compression=compression, shutdown_timeout=30.0)
        )
        with transport:
            transport.capture_event({"message": "compressible " * 100})
            transport.capture_envelope(Envelope().add_session({"sid": "1"}))
        big, small = sorted(server.accepted, key=lambda request: -len(request.body))
    assert big.headers.get("content-encoding") == encoding
    assert len(big.raw) < 600 or encoding is None
    (event,) = big.envelope.items
    assert json.loads(event.get_bytes())["message"].startswith("compressible")
    assert "content-encoding" not in small.headers  # compressing 100 bytes makes them more


# -- client reports ----------------------------------------------------------------------------------------


def test_losses_ride_on_the_next_envelope(make: Callable[..., Scripted]) -> None:
    """One request for both; the server's statistics show what never reached it."""
    transport = make()
    transport.record_lost_event("before_send", "error", quantity=2)
    transport.record_lost_event("sample_rate", "transaction")
    transport.record_lost_event("sample_rate", "transaction")
    transport.capture_event({"message": "x"})
    transport.flush()
    assert transport.reports() == [[("before_send", "error", 2), ("sample_rate", "transaction", 2)]]
    transport.flush()
    assert len(transport.sent) == 1


def test_not_every_envelope_carries_a_report(make: Callable[..., Scripted]) -> None:
    """A storm of losses would make each request longer; an interval, or a flush, collects them."""
    transport = make()
    for number in range(3):
        transport.record_lost_event("before_send", "error")
        transport.capture_event({"message": str(number)})
        assert until(lambda: transport.pending == 0)
    assert transport.reports() == [[], [], []]
    transport.flush()
    assert transport.reports()[3:] == [[("before_send", "error", 3)]]


def test_a_flush_reports_losses_on_their_own(make: Callable[..., Scripted]) -> None:
    """At the end of a process no further envelope comes to ride on."""
    transport = make()
    transport.record_lost_event("before_send", "error")
    assert transport.close()
    assert transport.reports() == [[("before_send", "error", 1)]]
    (*_, envelope) = transport.sent[0]
    assert envelope.headers["sdk"]["name"] == "transport-kit.python"
    assert "event_id" not in envelope.headers


@pytest.mark.parametrize(
    "failure",
    [
        LOST,
        answered(503),
        answered(500),
        answered(500, retry_after="9"),
        ExchangeError("protocol", "garbage"),
    ],
)
def test_a_report_comes_back_when_nobody_took_it(
    failure: Response | ExchangeError, make: Callable[..., Scripted]
) -> None:
    """Otherwise an outage would also hide what it cost."""
    transport = make(failure)
    transport.record_lost_event("before_send", "error")
    transport.capture_event({"message": "x"})
    transport.flush()
    transport.flush()
    said = [entry for report in transport.reports()[1:] for entry in report]
    assert said.count(("before_send", "error", 1)) == 1


def test_a_report_comes_back_from_an_envelope_that_is_not_repeated(make: Callable[..., Scripted]) -> None:
    """The session is given up as ambiguous; what rode along is not lost with it."""
    transport = make(AMBIGUOUS)
    transport.record_lost_event("before_send", "error")
    transport.capture_envelope(Envelope().add_session({"sid": "1"}))
    transport.flush()
    transport.flush()
    assert ("before_send", "error", 1) in transport.reports()[-1]
    assert ("network_error", "session", 1) in transport.reports()[-1]


def test_a_report_does_not_make_an_event_unrepeatable(make: Callable[..., Scripted]) -> None:
    """A server recognises the event by its id, whatever rides along."""
    transport = make(AMBIGUOUS)
    transport.record_lost_event("before_send", "error")
    transport.capture_event({"message": "x"})
    assert transport.flush().ok
    assert transport.health().delivered == {"error": 1}


def test_a_thread_that_seals_can_t_wait_for_the_end(make: Callable[..., Scripted], tmp_path: Any) -> None:
    """A signal handler that ends the process there would wait for the very envelope that it interrupted."""
    transport = make()
    answers: list[bool] = []
    file = tmp_path / "a.txt"
    file.write_bytes(b"12345")
    path = CapturingPath(lambda: answers.append(transport.can_wait()), str(file))
    assert transport.capture_envelope(Envelope.event({"message": "x"}).add_attachment(path, filename="a"))
    assert answers
    assert not any(answers)
    assert transport.can_wait()


@pytest.mark.parametrize("kind", ["connect", "tls", "proxy", "reset", "protocol", "timeout"])
@pytest.mark.parametrize("body_sent", [False, True])
@pytest.mark.parametrize("category", ["error", "session"])
def test_only_a_timeout_after_the_body_gives_up_what_a_server_would_count_twice(
    kind: ExchangeErrorKind, body_sent: bool, category: str, make: Callable[..., Scripted]
) -> None:
    """Whatever else keeps an answer away is an outage, a reset after the whole body too: nothing is lost."""
    transport = make(ExchangeError(kind, "", body_sent=body_sent))
    event, session = Envelope.event({"message": "x"}), Envelope().add_session({"sid": "1"})
    transport.capture_envelope(event if category == "error" else session)
    given_up = kind == "timeout" and body_sent and category == "session"
    assert transport.flush().ok
    health = transport.health()
    assert health.delivered == ({} if given_up else {category: 1})
    assert health.discarded_by_category == ({"network_error": {"session": 1}} if given_up else {})


@pytest.mark.parametrize("status", [400, 413, 429])
def test_a_report_that_was_refused_is_not_repeated(status: int, make: Callable[..., Scripted]) -> None:
    """The same report would be refused again, for ever."""
    transport = make(answered(status, x_sentry_rate_limits="1:session"))
    transport.record_lost_event("before_send", "error")
    transport.flush()
    transport.flush()
    assert len(transport.sent) == 1


def test_a_report_waits_while_everything_is_limited(make: Callable[..., Scripted]) -> None:
    """A limit on all covers reports, too."""
    transport = make(answered(200, x_sentry_rate_limits="60::key"))
    transport.capture_event({"message": "x"})
    transport.flush()
    transport.capture_event({"message": "limited"})
    transport.flush()
    transport.flush(0.2)
    assert len(transport.sent) == 1
    assert transport.health().discarded_by_category == {"ratelimit_backoff": {"error": 1}}


def test_reports_can_be_switched_off(make: Callable[..., Scripted]) -> None:
    """Some servers refuse the item type; the count in health remains, and waiting isn't held against it."""
    transport = make(send_client_reports=False)
    transport.record_lost_event("before_send", "error")
    assert transport.flush()
    assert transport.health().discarded_by_category == {"before_send": {"error": 1}}
    assert transport.health().status == "pass"
    assert transport.sent == []


def test_a_report_of_everything_stays_small_and_readable(make: Callable[..., Scripted]) -> None:
    """Servers read quantities into 32 bits and take 4 KiB; one number too large would refuse all of them."""
    transport = make()
    categories = ["error", "transaction", "span", "session", "log_item", "log_byte", "attachment", "monitor"]
    reasons = [reason for reason in LossReason if reason.reported]
    for reason in reasons:
        for category in categories:
            transport.record_lost_event(reason, category, quantity=10**30)
    transport.flush()
    ((*_, envelope),) = transport.sent
    sizes = [len(item.get_bytes()) for item in envelope.items]
    assert len(sizes) > 1
    assert max(sizes) < 4096
    assert len(transport.reports()[0]) == len(reasons) * len(categories)
    assert {quantity for *_, quantity in transport.reports()[0]} == {MAX_QUANTITY}


# -- what is refused ---------------------------------------------------------------------------------------


class Hostile:
    """An object whose every look hurts."""

    def __repr__(self) -> str:
        raise RuntimeError("boom")

    __str__ = __repr__


@pytest.mark.parametrize("depth", ["cycle", "hostile"])
def test_awkward_events_are_repaired_and_sent(depth: str, make: Callable[..., Scripted]) -> None:
    """No value that an app puts into an event may lose the event."""
    event: dict[str, Any] = {"message": "x", "extra": {"nan": float("nan"), "bytes": b"\xff", "o": Hostile()}}
    if depth == "cycle":
        event["extra"]["self"] = event
    transport = make()
    assert transport.capture_event(event)
    assert transport.flush().ok
    assert transport.health().delivered == {"error": 1}


def test_an_event_that_cant_be_sealed_costs_one_line_and_is_counted(
    make: Callable[..., Scripted], caplog: pytest.LogCaptureFixture
) -> None:
    """False, the path of the value at fault, and the next one goes through."""
    transport = make()
    bad_header = Envelope({"event_id": "no id"}).add_event({"message": "x"})
    for envelope in (bad_header, Envelope(items=[Item([1], type="event")])):
        caplog.clear()
        assert transport.capture_envelope(envelope) is False
        (record,) = caplog.records
        assert "can't seal e" in record.getMessage()  # the path begins with envelope or event
    assert transport.capture_event({"message": "next"})
    assert transport.flush().ok
    assert transport.health().delivered == {"error": 1}
    assert transport.health().discarded_by_category == {"internal_sdk_error": {"error": 2}}
    assert transport.health().status == "warn"


def test_an_envelope_that_cant_be_sealed_costs_what_a_server_would_count(
    make: Callable[..., Scripted],
) -> None:
    """One for each item of a category; a client report and an item of an unknown type have none."""
    transport = make()
    kinds = ("event", "client_report", "something_new", "attachment", "attachment")
    envelope = Envelope({"event_id": "no id"}, [Item({}, type=kind) for kind in kinds])
    assert transport.capture_envelope(envelope) is False
    discarded = transport.health().discarded_by_category
    assert discarded == {"internal_sdk_error": {"error": 1, "attachment": 2}}


def test_an_attachment_that_cant_be_read_is_left_out_and_said(
    make: Callable[..., Scripted], caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    """The event matters more than the file that was deleted meanwhile."""
    transport = make()
    gone = tmp_path / "gone.log"
    assert transport.capture_envelope(Envelope.event({"message": "x"}).add_attachment(gone, filename="gone"))
    assert transport.flush().ok
    (record,) = caplog.records
    assert record.getMessage().startswith("an item was left out")
    health = transport.health()
    assert health.delivered == {"error": 1}
    assert health.discarded_by_category == {"internal_sdk_error": {"attachment": 1}}


@pytest.mark.parametrize(
    ("what", "said"),
    [(Envelope(), "no items"), (None, "NoneType is not an Envelope"), ({"message": "x"}, "dict is not")],
)
def test_what_is_no_envelope_is_refused_and_costs_nothing(
    what: Any, said: str, make: Callable[..., Scripted], caplog: pytest.LogCaptureFixture
) -> None:
    """There is nothing that could be lost: a programming error gets a line, health stays as it is."""
    transport = make()
    assert transport.capture_envelope(what) is False
    (record,) = caplog.records
    assert said in record.getMessage()
    assert record.name == "transport_kit"
    assert transport.health().captured == {}
    assert transport.health().status == "pass"


def test_a_capture_survives_a_handler_that_raises(make: Callable[..., Scripted]) -> None:
    """A broken logging setup is the app's; a capture in its request is not the place to learn of it."""
    transport = make()

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("disk full")

    handler = Broken()
    logger = logging.getLogger("transport_kit")
    logger.addHandler(handler)
    try:
        assert transport.capture_envelope(Envelope()) is False
        transport.answers.append(answered(400))
        transport.capture_event({"message": "x"})
        assert transport.flush().ok
        assert transport.health().discarded_by_category == {"send_error": {"error": 1}}
    finally:
        logger.removeHandler(handler)
    transport.capture_event({"message": "y"})
    assert transport.flush().ok
    assert transport.health().delivered == {"error": 1}


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (400, " (it could not read the envelope)"),
        (401, " (check the DSN's key)"),
        (402, ""),
        (403, " (check the DSN's key and project)"),
        (404, " (check the DSN's host and project)"),
        (405, " (check the DSN's host and project)"),
        (412, ""),
        (413, " (it is too large for this server)"),
        (414, ""),
        (510, ""),
    ],
)
def test_a_refusal_is_logged_with_what_to_check(
    status: int, advice: str, make: Callable[..., Scripted], caplog: pytest.LogCaptureFixture
) -> None:
    """The line is all that an operator has; a guess that is wrong costs them an hour."""
    transport = make(answered(status, b"no\x1b[2J" + b"x" * 300))
    transport.capture_event({"message": "x"})
    transport.flush()
    (record,) = caplog.records
    assert record.getMessage() == (
        f"the server answered {status}{advice} and the envelope was discarded: no [2J" + "x" * 194
    )


@pytest.mark.parametrize("status", [300, 304, 399])
def test_every_3xx_is_a_redirect_that_is_not_followed(
    status: int, make: Callable[..., Scripted], caplog: pytest.LogCaptureFixture
) -> None:
    """The target in the log is how a wrong host or a login page in between is found."""
    transport = make(answered(status, location="https://login.example/"))
    transport.capture_event({"message": "x"})
    transport.flush()
    (record,) = caplog.records
    assert record.getMessage() == (
        f"the server answered {status} and the envelope was discarded; "
        "a redirect is not followed: https://login.example/"
    )
    assert transport.health().discarded_by_category == {"send_error": {"error": 1}}


@pytest.mark.parametrize(("status", "kept"), [(499, False), (500, True), (599, True)])
def test_a_report_that_met_a_fault_of_the_server_is_told_again(
    status: int, kept: bool, make: Callable[..., Scripted]
) -> None:
    """The envelope is given up with a 5xx; its losses were not counted there."""
    transport = make(answered(status))
    transport.record_lost_event("before_send", "error")
    transport.flush()
    transport.flush()
    assert transport.reports() == [[("before_send", "error", 1)]] * (2 if kept else 1)


def test_a_queue_that_only_the_factory_can_make_is_refused(tmp_path: Any) -> None:
    """A transport made by hand would keep in memory what the options promise to keep on disk."""
    options = TransportOptions(queue=f"file://{tmp_path}/spool")
    with pytest.raises(OptionsError, match="queue"):
        HttpTransport(Dsn.parse(DSN), options)
    given = MemoryQueue(10, 1000)
    transport = HttpTransport(Dsn.parse(DSN), options, make_queue=lambda: given)
    assert transport.health().queue_capacity == 10
    transport.kill()


def test_a_small_body_goes_as_it_is(make: Callable[..., Scripted]) -> None:
    """Below 256 bytes compression costs more than it saves."""
    transport = make()
    for size in (10, 10_000):
        transport.capture_event({"message": "x" * size})
        transport.flush()
    assert ["Content-Encoding" in headers for _, _, headers, _ in transport.sent] == [False, True]


class CapturingPath(os.PathLike[str]):
    """A path whose conversion to text captures, as happens during sealing."""

    def __init__(self, capture: Callable[[], object], path: str) -> None:
        self.capture = capture
        self.path = path

    def __fspath__(self) -> str:
        self.capture()
        return self.path


def test_a_capture_made_by_our_own_sealing_is_refused_and_counted(
    make: Callable[..., Scripted], tmp_path: Any
) -> None:
    """Nested, it could go on for ever; counted, it is at least visible."""
    transport = make()
    results: list[bool] = []
    file = tmp_path / "a.txt"
    file.write_bytes(b"12345")
    path = CapturingPath(lambda: results.append(transport.capture_event({"message": "nested"})), str(file))
    assert transport.capture_envelope(Envelope.event({"message": "x"}).add_attachment(path, filename="a"))
    assert results
    assert not any(results)
    assert transport.capture_event({"message": "after"})
    transport.flush()
    health = transport.health()
    assert health.delivered == {"error": 2, "attachment": 5}
    assert health.discarded_by_category == {"reentrant": {"error": len(results)}}


def test_a_signal_that_raises_while_an_envelope_is_sealed_costs_that_one_alone(
    make: Callable[..., Scripted],
) -> None:
    """A time limit's handler may raise after any call; the thread must not seem to be sealing ever after."""
    transport = make()
    calls = raised = 0

    def interrupt(frame: FrameType, what: str, _: object) -> None:
        nonlocal calls
        if what == "c_return" and frame.f_code.co_name == "_seal":
            calls += 1
            if calls > raised:
                raise TimeoutError

    while True:
        calls = 0
        sys.setprofile(interrupt)
        try:
            # It reaches the app, as what a signal handler raises does.
            with contextlib.suppress(TimeoutError):
                transport.capture_event({"message": "interrupted"})
        finally:
            sys.setprofile(None)
        assert transport.capture_event({"message": "after"})
        if calls <= raised:
            break
        raised += 1
    assert raised >= 2
    assert "reentrant" not in transport.health().discarded_by_category


def test_a_capture_made_by_our_own_sending_is_refused_and_counted(make: Callable[..., Scripted]) -> None:
    """Instrumentation of sockets must not report the reports."""
    transport = make()
    results: list[object] = []
    transport.answers.append(lambda: results.append(transport.capture_event({"message": "nested"})))
    transport.answers.append(lambda: results.append(transport.flush(30.0).ok))
    transport.capture_event({"message": "x"})
    transport.flush()
    transport.capture_event({"message": "y"})
    transport.flush()
    assert results == [False, False]  # and the flush on the sender returned at once
    assert transport.health().discarded_by_category == {"reentrant": {"error": 1}}


def test_one_poisoned_envelope_does_not_stop_the_next(
    make: Callable[..., Scripted], caplog: pytest.LogCaptureFixture
) -> None:
    """If a subclass raises while sending, the envelope is discarded and the error's text is not logged."""
    transport = make(ValueError(f"the key is {KEY}"))
    transport.record_lost_event("before_send", "error")
    transport.capture_event({"message": "poison"})
    transport.flush()
    transport.capture_event({"message": "next"})
    transport.flush()
    health = transport.health()
    assert health.delivered == {"error": 1}
    assert health.discarded_by_category["internal_sdk_error"] == {"error": 1}
    # The report was given back, and sent with a later request.
    assert ("before_send", "error", 1) in [loss for report in transport.reports() for loss in report]
    assert KEY not in caplog.text


def test_health_is_that_of_this_moment(make: Callable[..., Scripted]) -> None:
    """A failure after a success counts, its age is its own, and a probe that is out is not late."""
    during: list[Health] = []
    transport: Scripted = make(
        answered(), LOST, lambda: during.append(transport.health()), answered(400), answered(400)
    )
    transport.capture_event({"message": "accepted"})
    assert transport.flush().ok
    assert transport.health().delivered == {"error": 1}
    assert not transport.health().failing
    transport.capture_event({"message": "repeated"})
    assert transport.flush().ok
    assert transport.health().delivered == {"error": 2}
    assert (during[0].breaker, during[0].next_probe_in, during[0].failing) == ("probing", 0.0, True)
    began = time.monotonic()
    transport.capture_event({"message": "refused"})
    assert transport.flush().ok
    health = transport.health()
    assert health.discarded_by_category == {"send_error": {"error": 1}}
    assert health.failing
    assert health.last_error is not None
    assert 0 <= health.last_error.age <= time.monotonic() - began


def test_a_codec_that_is_not_there_fails_at_construction() -> None:
    """Not at the first delivery, hours later, and never by another codec in its place."""
    with pytest.raises(OptionsError, match="compression_level"):
        Scripted(compression="br", compression_level=12)


# -- life --------------------------------------------------------------------------------------------------


def test_a_closed_transport_refuses_and_counts(make: Callable[..., Scripted]) -> None:
    """A late capture returns False, as an exception could disturb a shutdown."""
    transport = make()
    transport.capture_event({"message": "x"})
    before = transport.closed
    assert transport.close().ok
    assert (before, transport.closed) == (False, True)
    assert transport.capture_event({"message": "late"}) is False
    assert transport.capture_envelope(Envelope().add_log([{"body": "x"}, {"body": "y"}])) is False
    health = transport.health()
    assert health.state == "closed"
    assert health.status == "fail"
    assert health.discarded_by_category["closed"]["error"] == 1
    assert health.discarded_by_category["closed"]["log_item"] == 2
    assert transport.close() == transport.flush()
    transport.start()
    assert transport.closed


def test_kill_ends_at_once_and_counts_what_is_left(make: Callable[..., Scripted]) -> None:
    """A server that hangs keeps nobody."""
    entered, released = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        released.wait(30)

    transport = make(hang)
    transport.capture_event({"message": "in flight"})
    assert entered.wait(30)
    transport.capture_event({"message": "waiting"})
    assert transport.pending == 2
    transport.kill()
    released.set()
    assert transport.pending == 0
    assert transport.health().discarded_by_category == {"killed": {"error": 2}}


def test_a_transport_dropped_without_close_still_delivers() -> None:
    """Code that forgets `close` loses nothing: the sender holds the transport while it lives."""
    with FaultServer() as server:
        HttpTransport(Dsn.parse(server.dsn)).capture_event({"message": "x"})
        gc.collect()
        assert server.wait_for(1, SOON)
        assert len(server.event_ids()) == 1


@pytest.mark.parametrize("used", [False, True])
def test_a_transport_that_is_over_leaves_nothing_behind(used: bool) -> None:
    """A test suite that makes thousands, and an app that reloads, keep neither threads nor memory."""
    transport: Scripted | None = Scripted()
    assert transport is not None
    if used:
        transport.capture_event({"message": "x"})
        transport.close()
    gone = threading.Event()
    weakref.finalize(transport, gone.set)
    del transport
    while not gone.is_set():  # senders end within a moment; the suite's timeout bounds it
        gc.collect()
        gone.wait(0.01)
    assert gone.is_set()


def test_a_fork_that_no_hook_saw_is_noticed_by_the_process_id(
    make: Callable[..., Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers fork in C. The child starts empty, and many of its threads may notice at once."""
    transport = make()
    transport.record_lost_event("before_send", "error")
    transport.capture_event({"message": "the parent's"})
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lambda n: transport.capture_event({"message": str(n)}), range(80)))
    assert transport.flush().ok
    health = transport.health()
    assert health.pid == parent + 1
    assert health.delivered == {"error": 80}
    assert health.discarded_by_category == {}
    transport.close()
    monkeypatch.undo()
    monkeypatch.setattr(os, "getpid", lambda: parent + 2)
    assert not transport.closed  # a grandchild is new again


def test_threads_that_notice_a_fork_at_once_agree_on_one_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lives would be two queues, and the end of the process would see one of them."""
    both = threading.Barrier(2)

    class Slow(Scripted):
        waits = False

        def _make_pool(self) -> None:
            if self.waits:
                both.wait(30)

    transport = Slow()
    transport.waits = True
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(lambda text: transport.capture_event({"message": text}), "ab"))
    assert transport.close().ok
    assert transport.health().delivered == {"error": 2}


def test_a_transport_is_not_pickled_and_its_text_shows_no_secret(make: Callable[..., Scripted]) -> None:
    """It holds the key. A pickle of it, or a repr in a traceback, must not."""
    transport = make(proxy=None)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            attempt(transport)
    text = repr(transport)
    assert text == "<Scripted to https://***@sentry.example:8443/relay/42>"
    transport.close()
    assert repr(transport).endswith(", closed>")
    for shown in (text, repr(transport.health()), str(transport.health().as_dict()), repr(transport.options)):
        assert KEY not in shown
        assert SECRET not in shown


def test_the_base_class_leaves_the_network_to_its_subclasses() -> None:
    """A subclass of one's own must define both hooks."""
    with pytest.raises(NotImplementedError):
        BaseHttpTransport(Dsn.parse(DSN))

    class Half(BaseHttpTransport):
        def _make_pool(self) -> None:
            return None

    half = Half(Dsn.parse(DSN), TransportOptions(shutdown_timeout=SOON))
    half.capture_event({"message": "x"})
    half.close()
    assert half.health().discarded_by_category == {"internal_sdk_error": {"error": 1}}


def test_an_item_lost_before_the_transport_counts_by_its_own_measure(make: Callable[..., Scripted]) -> None:
    """Logs are counted in items and bytes, whoever drops them."""
    transport = make()
    transport.record_lost_event(
        "buffer_overflow", item=Item({"items": [{"body": "x"}]}, type="log", item_count=1)
    )
    counts = transport.health().discarded_by_category["buffer_overflow"]
    assert counts["log_item"] == 1
    assert counts["log_byte"] > 10


class OldHook(HttpTransport):
    """A subclass whose hook has the signature of earlier versions."""

    statuses: list[int]

    def _request(  # type: ignore[override]
        self, method: str, url: str, body: bytes, headers: dict[str, str], *, timeout: float
    ) -> Response:
        assert (method, url) == ("POST", self.dsn.envelope_url)
        response = super()._request(method, url, body, headers, timeout=timeout)
        self.statuses.append(response.status)
        return response


def test_a_hook_with_the_old_signature_works_and_warns() -> None:
    """Apps subclass the transport to observe answers; an update must not stop their deliveries."""
    with FaultServer() as server:
        with pytest.warns(DeprecationWarning, match="pool, body, headers"):
            transport = OldHook(Dsn.parse(server.dsn), TransportOptions())
        transport.statuses = []
        assert transport.capture_event({"message": "x"})
        assert transport.close(SOON).ok
        assert transport.statuses == [200]
        assert len(server.event_ids()) == 1
