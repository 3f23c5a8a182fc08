"""The worker's life, call by call: the state table of the design, flush and close, retries, reports."""

from __future__ import annotations

import _thread
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType

import pytest

from tests.core.worker_support import (
    Clock,
    Deliverer,
    balance,
    event,
    log_batch,
    memory,
    quick,
    running,
    session,
    transaction,
    until,
)
from tests.timing import SOON, quickest, scaled
from transport_kit.config.options import TransportOptions
from transport_kit.envelope.losses import LossReason
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.memory import MemoryQueue
from transport_kit.queues.protocol import Claim
from transport_kit.runtime.lock import StateLock
from transport_kit.transport.worker import dispatch
from transport_kit.transport.worker.books import SOON as SOONEST
from transport_kit.transport.worker.books import Books
from transport_kit.transport.worker.outcome import FlushReport, Outcome, WorkerState
from transport_kit.transport.worker.worker import BackgroundWorker

RETRY = Outcome.retry(LossReason.NETWORK_ERROR)
DISCARD = Outcome(LossReason.SEND_ERROR)


def flushed(worker: BackgroundWorker) -> tuple[int, int]:
    """Errors delivered and discarded in all, once nothing is left."""
    assert worker.flush(SOON).ok
    totals = worker.facts().totals
    lost = sum(counts.get("error", 0) for counts in totals.discarded.values())
    return totals.delivered.get("error", 0), lost


# -- the state table -----------------------------------------------------------------------------------


def test_a_new_worker_has_no_thread_until_the_first_capture() -> None:
    """Construction happens at import in many apps, and in a parent that only forks."""
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
    """A view that flushes after each request pays nothing when there is nothing."""
    with running(Deliverer()) as worker:
        assert worker.flush(SOON) == FlushReport(True)
        assert worker.facts().state is WorkerState.NEW


def test_start_brings_a_sender_before_there_is_work() -> None:
    """A durable queue may hold a backlog; a second start changes nothing."""
    with running(Deliverer()) as worker:
        worker.start()
        assert worker.is_alive()
        assert worker.facts().state is WorkerState.RUNNING
        worker.start()
        assert worker.facts().senders == 1


@pytest.mark.parametrize("used", [False, True])
def test_a_closed_worker_refuses_counts_and_stays_closed(used: bool) -> None:
    """Closed is final: whoever wants to go on makes another one."""
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
    """Else a busy app would never come to its end."""
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
    """Whoever waits learns that there is nothing to wait for, and what became of it."""
    deliver = Deliverer()
    deliver.hold()
    with running(deliver, quick(max_senders=1)) as worker:
        for _ in range(3):
            worker.submit(event())
        assert deliver.wait_for(1)
        reports: list[FlushReport] = []
        flusher = threading.Thread(target=lambda: reports.append(worker.flush(SOON)))
        flusher.start()
        assert until(lambda: worker._books.tickets)
        worker.kill()
        flusher.join(SOON)
        assert reports == [FlushReport(True, discarded=3)]
        assert worker.facts().totals.discarded == {"killed": {"error": 3}}
        deliver.let_go()
        assert deliver.wait_done(1)
        assert worker.facts().totals.delivered == {}, "counted as killed, and only once"


# -- flush and close -----------------------------------------------------------------------------------


def test_flush_waits_for_what_was_accepted_before_it_and_no_more() -> None:
    """Under constant traffic a flush would never return otherwise."""
    deliver = Deliverer()
    deliver.hold()
    with running(deliver, quick(max_senders=1)) as worker:
        worker.submit(log_batch("before"))
        assert deliver.wait_for(1)
        worker.submit(log_batch("before"))
        reports: list[FlushReport] = []
        flusher = threading.Thread(target=lambda: reports.append(worker.flush(SOON)))
        flusher.start()
        assert until(lambda: worker._books.tickets)
        for _ in range(5):
            worker.submit(event("after, and of a higher class"))
        deliver.script = [Outcome()] * 6
        deliver.let_go()
        flusher.join(SOON)
        (report,) = reports
        assert (report.ok, report.delivered, report.pending) == (True, 2, 0)


def test_flush_says_what_was_delivered_discarded_and_is_pending() -> None:
    """The caller decides by it whether to go on; a discarded envelope is settled."""
    deliver = Deliverer(Outcome(), DISCARD)
    deliver.hold()
    with running(deliver, quick(max_senders=1)) as worker:
        worker.submit(event())
        worker.submit(event())
        reports: list[FlushReport] = []
        flusher = threading.Thread(target=lambda: reports.append(worker.flush(SOON)))
        flusher.start()
        assert until(lambda: worker._books.tickets)
        deliver.let_go()
        flusher.join(SOON)
        assert reports == [FlushReport(True, delivered=1, discarded=1)]
        deliver.hold()
        worker.submit(event())
        report = worker.flush(0.05)
        assert report == FlushReport(False, pending=1)
        assert not report


