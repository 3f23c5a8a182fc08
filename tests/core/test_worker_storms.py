"""Many thousands of captures in signal handlers and garbage collections, at any instruction.

A storm of signals interrupts the main thread at any point: in critical sections, between them, and in waits.
Nothing may hang, and afterwards every capture is counted. The long tests make far more than 100 000 captures,
the short ones a tenth of that.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from tests.core.worker_support import (
    Deliverer,
    balance,
    event,
    memory,
    quick,
    running,
    session,
    until,
    untraced,
)
from tests.timing import SOON, scaled
from transport_kit.envelope.losses import LossReason
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.transport.worker.outcome import Outcome
from transport_kit.transport.worker.worker import BackgroundWorker

pytestmark = untraced

SMALL = event("small")
SESSION = session("one")


@contextlib.contextmanager
def storm(handler: Callable[[], object], interval: float = 0.0001) -> Iterator[None]:
    """Call `handler` in a signal handler on the main thread, thousands of times a second.

    Each signal is sent `interval` seconds after the end of the last handler, as otherwise handlers would nest
    without end on a slow machine. The storm ends when a handler returns False.
    """
    on = [True]

    def handle(number: int, frame: FrameType | None) -> None:
        try:
            on[0] = handler() is not False and on[0]
        finally:
            if on[0]:
                signal.setitimer(signal.ITIMER_REAL, interval)

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, interval)
    try:
        yield
    finally:
        on[0] = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Dying:
    """An object that captures in `__del__`; it is in a cycle, so that only a collection frees it."""

    def __init__(self, worker: BackgroundWorker, made: list[int]) -> None:
        self.worker = worker
        self.made = made
        self.cycle = self

    def __del__(self) -> None:
        self.made[0] += 1
        self.worker.submit(SMALL)


def _signals_and_collections(captures: int) -> None:
    """Capture at the same time on three threads, in signal handlers and in forced collections."""
    made = {"main": 0, "others": 0, "signals": 0}
    died = [0]
    deliver = _Fickle()
    options = quick(max_queue_items=200)
    queue = memory(options)
    thresholds = gc.get_threshold()
    share = captures // 4
    with running(deliver, options, queue) as worker:

        def other(name: int) -> None:
            for _ in range(share // 2):
                worker.submit(SESSION)
            counted.append(share // 2)

        def from_signal() -> bool:
            for _ in range(5):
                made["signals"] += 1
                worker.submit(SMALL)
            return made["signals"] < 2 * share

        counted: list[int] = []
        threads = [threading.Thread(target=other, args=(n,)) for n in range(2)]
        gc.freeze()  # what the test runner holds is not to be looked through each time
        gc.set_threshold(50, 2, 2)
        try:
            with storm(from_signal):
                for thread in threads:
                    thread.start()
                deadline = time.monotonic() + 10 * SOON
                while (
                    made["main"] < share or died[0] < share or made["signals"] < share
                ) and time.monotonic() < deadline:
                    Dying(worker, died)
                    worker.submit(SMALL)
                    made["main"] += 1
                    if made["main"] % 50 == 0:
                        worker.flush(0.0005)
                        worker.facts()
                        worker.lose(LossReason.SAMPLE_RATE, (("span", 1),))
                for thread in threads:
                    thread.join(SOON)
        finally:
            gc.set_threshold(*thresholds)
            gc.unfreeze()
        gc.collect()
        report = worker.flush(SOON)
        assert report.ok, report
        assert not queue.lock.deferred
        totals = worker.facts().totals
        assert totals.captured["error"] == made["main"] + made["signals"] + died[0]
        assert totals.captured["session"] == sum(counted) == share // 2 * 2
        assert totals.captured["error"] + totals.captured["session"] >= captures
        assert totals.captured["error"] == totals.settled("error")
        balance(worker, queue)


class _Fickle:
    """A deliverer that fails now and then."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, sealed: SealedEnvelope | None, within: float) -> Outcome:
        self.calls += 1
        if self.calls % 101 == 0:
            raise ValueError("poison")
        if self.calls % 37 == 0:
            return Outcome.retry(LossReason.NETWORK_ERROR)
        return Outcome()


def test_every_capture_of_a_storm_is_accounted_for() -> None:
    """None of ten thousand captures hangs or is lost without being counted."""
    _signals_and_collections(10_000)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_every_capture_of_a_long_storm_is_accounted_for() -> None:
    """The same with a hundred thousand captures, three times."""
    for _ in range(3):
        _signals_and_collections(100_000)


