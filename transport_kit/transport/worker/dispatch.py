"""The dispatcher: claims envelopes when the breaker permits, delivers them, and settles the results.

This module owns the breaker and the claims that senders are delivering. The counts and the report schedule
are in `books.py`, the number of threads is decided in `senders.py`.

Threads: `watch` and `perform` run on sender threads; `stranded` runs in a caller when no thread can start.
Methods whose names end in `_locked` are called while holding the worker's `StateLock`.
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
from transport_kit.transport.worker.outcome import Deliver, Gate, Outcome, WorkerState
from transport_kit.transport.worker.refusals import FAULT, Refusals
from transport_kit.transport.worker.retry import Backoff, CircuitBreaker
from transport_kit.transport.worker.senders import Senders

__all__ = ["Dispatcher"]

#: Minimum seconds between two early retries, so that calling flush in a loop does not bypass the back-off.
EARLY_RETRY_INTERVAL = 1.0
#: Maximum seconds of one wait at the breaker.
LONGEST_PAUSE = 60.0
#: Seconds between two claims of nothing from a shared queue while the breaker permits no attempt.
SHARED_CLAIM_INTERVAL = 0.5
#: Seconds to wait after a claim that raised.
CLAIM_AGAIN = 1.0


class _Report(enum.Enum):
    """The task of sending a client report without an envelope."""

    DUE = enum.auto()


_Task = Claim | _Report


class Dispatcher:
    """The work of a worker's senders: an implementation of `senders.Work`.

    Args:
        queue: The queue to claim from.
        deliver: Called without any lock held. If it raises, the envelope is discarded as
            `internal_sdk_error`, and the sender continues.
        options: The worker's options.
        lock: Guards `books`, this object's state, and the queue unless it is shared.
        books: The worker's counts.
        clock: Returns monotonic seconds; the same clock as the queue's.
        draw: Returns a number in [0, 1) for the jitter.
        gate: Limits the rate at which deliveries begin; None for no limit.
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
        *,
        gate: Gate | None = None,
    ) -> None:
        self._queue = queue
        self._deliver = deliver
        self._options = options
        self._lock = lock
        self._books = books
        self._clock = clock
        self._draw = draw
        self._admission = gate
        self._backoff = Backoff(options.backoff_base, options.backoff_max)
        self.senders: Senders[_Task] = Senders(lock, options.max_senders, self)
        # Any thread reads and writes these five, but only while holding `lock`.
        self.breaker = CircuitBreaker(self._backoff)
        # Notified when the breaker changes, when a caller wants an early retry, and when the worker closes.
        self._gate = threading.Condition(lock.rlock)
        self._refusals = Refusals()
        # The claims being delivered, by id. A claim is settled by whichever thread removes it.
        self._claims: dict[int, Claim] = {}
        self._last_early_retry = float("-inf")
        # True after the first exception was logged. Not guarded: a race costs one more log line.
        self._failure_logged = False

    # -- looking for work ------------------------------------------------------------------------------

    def needed_locked(self) -> bool:
        """Return True if a sender must watch: an envelope waits, even for a later retry, or a report does."""
        books = self._books
        if books.state is WorkerState.NEW or books.state is WorkerState.CLOSED:
            return False
        return self._queue.shared or books.report_wanted or self._queue.stats().waiting > 0

    def watch(self) -> _Task | None:
        """Wait for an envelope or a report whose attempt may begin; return None once the worker is closed."""
        books = self._books
        while True:
            with self._lock.rlock:
                self._lock.run_deferred_locked()
                if books.state is WorkerState.CLOSED:
                    return None
                now = self._clock()
                permitted = self.breaker.permits(now)
                if not permitted:
                    # The end of the probe, a flush and `end_locked` notify the gate.
                    probing = self.breaker.state == "probing"
                    pause = LONGEST_PAUSE if probing else self.breaker.next_probe - now
                    longest = SHARED_CLAIM_INTERVAL if self._queue.shared else LONGEST_PAUSE
                    self._gate.wait(min(max(pause, 0.001), longest))
                    if not self._queue.shared:
                        continue
                due = permitted and books.report_due(now)
                patience = 0.0 if due or not permitted else books.until_due(now)
                held = self._hold_seconds() if permitted else 0.0
                if held > 0:
                    patience = min(patience, held)
                    if not due and not self._queue.shared:
                        self._gate.wait(min(patience, LONGEST_PAUSE))
                        continue
            try:
                if due and self._queue.shared:
                    due = not self._leave_losses()
                # Also while the breaker or the gate holds: a shared queue enforces its bounds and runs its
                # election inside `claim`.
                claims = self._queue.claim(1 if permitted and held <= 0 else 0, patience)
                if self._queue.shared:
                    self._take_losses()
            except Exception as error:
                log.error("a claim failed: %s", type(error).__name__)
                self._pause(CLAIM_AGAIN)
                continue
            for claim in claims:
                if self._begin(claim):
                    return claim
            # A report is attached to an envelope's request, and is sent alone only without one.
            if due and not claims and self._begin_report():
                return _Report.DUE

    def _leave_losses(self) -> bool:
        """Hand this process's losses to the process that drains; return False if that is this process."""
        with self._lock.rlock:
            self._books.transfers_in_progress += 1
            report = self._books.take_report(alone=True)
        stored = False
        try:
            stored = self._queue.put_losses(report)
        finally:
            with self._lock.rlock:
                self._end_transfer_locked()
                if stored:
                    self._books.end_report(self._clock())
                else:
                    self._books.ledger.give_back(report)
                    self._books.report_wanted = True
        return stored

    def _take_losses(self) -> None:
        """Move the losses of a shared queue, and those other processes left in it, into the ledger."""
        with self._lock.rlock:
            if self._books.state is WorkerState.CLOSED:
                return
            self._books.transfers_in_progress += 1
        report: Report = ()
        given_up: Report = ()
        try:
            given_up = self._queue.take_given_up()
            report = self._queue.take_losses()
        finally:
            with self._lock.rlock:
                self._end_transfer_locked()
                self._books.give_up_stored(given_up)
                self._books.ledger.give_back(report)

    def request_report(self) -> None:
        """Have the known losses reported as soon as a sender is free, if the breaker is closed."""
        if self._queue.shared:
            self._take_losses()
        with self._lock.rlock:
            self._books.report_wanted = self._books.unreported and self.breaker.state == "closed"
            self._queue.wake()
        self.senders.leave()

    def _end_transfer_locked(self) -> None:
        self._books.transfers_in_progress -= 1
        self._books.settled.notify_all()

    def _pause(self, seconds: float) -> None:
        """Wait `seconds`, or until the gate is notified."""
        with self._lock.rlock:
            if self._books.state is not WorkerState.CLOSED:
                self._gate.wait(seconds)

    def _begin(self, claim: Claim) -> bool:
        """Begin an attempt; if the worker closed or the breaker opened, release the claim, return False."""
        with self._lock.rlock:
            if self._is_admitted_locked() and self._may_begin_locked():
                self._claims[claim.id] = claim
                if self._queue.shared:
                    self._books.ledger.claim(claim.sealed.quantities)
                return True
        self._queue.release([claim])
        return False

    def _hold_seconds(self) -> float:
        """Return the seconds for which the gate permits no claim; 0 or less for none."""
        return 0.0 if self._admission is None else self._admission.wait()

    def _is_admitted_locked(self) -> bool:
        """Count a claim at the gate if it may begin otherwise; return False if it may not."""
        gate = self._admission
        return gate is None or (self.breaker.permits(self._clock()) and gate.admit())

    def _begin_report(self) -> bool:
        with self._lock.rlock:
            self._books.reporting = permitted = self._may_begin_locked()
            return permitted

    def _may_begin_locked(self) -> bool:
        """Return True if an attempt may begin now, and record its beginning in the breaker."""
        now = self._clock()
        if self._books.state is WorkerState.CLOSED or not self.breaker.permits(now):
            return False
        self.breaker = self.breaker.began(now)
        return True

    # -- delivery --------------------------------------------------------------------------------------

    def perform(self, task: _Task) -> None:
        """Deliver one envelope or report and settle it; never raises."""
        failure = self._perform(task, self._options.request_timeout)
        if failure is not None and not self._failure_logged:
            self._failure_logged = True
            log.error(
                "an envelope could not be delivered and was discarded: %s; further ones are only counted",
                type(failure).__name__,
            )

    def _perform(self, task: _Task, timeout: float) -> BaseException | None:
        """Deliver and settle one task within `timeout` seconds; return the exception of `deliver`, if any."""
        began = self._clock()
        failure = None
        try:
            outcome = self._deliver(None if isinstance(task, _Report) else task.sealed, timeout)
        except BaseException as error:
            failure = error
            outcome = Outcome(LossReason.INTERNAL_SDK_ERROR, answered=None)
        if isinstance(task, _Report):
            with self._lock.rlock:
                self._books.end_request()
                now = self._clock()
                self._update_breaker_locked(outcome, began, now)
                self._books.end_report(now)
        else:
            self._settle(task, outcome, began)
        self.senders.leave()
        return failure

    def stranded(self, deadline: float | None) -> None:
        """Deliver in the calling thread until nothing is due, the breaker opens, or `deadline` is reached.

        Without a deadline, for `shutdown_timeout` seconds.

        Raises:
            BaseException: From `deliver`, if it is no `Exception` or comes from the app's signal handler.
        """
        if self.senders.own:
            return  # a sender that is ending, or a capture made by a delivery in the caller
        limit = self._clock() + self._options.shutdown_timeout
        if deadline is not None:
            limit = min(limit, deadline)
        self.senders.act(True)
        try:
            while (timeout := limit - self._clock()) > 0 and self._books.state is not WorkerState.CLOSED:
                task = self._begin_next()
                if task is None:
                    return
                failure = self._perform(task, timeout)
                if failure is not None:
                    if not isinstance(failure, Exception):
                        raise failure  # KeyboardInterrupt or SystemExit of the calling thread
                    let_through(failure)
        finally:
            self.senders.act(False)

    def _begin_next(self) -> _Task | None:
        """Begin the next due task without waiting; a report only if no envelope is due."""
        with self._lock.rlock:
            now = self._clock()
            if not self.breaker.permits(now):
                return None
            due = not self._queue.shared and self._books.report_due(now)
        claims = self._queue.claim(1 if self._hold_seconds() <= 0 else 0, 0.0)
        if claims:
            return claims[0] if self._begin(claims[0]) else None
        return _Report.DUE if due and self._begin_report() else None

    # -- settling --------------------------------------------------------------------------------------

    def _settle(self, claim: Claim, outcome: Outcome, began: float) -> None:
        """Count the outcome of a delivery and return the claim to the queue, or end it.

        Does nothing if the worker closed meanwhile and counted the claim.
        """
        shared = self._queue.shared
        retry_at: float | None = None
        with self._lock.rlock:
            self._books.end_request()
            if self._claims.pop(claim.id, None) is None:
                return
            now = self._clock()
            outcome = self._judge_locked(claim, outcome)
            self._update_breaker_locked(outcome, began, now)
            # A durable queue enforces its own bounds, a maximum age among them.
            retryable = self._queue.durable or now - claim.put_at < self._options.retry_window
            if outcome.again and retryable:
                delay = self._backoff.delay(claim.attempts + 1, self._draw())
                retry_at = max(now + delay, outcome.not_before)
                if shared:
                    self._books.ledger.give_up_claim(claim.sealed.quantities)
            else:
                self._books.settle(claim, outcome)
            if not shared:
                self._end_claim(claim, outcome, retry_at)
        if shared:
            try:
                self._end_claim(claim, outcome, retry_at)
            except Exception as error:
                # The lease expires and the envelope is delivered again: the queue could not write that it
                # was settled.
                log.error("an envelope could not be settled: %s", type(error).__name__)

    def _judge_locked(self, claim: Claim, outcome: Outcome) -> Outcome:
        """Return the outcome to act on, which depends on the refusals of other envelopes."""
        claim.faults += outcome.refusal == FAULT
        self._refusals = self._refusals.after(outcome, claim.id)
        return self._refusals.judge(outcome, claim.faults)

    def _end_claim(self, claim: Claim, outcome: Outcome, retry_at: float | None) -> None:
        if retry_at is not None:
            self._queue.release([claim], retry_at)
        elif outcome.reason is LossReason.INTERNAL_SDK_ERROR or (outcome.reason and outcome.refusal == FAULT):
            self._queue.bury(claim, outcome.reason)
        else:
            self._queue.ack([claim])

    def _update_breaker_locked(self, outcome: Outcome, began: float, now: float) -> None:
        """Update the breaker with the outcome of an attempt, and wake the threads that wait at the gate."""
        before = self.breaker
        if outcome.answered:
            self.breaker = before.succeeded(now)
        elif outcome.answered is not None:
            self.breaker = before.failed(now, began=began, draw=self._draw(), not_before=outcome.not_before)
        elif before.probe_began is not None and began >= before.probe_began:
            # The receiver was not asked. Only the end of the probe permits another one, not the end of an
            # older attempt.
            self.breaker = before.gave_up(now)
        if before.state != "closed":
            self._gate.notify_all()

    # -- flush and close -------------------------------------------------------------------------------

    def retry_now_locked(self) -> None:
        """Permit the retries and the breaker's next probe now, at most once per `EARLY_RETRY_INTERVAL`."""
        now = self._clock()
        early = now - self._last_early_retry >= EARLY_RETRY_INTERVAL
        if early:
            self._last_early_retry = now
            self.breaker = self.breaker.hastened(now)
        self._queue.wake(hasten=early)
        self._gate.notify_all()

    def end_locked(self, reason: LossReason) -> Iterable[Claim]:
        """End all deliveries, and count the envelopes left in memory as discarded for `reason`.

        Returns:
            The claims that were being delivered. The caller releases those of a shared queue.
        """
        claims = tuple(self._claims.values())
        self._claims.clear()
        if self._queue.shared:
            for claim in claims:
                self._books.ledger.give_up_claim(claim.sealed.quantities)
        else:
            self._books.give_up(self._queue.close(), reason)
        self._gate.notify_all()
        self._books.settled.notify_all()
        return claims
