"""The states of a worker, calls inside a critical section, and the memory it uses over time."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable

import pytest

from tests.core.worker_support import (
    ONE_LOST,
    Clock,
    Deliverer,
    balance,
    begin_flush,
    event,
    flushed,
    memory,
    quick,
    running,
    session,
    timed,
    transaction,
    until,
)
from tests.timing import SOON
from transport_kit.config.options import TransportOptions
from transport_kit.envelope.losses import LossReason
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.memory import MemoryQueue
from transport_kit.transport.worker.outcome import FlushReport, Outcome, WorkerState
from transport_kit.transport.worker.worker import BackgroundWorker


def test_a_new_worker_has_no_thread_until_the_first_capture() -> None:
    """Many apps construct a worker at import, or in a parent process that only forks."""
    deliver = Deliverer()
    threads = _thread._count()
    with running(deliver) as worker:
        assert worker.facts().state is WorkerState.NEW
        assert not worker.is_alive()
        assert _thread._count() == threads
        assert worker.submit(event())
        assert flushed(worker) == (1, 0)
        assert worker.facts().state is WorkerState.RUNNING
        assert worker.is_alive()


def test_a_flush_of_nothing_is_true_at_once_and_starts_nothing() -> None:
    """A view may flush after each request, usually without a pending envelope."""
    with running(Deliverer()) as worker:
        assert worker.flush(SOON) == FlushReport(True)
        assert worker.facts().state is WorkerState.NEW


def test_start_brings_a_sender_before_there_is_work() -> None:
    """A durable queue may contain a backlog; a second start has no effect."""
    with running(Deliverer()) as worker:
        worker.start()
        assert worker.is_alive()
        assert worker.facts().state is WorkerState.RUNNING
        worker.start()
        assert worker.facts().senders == 1


@pytest.mark.parametrize("used", [False, True])
def test_a_closed_worker_refuses_counts_and_stays_closed(used: bool) -> None:
    """CLOSED is final: the app has to create another worker."""
    with running(Deliverer()) as worker:
        if used:
            worker.submit(event())
        assert worker.close(SOON).ok
        assert worker.closing
        worker.start()
        assert not worker.submit(event())
        assert worker.close(SOON) == FlushReport(True)
        assert worker.flush(SOON) == FlushReport(True)
        worker.kill()
        totals = worker.facts().totals
        assert totals.discarded == {"closed": {"error": 1}}
        assert totals.delivered == ({"error": 1} if used else {})
        assert worker.facts().state is WorkerState.CLOSED


def test_captures_are_refused_while_draining() -> None:
    """Otherwise the close of a busy app would never finish."""
    deliver = Deliverer()
    deliver.hold()
    with running(deliver) as worker:
        worker.submit(event())
        closer = threading.Thread(target=worker.close, args=(SOON,))
        closer.start()
        assert until(lambda: worker.closing)
        assert worker.facts().state is WorkerState.DRAINING
        assert not worker.submit(event())
        assert worker.facts().totals.discarded == {"closed": {"error": 1}}
        deliver.let_go()
        closer.join(SOON)
        assert worker.facts().totals.delivered == {"error": 1}


def test_kill_counts_what_is_left_and_ends_the_flushes_that_wait_for_it() -> None:
    """A waiting flush returns, and reports the envelopes as discarded."""
    deliver = Deliverer()
    deliver.hold()
    queue = memory(quick())
    with running(deliver, quick(max_senders=1), queue) as worker:
        for _ in range(3):
            worker.submit(event())
        assert deliver.wait_for(1)
        flusher, reports = begin_flush(worker, queue)
        worker.kill()
        flusher.join(SOON)
        assert reports == [FlushReport(True, discarded=3)]
        assert worker.facts().totals.discarded == {"killed": {"error": 3}}
        deliver.let_go()
        assert deliver.wait_done(1)
        assert worker.facts().totals.delivered == {}, "counted as killed, and only once"


def test_flush_and_close_on_a_sender_return_at_once() -> None:
    """A flush by the delivery function, or by a log handler it calls, would wait for itself."""
    took: list[float] = []
    reports: list[FlushReport] = []

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        took.append(timed(lambda: reports.append(worker.flush(SOON))))
        assert worker.on_own_thread
        assert not worker.can_wait
        return Outcome()

    with running(deliver) as worker:
        worker.submit(event())
        assert flushed(worker) == (1, 0)
        assert reports == [FlushReport(False, pending=1)]
        assert max(took) < SOON / 2


def test_a_thread_that_gets_the_number_of_a_sender_that_ended_is_none() -> None:
    """The system reuses thread idents; a new thread's captures must not be refused as a sender's."""
    senders: set[int] = set()
    taken: list[bool] = []

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        senders.add(threading.get_ident())
        return Outcome()

    def look() -> None:
        if threading.get_ident() in senders:
            taken.append(worker.on_own_thread)

    with running(deliver) as worker:
        worker.submit(event())
        assert flushed(worker) == (1, 0)
    until(lambda: not worker.is_alive())
    for _ in range(1000):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        if taken:
            break
    assert taken == [False]


def test_a_close_on_a_sender_ends_the_worker_without_waiting() -> None:
    """The close can't wait for the envelope that its own thread delivers, and counts it as closed."""
    closed = threading.Event()

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        assert worker.close(SOON).pending == 1
        closed.set()
        return Outcome()

    with running(deliver) as worker:
        worker.submit(event())
        assert closed.wait(SOON)
        assert worker.facts().state is WorkerState.CLOSED
        assert worker.facts().totals.discarded == {"closed": {"error": 1}}


