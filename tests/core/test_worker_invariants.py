"""The invariants of a worker, under any load, fault or interruption.

1: no envelope disappears without being counted. 2: a capture never raises, blocks or waits for I/O. 6: a
server that does not answer costs bounded memory. 7: one bad envelope never stops the next. 10: no work is
left without a sender. 11: an idle worker costs nothing. The other `test_worker_*.py` test single calls.
"""

from __future__ import annotations

import _thread
import gc
import logging
import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from tests.core.worker_support import (
    CLASSES,
    Deliverer,
    accounted,
    balance,
    event,
    log_batch,
    memory,
    parked,
    quick,
    replay,
    running,
    until,
    untraced,
)
from tests.timing import SOON, scaled
from transport_kit.envelope.losses import LossReason, Report
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.memory import MemoryQueue
from transport_kit.queues.protocol import Claim, Put, QueueStats
from transport_kit.queues.spool import FileSpool
from transport_kit.runtime.lock import StateLock
from transport_kit.transport.worker import dispatch
from transport_kit.transport.worker.outcome import Outcome, WorkerState
from transport_kit.transport.worker.worker import BackgroundWorker

RETRY = Outcome.retry(LossReason.NETWORK_ERROR)
SMALL = event("small")


# -- 1: nothing disappears -----------------------------------------------------------------------------


