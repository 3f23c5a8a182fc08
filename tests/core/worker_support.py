"""Helpers of the tests of queue and worker: envelopes of each class, a scripted deliverer, an own count."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.timing import SOON
from transport_kit.config.options import TransportOptions
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.item import Item
from transport_kit.envelope.losses import LossReason
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.memory import MemoryQueue
from transport_kit.transport.worker.ledger import LedgerSnapshot
from transport_kit.transport.worker.outcome import FlushReport, Outcome, WorkerState
from transport_kit.transport.worker.worker import BackgroundWorker

#: For tests that capture at any instruction, also of the tracer: coverage's tracer has a lock that is not
#: re-entrant, so that a handler that interrupts it hangs. Other tests cover the same code.
untraced = pytest.mark.skipif(sys.gettrace() is not None, reason="the tracer has a lock of its own")


def event(text: str = "", padding: int = 0) -> SealedEnvelope:
    return Envelope.event({"message": text, "extra": {"padding": "x" * padding}}).seal()


def transaction(text: str = "") -> SealedEnvelope:
    return Envelope.transaction({"type": "transaction", "transaction": text, "spans": [{}, {}]}).seal()


def session(text: str = "") -> SealedEnvelope:
    return Envelope(items=[Item({"sid": text}, type="session")]).seal()


def log_batch(text: str = "") -> SealedEnvelope:
    envelope = Envelope()
    envelope.add_log([{"body": text, "level": "info"}])
    return envelope.seal()


def replay(text: str = "") -> SealedEnvelope:
    return Envelope(items=[Item(text.encode(), type="replay_recording")]).seal()


#: From the highest class to the lowest.
CLASSES: tuple[Callable[[str], SealedEnvelope], ...] = (event, session, transaction, log_batch, replay)


RETRY = Outcome.retry(LossReason.NETWORK_ERROR)
DISCARD = Outcome(LossReason.SEND_ERROR)
ONE_LOST = (("error", 1),)


class Clock:
    """A clock whose monotonic seconds pass only in calls of a test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Deliverer:
    """A deliverer that returns or raises one element of its script per call, then `Outcome()`.

    While `held`, each call waits. `began` contains the calls, `at_once` is the maximum of concurrent ones.
    """

    def __init__(self, *script: Outcome | BaseException) -> None:
        self.script = list(script)
        self.changed = threading.Condition()
        self.began: list[SealedEnvelope | None] = []
        self.done = 0
        self.under_way = 0
        self.at_once = 0
        self.threads: set[int] = set()
        self._open = threading.Event()
        self._open.set()

    def __call__(self, sealed: SealedEnvelope | None, within: float) -> Outcome:
        with self.changed:
            self.began.append(sealed)
            self.under_way += 1
            self.at_once = max(self.at_once, self.under_way)
            self.threads.add(threading.get_ident())
            self.changed.notify_all()
        self._open.wait(within)
        with self.changed:
            outcome = self.script.pop(0) if self.script else Outcome()
            self.done += 1
            self.under_way -= 1
            self.changed.notify_all()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def hold(self) -> None:
        self._open.clear()

    def let_go(self) -> None:
        self._open.set()

    def wait_for(self, calls: int) -> bool:
        """Return True once `calls` deliveries have begun, or False after `SOON` seconds."""
        with self.changed:
            return self.changed.wait_for(lambda: len(self.began) >= calls, SOON)

    def wait_done(self, calls: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.done >= calls, SOON)


class Reporting:
    """A deliverer that attaches the due report, as the HTTP transport does."""

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


class NoThreads:
    """Makes the start of threads fail, as at the limit of threads or at the interpreter's end."""

    def __init__(self, worker: BackgroundWorker) -> None:
        self.tries = 0
        worker._senders._start_thread = self

    def __call__(self, run: Callable[[], None], arguments: tuple[()]) -> int:
        self.tries += 1
        raise RuntimeError("can't start new thread")


def until(true: Callable[[], object]) -> bool:
    """Return True once `true` returns True, or False after `SOON` seconds."""
    pause = threading.Event()
    deadline = time.monotonic() + SOON
    while not true():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.002)
    return True


