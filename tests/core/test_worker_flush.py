"""Flush and close of a worker: their waits, timeouts and reports."""

from __future__ import annotations

import threading

import pytest

from tests.core.worker_support import (
    DISCARD,
    Deliverer,
    begin_flush,
    event,
    flushed,
    log_batch,
    memory,
    quick,
    running,
    timed,
    until,
)
from tests.timing import SOON, quickest, scaled
from transport_kit.transport.worker.outcome import FlushReport, Outcome, WorkerState


def test_flush_waits_for_what_was_accepted_before_it_and_no_more() -> None:
    """Otherwise a flush would never return under constant traffic."""
    deliver = Deliverer()
    deliver.hold()
    queue = memory(quick())
    with running(deliver, quick(max_senders=1), queue) as worker:
        worker.submit(log_batch("before"))
        assert deliver.wait_for(1)
        worker.submit(log_batch("before"))
        flusher, reports = begin_flush(worker, queue)
        for _ in range(5):
            worker.submit(event("after, and of a higher class"))
        deliver.script = [Outcome()] * 6
        deliver.let_go()
        flusher.join(SOON)
        (report,) = reports
        assert (report.ok, report.delivered, report.pending) == (True, 2, 0)


def test_flush_says_what_was_delivered_discarded_and_is_pending() -> None:
    """The caller uses the report to decide whether to continue; a discarded envelope counts as settled."""
    deliver = Deliverer(Outcome(), DISCARD)
    deliver.hold()
    queue = memory(quick())
    with running(deliver, quick(max_senders=1), queue) as worker:
        worker.submit(event())
        worker.submit(event())
        flusher, reports = begin_flush(worker, queue)
        deliver.let_go()
        flusher.join(SOON)
        assert reports == [FlushReport(True, delivered=1, discarded=1)]
        deliver.hold()
        worker.submit(event())
        report = worker.flush(0.05)
        assert report == FlushReport(False, pending=1)
        assert not report


def test_an_overflow_settles_what_a_flush_waits_for() -> None:
    """An evicted envelope is discarded, and no longer pending."""
    deliver = Deliverer()
    deliver.hold()
    options = quick(max_senders=1, max_queue_items=2)
    queue = memory(options)
    with running(deliver, options, queue) as worker:
        worker.submit(event("in hand"))
        assert deliver.wait_for(1)
        worker.submit(log_batch())
        flusher, reports = begin_flush(worker, queue)
        assert worker.submit(event("pushes the log out"))
        deliver.let_go()
        flusher.join(SOON)
        assert reports == [FlushReport(True, delivered=1, discarded=1)]
        assert worker.facts().totals.discarded["queue_overflow"]["log_item"] == 1


@pytest.mark.parametrize("call", ["flush", "close", "end"])
def test_a_wait_ends_in_time_although_the_server_hangs_and_the_queue_is_full(call: str) -> None:
    """A shutdown takes no longer than its timeout."""
    timeout = scaled(0.5)

    def measure() -> float:
        deliver = Deliverer()
        deliver.hold()
        with running(deliver, quick(max_queue_items=20)) as worker:
            for _ in range(40):
                worker.submit(event())
            took = timed(lambda: getattr(worker, call)(timeout))
            assert worker.facts().queue.claimed <= 8
            return took

    assert timeout <= quickest(measure, 1.9 * timeout) <= 1.9 * timeout


def test_several_callers_wait_at_once_each_for_its_own_time() -> None:
    """A flush of a health check and one of a shutdown may overlap."""
    deliver = Deliverer()
    deliver.hold()
    with running(deliver) as worker:
        for _ in range(20):
            worker.submit(event())
        timeouts = (0.0, scaled(1.0), scaled(3.0))
        took: dict[float, float] = {}
        threads = [
            threading.Thread(target=lambda t=t: took.__setitem__(t, timed(lambda: worker.flush(t))))
            for t in timeouts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
        assert set(took) == set(timeouts)
        for timeout, seconds in took.items():
            assert timeout <= seconds <= timeout + scaled(0.9)  # and not until another's is over
        assert not worker._books.tickets


def test_a_wait_without_end_is_no_error() -> None:
    """`flush(inf)` is a legitimate call that waits without a limit."""
    with running(Deliverer()) as worker:
        worker.submit(event())
        assert worker.flush(float("inf")).ok
        assert flushed(worker) == (1, 0)
        worker.submit(event())
        assert worker.close(float("inf")).ok
        assert flushed(worker) == (2, 0)


def test_a_second_close_waits_for_the_first_and_does_not_cut_it_short() -> None:
    """An exit hook with a short timeout must not discard envelopes that another call waits for."""
    deliver = Deliverer()
    deliver.hold()
    with running(deliver) as worker:
        worker.submit(event())
        reports: list[FlushReport] = []
        first = threading.Thread(target=lambda: reports.append(worker.close(SOON)))
        first.start()
        assert until(lambda: worker.closing)
        assert worker.close(0.05) == FlushReport(False, pending=1)
        assert worker.facts().state is WorkerState.DRAINING
        second = threading.Thread(target=lambda: reports.append(worker.close(SOON)))
        second.start()
        deliver.let_go()
        first.join(SOON)
        second.join(SOON)
        assert reports == [FlushReport(True, delivered=1)] * 2 or reports == [
            FlushReport(True, delivered=1),
            FlushReport(True),
        ]
        assert worker.facts().state is WorkerState.CLOSED


def test_an_interrupted_close_still_closes() -> None:
    """After Ctrl-C during a shutdown the worker is closed."""
    deliver = Deliverer()
    deliver.hold()
    with running(deliver) as worker:
        worker.submit(event())
        assert deliver.wait_for(1)

        def interrupt() -> bool:
            raise KeyboardInterrupt

        worker._books.settled.wait = lambda timeout=None: interrupt()  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            worker.close(SOON)
        assert worker.facts().state is WorkerState.CLOSED
        assert not worker._books.tickets
