"""Delivering: claims from the queue when the breaker allows, has each envelope delivered, settles it.

Owns the breaker, and what is in the senders' hands. What is due and what it came to goes to the worker's
books; how many threads do this is `senders.py`'s.

Threads: `watch` and `perform` run on sender threads, `stranded` in a caller when there are none. Names
that end in `_locked` want the lock.
"""

from __future__ import annotations

import enum
import random
import threading
from collections.abc import Callable, Iterable

from transport_kit.config.options import TransportOptions
from transport_kit.envelope.losses import LossReason, Report
from transport_kit.queues.protocol import Claim, Queue
from transport_kit.runtime.interrupts import let_through
from transport_kit.runtime.lock import StateLock
from transport_kit.runtime.log import log
from transport_kit.transport.worker.books import Books
from transport_kit.transport.worker.outcome import Deliver, Outcome, WorkerState
from transport_kit.transport.worker.retry import Backoff, CircuitBreaker
from transport_kit.transport.worker.senders import Senders

__all__ = ["Dispatcher"]

#: Seconds between two flushes that may bring a probe forward: flushing in a loop is no back door.
HASTEN_EVERY = 1.0
#: Seconds that a pause at the breaker takes at most, and one after a claim that failed.
LONGEST_PAUSE = 60.0
#: Seconds between two looks after a shared queue while the breaker lets nothing through.
LOOK_AFTER = 0.5
CLAIM_AGAIN = 1.0


class _Report(enum.Enum):
    """The task of a sender that has nothing to deliver but a client report."""

    DUE = enum.auto()


_Task = Claim | _Report