def test_1_nothing_disappears_under_load_faults_and_overflow() -> None:
    """Eight threads capture while deliveries fail in every way; the ledger balances at every moment."""
    chance = random.Random(7)
    guard = threading.Lock()

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        with guard:
            n = chance.randrange(8)
        if n == 0:
            raise ValueError("poison")
        if n == 1:
            return Outcome(LossReason.SEND_ERROR, server_fault=True)
        if n == 2:
            return RETRY
        if n == 3 and sealed is not None:
            return Outcome().with_lost(LossReason.RATELIMIT_BACKOFF, sealed.quantities[:1])
        return Outcome()

    queue = memory(quick(max_queue_items=50))
    with running(deliver, quick(max_queue_items=50), queue) as worker:

        def capture(n: int) -> None:
            for i in range(400):
                worker.submit(CLASSES[(n + i) % len(CLASSES)](""))

        threads = [threading.Thread(target=capture, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            balance(worker, queue)
            worker.flush(0.001)
        balance(worker, queue)
        worker.flush(SOON)
        totals = worker.facts().totals
        assert totals.captured["error"] == 8 * 400 // len(CLASSES)
        assert {"queue_overflow", "internal_sdk_error", "send_error"} <= set(totals.discarded)


def test_1_an_envelope_is_settled_once_although_kill_and_delivery_race() -> None:
    """An envelope is counted as killed or as delivered, never as both."""
    for _ in range(50):
        deliver = Deliverer()
        queue = memory(quick())
        worker = BackgroundWorker(queue, deliver, quick())
        for _ in range(5):
            worker.submit(SMALL)
        worker.kill()
        assert until(lambda worker=worker: not worker.is_alive())  # type: ignore[misc]
        totals = worker.facts().totals
        assert totals.settled("error") == 5
        balance(worker, queue)


# -- 2: capture never raises, never blocks, never waits for a lock held during I/O ---------------------


def test_2_a_capture_takes_no_longer_while_deliveries_hang() -> None:
    """A server that does not answer must not slow down requests of the app."""
    deliver = Deliverer()
    deliver.hold()
    with running(deliver, quick(max_queue_items=100)) as worker:
        for _ in range(8):
            worker.submit(SMALL)
        assert deliver.wait_for(8)
        began = time.monotonic()
        for _ in range(2000):
            worker.submit(SMALL)
        assert time.monotonic() - began < SOON / 2
        assert len(deliver.began) == 8
        assert deliver.done == 0


def test_2_a_capture_made_by_the_delivery_is_refused_and_counted() -> None:
    """Otherwise a captured log line of the HTTP code would be delivered and cause the next line."""
    accepted: list[bool] = []

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        accepted.append(worker.submit(event("from inside")))
        return Outcome()

    with running(deliver) as worker:
        worker.submit(event())
        assert worker.flush(SOON).ok
        assert accepted == [False]
        assert worker.facts().totals.discarded == {"reentrant": {"error": 1}}


class _Inside(MemoryQueue):
    """A queue that a capture interrupts once per call, inside a critical section."""

    def __init__(self) -> None:
        super().__init__(1000, 1 << 30)
        self.interrupt: Callable[[str], object] = lambda where: None

    def put(self, sealed: SealedEnvelope) -> Put:
        with self.lock.rlock:
            self.interrupt("put")
            return super().put(sealed)

    def _take(self, limit: int, now: float) -> list[Claim]:
        self.interrupt("take")
        return super()._take(limit, now)

    def ack(self, claims: object) -> None:
        with self.lock.rlock:
            self.interrupt("ack")
            super().ack(claims)  # type: ignore[arg-type]

    def stats(self) -> object:  # type: ignore[override]
        with self.lock.rlock:
            self.interrupt("stats")
            return super().stats()

    def wake(self, *, hasten: bool = False) -> None:
        with self.lock.rlock:
            self.interrupt("wake")
            super().wake(hasten=hasten)

    def close(self) -> list[Claim]:
        with self.lock.rlock:
            self.interrupt("close")
            return super().close()


@pytest.fixture(name="on_signal")
def _on_signal() -> Iterator[list[Callable[[], object]]]:
    calls: list[Callable[[], object]] = []

    def handler(number: int, frame: FrameType | None) -> None:
        for call in calls:
            call()

    before = signal.signal(signal.SIGUSR1, handler)
    yield calls
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("where", ["put", "stats", "wake", "close"])
def test_2_a_signal_inside_any_section_of_ours_may_capture(
    where: str, on_signal: list[Callable[[], object]]
) -> None:
    """The handler's capture is accepted without waiting, and is delivered without another call."""
    main = _thread.get_ident()
    queue = _Inside()
    deliver = Deliverer()
    accepted: list[bool] = []
    fired: list[str] = []

    def interrupt(at: str) -> None:
        if at == where and not fired and _thread.get_ident() == main:
            fired.append(at)
            signal.raise_signal(signal.SIGUSR1)

    with running(deliver, quick(), queue) as worker:
        on_signal.append(lambda: accepted.append(worker.submit(event("from the handler"))))
        worker.submit(event("first"))
        assert worker.flush(SOON).ok
        queue.interrupt = interrupt
        if where == "close":
            worker.close(SOON)
        else:
            worker.submit(event("second"))
            worker.flush(0.0)
            worker.facts()
        assert fired == [where]
        if where == "close":
            assert worker.facts().totals.discarded == {"closed": {"error": 1}}
            return
        assert accepted == [True]
        assert deliver.wait_for(3)
        worker.flush(SOON)
        assert worker.facts().totals.delivered == {"error": 3}


def test_2_a_capture_left_aside_while_a_flush_goes_to_wait_is_taken_in() -> None:
    """The signal arrives while the flush owns the lock, which `Condition.wait` then releases."""
    deliver = Deliverer()
    deliver.hold()
    with running(deliver, quick(max_senders=2)) as worker:
        worker.submit(event("held"))
        assert deliver.wait_for(1)
        plain = worker._books.settled.wait
        left: list[bool] = []

        def wait(timeout: float | None = None) -> bool:
            if not left:
                left.append(worker.submit(event("from a handler")))
            return plain(timeout)

        worker._books.settled.wait = wait  # type: ignore[method-assign]
        flusher = threading.Thread(target=worker.flush, args=(SOON,))
        flusher.start()
        assert deliver.wait_for(2), "it waits as long as the flush does"
        assert left == [True]
        deliver.let_go()
        flusher.join(SOON)


def test_2_a_capture_that_interrupts_the_last_look_for_work_finds_a_sender() -> None:
    """The section found no work; the capture that interrupted it relies on the check after the section."""
    deliver = Deliverer()
    with running(deliver) as worker:
        plain = worker._dispatcher.needed_locked
        left: list[bool] = []

        def needed_locked() -> bool:
            needed = plain()
            if not left:
                left.append(worker.submit(SMALL))
            return needed

        worker._dispatcher.needed_locked = needed_locked  # type: ignore[method-assign]
        worker.lose(LossReason.CLOSED, (("error", 1),))
        assert left == [True]
        assert deliver.wait_for(1)
        assert worker.flush(SOON).ok


def test_2_the_side_deque_is_bounded_like_the_queue() -> None:
    """A handler that captures in a loop inside a section must not exceed the queue's bounds."""
    queue = memory(quick(max_queue_items=3))
    worker = BackgroundWorker(queue, Deliverer(), quick(max_queue_items=3))
    with queue.lock.rlock:
        assert [worker.submit(SMALL) for _ in range(5)] == [True, True, True, False, False]
        assert worker.pending >= 3
    worker.flush(SOON)
    totals = worker.facts().totals
    assert totals.delivered == {"error": 3}
    assert totals.discarded == {"queue_overflow": {"error": 2}}
    worker.close(0.0)
    with queue.lock.rlock:
        assert not worker.submit(SMALL)
    worker.facts()
    assert worker.facts().totals.discarded["closed"] == {"error": 1}
    balance(worker, queue)


def test_2_a_capture_left_aside_before_the_end_counts_to_it() -> None:
    """`kill` inside the same section discards the deferred envelope, and counts it as killed."""
    queue = memory(quick())
    worker = BackgroundWorker(queue, Deliverer(), quick())
    with queue.lock.rlock:
        assert worker.submit(SMALL)
        worker.kill()
        assert worker.submit(SMALL)
    worker.facts()
    totals = worker.facts().totals
    assert totals.captured == {"error": 2}
    assert sum(counts["error"] for counts in totals.discarded.values()) == 2
    assert totals.discarded["killed"]["error"] >= 1
    balance(worker, queue)


def test_2_a_logging_handler_on_root_may_capture_at_debug() -> None:
    """Lines that the worker logs on its own threads are refused, so that captures do not nest."""
    records: list[str] = []

    class Capturing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.name)
            worker.submit(event(record.getMessage()))

    handler = Capturing(logging.DEBUG)
    root = logging.getLogger()
    level = root.level

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        logging.getLogger("urllib3.connectionpool").debug("a connection")
        if sealed is not None and b"poison" in sealed.serialize():
            raise ValueError("poison")
        return Outcome()

    with running(deliver) as worker:
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
        try:
            worker.submit(event("poison"))
            logging.getLogger("app").debug("captured")
            assert worker.flush(SOON).ok
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
        totals = worker.facts().totals
        assert totals.delivered == {"error": 1}
        assert totals.discarded["internal_sdk_error"] == {"error": 1}
        assert totals.discarded["reentrant"]["error"] >= 2
        assert {"app", "urllib3.connectionpool", "transport_kit"} <= set(records)


@untraced
def test_2_a_capture_in_del_during_a_collection_is_counted() -> None:
    """A collection may run at any point, also inside a critical section."""

    class Dying:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            made.append(worker.submit(SMALL))

    made: list[bool] = []
    queue = memory(quick())
    thresholds = gc.get_threshold()
    with running(Deliverer(), quick(), queue) as worker:
        gc.freeze()  # what the test runner holds is not to be looked through each time
        gc.set_threshold(5, 2, 2)
        try:
            for _ in range(500):
                Dying()
                worker.submit(SMALL)
        finally:
            gc.set_threshold(*thresholds)
            gc.unfreeze()
        # While a sender collects, a collection on this thread does nothing.
        assert until(lambda: gc.collect() >= 0 and len(made) == 500)
        assert worker.flush(SOON).ok
        assert worker.facts().totals.captured == {"error": 1000}
        balance(worker, queue)


# -- 6: a dead server costs bounded memory --------------------------------------------------------------


def test_6_the_queue_holds_no_more_than_its_bounds_those_in_hand_included() -> None:
    """Envelopes being delivered count towards the bounds of the queue."""
    deliver = Deliverer()
    deliver.hold()
    size = SMALL.stored
    with running(deliver, quick(max_queue_items=40, max_queue_bytes=size * 30)) as worker:
        for _ in range(200):
            worker.submit(SMALL)
            stats = worker.facts().queue
            assert stats.waiting + stats.claimed <= 40
            assert stats.size <= size * 30
        assert worker.facts().totals.discarded["queue_overflow"]["error"] >= 160


def test_6_an_error_pushes_out_a_replay_and_never_the_other_way() -> None:
    """A full queue evicts envelopes of the lowest class first."""
    deliver = Deliverer()
    deliver.hold()
    with running(deliver, quick(max_queue_items=3, max_senders=1)) as worker:
        worker.submit(event("in hand"))
        assert deliver.wait_for(1)
        worker.submit(replay())
        worker.submit(log_batch())
        assert worker.submit(event())
        assert worker.submit(event())
        assert not worker.submit(replay())
        deliver.let_go()
        worker.flush(SOON)
        totals = worker.facts().totals
        assert totals.delivered == {"error": 3}
        assert set(totals.discarded["queue_overflow"]) == {"replay", "log_item", "log_byte"}


# -- 7: one bad envelope never stops the next -----------------------------------------------------------


def test_7_a_handler_that_fails_on_our_own_line_loses_nothing() -> None:
    """The error about a failed delivery goes to the app's logging handlers, which may raise too."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("a handler")

    handler = Broken()
    logging.getLogger("transport_kit").addHandler(handler)
    try:
        with running(Deliverer(ValueError("poison")), quick(max_senders=1)) as worker:
            worker.submit(event())
            worker.submit(event())
            assert worker.flush(SOON).ok
            totals = worker.facts().totals
            assert totals.delivered == {"error": 1}
            assert totals.discarded == {"internal_sdk_error": {"error": 1}}
    finally:
        logging.getLogger("transport_kit").removeHandler(handler)


def test_7_a_queue_that_fails_to_be_claimed_from_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk may be full for a moment."""
    monkeypatch.setattr(dispatch, "CLAIM_AGAIN", 0.0)
    deliver = Deliverer()
    failures = [OSError("disk"), OSError("disk")]

    class Failing(MemoryQueue):
        def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
            if failures:
                raise failures.pop()
            return super().claim(limit, timeout)

    with running(deliver, quick(), Failing(10, 1 << 30)) as worker:
        worker.submit(event())
        assert worker.flush(SOON).ok
        assert worker.facts().totals.delivered == {"error": 1}


def test_7_the_end_does_not_wait_for_a_queue_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is killed while a sender pauses after a claim that failed."""
    monkeypatch.setattr(dispatch, "CLAIM_AGAIN", 10 * SOON)
    failed = threading.Event()

    class Failing(MemoryQueue):
        def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
            worker.kill()
            failed.set()
            raise OSError("disk")

    queue = Failing(10, 1 << 30)
    worker = BackgroundWorker(queue, Deliverer(), quick())
    worker.submit(event())
    assert failed.wait(SOON)
    assert until(lambda: not worker.is_alive())


# -- 10: senders -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("senders", [1, 2, 8])
def test_10_no_wake_up_is_lost(senders: int) -> None:
    """Bursts of every size, each begun at any moment of the previous one, are delivered completely."""
    chance = random.Random(senders)
    deliver = Deliverer()
    with running(deliver, quick(max_senders=senders)) as worker:
        sent = 0
        for _ in range(300):
            for _ in range(chance.choice((1, 1, 1, 2, 3, 9))):
                worker.submit(SMALL)
                sent += 1
            if chance.random() < 0.7:
                assert deliver.wait_for(sent)
        assert worker.flush(SOON).ok
        assert worker.facts().totals.delivered == {"error": sent}


def test_10_captures_from_many_threads_at_the_same_moment_all_find_a_sender() -> None:
    """Captures coincide with the moment at which a sender ends its watch."""
    deliver = Deliverer()
    with running(deliver) as worker:
        rounds, callers = 60, 6
        barrier = threading.Barrier(callers)

        def capture() -> None:
            for n in range(1, rounds + 1):
                barrier.wait(SOON)
                worker.submit(SMALL)
                assert deliver.wait_for(n * callers)

        threads = [threading.Thread(target=capture) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON * 3)
        assert len(deliver.began) == rounds * callers


# -- 11: idle costs nothing -------------------------------------------------------------------------------


def _switches(thread: int) -> int:
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's account of wake-ups")
def test_11_an_idle_worker_wakes_at_most_once_a_second() -> None:
    """A hundred idle processes on a host must not use its processors."""
    thread: list[int] = []

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        thread.append(threading.get_native_id())
        return Outcome()

    queue = memory(quick())
    with running(deliver, quick(), queue) as worker:
        worker.submit(SMALL)
        assert worker.flush(SOON).ok
        assert until(lambda: parked(queue))
        before, began = _switches(thread[0]), time.monotonic()
        threading.Event().wait(2.0)
        woken = _switches(thread[0]) - before
        assert woken <= time.monotonic() - began
        assert worker.facts().senders == 1


def test_11_a_capture_at_rest_is_on_its_way_within_a_tenth_of_a_second() -> None:
    """The median of fifty captures, each to a worker whose watcher waits for up to a minute."""

    def once() -> float:
        arrived = threading.Event()
        at: list[float] = []

        def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
            at.append(time.monotonic())
            arrived.set()
            return Outcome()

        queue = memory(quick())
        worker = BackgroundWorker(queue, deliver, quick())
        worker.start()
        assert until(lambda: parked(queue))
        began = time.monotonic()
        worker.submit(SMALL)
        assert arrived.wait(SOON)
        worker.kill()
        return at[0] - began

    assert statistics.median(once() for _ in range(50)) <= scaled(0.1)


def test_11_a_put_wakes_nobody_while_the_worker_is_awake() -> None:
    """Waking a thread on every put costs the capturing thread more than the capture itself."""
    queue = memory(quick())
    woken: list[int] = []
    deliver = Deliverer()
    with running(deliver, quick(), queue) as worker:
        worker.submit(SMALL)
        assert deliver.wait_done(1)
        assert until(lambda: worker._senders._watching)
        plain = queue._available.notify_all

        def notify_all() -> None:
            woken.append(1)
            plain()

        queue._available.notify_all = notify_all  # type: ignore[method-assign]
        assert not parked(queue)
        for n in range(2, 102):
            worker.submit(SMALL)
            assert deliver.wait_done(n)
        assert woken == []


# -- a queue that other processes share ---------------------------------------------------------------------


class SharedQueue(MemoryQueue):
    """A shared queue: it has its own lock, and asserts that the caller does not own the worker's lock."""

    shared = True

    def __init__(self, max_items: int = 1000) -> None:
        super().__init__(max_items, 1 << 30, StateLock())
        self.buried: list[tuple[int, str]] = []
        self.fail: set[str] = set()
        self.worker: BackgroundWorker

    def _outside(self, call: str) -> None:
        assert not self.worker._lock.held(), f"{call} under the worker's lock"
        if call in self.fail:
            raise OSError("disk")

    def put(self, sealed: SealedEnvelope) -> Put:
        self._outside("put")
        return super().put(sealed)

    def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
        self._outside("claim")
        return super().claim(limit, timeout)

    def ack(self, claims: object) -> None:
        self._outside("ack")
        super().ack(claims)  # type: ignore[arg-type]

    def release(self, claims: object, not_before: float = 0.0) -> None:
        self._outside("release")
        super().release(claims, not_before)  # type: ignore[arg-type]

    def bury(self, claim: Claim, reason: str) -> None:
        self.buried.append((claim.id, reason))
        super().ack([claim])

    def close(self) -> list[Claim]:
        self._outside("close")
        with self.lock.rlock:
            self._closed = True
            self.wake()
        return []  # what it holds stays, for whoever drains it

    def reopen(self) -> None:
        with self.lock.rlock:
            self._closed = False


def _shared(
    deliver: Callable[[SealedEnvelope | None, float], Outcome], **fields: object
) -> tuple[SharedQueue, BackgroundWorker]:
    queue = SharedQueue(int(str(fields.pop("items", 1000))))
    queue.worker = BackgroundWorker(queue, deliver, quick(**fields))
    return queue, queue.worker


def _shared_balance(worker: BackgroundWorker) -> None:
    with worker._lock.rlock:
        totals = worker._books.ledger.snapshot()
        hand = Counter[str]()
        for claim in worker._dispatcher._claims.values():
            hand.update(dict(claim.sealed.quantities))
    accounted(totals, hand)


def test_shared_what_is_stored_is_settled_and_delivered_all_the_same() -> None:
    """A flush of a spool returns once envelopes are stored, unless it waits until they are delivered."""
    deliver = Deliverer(ValueError("poison"), RETRY)
    queue, worker = _shared(deliver, max_senders=2)
    for _ in range(20):
        assert worker.submit(SMALL)
    report = worker.flush(0.0)
    assert report.ok
    assert report.pending == 0
    assert worker.flush(SOON, "delivered").ok
    assert until(lambda: queue.stats().claimed == 0)
    totals = worker.facts().totals
    assert totals.stored_in_shared == {"error": 20}
    assert totals.delivered == {"error": 19}
    assert totals.returned_to_shared == {"error": 1}
    assert totals.claimed_from_shared == {"error": 21}
    assert [reason for _, reason in queue.buried] == ["internal_sdk_error"]
    _shared_balance(worker)
    worker.close(SOON)
    assert until(lambda: not worker.is_alive())


def test_shared_a_backlog_from_before_is_found() -> None:
    """The process that stored the envelopes has ended."""
    deliver = Deliverer()
    queue, worker = _shared(deliver)
    queue.put(SMALL)
    worker.start()
    assert deliver.wait_for(1)
    assert worker.flush(SOON, "delivered").ok
    assert until(lambda: worker.facts().totals.delivered == {"error": 1})
    assert worker.facts().totals.captured == {}
    worker.kill()
    _shared_balance(worker)


def test_shared_what_is_on_the_disk_is_not_given_up_when_the_retry_window_is_over(tmp_path: Path) -> None:
    """A spool bridges an outage of a day: only its own bounds apply, `max_age` among them."""
    spool = FileSpool(str(tmp_path / "spool"), "0123456789abcdef")
    worker = BackgroundWorker(spool, Deliverer(RETRY, RETRY), quick(retry_window=0.0))
    worker.submit(SMALL)
    assert worker.flush(SOON, "delivered").ok
    assert until(lambda: worker.facts().totals.delivered == {"error": 1})
    assert worker.facts().totals.discarded == {}
    worker.kill()


def test_shared_the_end_gives_back_what_is_in_hand() -> None:
    """The next drainer delivers the envelope; this process counts it neither as lost nor as delivered."""
    deliver = Deliverer()
    deliver.hold()
    queue, worker = _shared(deliver, max_senders=1)
    worker.submit(SMALL)
    worker.submit(SMALL)
    assert deliver.wait_for(1)
    assert worker.flush(0.05, "delivered").stored == 2
    assert not worker.flush(0.05, "delivered")
    worker.kill()
    totals = worker.facts().totals
    assert totals.returned_to_shared == {"error": 1}
    assert totals.discarded == {}
    assert queue.stats().waiting == 2
    assert not worker.submit(SMALL)
    assert worker.facts().totals.discarded == {"closed": {"error": 1}}
    deliver.let_go()
    assert deliver.wait_done(1)
    assert until(lambda: not worker.is_alive())
    assert queue.stats().waiting == 2
    _shared_balance(worker)


def test_shared_what_is_sacrificed_counts_as_the_cache_s_overflow() -> None:
    """Evicted envelopes, perhaps of another process, and refused ones are counted as lost by this process."""
    deliver = Deliverer()
    deliver.hold()
    _, worker = _shared(deliver, items=2, max_senders=1)
    worker.submit(SMALL)
    assert deliver.wait_for(1)
    for _ in range(3):
        assert worker.submit(SMALL)
    assert not worker.submit(replay())
    totals = worker.facts().totals
    assert totals.discarded == {"cache_overflow": {"error": 2, "replay": 1}}
    _shared_balance(worker)
    deliver.let_go()
    worker.kill()


def test_shared_a_queue_that_fails_costs_no_thread_and_no_count() -> None:
    """Every call of the queue may fail, as on a full disk."""
    deliver = Deliverer()
    queue, worker = _shared(deliver, max_senders=1)
    queue.fail = {"put", "ack", "release", "close"}
    assert not worker.submit(SMALL)
    queue.fail.discard("put")
    assert worker.submit(SMALL)
    assert deliver.wait_done(1)
    assert until(lambda: worker.facts().totals.delivered == {"error": 1})
    assert worker.submit(SMALL)
    assert deliver.wait_done(2)
    assert worker.is_alive()
    assert worker.facts().totals.discarded == {"internal_sdk_error": {"error": 1}}
    assert until(lambda: parked(queue))
    worker.kill()
    _shared_balance(worker)
    assert until(lambda: not worker.is_alive())


def test_shared_a_claim_that_comes_after_the_end_is_given_back() -> None:
    """A sender was inside `claim` when the worker was killed."""
    deliver = Deliverer()
    queue, worker = _shared(deliver)
    claimed, go = threading.Event(), threading.Event()
    plain = queue.claim

    def claim(limit: int = 1, timeout: float = 0.0) -> list[Claim]:
        claims = plain(limit, timeout)
        if claims:
            claimed.set()
            go.wait(SOON)
        return claims

    queue.claim = claim  # type: ignore[method-assign]
    worker.submit(SMALL)
    assert claimed.wait(SOON)
    worker.kill()
    go.set()
    assert until(lambda: queue.stats().waiting == 1)
    assert deliver.began == []
    _shared_balance(worker)


def test_shared_losses_are_left_to_whoever_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drainer reports for all processes of a host; losses it has not taken remain in this process."""
    monkeypatch.setattr(dispatch, "CLAIM_AGAIN", 0.01)
    deliver = Deliverer()
    queue, worker = _shared(deliver, client_report_interval=0.05)
    given: list[int] = []
    answers: list[bool | OSError] = [OSError("disk"), True]

    def put_losses(report: Report, *, ending: bool = False) -> bool:
        answer = answers.pop(0) if answers else True
        if isinstance(answer, OSError):
            raise answer
        given.append(sum(n for _, _, n in report))
        return answer

    queue.put_losses = put_losses  # type: ignore[method-assign]
    worker.lose(LossReason.BEFORE_SEND, (("error", 3),))
    worker.start()
    assert until(lambda: given == [3])
    assert not worker.unreported
    assert deliver.began == []
    worker.kill()


def test_shared_losses_that_the_queue_does_not_take_are_reported_here() -> None:
    """The process that drains reports its own losses, and those put by other processes."""
    queue: SharedQueue
    reported: list[Report] = []
    left: list[Report] = [(("cache_overflow", "error", 2),)]

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        reported.append(worker.take_report(alone=sealed is None))
        return Outcome()

    queue, worker = _shared(deliver, client_report_interval=0.05)
    queue.take_losses = lambda: left.pop() if left else ()  # type: ignore[method-assign]
    worker.lose(LossReason.BEFORE_SEND, (("error", 3),))
    worker.start()
    total = {("before_send", "error", 3), ("cache_overflow", "error", 2)}
    assert until(lambda: {entry for report in reported for entry in report} == total)
    worker.kill()


def test_shared_losses_on_their_way_are_waited_for_whoever_else_moves_some() -> None:
    """A forwarder requests a report while a sender transfers losses: neither ends the other's transfer."""
    queue, worker = _shared(Deliverer())
    taking, go = threading.Event(), threading.Event()
    caller = threading.get_ident()

    def take_losses() -> Report:
        if threading.get_ident() == caller or taking.is_set():
            return ()
        taking.set()
        go.wait(SOON)
        return (("cache_overflow", "error", 2),)

    queue.take_losses = take_losses  # type: ignore[method-assign]
    worker.submit(SMALL)
    assert taking.wait(SOON)
    worker.want_report()
    assert worker.reporting
    go.set()
    assert until(lambda: worker.unreported and not worker.reporting)
    worker.kill()
    assert worker.unreported


def test_shared_what_a_closing_queue_can_not_keep_is_counted() -> None:
    """The queue can't write, and envelopes in memory end with the process."""
    queue, worker = _shared(Deliverer(Outcome.retry(LossReason.NETWORK_ERROR, time.monotonic() + 60)))
    worker.submit(SMALL)
    assert until(lambda: worker.facts().totals.returned_to_shared)
    queue.close = lambda: MemoryQueue.close(queue)  # type: ignore[method-assign]
    worker.kill()
    assert worker.facts().totals.discarded == {"killed": {"error": 1}}
    _shared_balance(worker)


def test_shared_a_queue_is_looked_after_while_the_breaker_is_open() -> None:
    """`claim` enforces the queue's bounds and its election, so it is called during an outage as well."""
    looks: list[int] = []
    deliver = Deliverer(Outcome.retry(LossReason.NETWORK_ERROR, time.monotonic() + 3600))
    queue, worker = _shared(deliver)
    plain = queue.claim

    def claim(limit: int = 1, timeout: float = 0.0) -> list[Claim]:
        looks.append(limit)
        return plain(limit, timeout)

    queue.claim = claim  # type: ignore[method-assign]
    worker.submit(SMALL)
    assert until(lambda: looks.count(0) >= 2)
    assert len(deliver.began) == 1
    worker.kill()


def test_shared_a_flush_ends_with_what_it_waits_for_however_long_it_may_take() -> None:
    """A flush with a timeout of an hour returns as soon as the queue is empty."""
    queue, worker = _shared(Deliverer())
    worker.submit(SMALL)
    assert worker.flush(3600.0, "delivered").ok
    assert worker.flush(3600.0).ok
    in_memory = [3]

    def describe() -> dict[str, int]:
        return {"in_memory": in_memory[0]}

    queue.describe = describe  # type: ignore[method-assign]
    queue.put(SMALL)
    report = worker.flush(0.0)
    assert (report.ok, report.pending) == (False, 3)
    in_memory[0] = 0
    assert worker.flush(3600.0).ok
    worker.kill()


def test_shared_a_flush_has_a_backlog_delivered_and_begins_nothing_without_one() -> None:
    """Without a backlog no thread is started, and a closed worker is not started again."""
    deliver = Deliverer()
    queue, worker = _shared(deliver)
    assert worker.flush(0.0).ok
    assert worker.facts().state is WorkerState.NEW
    assert not worker.is_alive()
    queue.put(SMALL)
    assert worker.flush(3600.0, "delivered").ok
    assert worker.facts().state is WorkerState.RUNNING
    worker.kill()
    queue.reopen()
    queue.put(SMALL)
    assert worker.flush(0.0, "delivered").stored == 1
    assert worker.facts().state is WorkerState.CLOSED


def test_shared_an_end_waits_for_nobody_unless_losses_are_on_their_way() -> None:
    """The end of a process must not be delayed without a reason."""
    _, worker = _shared(Deliverer())
    waits: list[float | None] = []

    def wait(timeout: float | None = None) -> bool:
        waits.append(timeout)
        return True

    worker._books.settled.wait = wait  # type: ignore[method-assign]
    worker.kill()
    assert waits == []


@pytest.mark.parametrize(
    ("waiting", "claimed", "size", "full"),
    [(1, 0, 9, False), (1, 1, 9, True), (2, 1, 9, True), (0, 2, 9, True), (0, 0, 10, True), (0, 0, 11, True)],
)
def test_shared_a_queue_is_full_at_its_bounds_and_beyond_them(
    waiting: int, claimed: int, size: int, full: bool
) -> None:
    """Several processes together may put more than the bound that each of them checked."""
    queue, worker = _shared(Deliverer())
    queue.stats = lambda: QueueStats(waiting, claimed, size, 2, 10, None)  # type: ignore[method-assign]
    assert worker.full() is full
    assert worker.pending == waiting + claimed


def test_a_report_is_under_way_while_it_is_wanted_sent_or_gathered() -> None:
    """A forwarder waits at its end until `reporting` is False."""
    with running(Deliverer()) as worker:
        seen = [worker.reporting]
        for name in ("report_wanted", "reporting", "transfers_in_progress"):
            for value in (True, False):
                setattr(worker._books, name, value)
                seen.append(worker.reporting)
        assert seen == [False, True, False, True, False, True, False]


def test_whoever_waits_looks_around_a_few_times_a_second() -> None:
    """A busy wait would take processor time from the deliveries it waits for."""
    deliver = Deliverer()
    deliver.hold()
    options = quick()
    queue = memory(options)
    looks: list[None] = []
    plain = queue.wake

    def wake(*, hasten: bool = False) -> None:
        looks.append(None)
        plain(hasten=hasten)

    with running(deliver, options, queue) as worker:
        worker.submit(SMALL)
        assert deliver.wait_for(1)
        queue.wake = wake  # type: ignore[method-assign]
        assert not worker.flush(0.35).ok
        assert len(looks) <= 1 + 4  # a flush begins with one
        queue.wake = plain  # type: ignore[method-assign]


def test_shared_losses_that_the_queue_does_not_take_ride_on_the_envelope_at_hand() -> None:
    """The losses are due already, and the process may end before another interval is over."""
    carried: list[Report] = []

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        carried.append(worker.take_report(alone=sealed is None))
        return Outcome()

    queue, worker = _shared(deliver, client_report_interval=3600.0)
    queue.put(SMALL)
    worker.lose(LossReason.BEFORE_SEND, (("error", 3),))
    worker.want_report()
    worker.start()
    assert until(lambda: carried)
    assert carried[0] == (("before_send", "error", 3),)
    worker.kill()
