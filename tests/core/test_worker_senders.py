"""The senders of a worker: their number, errors in deliveries, and deliveries without threads."""

from __future__ import annotations

import sys
import threading
import time
from types import FrameType

import pytest

from tests.core.worker_support import (
    ONE_LOST,
    RETRY,
    Deliverer,
    NoThreads,
    Reporting,
    event,
    flushed,
    memory,
    parked,
    quick,
    running,
    session,
    timed,
    until,
)
from tests.timing import SOON, quickest, scaled
from transport_kit.envelope.losses import LossReason
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.memory import MemoryQueue
from transport_kit.queues.protocol import Claim
from transport_kit.transport.worker.outcome import Outcome


def test_senders_grow_while_all_are_busy_and_leave_when_nobody_needs_them() -> None:
    """With answers after 50 ms, one sender would deliver only twenty envelopes per second."""
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
    """Idle senders that wait for their turn end as well."""

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
            return timed(lambda: until(lambda: not worker.is_alive()))

    enough = scaled(0.5)  # each would linger for a second
    assert quickest(measure, enough) <= enough


def test_one_sender_does_for_what_comes_one_at_a_time() -> None:
    """More threads would add a switch per envelope without delivering faster."""
    deliver = Deliverer()
    with running(deliver) as worker:
        for n in range(1, 200):
            worker.submit(event())
            assert deliver.wait_done(n)
            assert until(lambda: worker.pending == 0)
        assert len(deliver.threads) <= 2


def test_a_session_at_a_time_with_eight_senders_retries_included() -> None:
    """Sessions delivered in parallel could arrive out of order; events need not wait for them."""
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
    """The watcher waits while the first session is delivered; the end of that delivery must wake it."""
    deliver = Deliverer()
    deliver.hold()
    queue = memory(quick())
    with running(deliver, quick(), queue) as worker:
        worker.submit(session("one"))
        worker.submit(session("two"))
        assert deliver.wait_for(1)
        assert until(lambda: parked(queue)), "nothing comes for a second"
        deliver.let_go()
        began = time.monotonic()
        assert deliver.wait_for(2)
        assert time.monotonic() - began < SOON / 2  # it would look again in a minute


@pytest.mark.parametrize("failure", [ValueError("x"), SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_a_sender_survives_whatever_a_delivery_raises(failure: BaseException) -> None:
    """The next envelope is delivered all the same."""
    with running(Deliverer(failure, failure), quick(max_senders=1)) as worker:
        for _ in range(4):
            worker.submit(event())
        assert flushed(worker) == (2, 2)
        assert worker.facts().totals.discarded == {"internal_sdk_error": {"error": 2}}
        assert worker.facts().senders == 1


def test_a_sender_that_died_is_replaced_while_someone_waits() -> None:
    """A flush calls another sender if the first died, as of an exception set from another thread."""
    dead = threading.Event()

    class Deadly(MemoryQueue):
        def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
            if not dead.is_set():
                dead.set()
                raise SystemExit
            return super().claim(limit, timeout)

    with running(Deliverer(), quick(max_senders=1), Deadly(10, 1 << 30)) as worker:
        worker.submit(event())
        assert flushed(worker) == (1, 0)
        assert dead.is_set()


def test_a_thread_that_was_never_started_is_forgotten() -> None:
    """A signal handler may raise between the decision to start a sender and its start."""
    deliver = Deliverer()
    queue = memory(quick())
    with running(deliver, quick(), queue) as worker:
        with queue.lock.rlock:
            worker._admit_locked(event())
            assert worker._senders._call_locked()
        assert worker.facts().senders == 1
        assert flushed(worker) == (1, 0)


def test_a_sender_that_comes_too_late_leaves_again() -> None:
    """The call was void and other senders arrived: the late one ends, as the maximum is reached."""
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
    """Debuggers and coverage must work in the delivery function."""
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


# -- without threads -----------------------------------------------------------------------------------


def test_without_threads_an_envelope_is_delivered_in_the_caller() -> None:
    """Otherwise the envelope would never be delivered."""
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


def test_while_the_interpreter_ends_an_envelope_is_delivered_in_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread that is started then never runs: nobody else would deliver it."""
    deliver = Deliverer()
    with running(deliver) as worker:
        with monkeypatch.context() as ending:
            ending.setattr(sys, "is_finalizing", lambda: True)
            assert worker.submit(event())
        assert deliver.threads == {threading.get_ident()}
        assert worker.facts().totals.delivered == {"error": 1}
        assert not worker.is_alive()


def test_without_threads_a_capture_made_by_the_delivery_is_refused() -> None:
    """Otherwise deliveries in the caller would nest without end."""
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
    """While the server does not answer, one capture makes an attempt, not each."""
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


def test_without_threads_a_flush_sends_the_losses_in_the_caller() -> None:
    """Otherwise the flush would wait for its whole timeout."""
    reporting = Reporting()
    with running(reporting) as worker:
        reporting.worker = worker
        NoThreads(worker)
        worker.lose(LossReason.BEFORE_SEND, ONE_LOST)
        assert timed(lambda: worker.flush(SOON)) < SOON / 2
        assert reporting.reports == [{("before_send", "error"): 1}]


def test_without_threads_a_look_delivers_nothing() -> None:
    """A snapshot such as health does no I/O, even if envelopes wait."""
    deliver = Deliverer()
    queue = memory(quick())
    with running(deliver, quick(), queue) as worker:
        host = NoThreads(worker)
        with queue.lock.rlock:
            worker.submit(event())
        worker.facts()
        assert worker.pending == 1
        worker.full()
        assert host.tries == 3
        assert deliver.began == []
        assert flushed(worker) == (1, 0)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit])
def test_without_threads_the_caller_s_own_interrupt_is_the_caller_s(failure: type[BaseException]) -> None:
    """Ctrl-C during a delivery in the caller is raised in the caller, and the envelope is counted."""
    with running(Deliverer(failure())) as worker:
        NoThreads(worker)
        with pytest.raises(failure):
            worker.submit(event())
        assert worker.facts().totals.discarded == {"internal_sdk_error": {"error": 1}}
        assert not worker.on_own_thread
        assert worker.submit(event())
        assert worker.facts().totals.delivered == {"error": 1}


def test_at_the_end_of_a_process_a_capture_waits_for_its_own_delivery() -> None:
    """No thread may be left to deliver later. All waits together stay within the given seconds."""
    deliver = Deliverer()
    with running(deliver) as worker:
        worker.submit(event())
        assert worker.end(1.0) == 0
        assert worker.submit(event())
        assert deliver.done == 2
        deliver.hold()
        assert timed(lambda: worker.submit(event())) <= 1.8
        # Less than a second more, and not one for each.
        assert timed(lambda: worker.submit(event())) <= 0.8
        assert timed(lambda: worker.end(60.0)) <= 0.8
        assert worker.end(60.0) == 2
        worker.kill()
        assert worker.end(60.0) == 0