class Dispatcher:
    """The work of a worker's senders.

    Args:
        queue: Where envelopes wait.
        deliver: Called without any lock held. An exception is poison: the envelope is discarded as
            `internal_sdk_error`, and the work goes on.
        options: Bounds and times.
        lock: Guards `books` and all that is kept here; and the queue, unless that is shared.
        books: What became of what.
        clock: Monotonic seconds; the queue's.
        draw: From 0 up to but not including 1, for the jitter.
    """

    def __init__(
        self,
        queue: Queue,
        deliver: Deliver,
        options: TransportOptions,
        lock: StateLock,
        books: Books,
        clock: Callable[[], float],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._queue = queue
        self._deliver = deliver
        self._options = options
        self._lock = lock
        self._books = books
        self._clock = clock
        self._draw = draw
        self._backoff = Backoff(options.backoff_base, options.backoff_max)
        self.senders: Senders[_Task] = Senders(lock, options.max_senders, self)
        # Read and written only while holding the lock.
        self.breaker = CircuitBreaker(self._backoff)
        self._gate = threading.Condition(lock.rlock)  # the breaker changed
        self._in_hand: dict[int, Claim] = {}
        self._last_hastened = float("-inf")
        self._poisoned = False

    # -- looking for work ------------------------------------------------------------------------------

    def needed_locked(self) -> bool:
        """Whether someone has to watch: envelopes wait, if only for another attempt, or a report is due."""
        books = self._books
        if books.state is WorkerState.NEW or books.state is WorkerState.CLOSED:
            return False
        return self._queue.shared or books.report_wanted or self._queue.stats().waiting > 0

    def watch(self) -> _Task | None:
        """Wait until an envelope or a report is due and may go; None when all is over."""
        books = self._books
        while True:
            with self._lock.rlock:
                self._lock.run_deferred_locked()
                if books.state is WorkerState.CLOSED:
                    return None
                now = self._clock()
                permitted = self.breaker.permits(now)
                if not permitted:
                    # A probe's outcome, a flush and the end notify; otherwise the next probe's time comes.
                    probing = self.breaker.state == "probing"
                    pause = LONGEST_PAUSE if probing else self.breaker.next_probe - now
                    longest = LOOK_AFTER if self._queue.shared else LONGEST_PAUSE
                    self._gate.wait(min(max(pause, 0.001), longest))
                    if not self._queue.shared:
                        continue
                due = permitted and books.report_due(now)
                patience = 0.0 if due or not permitted else books.until_due(now)
            try:
                if due and self._queue.shared:
                    due = not self._leave_losses()
                # Also while nothing may go: a shared queue keeps its bounds, and an election, in its claims.
                claims = self._queue.claim(1 if permitted else 0, patience)
                if self._queue.shared:
                    self._take_losses()
            except Exception as error:
                log.error("a claim failed: %s", type(error).__name__)
                self._pause(CLAIM_AGAIN)
                continue
            for claim in claims:
                if self._book(claim):
                    return claim
            # A report rides on an envelope, and goes alone only when there is none.
            if due and not claims and self._book_report():
                return _Report.DUE

    def _leave_losses(self) -> bool:
        """Leave what was lost here to whoever drains; False when that is this process."""
        with self._lock.rlock:
            self._books.transfers_in_progress += 1
            report = self._books.take_report(alone=True)
        left = False
        try:
            left = self._queue.put_losses(report)
        finally:
            with self._lock.rlock:
                self._moved_locked()
                if left:
                    self._books.end_report(self._clock())
                else:
                    self._books.ledger.give_back(report)
                    self._books.report_wanted = True
        return left

    def _take_losses(self) -> None:
        """Report what a shared queue gave up, and what other processes lost."""
        with self._lock.rlock:
            if self._books.state is WorkerState.CLOSED:
                return
            self._books.transfers_in_progress += 1
        report: Report = ()
        try:
            report = self._queue.take_losses()
        finally:
            with self._lock.rlock:
                self._moved_locked()
                self._books.ledger.give_back(report)

    def request_report(self) -> None:
        """Report what is known to be lost as soon as a sender can, unless the breaker is open."""
        if self._queue.shared:
            self._take_losses()
        with self._lock.rlock:
            self._books.report_wanted = self._books.unreported and self.breaker.state == "closed"
            self._queue.wake()
        self.senders.leave()

    def _moved_locked(self) -> None:
        self._books.transfers_in_progress -= 1
        self._books.settled.notify_all()

    def _pause(self, seconds: float) -> None:
        """Wait, but not beyond the end."""
        with self._lock.rlock:
            if self._books.state is not WorkerState.CLOSED:
                self._gate.wait(seconds)

    def _book(self, claim: Claim) -> bool:
        """Take a claim in hand; False when its time is not now: the end, or the breaker, came between."""
        with self._lock.rlock:
            if self._may_begin_locked():
                self._in_hand[claim.id] = claim
                if self._queue.shared:
                    self._books.ledger.claim(claim.sealed.quantities)
                return True
        self._queue.release([claim])
        return False

    def _book_report(self) -> bool:
        with self._lock.rlock:
            self._books.reporting = begins = self._may_begin_locked()
            return begins

    def _may_begin_locked(self) -> bool:
        """Whether an attempt may begin now; the breaker then knows of it."""
        now = self._clock()
        if self._books.state is WorkerState.CLOSED or not self.breaker.permits(now):
            return False
        self.breaker = self.breaker.began(now)
        return True

    # -- doing it --------------------------------------------------------------------------------------

    def perform(self, task: _Task) -> None:
        """Deliver one envelope or report, and settle it; raises nothing."""
        failure = self._perform(task, self._options.request_timeout)
        if failure is not None and not self._poisoned:
            self._poisoned = True
            log.error(
                "an envelope could not be delivered and was discarded: %s; further ones are only counted",
                type(failure).__name__,
            )

    def _perform(self, task: _Task, within: float) -> BaseException | None:
        """What `deliver` raised, if it did."""
        began = self._clock()
        failure = None
        try:
            outcome = self._deliver(None if isinstance(task, _Report) else task.sealed, within)
        except BaseException as error:
            failure = error
            outcome = Outcome(LossReason.INTERNAL_SDK_ERROR, answered=None)
        if isinstance(task, _Report):
            with self._lock.rlock:
                self._books.carried()
                now = self._clock()
                self._learn_locked(outcome, began, now)
                self._books.end_report(now)
        else:
            self._settle(task, outcome, began)
        self.senders.leave()
        return failure

    def stranded(self, deadline: float | None) -> None:
        """Deliver in the caller until nothing waits, an attempt fails, or `deadline` is reached."""
        if self.senders.own:
            return  # a sender that leaves, or a capture made by a delivery in the caller
        limit = self._clock() + self._options.shutdown_timeout
        if deadline is not None:
            limit = min(limit, deadline)
        self.senders.act(True)
        try:
            while (left := limit - self._clock()) > 0 and self._books.state is not WorkerState.CLOSED:
                task = self._next_here()
                if task is None:
                    return
                failure = self._perform(task, left)
                if failure is not None:
                    if not isinstance(failure, Exception):
                        raise failure  # the caller's own: its interrupt, its exit
                    let_through(failure)
        finally:
            self.senders.act(False)

    def _next_here(self) -> _Task | None:
        """What may be delivered at once, booked; a report only when nothing else is."""
        with self._lock.rlock:
            now = self._clock()
            if not self.breaker.permits(now):
                return None
            due = not self._queue.shared and self._books.report_due(now)
        claims = self._queue.claim(1, 0.0)
        if claims:
            return claims[0] if self._book(claims[0]) else None
        return _Report.DUE if due and self._book_report() else None

    # -- settling --------------------------------------------------------------------------------------

    def _settle(self, claim: Claim, outcome: Outcome, began: float) -> None:
        """Book what a delivery came to. Does nothing for a claim that the end counted meanwhile."""
        shared = self._queue.shared
        returned: float | None = None
        with self._lock.rlock:
            self._books.carried()
            if self._in_hand.pop(claim.id, None) is None:
                return
            now = self._clock()
            self._learn_locked(outcome, began, now)
            # A durable queue has bounds of its own, and an age is one of them.
            kept = self._queue.durable or now - claim.put_at < self._options.retry_window
            if outcome.again and kept:
                delay = self._backoff.delay(claim.attempts + 1, self._draw())
                returned = max(now + delay, outcome.not_before)
                if shared:
                    self._books.ledger.give_up_claim(claim.sealed.quantities)
            else:
                self._books.settle(claim, outcome)
            if not shared:
                self._return(claim, outcome, returned)
        if shared:
            try:
                self._return(claim, outcome, returned)
            except Exception as error:
                # Its lease ends, and it is delivered once more: the price of a queue that can't write.
                log.error("an envelope could not be settled: %s", type(error).__name__)

    def _return(self, claim: Claim, outcome: Outcome, returned: float | None) -> None:
        if returned is not None:
            self._queue.release([claim], returned)
        elif outcome.reason is LossReason.INTERNAL_SDK_ERROR:
            self._queue.bury(claim, outcome.reason)
        else:
            self._queue.ack([claim])

    def _learn_locked(self, outcome: Outcome, began: float, now: float) -> None:
        """Tell the breaker, and whoever waits at it."""
        before = self.breaker
        if outcome.answered:
            self.breaker = before.succeeded(now)
        elif outcome.answered is not None:
            self.breaker = before.failed(now, began=began, draw=self._draw(), not_before=outcome.not_before)
        elif before.probe_began is not None and began >= before.probe_began:
            # No verdict. Only the probe's own end makes room for another: not that of an older attempt.
            self.breaker = before.gave_up(now)
        if before.state != "closed":
            self._gate.notify_all()

    # -- for whoever waits, and for the end ------------------------------------------------------------

    def retry_now_locked(self) -> None:
        """Someone waits: what waits for its next attempt, and the breaker's probe, may go now."""
        now = self._clock()
        hasten = now - self._last_hastened >= HASTEN_EVERY
        if hasten:
            self._last_hastened = now
            self.breaker = self.breaker.hastened(now)
        self._queue.wake(hasten=hasten)
        self._gate.notify_all()

    def end_locked(self, reason: LossReason) -> Iterable[Claim]:
        """No more deliveries. What waits is counted; returns what a shared queue is to be given back."""
        in_hand = tuple(self._in_hand.values())
        self._in_hand.clear()
        if self._queue.shared:
            for claim in in_hand:
                self._books.ledger.give_up_claim(claim.sealed.quantities)
        else:
            self._books.give_up(self._queue.close(), reason)
        self._gate.notify_all()
        self._books.settled.notify_all()
        return in_hand
