"""Client reports of a worker: their schedule, their requests, and the losses that are not reported."""

from __future__ import annotations

import threading
import time

import pytest

from tests.core.worker_support import (
    ONE_LOST,
    Clock,
    CountingQueue,
    Reporting,
    begin_flush,
    event,
    memory,
    quick,
    running,
    until,
)
from tests.timing import SOON
from transport_kit.envelope.losses import LossReason
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.protocol import Claim
from transport_kit.runtime.lock import StateLock
from transport_kit.transport.worker import dispatch
from transport_kit.transport.worker.books import SOON as SOONEST
from transport_kit.transport.worker.books import Books
from transport_kit.transport.worker.outcome import Outcome, WorkerState


@pytest.fixture(name="reporting")
def _reporting() -> Reporting:
    return Reporting()


def test_a_flush_sends_the_losses_even_alone(reporting: Reporting) -> None:
    """At the end of a process there may be no later envelope to attach the report to."""
    with running(reporting) as worker:
        reporting.worker = worker
        worker.lose(LossReason.BEFORE_SEND, ONE_LOST)
        assert worker.flush(SOON).ok
        assert reporting.reports == [{("before_send", "error"): 1}]
        assert reporting.alone == [True]
        assert worker.flush(SOON).ok
        assert len(reporting.reports) == 1
        totals = worker.facts().totals
        assert totals.captured == {"error": 1}
        assert totals.delivered == {}, "a report is never counted"


def test_a_report_that_is_due_rides_on_an_envelope(reporting: Reporting) -> None:
    """The report is attached to the envelope's request: one request instead of two."""
    queue = memory(quick())
    with running(reporting, quick(max_senders=1), queue) as worker:
        reporting.worker = worker
        with queue.lock.rlock:  # both are taken in together, by the flush
            worker.lose(LossReason.BEFORE_SEND, ONE_LOST)
            worker.submit(event())
        worker.flush(SOON)
        assert reporting.alone == [False]


def test_a_report_goes_out_by_itself_when_its_interval_is_over(reporting: Reporting) -> None:
    """Losses are reported within two intervals even without a flush."""
    with running(reporting, quick(client_report_interval=0.05)) as worker:
        reporting.worker = worker
        worker.submit(event())
        worker.lose(LossReason.BEFORE_SEND, ONE_LOST)
        assert until(lambda: reporting.reports)


def test_reports_keep_their_interval_unless_someone_flushes(reporting: Reporting) -> None:
    """Otherwise, with many losses, each envelope would carry a report."""
    with running(reporting, quick(max_senders=1)) as worker:
        reporting.worker = worker
        for _ in range(3):
            worker.lose(LossReason.BEFORE_SEND, ONE_LOST)
            worker.submit(event())
            assert until(lambda: worker.pending == 0)
        assert reporting.reports == []
        worker.flush(SOON)
        assert reporting.reports == [{("before_send", "error"): 3}]


def test_a_report_nobody_took_comes_again_with_the_next_flush() -> None:
    """The report contains the same losses and later ones."""
    reporting = Reporting(False, True)
    with running(reporting) as worker:
        reporting.worker = worker
        worker.lose(LossReason.BEFORE_SEND, ONE_LOST)
        assert worker.flush(SOON).ok
        worker.lose(LossReason.BEFORE_SEND, ONE_LOST)
        assert until(lambda: (worker.flush(SOON), len(reporting.reports) == 2)[1])
        assert reporting.reports == [{("before_send", "error"): 1}, {("before_send", "error"): 2}]


def test_a_look_for_a_due_report_is_never_at_once_and_without_losses_a_whole_interval_off() -> None:
    """`until_due` is the watcher's timeout: a value near 0 would make it spin."""
    clock = Clock()
    books = Books(StateLock(), False, quick(client_report_interval=60.0), clock)
    clock.now += 600.0
    assert books.until_due(clock.now) == 60.0
    books.lose(LossReason.BEFORE_SEND, ONE_LOST)
    assert books.until_due(clock.now) == SOONEST
    books.take_report(alone=True)
    books.lose(LossReason.BEFORE_SEND, ONE_LOST)
    assert books.until_due(clock.now + 20.0) == 40.0


def test_a_report_that_goes_alone_is_a_probe_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the breaker would wait for the probe's outcome forever."""
    reporting = Reporting(False, True)
    with running(reporting, quick(backoff_base=3000.0, backoff_max=3000.0)) as worker:
        reporting.worker = worker
        worker.lose(LossReason.BEFORE_SEND, ONE_LOST)
        assert worker.flush(SOON).ok
        assert worker.facts().breaker.state == "open"
        monkeypatch.setattr(dispatch, "EARLY_RETRY_INTERVAL", 0.0)
        assert worker.flush(SOON).ok
        assert worker.facts().breaker.state == "closed"
        assert reporting.alone == [True, True]


def test_a_flush_is_noticed_by_a_watcher_on_its_way_to_the_queue(reporting: Reporting) -> None:
    """The watcher checked for a due report just before the flush, and then waits for an envelope."""
    entered, go = threading.Event(), threading.Event()

    class Slow(CountingQueue):
        def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
            entered.set()
            go.wait(SOON)
            return super().claim(limit, timeout)

    queue = Slow(10, 1 << 30)
    with running(reporting, quick(), queue) as worker:
        reporting.worker = worker
        worker.start()
        assert entered.wait(SOON)
        worker.lose(LossReason.BEFORE_SEND, ONE_LOST)
        flusher, _ = begin_flush(worker, queue)
        go.set()
        flusher.join(SOON / 2)
        assert not flusher.is_alive()
        assert reporting.reports == [{("before_send", "error"): 1}]


@pytest.mark.parametrize("reason", [reason for reason in LossReason if not reason.reported])
def test_our_own_reasons_are_not_reported(reason: LossReason, reporting: Reporting) -> None:
    """The server does not know these reasons, or has counted the losses itself."""
    with running(reporting) as worker:
        reporting.worker = worker
        worker.lose(reason, ONE_LOST)
        assert worker.flush(SOON).ok
        assert reporting.reports == []
        assert worker.facts().state is WorkerState.NEW


@pytest.mark.parametrize("limited", [False, True])
def test_losses_that_are_not_to_be_reported_cost_nothing(limited: bool) -> None:
    """If reports are disabled or limited, unreported losses must not make the worker spin."""
    calls: list[SealedEnvelope | None] = []

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        calls.append(sealed)
        return Outcome(answered=None)

    options = quick(send_client_reports=limited, client_report_interval=0.05 if limited else 60.0)
    with running(deliver, options) as worker:
        worker.start()
        worker.lose(LossReason.BEFORE_SEND, ONE_LOST)
        assert worker.flush(SOON).ok
        claims: list[int] = []
        plain = worker._queue.claim

        def claim(limit: int = 1, timeout: float = 0.0) -> list[Claim]:
            claims.append(1)
            return plain(limit, timeout)

        worker._queue.claim = claim  # type: ignore[method-assign]
        began = time.monotonic()
        threading.Event().wait(0.4)
        if limited:
            intervals = 7 + (time.monotonic() - began) / 0.05
            assert len(calls) <= intervals
            assert len(claims) <= 3 * intervals
        else:
            assert calls == []
            assert len(claims) <= 1