def test_calls_from_inside_a_section_return_at_once_and_take_effect_at_its_end() -> None:
    """In a signal handler that flushes, closes or starts, the interrupted thread owns the lock."""
    deliver = Deliverer()
    queue = memory(quick())
    worker = BackgroundWorker(queue, deliver, quick())
    worker.submit(event())
    assert worker.flush(SOON).ok
    deliver.hold()
    worker.submit(event())
    assert deliver.wait_for(2)
    with queue.lock.rlock:
        assert not worker.can_wait
        worker.start()
        assert timed(lambda: worker.flush(SOON)) < SOON / 2
        assert worker.flush(SOON) == FlushReport(False, pending=1)
        assert worker.submit(event())
        assert worker.pending == 2
        assert timed(lambda: worker.close(SOON)) < SOON / 2
        assert not worker.closing
    worker.lose(LossReason.SAMPLE_RATE, (("error", 1),))  # any section's end will do
    assert worker.facts().state is WorkerState.CLOSED
    assert worker.facts().totals.discarded == {"closed": {"error": 2}, "sample_rate": {"error": 1}}
    deliver.let_go()
    balance(worker, queue)


def test_a_new_worker_that_is_started_inside_a_section_starts_with_the_next_capture() -> None:
    """`start` inside a section starts no sender; the first capture does."""
    queue = memory(quick())
    worker = BackgroundWorker(queue, Deliverer(), quick())
    with queue.lock.rlock:
        worker.start()
    assert worker.facts().state is WorkerState.NEW
    worker.submit(event())
    assert worker.flush(SOON).ok
    worker.kill()


def test_what_is_captured_while_a_snapshot_is_taken_finds_a_sender() -> None:
    """A capture that interrupts the section of a snapshot is run after that section."""
    for look in ("facts", "pending", "full", "queue"):
        deliver = Deliverer()
        queue = memory(quick())
        worker = BackgroundWorker(queue, deliver, quick())
        plain = queue.stats
        captured: list[bool] = []

        def stats(
            worker: BackgroundWorker = worker,
            queue: MemoryQueue = queue,
            plain: Callable[[], object] = plain,
            captured: list[bool] = captured,
        ) -> object:
            with queue.lock.rlock:
                if not captured:
                    captured.append(True)
                    assert worker.submit(event("out of a signal handler"))
                return plain()

        queue.stats = stats  # type: ignore[assignment, method-assign]
        if look == "queue":
            worker.flush(0.0)
        else:
            found = getattr(worker, look)
            found = found() if callable(found) else found
        assert deliver.wait_for(1), look
        worker.flush(SOON)
        assert worker.facts().totals.delivered == {"error": 1}
        worker.kill()


# -- memory and load -----------------------------------------------------------------------------------


SMALL = event("small")


def test_nothing_is_left_of_ten_thousand_envelopes() -> None:
    """The processes of a web app run for months."""
    deliver = Deliverer()
    queue = memory(quick())
    before = _thread._count()
    with running(deliver, quick(), queue) as worker:
        for n in range(10_000):
            worker.submit((event, session, transaction)[n % 3]("") if n % 100 == 0 else SMALL)
            if n % 1000 == 0:
                worker.flush(0.0)
            if n % 97 == 0:
                deliver.began.clear()
        assert worker.flush(SOON).ok
        assert worker.facts().queue[:3] == (0, 0, 0)
        assert (worker._books.tickets, worker._dispatcher._claims, queue._claimed, queue._delayed) == (
            [],
            {},
            {},
            [],
        )
        assert not worker._lock.deferred
        assert all(not lane.waiting and not lane.retried and lane.size == 0 for lane in queue._lanes)
        assert worker.facts().senders <= 8
    assert until(lambda: _thread._count() <= before)


def test_the_last_drop_is_remembered_unless_the_app_asked_for_it() -> None:
    """Health warns of losses, but not of events left out by sampling."""
    clock = Clock()
    worker = BackgroundWorker(memory(quick(), clock), Deliverer(), quick(), clock=clock)
    worker.lose(LossReason.SAMPLE_RATE, ONE_LOST)
    assert worker.facts().last_drop is None
    worker.lose(LossReason.QUEUE_OVERFLOW, ONE_LOST)
    assert worker.facts().last_drop == clock.now


def test_full_says_whether_the_next_put_costs_another() -> None:
    """Sampling by load uses `full`."""
    deliver = Deliverer()
    deliver.hold()
    with running(deliver, quick(max_queue_items=2, max_senders=1)) as worker:
        assert not worker.full()
        worker.submit(event())
        worker.submit(event())
        assert worker.full()
    assert TransportOptions().max_queue_items == 10_000
