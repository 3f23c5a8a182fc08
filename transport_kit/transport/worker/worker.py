"""The worker: takes envelopes in, waits for their delivery, and ends.

Owns the life of a queue (new, running, draining, closed), and the lock that guards it. Its books are in
`books.py`, delivering is `dispatch.py`'s, the threads are `senders.py`'s. Knows nothing about HTTP
(`http.py`) nor about any web framework (`integrations/`): what delivers is a function.

Threads: every public method may be called from any thread, from a signal handler and from `__del__`.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

from transport_kit.config.options import TransportOptions
from transport_kit.envelope.losses import LossReason, Pairs, Report
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.protocol import Claim, Queue
from transport_kit.runtime.interrupts import let_through
from transport_kit.runtime.lock import StateLock
from transport_kit.runtime.log import log
from transport_kit.transport.worker.books import Books
from transport_kit.transport.worker.dispatch import Dispatcher
from transport_kit.transport.worker.outcome import (
    Deliver,
    FlushReport,
    Ticket,
    WorkerFacts,
    WorkerState,
)

__all__ = ["BackgroundWorker"]

#: Seconds after which whoever waits looks around all the same: for what was left aside while it went to
#: wait, and for a sender that died.
PULSE = 0.1


class BackgroundWorker:
    """Delivers what is submitted, on threads that the first submission starts.

    Args:
        queue: Where envelopes wait.
        deliver: Called on a sender thread, without any lock held. An exception is poison: the envelope
            is discarded as `internal_sdk_error`, and the worker goes on.
        options: Bounds and times.
        clock: Monotonic seconds; the queue's.
        draw: From 0 up to but not including 1, for the jitter.
    """

    def __init__(
        self,
        queue: Queue,
        deliver: Deliver,
        options: TransportOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._queue = queue
        self._shared = queue.shared
        self._options = options
        self._clock = clock
        # One lock: the books, the breaker, and a queue that is not shared, are read and written only
        # while holding it. Deliveries, and what a shared queue does, happen without it. Each critical
        # section is followed by `_senders.leave()`, so that what interrupted it is taken in and seen to.
        self._lock = StateLock() if queue.shared else queue.lock
        self._books = Books(self._lock, queue.shared, options, clock)
        if not queue.shared:
            self._lock.mend = self._mend_locked
        self._dispatcher = Dispatcher(queue, deliver, options, self._lock, self._books, clock, draw)
        self._senders = self._dispatcher.senders
        # Set when the process is ending: seconds of waiting that the end may still cost. From then on a
        # capture waits for its own delivery, as no thread may be left to do it later.
        self._end_left: float | None = None
        # While what was left aside is taken in: the queue's last id before.
        self._admitting: int | None = None
        # What is left at the end is counted under it; set before the state becomes CLOSED.
        self._end_reason = LossReason.CLOSED

    # -- submitting ------------------------------------------------------------------------------------

    @property
    def on_own_thread(self) -> bool:
        """Whether the calling thread is delivering: it must neither capture nor wait."""
        return self._senders.own

    @property
    def can_wait(self) -> bool:
        """Whether the calling thread may wait: not in an interrupted critical section, nor on a sender."""
        return not (self._lock.held() or self._senders.own)

    @property
    def closing(self) -> bool:
        """Whether captures are refused; may be asked without the lock, as it never becomes false again."""
        return self._books.state >= WorkerState.DRAINING

    def submit(self, sealed: SealedEnvelope) -> bool:
        """Take an envelope; True when accepted. Never raises for a full queue, never waits for a delivery.

        Three exceptions to the latter, each with `shutdown_timeout` as its end: no thread can start, or
        the process is ending (`end`), so the caller delivers or waits; a shared queue's `put` does I/O.
        """
        if self._senders.own:
            self.lose(LossReason.REENTRANT, sealed.quantities)
            return False
        sealed = self._queue.prepare(sealed)
        if self._shared:
            return self._submit_shared(sealed)
        if self._lock.held():
            return self._submit_aside(sealed)
        try:
            with self._lock.rlock:
                accepted = self._admit_locked(sealed)
        finally:
            # Also when a signal handler raised: what it left behind may need a sender.
            self._senders.leave()
        if self._end_left is not None:
            self._wait_at_end(self._end_left)
        return accepted

    def _submit_aside(self, sealed: SealedEnvelope) -> bool:
        """This thread is inside a critical section, and was interrupted: the section's end takes it in."""
        if self.closing:
            self.lose(LossReason.CLOSED, sealed.quantities)
            return False
        stats = self._queue.stats()
        if stats.waiting + stats.claimed + len(self._lock.deferred) >= stats.max_items:
            self.lose(LossReason.QUEUE_OVERFLOW, sealed.quantities)
            return False
        self._lock.defer(lambda: self._admit_aside_locked(sealed))
        return True

    def _submit_shared(self, sealed: SealedEnvelope) -> bool:
        if self.closing:
            self.lose(LossReason.CLOSED, sealed.quantities)
            return False
        try:
            put = self._queue.put(sealed)
        except Exception as error:
            let_through(error)
            self.lose(LossReason.INTERNAL_SDK_ERROR, sealed.quantities)
            log.error("an envelope could not be stored: %s", type(error).__name__)
            return False
        self._locked(lambda: self._books.count_put(sealed.quantities, put))
        return put.accepted

    def _admit_locked(self, sealed: SealedEnvelope) -> bool:
        lock = self._lock
        if not lock.whole:
            lock.mend_locked()
        if self._books.state >= WorkerState.DRAINING:
            self._books.lose(LossReason.CLOSED, sealed.quantities)
            return False
        lock.whole = False
        put = self._queue.put(sealed)
        self._books.count_put(sealed.quantities, put)
        lock.whole = True
        return put.accepted

    def _admit_aside_locked(self, sealed: SealedEnvelope) -> None:
        self._admitting = self._queue.stats().last_id
        self._admit_locked(sealed)
        self._admitting = None

    def _mend_locked(self) -> None:
        """Complete what a signal handler that raised left half done."""
        if self._admitting is not None:
            taken_in = self._queue.stats().last_id > self._admitting
            aside = self._lock.deferred
            # One step: it is not to be taken in again.
            self._admitting = None
            if taken_in:
                del aside[0]
        closed = self._books.state is WorkerState.CLOSED
        held, given_up = self._queue.mend()
        self._books.give_up(given_up, self._end_reason if closed else LossReason.QUEUE_OVERFLOW)
        self._books.mend(held)
        if closed:
            self._dispatcher.end_locked(self._end_reason)

    def lose(self, reason: LossReason, quantities: Pairs) -> None:
        """Count what was lost before it was submitted."""
        self._locked(lambda: self._books.lose(reason, quantities))

    def _locked(self, action: Callable[[], object]) -> None:
        """Run `action` under the lock: now, or when this thread's interrupted critical section ends."""
        if self._lock.held():
            self._lock.defer(action)
            return
        with self._lock.rlock:
            if not self._lock.whole:
                self._lock.mend_locked()
            action()
        self._senders.leave()

    def start(self) -> None:
        """Begin delivering now: a durable queue may hold a backlog from before. No-op unless NEW."""
        if self._lock.held():
            return  # interrupted inside a critical section: the first capture starts it
        with self._lock.rlock:
            new = self._books.state is WorkerState.NEW
            if new:
                self._books.state = WorkerState.RUNNING
        if new:
            self._senders.start()
        self._senders.leave()

    # -- client reports, for what delivers -------------------------------------------------------------

    @property
    def unreported(self) -> bool:
        """Whether there are losses to report; a look without the lock."""
        return self._books.unreported

    def take_report(self, *, alone: bool) -> Report:
        """The losses to tell the receiver now; empty when a report went out recently.

        Args:
            alone: Whether nothing else is sent, which only happens when a report is due.
        """
        with self._lock.rlock:
            taken = self._books.attach_report(alone=alone)
        self._senders.leave()
        return taken

    def give_back(self, report: Report) -> None:
        """The request that carried `report` got no final answer."""
        self._locked(lambda: self._books.give_back(report))

    def want_report(self) -> None:
        """Report now what is known to be lost, unless the receiver does not answer; waits for nothing."""
        self._dispatcher.request_report()

    @property
    def reporting(self) -> bool:
        """Whether a report is wanted now, or under way, or what it would tell; a look without the lock."""
        books = self._books
        return books.report_wanted or books.reporting or books.transfers_in_progress > 0

    # -- waiting ---------------------------------------------------------------------------------------

    def flush(self, timeout: float, until: str = "settled") -> FlushReport:
        """Wait up to `timeout` seconds for all that was accepted before the call.

        From a sender thread, and from a thread interrupted inside a critical section, it returns at once:
        waiting there would wait for itself.
        """
        deadline = self._clock() + timeout
        if not self.can_wait:
            pending = self.pending
            return FlushReport(pending == 0, pending=pending)
        if self._shared:
            return self._flush_shared(deadline, until)
        books = self._books
        ticket = Ticket()
        try:
            with self._lock.rlock:
                self._lock.run_deferred_locked()
                stats = self._queue.stats()
                ticket.last = stats.last_id
                ticket.remaining = stats.waiting + stats.claimed
                if books.state is WorkerState.CLOSED or not (ticket.remaining or books.unreported):
                    return FlushReport(True)
                books.state = max(books.state, WorkerState.RUNNING)
                books.report_wanted = books.unreported
                books.tickets.append(ticket)
                self._dispatcher.retry_now_locked()
            self._wait(
                deadline, lambda: ticket.remaining <= 0 and not (books.report_wanted or books.reporting)
            )
        finally:
            with self._lock.rlock:
                if ticket in books.tickets:
                    books.tickets.remove(ticket)
            self._senders.leave(deadline)
        left = max(ticket.remaining, 0)
        return FlushReport(not left, ticket.delivered, ticket.discarded, pending=left)

    def _flush_shared(self, deadline: float, until: str) -> FlushReport:
        """In a shared queue stored is settled; `delivered` waits for whoever drains it."""
        with self._lock.rlock:
            self._lock.run_deferred_locked()
            if self._books.state is WorkerState.NEW and self._held():
                self._books.state = WorkerState.RUNNING  # a backlog from before: see that someone drains
            self._dispatcher.retry_now_locked()
        self._senders.leave(deadline)
        if until != "delivered":
            self._wait(deadline, lambda: not self._unstored())
            left = self._unstored()
            return FlushReport(not left, stored=max(0, self._held() - left), pending=left)
        self._wait(deadline, lambda: self._held() == 0)
        left = self._held()
        return FlushReport(not left, stored=left, pending=left)

    def _wait(self, deadline: float, done: Callable[[], bool]) -> None:
        """Wait until `deadline`, the end, or until `done` says so, which is asked under the lock."""
        while True:
            self._senders.leave(deadline)
            try:
                with self._lock.rlock:
                    self._lock.run_deferred_locked()
                    left = deadline - self._clock()
                    if left <= 0 or self._books.state is WorkerState.CLOSED or done() or sys.is_finalizing():
                        return  # while the interpreter is finalized there is nobody to wait for
                    if not self._books.settled.wait(min(left, PULSE)):
                        self._queue.wake()  # the watcher was between its look at what is wanted and its claim
            except RuntimeError as error:
                let_through(error)  # see lock.py
                raise

    # -- ending ----------------------------------------------------------------------------------------

    def close(self, timeout: float) -> FlushReport:
        """Refuse submissions, wait up to `timeout` seconds for what is left, then end. Idempotent.

        The first call decides when the end comes; one that comes meanwhile waits for it, as long as its
        own `timeout` allows.
        """
        if self._books.state is WorkerState.CLOSED:
            return FlushReport(True)
        if self._lock.held():
            report = self.flush(0.0)
            self._finish(LossReason.CLOSED)
            return report
        deadline = self._clock() + timeout
        with self._lock.rlock:
            first = self._books.state < WorkerState.DRAINING
            self._books.state = max(self._books.state, WorkerState.DRAINING)
        try:
            report = self.flush(timeout)
        finally:
            if first:
                self._finish(LossReason.CLOSED)
        if not first and self.can_wait:
            self._wait(deadline, lambda: False)
        return report

    def end(self, seconds: float) -> int:
        """The process ends: wait up to `seconds` for what waits; how many envelopes are left behind.

        Captures are still taken, each delivered before its call returns. All these waits, and those of
        further calls, share the seconds of the first call.
        """
        if self._end_left is None:
            self._end_left = seconds
        if self._books.state is not WorkerState.CLOSED:
            self._wait_at_end(self._end_left)
        # What is stored is not left behind; what could only be held in memory is.
        return self._unstored() if self._queue.durable else self.pending

    def _wait_at_end(self, left: float) -> None:
        began = self._clock()
        self.flush(left)
        self._end_left = max(0.0, left - (self._clock() - began))

    def kill(self) -> None:
        """End now; what is left is counted. An attempt under way may still arrive, and is not counted so."""
        self._finish(LossReason.KILLED)

    def _finish(self, reason: LossReason) -> None:
        in_hand: list[Claim] = []

        def end() -> None:
            if self._books.state is not WorkerState.CLOSED:
                self._end_reason = reason
                self._lock.whole = False
                self._books.state = WorkerState.CLOSED
                in_hand.extend(self._dispatcher.end_locked(reason))
                self._lock.whole = True

        # What was captured before is left aside before `end` is, and counts like the rest.
        self._lock.run_deferred()
        self._locked(end)
        if self._shared:
            self._leave_queue(in_hand, reason)

    def _leave_queue(self, in_hand: list[Claim], reason: LossReason) -> None:
        """Give back what a shared queue keeps, end the claims from it, and count what it can't keep."""
        left: list[Claim] = []
        steps: tuple[Callable[[], object], ...] = (
            lambda: self._queue.release(in_hand),
            self._queue.wake,
            self._leave_losses,
            lambda: left.extend(self._queue.close()),
        )
        for step in steps:
            try:
                step()
            except Exception as error:
                let_through(error)
                log.error("a queue could not be left in order: %s", type(error).__name__)
        if left:
            self._locked(lambda: self._books.forget_stored(left, reason))

    def _leave_losses(self) -> None:
        """Counts that were not reported go to whoever drains next."""
        may_wait = self.can_wait
        deadline = self._clock() + PULSE
        with self._lock.rlock:
            while self._books.transfers_in_progress and may_wait and (left := deadline - self._clock()) > 0:
                self._books.settled.wait(left)
            report = self._books.take_untold()
        if report and not self._queue.put_losses(report, ending=True):
            self.give_back(report)

    # -- saying ----------------------------------------------------------------------------------------

    def is_alive(self) -> bool:
        """Whether a sender thread lives."""
        return self._senders.count > 0

    def full(self) -> bool:
        """Whether the next put has to sacrifice something."""
        stats = self._queue.stats()
        self._senders.leave(float("-inf"))
        return stats.waiting + stats.claimed >= stats.max_items or stats.size >= stats.max_bytes

    @property
    def pending(self) -> int:
        """Envelopes accepted and not settled, those left aside included."""
        pending = self._held() + len(self._lock.deferred)
        # A snapshot does not deliver, even when no thread can.
        self._senders.leave(float("-inf"))
        return pending

    def _held(self) -> int:
        stats = self._queue.stats()
        return stats.waiting + stats.claimed

    def _unstored(self) -> int:
        """Envelopes that a durable queue could not write yet, and holds in memory meanwhile."""
        return int(self._queue.describe().get("in_memory", 0))

    def facts(self) -> WorkerFacts:
        """A snapshot in which ledger and queue belong together; no I/O."""
        inside = self._lock.held()
        with self._lock.rlock:
            if not inside:
                self._lock.run_deferred_locked()
            facts = WorkerFacts(
                self._books.state,
                self._senders.count,
                self._queue.stats(),
                self._dispatcher.breaker,
                self._books.ledger.snapshot(),
                self._books.last_drop,
            )
        self._senders.leave(float("-inf"))
        return facts