def test_a_storm_while_the_main_thread_only_looks_and_waits() -> None:
    """Only the checks after the interrupted sections call a sender for the handlers' captures."""
    made = [0]
    deliver = Deliverer()
    queue = memory(quick())
    with running(deliver, quick(), queue) as worker:

        def from_signal() -> None:
            made[0] += 1
            worker.submit(SMALL)

        with storm(from_signal, 0.0005):
            deadline = time.monotonic() + SOON
            while made[0] <= 200 and time.monotonic() < deadline:
                worker.facts()
                assert worker.pending >= 0
                worker.flush(0.001)
        assert until(lambda: len(deliver.began) == made[0]), "one waits, and nobody looks"
        assert made[0] > 200


@pytest.mark.parametrize("call", ["flush", "close", "kill", "end"])
def test_an_end_in_the_middle_of_a_storm_comes_in_time(call: str) -> None:
    """SIGTERM may arrive at any moment."""
    timeout = scaled(0.3)
    worker_calls: dict[str, Callable[[BackgroundWorker], object]] = {
        "flush": lambda worker: worker.flush(timeout),
        "close": lambda worker: worker.close(timeout),
        "kill": lambda worker: worker.kill(),
        "end": lambda worker: worker.end(timeout),
    }
    for _ in range(5):
        queue = memory(quick())
        deliver = Deliverer()
        worker = BackgroundWorker(queue, deliver, quick())
        with storm(lambda worker=worker: worker.submit(SMALL), 0.001):  # type: ignore[misc]
            for _ in range(50):
                worker.submit(SMALL)
            began = time.monotonic()
            worker_calls[call](worker)
            assert time.monotonic() - began <= timeout + SOON / 2
        worker.kill()
        balance(worker, queue)
        assert until(lambda worker=worker: not worker.is_alive())  # type: ignore[misc]


def test_handlers_that_flush_and_close_in_a_storm_hang_nobody() -> None:
    """A handler that flushes or closes inside a critical section must not wait."""
    calls = [0]
    slow: list[float] = []
    for _ in range(3):
        queue = memory(quick())
        worker = BackgroundWorker(queue, Deliverer(), quick())

        def from_signal(worker: BackgroundWorker = worker) -> None:
            calls[0] += 1
            began = time.monotonic()
            worker.submit(SMALL)
            worker.flush(0.001)
            worker.lose(LossReason.BEFORE_SEND, (("error", 1),))
            worker.facts()
            if calls[0] % 100 == 0:
                worker.close(0.001)
            slow.append(time.monotonic() - began)

        with storm(from_signal, 0.003):
            deadline, enough = time.monotonic() + SOON, calls[0] + 150
            while calls[0] < enough and time.monotonic() < deadline:
                for _ in range(20):
                    worker.submit(SMALL)
        worker.kill()
        balance(worker, queue)
        assert until(lambda worker=worker: not worker.is_alive())  # type: ignore[misc]
    assert max(slow) < SOON / 2
    assert calls[0] >= 450


class Interrupted(Exception):
    """The exception raised by a signal handler, as by a soft time limit."""


def test_handlers_that_raise_leave_a_worker_that_still_works() -> None:
    """The exception reaches the task, all counts are right, and nothing hangs."""
    raised = [0]
    deliver = Deliverer()
    queue = memory(quick())
    worker = BackgroundWorker(queue, deliver, quick())
    armed = [False]
    reached = 0

    def from_signal() -> None:
        if armed[0]:
            armed[0] = False
            raised[0] += 1
            raise Interrupted

    with storm(from_signal, 0.0007):
        deadline = time.monotonic() + SOON
        while raised[0] <= 300 and time.monotonic() < deadline:
            try:
                armed[0] = True
                for _ in range(10):
                    worker.submit(SMALL)
                worker.flush(0.002)
                worker.facts()
                armed[0] = False
            except Interrupted:
                reached += 1
    assert raised[0] == reached > 300
    balance(worker, queue)
    done = len(deliver.began)
    for _ in range(20):
        assert worker.submit(SMALL)
    assert deliver.wait_for(done + 20), "the senders are gone, and none comes"
    free: list[bool] = []
    probe = threading.Thread(target=lambda: free.append(queue.lock.rlock.acquire(timeout=SOON)))
    probe.start()
    probe.join(SOON)
    assert free == [True], "the lock was left behind"