def test_an_overflow_settles_what_a_flush_waits_for() -> None:
    """What was sacrificed is discarded, not pending for ever."""
    deliver = Deliverer()
    deliver.hold()
    with running(deliver, quick(max_senders=1, max_queue_items=2)) as worker:
        worker.submit(event("in hand"))
        assert deliver.wait_for(1)
        worker.submit(log_batch())
        reports: list[FlushReport] = []
        flusher = threading.Thread(target=lambda: reports.append(worker.flush(SOON)))
        flusher.start()
        assert until(lambda: worker._books.tickets)
        assert worker.submit(event("pushes the log out"))
        deliver.let_go()
        flusher.join(SOON)
        assert reports == [FlushReport(True, delivered=1, discarded=1)]
        assert worker.facts().totals.discarded["queue_overflow"]["log_item"] == 1


def _timed(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


@pytest.mark.parametrize("call", ["flush", "close", "end"])
def test_a_wait_ends_in_time_although_the_server_hangs_and_the_queue_is_full(call: str) -> None:
    """A shutdown costs what was agreed and no more."""
    timeout = scaled(0.5)

    def measure() -> float:
        deliver = Deliverer()
        deliver.hold()
        with running(deliver, quick(max_queue_items=20)) as worker:
            for _ in range(40):
                worker.submit(event())
            took = _timed(lambda: getattr(worker, call)(timeout))
            assert worker.facts().queue.claimed <= 8
            return took

    assert timeout <= quickest(measure, 1.9 * timeout) <= 1.9 * timeout


def test_several_callers_wait_at_once_each_for_its_own_time() -> None:
    """A health check's flush and a shutdown's may meet."""
    deliver = Deliverer()
    deliver.hold()
    with running(deliver) as worker:
        for _ in range(20):
            worker.submit(event())
        timeouts = (0.0, scaled(1.0), scaled(3.0))
        took: dict[float, float] = {}
        threads = [
            threading.Thread(target=lambda t=t: took.__setitem__(t, _timed(lambda: worker.flush(t))))
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
    """`flush(inf)` is what somebody writes who really wants it delivered."""
    with running(Deliverer()) as worker:
        worker.submit(event())
        assert worker.flush(float("inf")).ok
        assert flushed(worker) == (1, 0)
        worker.submit(event())
        assert worker.close(float("inf")).ok
        assert flushed(worker) == (2, 0)


def test_a_second_close_waits_for_the_first_and_does_not_cut_it_short() -> None:
    """An impatient hook at exit must not discard what a patient one is delivering."""
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
    """Ctrl-C during a shutdown: nothing is left half way."""
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


def test_flush_and_close_on_a_sender_return_at_once() -> None:
    """A deliverer, or a log handler it calls, that flushes would wait for itself."""
    took: list[float] = []
    reports: list[FlushReport] = []

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        took.append(_timed(lambda: reports.append(worker.flush(SOON))))
        assert worker.on_own_thread
        assert not worker.can_wait
        return Outcome()

    with running(deliver) as worker:
        worker.submit(event())
        assert flushed(worker) == (1, 0)
        assert reports == [FlushReport(False, pending=1)]
        assert max(took) < SOON / 2


def test_a_thread_that_gets_the_number_of_a_sender_that_ended_is_none() -> None:
    """The system gives a new thread the number of one that is gone; its captures would be refused."""
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
    """It can't wait for the envelope in its own hands: that one is counted as closed."""
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
    """A signal handler that flushes, closes or starts: the thread below it holds what senders need."""
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
        assert _timed(lambda: worker.flush(SOON)) < SOON / 2
        assert worker.flush(SOON) == FlushReport(False, pending=1)
        assert worker.submit(event())
        assert worker.pending == 2
        assert _timed(lambda: worker.close(SOON)) < SOON / 2
        assert not worker.closing
    worker.lose(LossReason.SAMPLE_RATE, (("error", 1),))  # any section's end will do
    assert worker.facts().state is WorkerState.CLOSED
    assert worker.facts().totals.discarded == {"closed": {"error": 2}, "sample_rate": {"error": 1}}
    deliver.let_go()
    balance(worker, queue)


def test_a_new_worker_that_is_started_inside_a_section_starts_with_the_next_capture() -> None:
    """Nothing is started there; the first capture does it."""
    queue = memory(quick())
    worker = BackgroundWorker(queue, Deliverer(), quick())
    with queue.lock.rlock:
        worker.start()
    assert worker.facts().state is WorkerState.NEW
    worker.submit(event())
    assert worker.flush(SOON).ok
    worker.kill()


def test_what_is_captured_while_a_snapshot_is_taken_finds_a_sender() -> None:
    """A section of a mere look may be interrupted too; its end sees to what was left aside."""
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


# -- outcomes, retries, the breaker --------------------------------------------------------------------


def test_an_envelope_is_tried_again_until_it_is_delivered() -> None:
    """An outage costs time, not envelopes."""
    with running(Deliverer(RETRY, RETRY, RETRY), quick(max_senders=2)) as worker:
        worker.submit(event())
        assert flushed(worker) == (1, 0)
        assert worker.facts().totals.discarded == {}


def test_an_envelope_is_given_up_when_its_window_is_over() -> None:
    """Counted then, once, for what kept it from being delivered."""
    with running(Deliverer(*[RETRY] * 50), quick(retry_window=0.0)) as worker:
        worker.submit(event())
        assert flushed(worker) == (0, 1)
        assert worker.facts().totals.discarded == {"network_error": {"error": 1}}
        assert worker.facts().last_drop is not None


@pytest.mark.parametrize(("age", "kept"), [(9.5, True), (10.0, False)])
def test_the_window_is_over_for_what_is_as_old_as_it(age: float, kept: bool) -> None:
    """Its age when the attempt ends decides, not when it began."""
    clock, deliver = Clock(), Deliverer(RETRY)
    options = quick(retry_window=10.0)
    worker = BackgroundWorker(memory(options, clock), deliver, options, clock=clock, draw=lambda: 0.5)
    try:
        deliver.hold()
        worker.submit(event())
        assert deliver.wait_for(1)
        clock.now += age
        deliver.let_go()
        assert until(lambda: worker.facts().queue.claimed == 0)
        assert worker.pending == kept
        assert worker.facts().totals.discarded == ({} if kept else {"network_error": {"error": 1}})
    finally:
        worker.kill()


def test_the_server_s_pause_is_kept() -> None:
    """`Retry-After` is a demand; neither envelope nor probe goes before."""
    due = time.monotonic() + 0.3
    deliver = Deliverer(Outcome.retry(LossReason.SEND_ERROR, due))
    with running(deliver) as worker:
        worker.submit(event())
        worker.submit(event())
        assert deliver.wait_for(3)
        assert time.monotonic() >= due


def test_the_server_s_pause_holds_for_its_envelope_although_others_are_delivered() -> None:
    """A success of another sender closes the breaker; what the server asked to hold back still waits."""
    clock = Clock()
    opened = {text: threading.Event() for text in ("asked", "other", "next")}
    opened["next"].set()
    outcomes = {"asked": Outcome.retry(LossReason.SEND_ERROR, not_before=clock.now + 30.0)}
    began: list[str] = []

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        assert sealed is not None
        text = next(text for text in opened if text.encode() in sealed.serialize())
        began.append(text)
        opened[text].wait(SOON)
        return outcomes.pop(text, Outcome())

    options = quick(max_senders=2)
    # Without jitter's share the back-off alone would let it go at once, before what was never tried.
    worker = BackgroundWorker(memory(options, clock), deliver, options, clock=clock, draw=lambda: 0.0)
    try:
        for text in ("asked", "other"):
            worker.submit(transaction(text))
        assert until(lambda: sorted(began) == ["asked", "other"])
        opened["asked"].set()
        assert until(lambda: worker.facts().breaker.state == "open")
        opened["other"].set()
        assert until(lambda: worker.facts().breaker.state == "closed")
        worker.submit(transaction("next"))
        assert until(lambda: worker.facts().totals.delivered.get("transaction") == 2)
        assert began[2:] == ["next"]
        assert worker.pending == 1
        clock.now += 30.0
        assert until(lambda: worker.pending == 0)
        assert began[2:] == ["next", "asked"]
    finally:
        worker.kill()


def test_the_pause_of_an_envelope_doubles_with_each_of_its_attempts() -> None:
    """One that always fails must not come back as often as one that failed once."""
    clock = Clock()
    pauses: list[float] = []

    class Noting(MemoryQueue):
        def release(self, claims: Iterable[Claim], not_before: float = 0.0) -> None:
            pauses.append(not_before - clock.now)
            super().release(claims, not_before)

    options = quick(backoff_base=0.01, backoff_max=0.05)
    worker = BackgroundWorker(
        Noting(10, 1 << 20, clock=clock), Deliverer(*[RETRY] * 5), options, clock=clock, draw=lambda: 0.5
    )
    try:
        worker.submit(event())
        for attempts in range(1, 6):
            assert until(lambda attempts=attempts: len(pauses) == attempts)  # type: ignore[misc]
            clock.now += 60.0
        assert until(lambda: worker.pending == 0)
        assert pauses == pytest.approx([0.005, 0.01, 0.02, 0.025, 0.025])
    finally:
        worker.kill()


def test_a_queue_that_can_t_be_claimed_from_is_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk or a lost mount lasts: trying again at once would take a whole processor."""
    monkeypatch.setattr(dispatch, "CLAIM_AGAIN", 0.2)
    claimed_at: list[float] = []

    class Broken(MemoryQueue):
        def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
            claimed_at.append(time.monotonic())
            if len(claimed_at) == 1:
                raise OSError("no such disk")
            return super().claim(limit, timeout)

    with running(Deliverer(), quick(), Broken(10, 1 << 20)) as worker:
        worker.submit(event())
        assert flushed(worker) == (1, 0)
    assert claimed_at[1] - claimed_at[0] >= 0.2


def test_a_worker_ends_at_once_although_a_claim_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause after it is cut short, before it began too: no thread outlives its worker by it."""
    monkeypatch.setattr(dispatch, "CLAIM_AGAIN", 3600.0)
    entered, go = threading.Event(), threading.Event()

    class Broken(MemoryQueue):
        def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
            entered.set()
            go.wait(SOON)
            raise OSError("no such disk")

    for late in (False, True):
        entered.clear()
        (go.clear if late else go.set)()
        with running(Deliverer(), quick(), Broken(10, 1 << 20)) as worker:
            worker.submit(event())
            assert entered.wait(SOON)
            worker.kill()
            go.set()


def test_a_flush_brings_the_next_attempt_forward_once_a_second() -> None:
    """Someone waits, so it is worth a try; in a loop it would be a back door around the back-off."""
    options = quick(backoff_base=3000.0, backoff_max=3000.0, max_senders=2)
    deliver = Deliverer(RETRY, RETRY, RETRY)
    with running(deliver, options) as worker:
        worker.submit(event())
        assert deliver.wait_done(1)
        assert until(lambda: worker.facts().breaker.state == "open")
        for _ in range(5):
            assert worker.flush(0.02).pending == 1
        assert deliver.wait_done(2)
        assert len(deliver.began) == 2
        worker._delivery._last_hastened = float("-inf")
        worker.flush(0.02)
        assert deliver.wait_done(3)
        worker._delivery._last_hastened = float("-inf")
        assert flushed(worker) == (1, 0)


def test_while_the_breaker_is_open_one_probe_goes_out() -> None:
    """A server that comes back is not met by eight senders and ten thousand envelopes."""
    deliver = Deliverer(*[RETRY] * 8)
    deliver.hold()
    with running(deliver, quick(backoff_base=3000.0, backoff_max=3000.0)) as worker:
        for _ in range(30):
            worker.submit(event())
        assert deliver.wait_for(8)
        deliver.let_go()
        assert deliver.wait_done(8)
        assert until(lambda: worker.facts().queue.claimed == 0)
        assert worker.facts().breaker.failures == 1, "eight failures that began before are one"
        deliver.hold()
        deliver.at_once = 0
        worker.flush(0.0)
        assert deliver.wait_for(9)
        for _ in range(30):
            worker.submit(event())
        assert worker.flush(0.1).pending == 60
        assert worker.facts().breaker.state == "probing"
        assert (len(deliver.began), deliver.at_once) == (9, 1)
        deliver.let_go()
        assert worker.flush(SOON).ok
        assert worker.facts().breaker.state == "closed"


def test_whoever_waits_at_the_breaker_sleeps_until_something_changes() -> None:
    """An outage lasts hours: before a probe, and while one is out, no sender may turn in a loop."""
    pauses: list[float | None] = []

    class Noting(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout)
            return super().wait(timeout)

    deliver = Deliverer(RETRY)
    options = quick(backoff_base=3000.0, backoff_max=3000.0)
    worker = BackgroundWorker(memory(options), deliver, options, draw=lambda: 0.5)
    worker._delivery._gate = Noting(worker._lock.rlock)
    try:
        worker.submit(event())
        assert until(lambda: pauses)
        assert pauses == [dispatch.LONGEST_PAUSE], "open"
        deliver.hold()
        worker.submit(event())
        worker.flush(0.0)
        assert deliver.wait_for(2)
        before = len(pauses)
        assert until(lambda: len(pauses) > before or worker.facts().senders == 2)
        assert until(lambda: pauses[1:])
        assert worker.facts().breaker.state == "probing"
        assert set(pauses) == {dispatch.LONGEST_PAUSE}
    finally:
        deliver.let_go()
        worker.kill()


def test_a_delivery_that_raises_is_no_verdict_on_the_server() -> None:
    """Poison is our own fault: it opens no breaker, and as a probe it closes none."""
    options = quick(backoff_base=3000.0, backoff_max=3000.0)
    with running(Deliverer(ValueError()), options) as worker:
        worker.submit(event())
        assert flushed(worker) == (0, 1)
        assert worker.facts().breaker.state == "closed"
    deliver = Deliverer(RETRY, ValueError())
    with running(deliver, options) as worker:
        worker.submit(event())
        assert until(lambda: worker.facts().breaker.state == "open")
        assert flushed(worker) == (0, 1)
        assert worker.facts().breaker.state == "open"
        worker.submit(event())
        assert flushed(worker) == (1, 1), "the probe's end made room for another"
        assert worker.facts().breaker.state == "closed"


def test_deliveries_that_raise_cost_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Ten thousand poisoned envelopes are one line, and a number in health."""
    with running(Deliverer(ValueError(), ValueError()), quick(max_senders=1)) as worker:
        worker.submit(event())
        worker.submit(event())
        assert flushed(worker) == (0, 2)
    assert len([record for record in caplog.records if "ValueError" in record.getMessage()]) == 1


def test_an_envelope_that_was_claimed_as_the_breaker_opened_waits() -> None:
    """The watcher was about to take one when the other sender's failure came in."""
    failing, opened = threading.Event(), threading.Event()
    deliver = Deliverer(RETRY)
    options = quick(backoff_base=3000.0, backoff_max=3000.0)

    class Late(MemoryQueue):
        """Hands out the second envelope just after the first has failed."""

        def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
            claims = super().claim(limit, timeout)
            if claims and claims[0].id == 2:
                failing.set()
                deliver.let_go()
                opened.wait(SOON)
            return claims

    deliver.hold()
    queue = Late(100, 1 << 30)
    with running(deliver, options, queue) as worker:
        worker.submit(event())
        assert deliver.wait_for(1)
        worker.submit(event())
        assert failing.wait(SOON)
        assert until(lambda: worker.facts().breaker.state == "open")
        opened.set()
        assert until(lambda: worker.facts().queue.claimed == 0)
        assert len(deliver.began) == 1, "it went out while the breaker was open"
        assert worker.facts().queue.waiting == 2


def test_an_old_attempt_without_a_verdict_makes_no_room_for_a_second_probe() -> None:
    """Only the probe's own end does."""
    options = quick(backoff_base=3000.0, backoff_max=3000.0, max_senders=3)
    opened = {text: threading.Event() for text in ("old", "failing", "probe", "next")}
    outcomes = {"old": Outcome(LossReason.RATELIMIT_BACKOFF, answered=None), "failing": RETRY}
    began: list[str] = []

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        assert sealed is not None
        text = next(text for text in opened if text.encode() in sealed.serialize())
        began.append(text)
        opened[text].wait(SOON)
        return outcomes.pop(text, Outcome())

    with running(deliver, options) as worker:
        for text in ("old", "failing"):
            worker.submit(transaction(text))
        assert until(lambda: len(began) == 2)
        opened["failing"].set()
        assert until(lambda: worker.facts().breaker.state == "open")
        worker.submit(event("probe"))
        worker.flush(0.0)
        assert until(lambda: "probe" in began)
        opened["old"].set()
        assert until(lambda: worker.facts().totals.discarded)
        worker.submit(event("next"))
        worker.flush(0.1)
        assert worker.facts().breaker.state == "probing"
        assert "next" not in began
        for gate in opened.values():
            gate.set()
        assert worker.flush(SOON).ok


def test_an_envelope_the_server_can_t_stand_does_not_stop_the_others() -> None:
    """It fails each time, and fails as the probe: the others get their turn to show the server lives."""
    delivered: list[bytes] = []

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        assert sealed is not None
        body = sealed.serialize()
        if b"poison" in body:
            return RETRY
        delivered.append(body)
        return Outcome()

    with running(deliver, quick(backoff_base=0.001, backoff_max=0.01, max_senders=1)) as worker:
        worker.submit(event("poison"))
        for _ in range(30):
            worker.submit(event())
        assert until(lambda: len(delivered) == 30)
        assert worker.flush(0.0).pending == 1


def test_what_was_left_out_counts_once_however_often_it_is_tried() -> None:
    """A limit drops an item at each attempt; it was lost once."""
    sealed = transaction()
    lost = (("span", 3),)
    again = RETRY.with_lost(LossReason.RATELIMIT_BACKOFF, lost)
    final = Outcome().with_lost(LossReason.RATELIMIT_BACKOFF, lost)
    with running(Deliverer(again, again, final)) as worker:
        worker.submit(sealed)
        assert worker.flush(SOON).ok
        totals = worker.facts().totals
        assert totals.delivered == {"transaction": 1}
        assert totals.discarded == {"ratelimit_backoff": {"span": 3}}


def test_what_was_left_out_of_a_refused_envelope_has_its_own_reason() -> None:
    """Each part is counted for what happened to it."""
    outcome = DISCARD.with_lost(LossReason.RATELIMIT_BACKOFF, (("span", 3), ("error", 5)))
    with running(Deliverer(outcome)) as worker:
        worker.submit(transaction())
        worker.flush(SOON)
        discarded = worker.facts().totals.discarded
        assert discarded["send_error"] == {"transaction": 1}
        assert {category: n for category, n in discarded["ratelimit_backoff"].items() if n} == {"span": 3}


# -- client reports ------------------------------------------------------------------------------------


class Reporting:
    """A deliverer that takes the due report along, as the HTTP transport does."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.reports: list[dict[tuple[str, str], int]] = []
        self.alone: list[bool] = []
        self.worker: BackgroundWorker

    def __call__(self, sealed: SealedEnvelope | None, within: float) -> Outcome:
        report = self.worker.take_report(alone=sealed is None) if self.worker.unreported else ()
        if report:
            self.reports.append({(reason, category): n for reason, category, n in report})
            self.alone.append(sealed is None)
            if self.answers and not self.answers.pop(0):
                self.worker.give_back(report)
                return RETRY
        return Outcome()


@pytest.fixture(name="reporting")
def _reporting() -> Reporting:
    return Reporting()


ONE_LOST = (("error", 1),)


def test_a_flush_sends_the_losses_even_alone(reporting: Reporting) -> None:
    """At the end of a process nothing else may follow for them to ride on."""
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
    """One request instead of two."""
    with running(reporting, quick(max_senders=1)) as worker:
        reporting.worker = worker
        with worker._lock.rlock:
            worker._books.lose(LossReason.BEFORE_SEND, ONE_LOST)
            worker._admit_locked(event())
        worker.flush(SOON)
        assert reporting.alone == [False]


def test_a_report_goes_out_by_itself_when_its_interval_is_over(reporting: Reporting) -> None:
    """Losses are told within a minute or two even if nobody flushes."""
    with running(reporting, quick(client_report_interval=0.05)) as worker:
        reporting.worker = worker
        worker.submit(event())
        worker.lose(LossReason.BEFORE_SEND, ONE_LOST)
        assert until(lambda: reporting.reports)


def test_reports_keep_their_interval_unless_someone_flushes(reporting: Reporting) -> None:
    """Under a storm of losses each envelope would carry one."""
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
    """The same losses, and what came meanwhile."""
    reporting = Reporting(False, True)
    with running(reporting) as worker:
        reporting.worker = worker
        worker.lose(LossReason.BEFORE_SEND, ONE_LOST)
        assert worker.flush(SOON).ok
        worker.lose(LossReason.BEFORE_SEND, ONE_LOST)
        assert until(lambda: (worker.flush(SOON), len(reporting.reports) == 2)[1])
        assert reporting.reports == [{("before_send", "error"): 1}, {("before_send", "error"): 2}]


def test_a_look_for_a_due_report_is_never_at_once_and_without_losses_a_whole_interval_off() -> None:
    """The watcher waits so long: while a report is under way, and while nothing happens, it must not turn."""
    clock = Clock()
    books = Books(StateLock(), False, quick(client_report_interval=60.0), clock)
    clock.now += 600.0
    assert books.until_due(clock.now) == 60.0
    books.lose(LossReason.BEFORE_SEND, ONE_LOST)
    assert books.until_due(clock.now) == SOONEST
    books.take_report(alone=True)
    books.lose(LossReason.BEFORE_SEND, ONE_LOST)
    assert books.until_due(clock.now + 20.0) == 40.0


def test_a_report_that_goes_alone_is_a_probe_like_any_other() -> None:
    """Else nothing would be delivered any more: the breaker would wait for its verdict for ever."""
    reporting = Reporting(False, True)
    with running(reporting, quick(backoff_base=3000.0, backoff_max=3000.0)) as worker:
        reporting.worker = worker
        worker.lose(LossReason.BEFORE_SEND, ONE_LOST)
        assert worker.flush(SOON).ok
        assert worker.facts().breaker.state == "open"
        worker._delivery._last_hastened = float("-inf")
        assert worker.flush(SOON).ok
        assert worker.facts().breaker.state == "closed"
        assert reporting.alone == [True, True]


def test_a_flush_is_noticed_by_a_watcher_on_its_way_to_the_queue(reporting: Reporting) -> None:
    """It had looked what is due just before the flush, and then waits for an envelope that never comes."""
    entered, go = threading.Event(), threading.Event()

    class Slow(MemoryQueue):
        def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
            entered.set()
            go.wait(SOON)
            return super().claim(limit, timeout)

    with running(reporting, quick(), Slow(10, 1 << 30)) as worker:
        reporting.worker = worker
        worker.start()
        assert entered.wait(SOON)
        worker.lose(LossReason.BEFORE_SEND, ONE_LOST)
        flusher = threading.Thread(target=worker.flush, args=(SOON,))
        flusher.start()
        assert until(lambda: worker._books.tickets)
        go.set()
        flusher.join(SOON / 2)
        assert not flusher.is_alive()
        assert reporting.reports == [{("before_send", "error"): 1}]


@pytest.mark.parametrize("reason", [reason for reason in LossReason if not reason.reported])
def test_our_own_reasons_are_not_reported(reason: LossReason, reporting: Reporting) -> None:
    """The server knows no such reason, or knows already."""
    with running(reporting) as worker:
        reporting.worker = worker
        worker.lose(reason, ONE_LOST)
        assert worker.flush(SOON).ok
        assert reporting.reports == []
        assert worker.facts().state is WorkerState.NEW


@pytest.mark.parametrize("limited", [False, True])
def test_losses_that_are_not_to_be_reported_cost_nothing(limited: bool) -> None:
    """Switched off, or forbidden by a limit: the worker must not spin over them."""
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


# -- senders -------------------------------------------------------------------------------------------


def test_senders_grow_while_all_are_busy_and_leave_when_nobody_needs_them() -> None:
    """Fifty milliseconds to an answer and one sender would be twenty envelopes a second."""
    deliver = Deliverer()
    deliver.hold()
    with running(deliver, quick(max_senders=8)) as worker:
        worker.submit(event())
        assert deliver.wait_for(1)
        assert worker.facts().senders == 1
        for n in range(2, 9):
            worker.submit(event())
            assert deliver.wait_for(n)
            assert worker.facts().senders == n
        for _ in range(20):
            worker.submit(event())
        assert worker.facts().senders == 8
        assert deliver.at_once == 8
        deliver.let_go()
        assert worker.flush(SOON).ok
        assert deliver.at_once == 8
        assert until(lambda: worker.facts().senders == 1)


def test_at_the_end_all_senders_leave_at_once() -> None:
    """Also those that linger in case they are needed."""

    def measure() -> float:
        deliver = Deliverer()
        deliver.hold()
        with running(deliver, quick(max_senders=4)) as worker:
            for n in range(1, 5):
                worker.submit(event())
                assert deliver.wait_for(n)
            deliver.let_go()
            assert worker.flush(SOON).ok
            assert until(lambda: worker._senders._followers == 3)
            worker.kill()
            return _timed(lambda: until(lambda: not worker.is_alive()))

    enough = scaled(0.5)  # each would linger for a second
    assert quickest(measure, enough) <= enough


def test_one_sender_does_for_what_comes_one_at_a_time() -> None:
    """Each further thread would cost a switch per envelope, and none of it would be faster."""
    deliver = Deliverer()
    with running(deliver) as worker:
        for n in range(1, 200):
            worker.submit(event())
            assert deliver.wait_done(n)
            assert until(lambda: worker.pending == 0)
        assert len(deliver.threads) <= 2


def test_a_session_at_a_time_with_eight_senders_retries_included() -> None:
    """They would overtake one another; the events between them do not wait."""
    order: list[int] = []
    together: list[int] = []
    guard = threading.Lock()
    failed: set[int] = set()

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        assert sealed is not None
        if not sealed.ordered:
            return Outcome()
        number = int(sealed.serialize().rpartition(b'"sid":"')[2].partition(b'"')[0])
        with guard:
            together.append(number)
            assert len(together) == 1, "two at a time"
            again = number % 5 == 0 and number not in failed
            failed.add(number)
        if not again:
            order.append(number)
        with guard:
            together.clear()
        return Outcome.retry(LossReason.NETWORK_ERROR) if again else Outcome()

    with running(deliver) as worker:
        for n in range(120):
            worker.submit(session(str(n)))
            worker.submit(event())
        assert worker.flush(SOON).ok
        assert order == list(range(120))
        assert worker.facts().totals.discarded == {}


def test_a_session_does_not_wait_for_a_wake_that_never_comes() -> None:
    """The watcher has parked while the first one took its time: its end must say that the next may go."""
    deliver = Deliverer()
    deliver.hold()
    queue = memory(quick())
    with running(deliver, quick(), queue) as worker:
        worker.submit(session("one"))
        worker.submit(session("two"))
        assert deliver.wait_for(1)
        assert until(lambda: queue._parked), "nothing comes for a second"
        deliver.let_go()
        began = time.monotonic()
        assert deliver.wait_for(2)
        assert time.monotonic() - began < SOON / 2  # it would look again in a minute


@pytest.mark.parametrize("failure", [ValueError("x"), SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_a_sender_survives_whatever_a_delivery_raises(failure: BaseException) -> None:
    """One bad envelope never stops the next."""
    with running(Deliverer(failure, failure), quick(max_senders=1)) as worker:
        for _ in range(4):
            worker.submit(event())
        assert flushed(worker) == (2, 2)
        assert worker.facts().totals.discarded == {"internal_sdk_error": {"error": 2}}
        assert worker.facts().senders == 1


def test_a_sender_that_died_is_replaced_while_someone_waits() -> None:
    """Whatever killed it, such as an exception set from another thread: the flush finds another."""
    deliver = Deliverer()
    with running(deliver, quick(max_senders=1)) as worker:
        plain = worker._delivery.watch
        dead = threading.Event()

        def watch() -> object:
            if not dead.is_set():
                dead.set()
                raise SystemExit
            return plain()

        worker._delivery.watch = watch  # type: ignore[method-assign, assignment]
        worker.submit(event())
        assert flushed(worker) == (1, 0)
        assert dead.is_set()


def test_a_thread_that_was_never_started_is_forgotten() -> None:
    """A signal handler raised between the decision to start a sender and its start."""
    deliver = Deliverer()
    with running(deliver) as worker:
        with worker._lock.rlock:
            worker._admit_locked(event())
            assert worker._senders._call_locked()
        assert worker.facts().senders == 1
        assert flushed(worker) == (1, 0)


def test_a_sender_that_comes_too_late_leaves_again() -> None:
    """Its call was void, and others have come since: there are never more than allowed."""
    deliver = Deliverer()
    deliver.hold()
    with running(deliver, quick(max_senders=1)) as worker:
        worker.submit(event())
        assert deliver.wait_for(1)
        worker._senders._start_thread(worker._senders._run, ())
        worker.submit(event())
        assert worker.flush(0.1).pending == 2
        assert worker.facts().senders == 1
        assert len(deliver.began) == 1
        deliver.let_go()
        assert flushed(worker) == (2, 0)


@pytest.mark.skipif(sys.gettrace() is not None, reason="would take the tracer's place")
def test_a_sender_obeys_a_tracer_and_a_profiler() -> None:
    """A debugger's breakpoint in a deliverer has to be hit, and coverage has to see it."""
    seen: set[str] = set()

    def note(frame: FrameType, what: str, argument: object) -> None:
        seen.add(f"{what} {frame.f_code.co_name}")

    threading.settrace(note)
    threading.setprofile(note)
    try:
        with running(Deliverer()) as worker:
            worker.submit(event())
            assert flushed(worker) == (1, 0)
    finally:
        threading.settrace(None)
        threading.setprofile(None)
    assert {"call __call__", "return __call__"} <= seen


class NoThreads:
    """A host that is out of threads, or an interpreter that is ending."""

    def __init__(self, worker: BackgroundWorker) -> None:
        self.tries = 0
        worker._senders._start_thread = self

    def __call__(self, run: Callable[[], None], arguments: tuple[()]) -> int:
        self.tries += 1
        raise RuntimeError("can't start new thread")


def test_without_threads_an_envelope_is_delivered_in_the_caller() -> None:
    """It would wait for ever otherwise."""
    deliver = Deliverer()
    with running(deliver) as worker:
        NoThreads(worker)
        for n in range(1, 4):
            assert worker.submit(event())
            assert deliver.done == n
        assert deliver.threads == {threading.get_ident()}
        assert not worker.is_alive()
        assert worker.facts().totals.delivered == {"error": 3}
        assert not worker.on_own_thread


def test_without_threads_a_capture_made_by_the_delivery_is_refused() -> None:
    """It would nest without end."""
    accepted: list[bool] = []

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        accepted.append(worker.submit(event()))
        return Outcome()

    with running(deliver) as worker:
        NoThreads(worker)
        assert worker.submit(event())
        assert accepted == [False]
        assert worker.facts().totals.discarded == {"reentrant": {"error": 1}}


def test_without_threads_the_caller_s_time_is_bounded_and_the_breaker_obeyed() -> None:
    """A dead server costs the caller one attempt, not one per capture."""
    budgets: list[float] = []

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        budgets.append(within)
        return RETRY

    with running(deliver, quick(backoff_base=3000.0, backoff_max=3000.0, shutdown_timeout=0.5)) as worker:
        NoThreads(worker)
        for _ in range(5):
            assert worker.submit(event())
        assert len(budgets) == 1
        assert max(budgets) <= 0.5
        assert worker.flush(0.1).pending == 5
        assert worker.facts().queue.waiting == 5


def test_without_threads_a_flush_sends_the_losses_in_the_caller(reporting: Reporting) -> None:
    """It would wait its whole time for somebody to send them."""
    with running(reporting) as worker:
        reporting.worker = worker
        NoThreads(worker)
        worker.lose(LossReason.BEFORE_SEND, ONE_LOST)
        assert _timed(lambda: worker.flush(SOON)) < SOON / 2
        assert reporting.reports == [{("before_send", "error"): 1}]


def test_without_threads_a_look_delivers_nothing() -> None:
    """Health is a snapshot: no I/O, whatever waits."""
    deliver = Deliverer()
    queue = memory(quick())
    with running(deliver, quick(), queue) as worker:
        host = NoThreads(worker)
        with queue.lock.rlock:
            worker._admit_locked(event())
        worker.facts()
        assert worker.pending == 1
        worker.full()
        assert host.tries == 3
        assert deliver.began == []
        assert flushed(worker) == (1, 0)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit])