class CountingQueue(MemoryQueue):
    """A queue that counts its wakes. A flush wakes it, under the lock, as soon as it waits for something."""

    wakes = 0

    def wake(self, *, hasten: bool = False) -> None:
        self.wakes += 1
        super().wake(hasten=hasten)


def begin_flush(worker: BackgroundWorker, queue: CountingQueue) -> tuple[threading.Thread, list[FlushReport]]:
    """Flush on a thread of its own; return it, and the list for its report, once the flush waits."""
    reports: list[FlushReport] = []
    flusher = threading.Thread(target=lambda: reports.append(worker.flush(SOON)))
    before = queue.wakes
    flusher.start()
    assert until(lambda: queue.wakes > before)
    return flusher, reports


def parked(queue: MemoryQueue) -> bool:
    """Return True if a sender waits in the queue's claim until a change, a wake or its timeout."""
    return queue._parked > 0


def quick(**fields: object) -> TransportOptions:
    """Return options with a back-off of about a millisecond."""
    defaults: dict[str, object] = {"backoff_base": 0.001, "backoff_max": 0.002, "shutdown_timeout": SOON}
    return TransportOptions(**{**defaults, **fields})  # type: ignore[arg-type]


def memory(options: TransportOptions, clock: Callable[[], float] = time.monotonic) -> CountingQueue:
    return CountingQueue(options.max_queue_items, options.max_queue_bytes, clock=clock)


@contextmanager
def running(
    deliver: Callable[[SealedEnvelope | None, float], Outcome],
    options: TransportOptions | None = None,
    queue: MemoryQueue | None = None,
) -> Iterator[BackgroundWorker]:
    """Provide a worker on a queue in memory; at the end kill it and check its ledger and its threads."""
    options = options or quick()
    queue = queue or memory(options)
    worker = BackgroundWorker(queue, deliver, options)
    try:
        yield worker
    finally:
        balance(worker, queue)
        if isinstance(deliver, Deliverer):
            deliver.let_go()
        worker.kill()
        balance(worker, queue)
        assert worker.facts().state is WorkerState.CLOSED
        assert until(lambda: not worker.is_alive()), "a sender outlives its worker"


def timed(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def flushed(worker: BackgroundWorker) -> tuple[int, int]:
    """Flush, and return the total numbers of errors delivered and discarded."""
    assert worker.flush(SOON).ok
    totals = worker.facts().totals
    lost = sum(counts.get("error", 0) for counts in totals.discarded.values())
    return totals.delivered.get("error", 0), lost


def held(queue: MemoryQueue) -> Counter[str]:
    """Return the quantities per category in a queue, counted from its private containers."""
    claims = [claim for lane in queue._lanes for claim in (*lane.retried, *lane.waiting)]
    claims += [claim for _, _, claim in queue._delayed]
    claims += queue._claimed.values()
    assert len(claims) == queue._items
    assert sum(claim.sealed.stored for claim in claims) == queue._size
    total: Counter[str] = Counter()
    for claim in claims:
        total.update(dict(claim.sealed.quantities))
    return total


def accounted(totals: LedgerSnapshot, pending: Counter[str]) -> None:
    """Assert invariant 1 for each category."""
    settled = {category for counts in totals.discarded.values() for category in counts}
    for category in {*totals.captured, *totals.claimed_from_shared, *totals.delivered, *settled, *pending}:
        came = totals.captured.get(category, 0) + totals.claimed_from_shared.get(category, 0)
        went = (
            totals.settled(category)
            + pending[category]
            + totals.stored_in_shared.get(category, 0)
            + totals.returned_to_shared.get(category, 0)
        )
        assert came == went, (category, totals, pending)


def balance(worker: BackgroundWorker, queue: MemoryQueue) -> None:
    """Assert invariant 1, with the pending quantities counted from the queue's contents."""
    queue.lock.run_deferred()
    with queue.lock.rlock:
        facts, pending = worker.facts(), held(queue)
        assert sum((facts.queue.waiting, facts.queue.claimed)) == queue._items
    accounted(facts.totals, pending)
