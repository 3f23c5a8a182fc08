"""Sessions: every request is counted once and sent, and nothing without a release."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.core.reporting_support import Kept, reporter_for
from transport_kit.reporting.sessions import Sessions
from transport_kit.reporting.ticker import Ticker


@pytest.fixture(name="kept")
def _kept() -> Iterator[Kept]:
    with Kept() as transport:
        yield transport


def named() -> tuple[str, str]:
    return ("/", "url")


def totals(kept: Kept) -> dict[str, int]:
    """Return the sums of all outcomes that were sent."""
    found: dict[str, int] = {}
    for sessions in kept.payloads("sessions"):
        for bucket in sessions["aggregates"]:
            for outcome in ("exited", "errored", "crashed"):
                found[outcome] = found.get(outcome, 0) + bucket.get(outcome, 0)
    return found


def test_each_request_ends_in_one_outcome(kept: Kept) -> None:
    """Servers compute crash-free rates from these three numbers."""
    reporter = reporter_for(kept, release="shop@1", environment="staging")
    with reporter.request(named=named):
        pass
    with reporter.request(named=named):
        reporter.capture_message("only a message")
    with reporter.request(named=named):
        reporter.capture_exception(ValueError("handled"))
    with pytest.raises(ValueError, match="boom"), reporter.request(named=named):
        raise ValueError("boom")
    with reporter.request(named=named) as served:
        served.capture(ValueError("turned into a response"))
    with pytest.raises(KeyError), reporter.request(named=named, expected=lambda error: True):
        raise KeyError("a 404")
    kept.flush()
    (sessions,) = kept.payloads("sessions")
    assert sessions["attrs"] == {"release": "shop@1", "environment": "staging"}
    assert totals(kept) == {"exited": 3, "errored": 1, "crashed": 2}
    assert sessions["aggregates"][0]["started"].endswith(":00Z")


@pytest.mark.parametrize(
    "options", [{}, {"release": "a@1", "auto_session_tracking": False}, {"release": "a/b"}]
)
def test_without_a_release_or_when_switched_off_nothing_is_counted(
    kept: Kept, options: dict[str, Any]
) -> None:
    """Servers accept no session without a release."""
    with reporter_for(kept, **options).request(named=named):
        pass
    kept.flush()
    assert kept.sealed == []


def test_requests_are_grouped_by_the_minute_in_which_they_began(kept: Kept) -> None:
    """An item holds a hundred minutes; more need another item."""
    sessions = Sessions(kept, {"release": "a@1"})
    for minute in range(101):
        sessions.record(minute * 60.0 + 59.9, 0)
    sessions.record(30.0, 2)
    kept.flush()
    first, second = kept.payloads("sessions")
    assert (len(first["aggregates"]), len(second["aggregates"])) == (100, 1)
    assert first["aggregates"][0] == {"started": "1970-01-01T00:00:00Z", "exited": 1, "crashed": 1}
    assert first["aggregates"][1] == {"started": "1970-01-01T00:01:00Z", "exited": 1}


def test_close_sends_what_is_counted_and_a_flush_of_nothing_sends_nothing(kept: Kept) -> None:
    """The last minute of a process must be sent too."""
    reporter = reporter_for(kept, release="a@1")
    kept.flush()
    assert kept.sealed == []
    with reporter.request(named=named):
        pass
    kept.close()
    assert totals(kept)["exited"] == 1


def test_what_many_threads_record_adds_up(kept: Kept) -> None:
    """No request waits for a lock, is lost or counted twice, also while other threads sum and send."""
    sessions = Sessions(kept, {"release": "a@1"})

    def work() -> None:
        for number in range(3000):
            sessions.record(60.0, 0)
            if number % 500 == 0:
                sessions.send()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    kept.flush()
    assert totals(kept)["exited"] == 12_000
    assert len(sessions._tally) < 1000


def test_a_timer_sends_without_any_flush(kept: Kept) -> None:
    """An app that gets no more requests must not hold its last minute until it ends."""
    sent = threading.Event()
    sessions = Sessions(kept, {"release": "a@1"}, seconds=0.01)

    def send() -> None:
        sessions.send()
        sent.set()

    sessions._ticker._empty = send
    sessions.record(0.0, 1)
    assert sent.wait(timeout=30)
    assert totals(kept) == {"exited": 0, "errored": 1, "crashed": 0}


def test_whoever_counts_is_not_waited_for_long(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush in a signal handler may have interrupted the holder of the lock."""
    monkeypatch.setattr("transport_kit.reporting.sessions._PATIENCE", 0.01)
    sessions = Sessions(kept, {"release": "a@1"})
    for _ in range(1000):
        sessions.record(0.0, 0)
    with sessions._counting:
        sessions.record(0.0, 0)
        sessions.send()
        assert kept.sealed == []
    sessions.send()
    assert totals(kept)["exited"] == 1001


def in_child(work: Callable[[], int]) -> int:
    """Run `work` in a forked child and return its result, passed as the exit status."""
    with warnings.catch_warnings():
        # Python 3.12 warns of forks with threads about: that is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            os._exit(work())
        except BaseException:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_counts_its_own_only(kept: Kept) -> None:
    """The parent sends what it recorded before the fork."""
    sessions = Sessions(kept, {"release": "a@1"})
    sessions.record(0.0, 0)

    def child() -> int:
        kept.clear()
        sessions.send()
        if kept.sealed:
            return 1
        sessions.record(0.0, 2)
        sessions.send()
        return 0 if totals(kept) == {"exited": 0, "errored": 0, "crashed": 1} else 2

    assert in_child(child) == 0
    kept.flush()
    assert totals(kept) == {"exited": 1, "errored": 0, "crashed": 0}


def test_a_ticker_waits_once_and_again_after_it_has_emptied() -> None:
    """One thread at a time, and none while the buffer is empty."""
    calls: list[str] = []
    emptied = threading.Event()

    def empty() -> None:
        calls.append(threading.current_thread().name)
        emptied.set()

    ticker = Ticker(empty, 60.0, "transport-kit-test")
    before = set(threading.enumerate())
    ticker.arm()
    ticker.arm()
    assert len(set(threading.enumerate()) - before) == 1
    ticker.hasten()
    assert emptied.wait(timeout=30)
    emptied.clear()
    ticker.arm()
    ticker.hasten()
    assert emptied.wait(timeout=30)
    assert calls == ["transport-kit-test"] * 2


def test_a_ticker_survives_what_it_calls_and_a_missing_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """During interpreter shutdown no thread can start: the request continues, and the flush empties."""
    done = threading.Event()

    def empty() -> None:
        done.set()
        raise RuntimeError("secret text")

    ticker = Ticker(empty, 60.0, "transport-kit-test")
    monkeypatch.setattr(threading.Thread, "start", lambda self: _refuse())
    ticker.arm()
    monkeypatch.undo()
    ticker.arm()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "transport-kit-test"]
    ticker.hasten()
    assert done.wait(timeout=30)
    thread.join(timeout=30)
    assert "RuntimeError" in caplog.text
    assert "secret text" not in caplog.text


def _refuse() -> None:
    raise RuntimeError("can't start new thread")