def test_without_threads_the_caller_s_own_interrupt_is_the_caller_s(failure: type[BaseException]) -> None:
    """Ctrl-C while it delivers: it is raised there, and the envelope is counted."""
    with running(Deliverer(failure())) as worker:
        NoThreads(worker)
        with pytest.raises(failure):
            worker.submit(event())
        assert worker.facts().totals.discarded == {"internal_sdk_error": {"error": 1}}
        assert not worker.on_own_thread
        assert worker.submit(event())
        assert worker.facts().totals.delivered == {"error": 1}


def test_at_the_end_of_a_process_a_capture_waits_for_its_own_delivery() -> None:
    """No thread may be left to do it later; all the waits share one budget."""
    deliver = Deliverer()
    with running(deliver) as worker:
        worker.submit(event())
        assert worker.end(1.0) == 0
        assert worker.submit(event())
        assert deliver.done == 2
        deliver.hold()
        assert _timed(lambda: worker.submit(event())) <= 1.8
        # Less than a second more, and not one for each.
        assert _timed(lambda: worker.submit(event())) <= 0.8
        assert _timed(lambda: worker.end(60.0)) <= 0.8
        assert worker.end(60.0) == 2
        worker.kill()
        assert worker.end(60.0) == 0


# -- what it costs -------------------------------------------------------------------------------------


