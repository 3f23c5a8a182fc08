"""The background worker: accepts envelopes, waits for their delivery, and closes.

This module owns the states of a worker (new, running, draining, closed) and the `StateLock` that guards it.
The counts are in `books.py`, delivery is in `dispatch.py`, the threads are in `senders.py`. It knows nothing
about HTTP (`http.py`) or any web framework (`integrations/`): it calls a function that delivers an envelope.

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
    Gate,
    Ticket,
    WorkerFacts,
    WorkerState,
)

__all__ = ["BackgroundWorker"]

#: Maximum seconds of one wait on a condition. Then the waiting thread checks for actions deferred while it
#: began to wait, and for a sender that died.
PULSE = 0.1


class BackgroundWorker:
    """Delivers envelopes on threads that the first submission starts.

    Args:
        queue: The queue of the envelopes.
        deliver: Called on a sender thread, without any lock held. If it raises, the envelope is discarded as
            `internal_sdk_error`, and the worker continues.
        options: Bounds and times.
        gate: Limits the rate of deliveries; None for no limit.
        clock: Returns monotonic seconds; the same clock as the queue's.
        draw: Returns a number in [0, 1) for the jitter.
    """

    def __init__(
        self,
        queue: Queue,
        deliver: Deliver,
        options: TransportOptions,
        *,
        gate: Gate | None = None,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._queue = queue
        self._shared = queue.shared
        self._options = options
        self._clock = clock
        # One `StateLock`: any thread reads and writes the books, the breaker, and a queue that is not shared,
        # but only while holding it. Deliveries and all calls of a shared queue happen without it. Each
        # critical section is followed by `_senders.leave()`, which runs the actions deferred during it.
        self._lock = StateLock() if queue.shared else queue.lock
        self._books = Books(self._lock, queue.shared, options, clock)
        if not queue.shared:
            self._lock.mend = self._mend_locked
        self._dispatcher = Dispatcher(
            queue, deliver, options, self._lock, self._books, clock, draw, gate=gate
        )
        self._senders = self._dispatcher.senders
        # While the process is ending: the seconds that all further waits may take together; None before.
        # A capture then waits for its own delivery, as no thread may be left to deliver later.
        self._end_budget: float | None = None
        # The queue's last id before the put of a deferred envelope; None otherwise. Guarded by `_lock`.
        self._last_id_before_put: int | None = None
        # The reason for which envelopes left at the end are discarded. Written, while holding `_lock`, before
        # the state becomes CLOSED.
        self._end_reason = LossReason.CLOSED

    # -- submitting ------------------------------------------------------------------------------------

    @property
    def on_own_thread(self) -> bool:
        """True if the calling thread is delivering: it must neither capture nor wait."""
        return self._senders.own

    @property
    def can_wait(self) -> bool:
        """True if the calling thread may wait: it is no sender and not inside a critical section."""
        return not (self._lock.held() or self._senders.own)

    @property
    def closing(self) -> bool:
        """True if captures are refused. Read without the lock, as it never becomes False again."""
        return self._books.state >= WorkerState.DRAINING

    def submit(self, sealed: SealedEnvelope) -> bool:
        """Return True if the envelope was accepted. Never raises for a full queue.

        Waits for a delivery only if no thread can start or the process is ending (`end`), and then no longer
        than `shutdown_timeout`. The `put` of a shared queue does I/O.
        """
        if self._senders.own:
            self.lose(LossReason.REENTRANT, sealed.quantities)
            return False
        sealed = self._queue.prepare(sealed)
        if self._shared:
            return self._submit_shared(sealed)
        if self._lock.held():
            return self._submit_deferred(sealed)
        try:
            with self._lock.rlock:
                accepted = self._admit_locked(sealed)
        finally:
            # Also if a signal handler raised: a put envelope needs a sender.
            self._senders.leave()
        if self._end_budget is not None:
            self._flush_at_end(self._end_budget)
        return accepted

    def _submit_deferred(self, sealed: SealedEnvelope) -> bool:
        """Accept an envelope on a thread that is inside a critical section; it is put after the section."""
        if self.closing:
            self.lose(LossReason.CLOSED, sealed.quantities)
            return False
        stats = self._queue.stats()
        if stats.waiting + stats.claimed + len(self._lock.deferred) >= stats.max_items:
            self.lose(LossReason.QUEUE_OVERFLOW, sealed.quantities)
            return False
        self._lock.defer(lambda: self._admit_deferred_locked(sealed))
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
        if not lock.consistent:
            lock.mend_locked()
        if self._books.state >= WorkerState.DRAINING:
            self._books.lose(LossReason.CLOSED, sealed.quantities)
            return False
        lock.consistent = False
        put = self._queue.put(sealed)
        self._books.count_put(sealed.quantities, put)
        lock.consistent = True
        return put.accepted

    def _admit_deferred_locked(self, sealed: SealedEnvelope) -> None:
        self._last_id_before_put = self._queue.stats().last_id
        self._admit_locked(sealed)
        self._last_id_before_put = None

    def _mend_locked(self) -> None:
        """Complete a critical section that a signal handler ended by raising."""
        if self._last_id_before_put is not None:
            was_put = self._queue.stats().last_id > self._last_id_before_put
            actions = self._lock.deferred
            # One step, so that the envelope is not put again.
            self._last_id_before_put = None
            if was_put:
                del actions[0]
        closed = self._books.state is WorkerState.CLOSED
        pending, given_up = self._queue.mend()
        self._books.give_up(given_up, self._end_reason if closed else LossReason.QUEUE_OVERFLOW)
        self._books.mend(pending)
        if closed:
            self._dispatcher.end_locked(self._end_reason)

    def lose(self, reason: LossReason, quantities: Pairs) -> None:
        """Count items that were lost before they were submitted."""
        self._locked(lambda: self._books.lose(reason, quantities))

    def _locked(self, action: Callable[[], object]) -> None:
        """Run `action` while holding the lock: now, or after the critical section this thread is in."""
        if self._lock.held():
            self._lock.defer(action)
            return
        with self._lock.rlock:
            if not self._lock.consistent:
                self._lock.mend_locked()
            action()
        self._senders.leave()

    def start(self) -> None:
        """Start a sender if the state is NEW: a durable queue may contain envelopes of an earlier process."""
        if self._lock.held():
            return  # inside a critical section no thread is started; the first capture does it
        with self._lock.rlock:
            new = self._books.state is WorkerState.NEW
            if new:
                self._books.state = WorkerState.RUNNING
        if new:
            self._senders.start()
        self._senders.leave()

    # -- client reports --------------------------------------------------------------------------------

    @property
    def unreported(self) -> bool:
        """True if there are losses to report. Read without the lock."""
        return self._books.unreported

    def take_report(self, *, alone: bool) -> Report:
        """Return the losses for the request that the calling thread sends; empty after a recent report.

        Args:
            alone: True for a request without an envelope, which is sent only when a report is due.
        """
        with self._lock.rlock:
            report = self._books.attach_report(alone=alone)
        self._senders.leave()
        return report

    def give_back(self, report: Report) -> None:
        """Count the losses of `report` as unreported again: its request got no final answer."""
        self._locked(lambda: self._books.give_back(report))

    def want_report(self) -> None:
        """Have the known losses reported as soon as possible, if the breaker is closed. Does not wait."""
        self._dispatcher.request_report()

    @property
    def reporting(self) -> bool:
        """True if a report is requested or under way, or losses are in transfer. Read without the lock."""
        books = self._books
        return books.report_wanted or books.reporting or books.transfers_in_progress > 0

    # -- waiting ---------------------------------------------------------------------------------------

    def flush(self, timeout: float, until: str = "settled") -> FlushReport:
        """Wait up to `timeout` seconds for the envelopes accepted before the call.

        Returns immediately on a sender thread and on a thread inside a critical section: each would wait for
        itself.

        Args:
            timeout: Seconds.
            until: `settled`, or `delivered`, which differs for a shared queue: there `settled` means stored.
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
            if ticket.remaining <= 0 and books.unreported:
                self._dispatcher.request_report()  # of what was lost during this call
                self._wait(deadline, lambda: not self.reporting)
        finally:
            with self._lock.rlock:
                if ticket in books.tickets:
                    books.tickets.remove(ticket)
            self._senders.leave(deadline)
        remaining = max(ticket.remaining, 0)
        return FlushReport(not remaining, ticket.delivered, ticket.discarded, pending=remaining)

    def _flush_shared(self, deadline: float, until: str) -> FlushReport:
        """Wait until all envelopes are stored, or with `delivered` until the shared queue is empty."""
        # Counts what this process settles during the call; the ids of a shared queue have no order.
        ticket = Ticket(last=sys.maxsize, remaining=sys.maxsize)
        try:
            with self._lock.rlock:
                self._lock.run_deferred_locked()
                if self._books.state is WorkerState.NEW and self._queued():
                    self._books.state = (
                        WorkerState.RUNNING
                    )  # a sender must claim an earlier process's backlog
                self._books.tickets.append(ticket)
                self._dispatcher.retry_now_locked()
            self._senders.leave(deadline)
            self._dispatcher.request_report()
            if until != "delivered":
                self._wait(deadline, lambda: not self._unstored() and not self.reporting)
                queued, unstored = self._queued(), self._unstored()
                stored = max(0, queued - unstored)
                return FlushReport(
                    not unstored, ticket.delivered, ticket.discarded, stored=stored, pending=unstored
                )
            self._wait(deadline, lambda: self._queued() == 0)
            self._dispatcher.request_report()  # of what was given up meanwhile
            self._wait(deadline, lambda: not self.reporting)
        finally:
            with self._lock.rlock:
                if ticket in self._books.tickets:
                    self._books.tickets.remove(ticket)
        queued = self._queued()
        return FlushReport(not queued, ticket.delivered, ticket.discarded, stored=queued, pending=queued)

    def _wait(self, deadline: float, done: Callable[[], bool]) -> None:
        """Wait until `deadline`, or until the worker is closed or `done` returns True.

        `done` is called while holding the lock.
        """
        while True:
            self._senders.leave(deadline)
            try:
                with self._lock.rlock:
                    self._lock.run_deferred_locked()
                    rest = deadline - self._clock()
                    if rest <= 0 or self._books.state is WorkerState.CLOSED or done() or sys.is_finalizing():
                        return  # while the interpreter is finalized, no other thread runs
                    if not self._books.settled.wait(min(rest, PULSE)):
                        self._queue.wake()  # the watcher may have checked for a report before the request
            except RuntimeError as error:
                let_through(error)  # see "Limits" in runtime/lock.py
                raise

    # -- closing ---------------------------------------------------------------------------------------

    def close(self, timeout: float) -> FlushReport:
        """Refuse submissions, wait up to `timeout` seconds for pending envelopes, then close. Idempotent.

        The first call closes the worker after its `timeout` at the latest. A concurrent call waits for that,
        up to its own `timeout`.
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
        """Flush at the end of the process; return the number of envelopes that will be lost.

        Later captures are accepted, and each call waits for its delivery. All these waits, and those of
        further calls, share the `seconds` of the first call.
        """
        if self._end_budget is None:
            self._end_budget = seconds
        if self._books.state is not WorkerState.CLOSED:
            self._flush_at_end(self._end_budget)
        # Envelopes stored by a durable queue are not lost; those it holds only in memory are.
        return self._unstored() if self._queue.durable else self.pending

    def _flush_at_end(self, budget: float) -> None:
        began = self._clock()
        self.flush(budget)
        self._end_budget = max(0.0, budget - (self._clock() - began))

    def kill(self) -> None:
        """Close now, and count pending envelopes as discarded, even if an attempt under way succeeds."""
        self._finish(LossReason.KILLED)

    def _finish(self, reason: LossReason) -> None:
        claims: list[Claim] = []

        def end() -> None:
            if self._books.state is not WorkerState.CLOSED:
                self._end_reason = reason
                self._lock.consistent = False
                self._books.state = WorkerState.CLOSED
                claims.extend(self._dispatcher.end_locked(reason))
                self._lock.consistent = True

        # Envelopes that were deferred before `end` are put first, and are counted like the others.
        self._lock.run_deferred()
        self._locked(end)
        if self._shared:
            self._close_shared(claims, reason)

    def _close_shared(self, claims: list[Claim], reason: LossReason) -> None:
        """Release the claims from a shared queue, close it, and count the envelopes it could not store."""
        unstored: list[Claim] = []
        steps: tuple[Callable[[], object], ...] = (
            lambda: self._queue.release(claims),
            self._queue.wake,
            self._leave_losses,
            lambda: unstored.extend(self._queue.close()),
        )
        for step in steps:
            try:
                step()
            except Exception as error:
                let_through(error)
                log.error("a queue could not be left in order: %s", type(error).__name__)
        given_up = self._queue.take_given_up()
        if given_up:
            self._locked(lambda: self._books.give_up_stored(given_up))
        if unstored:
            self._locked(lambda: self._books.forget_stored(unstored, reason))

    def _leave_losses(self) -> None:
        """Put the unreported losses into the shared queue, for the process that drains next."""
        may_wait = self.can_wait
        deadline = self._clock() + PULSE
        with self._lock.rlock:
            while self._books.transfers_in_progress and may_wait and (rest := deadline - self._clock()) > 0:
                self._books.settled.wait(rest)
            report = self._books.take_unreported()
        if report and not self._queue.put_losses(report, ending=True):
            self.give_back(report)

    # -- snapshots -------------------------------------------------------------------------------------

    def is_alive(self) -> bool:
        """Return True if there is a sender thread."""
        return self._senders.count > 0

    def full(self) -> bool:
        """Return True if the next put has to evict an envelope."""
        stats = self._queue.stats()
        self._senders.leave(float("-inf"))
        return stats.waiting + stats.claimed >= stats.max_items or stats.size >= stats.max_bytes

    @property
    def pending(self) -> int:
        """The number of envelopes accepted and not settled, deferred ones included."""
        pending = self._queued() + len(self._lock.deferred)
        # A deadline in the past, so that a snapshot never delivers, even if no thread can.
        self._senders.leave(float("-inf"))
        return pending

    def _queued(self) -> int:
        stats = self._queue.stats()
        return stats.waiting + stats.claimed

    def _unstored(self) -> int:
        """Return the number of envelopes that a durable queue holds in memory until it can write them."""
        return int(self._queue.describe().get("in_memory", 0))

    def facts(self) -> WorkerFacts:
        """Return a snapshot in which ledger and queue are consistent. Does no I/O."""
        reentrant = self._lock.held()
        with self._lock.rlock:
            if not reentrant:
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