def test_nothing_is_left_of_ten_thousand_envelopes() -> None:
    """A web app lives for months."""
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
        assert (worker._books.tickets, worker._delivery._in_hand, queue._claimed, queue._delayed) == (
            [],
            {},
            {},
            [],
        )
        assert not worker._lock.deferred
        assert all(not lane.waiting and not lane.retried and lane.size == 0 for lane in queue._lanes)
        assert worker.facts().senders <= 8
    assert until(lambda: _thread._count() <= before)


SMALL = event("small")


def test_the_last_drop_is_remembered_unless_the_app_asked_for_it() -> None:
    """Health warns of losses; what sampling leaves out is none."""
    clock = Clock()
    worker = BackgroundWorker(memory(quick(), clock), Deliverer(), quick(), clock=clock)
    worker.lose(LossReason.SAMPLE_RATE, ONE_LOST)
    assert worker.facts().last_drop is None
    worker.lose(LossReason.QUEUE_OVERFLOW, ONE_LOST)
    assert worker.facts().last_drop == clock.now


def test_full_says_whether_the_next_put_costs_another() -> None:
    """Sampling by load asks for it."""
    deliver = Deliverer()
    deliver.hold()
    with running(deliver, quick(max_queue_items=2, max_senders=1)) as worker:
        assert not worker.full()
        worker.submit(event())
        worker.submit(event())
        assert worker.full()
    assert TransportOptions().max_queue_items == 10_000
