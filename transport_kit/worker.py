"""The worker: claims from a queue, delivers, settles.

Owns its sender threads, the life of a queue (new, running, draining, closed) and the ledger. Knows
nothing about HTTP (`http.py`) nor about any web framework (`integrations/`): what delivers is a function.

Threads: every public method may be called from any thread, from a signal handler and from `__del__`.
`_run` and what it calls are the only code that executes on a sender thread. One sender watches the
queue, the others deliver; whoever takes an envelope hands the watch on before it begins to deliver.
"""

from __future__ import annotations

import _thread
import enum
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from transport_kit.ledger import Ledger, LedgerSnapshot, LossReason, Quantities, Report
from transport_kit.log import log
from transport_kit.options import TransportOptions
from transport_kit.queue import Claim, Put, Queue, QueueStats
from transport_kit.retry import Backoff, CircuitBreaker
from transport_kit.sealing import SealedEnvelope
from transport_kit.statelock import StateLock
from transport_kit.transport import FlushReport

__all__ = ["BackgroundWorker", "Deliver", "Outcome", "WorkerFacts", "WorkerState"]

#: Seconds a sender stays when nobody needs it; one always stays.
LINGER = 1.0
#: Seconds between two flushes that may bring a probe forward: flushing in a loop is no back door.
HASTEN_EVERY = 1.0
#: Losses the app asked for; all others are a reason to look at the health page.
_WANTED_LOSSES = frozenset(
    {
        LossReason.SAMPLE_RATE,
        LossReason.BACKPRESSURE,
        LossReason.BEFORE_SEND,
        LossReason.EVENT_PROCESSOR,
        LossReason.IGNORED,
        LossReason.CLOSED,
        LossReason.KILLED,
    }
)


class WorkerState(enum.IntEnum):
    """A worker's life. It only moves forward; CLOSED is final."""

    NEW = 0
    RUNNING = 1
    DRAINING = 2
    CLOSED = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one delivery came to. Whatever of the envelope is not in `lost` shares its fate.

    Attributes:
        reason: None: delivered. Otherwise discarded for it, or with `again` given up for it at last.
        again: Whether the envelope is kept and tried again.
        lost: What was left out before sending, and why; counted once, when the envelope is settled.
        not_before: With `again`: monotonic seconds the receiver asked us to wait for.
        answered: Whether the receiver gave a sign of life; None when it was not asked.
        server_fault: Whether the answer was a 5xx: a client report that went along is kept.
    """

    reason: LossReason | None = None
    again: bool = False
    lost: tuple[tuple[LossReason, Quantities], ...] = ()
    not_before: float = 0.0
    answered: bool | None = True
    server_fault: bool = False

    @classmethod
    def retry(cls, reason: LossReason, not_before: float = 0.0) -> Self:
        """Not delivered, and worth another attempt; `reason` counts if there can't be one."""
        return cls(reason, again=True, not_before=not_before, answered=False)

    def with_lost(self, reason: LossReason, quantities: Quantities) -> Outcome:
        """The same, and `quantities` were left out for `reason`."""
        return replace(self, lost=(*self.lost, (reason, quantities)))


#: Delivers one envelope within so many seconds; None for the envelope means: only a client report.
Deliver = Callable[[SealedEnvelope | None, float], Outcome]


class WorkerFacts(NamedTuple):
    """A snapshot of a worker; times are monotonic seconds."""

    state: WorkerState
    senders: int
    queue: QueueStats
    aside: int
    breaker: CircuitBreaker
    totals: LedgerSnapshot
    last_drop: float | None


@dataclass(slots=True, eq=False)
class _Ticket:
    """What a flush waits for: the envelopes put until `at` that are not settled yet."""

    at: float
    remaining: int
    delivered: int = 0
    discarded: int = 0


class _Report(enum.Enum):
    """The task of a sender that has nothing to deliver but a client report."""

    DUE = enum.auto()


class BackgroundWorker:
    """Delivers what is submitted, on threads that the first submission starts.

    Args:
        queue: Where envelopes wait.
        deliver: Called on a sender thread, without any lock held. An exception is poison: the envelope
            is discarded as `internal_sdk_error`, and the worker goes on.
        options: Bounds and times.
        clock: Monotonic seconds.
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
        self._deliver = deliver
        self._options = options
        self._clock = clock
        self._draw = draw
        # Looked up here and not at import: a monkey-patch may have come between.
        self._start_thread = _thread.start_new_thread
        self._own = threading.local()
        self._backoff = Backoff(options.backoff_base, max(options.backoff_max, options.backoff_base))

        # One lock: everything below, and a queue that is not shared, is read and written only while
        # holding it. Deliveries, and the puts and claims of a shared queue, happen without it.
        self._lock = StateLock() if queue.shared else queue.lock
        self._ledger = Ledger()
        self._state = WorkerState.NEW
        self._breaker = CircuitBreaker(self._backoff)
        self._senders = 0
        # A thread was counted in `_senders` and has not begun yet.
        self._arriving = 0
        # Exactly one sender watches the queue, or none. While all senders deliver, none does.
        self._watching = False
        self._followers = 0
        self._in_hand: dict[int, Claim] = {}
        self._tickets: list[_Ticket] = []
        # A flush wants the losses reported now; `_reporting` while that request is under way.
        self._report_wanted = False
        self._reporting = False
        self._last_report = clock()
        self._last_hastened = float("-inf")
        self._last_drop: float | None = None
        # Set when the process is ending: seconds of waiting that the end may still cost. From then on a
        # capture waits for its own delivery, as no thread may be left to do it later.
        self._end_left: float | None = None
        self._poisoned = False
        self._follow = threading.Condition(self._lock.rlock)  # the watch is free
        self._gate = threading.Condition(self._lock.rlock)  # the breaker changed
        self._settled = threading.Condition(self._lock.rlock)  # a ticket or a report is done

    # -- submitting ------------------------------------------------------------------------------------

    @property
    def on_own_thread(self) -> bool:
        """Whether the calling thread is delivering: it must neither capture nor wait."""
        return getattr(self._own, "delivering", False)

    @property
    def closing(self) -> bool:
        """Whether captures are refused; may be asked without the lock, as it never becomes false again."""
        return self._state >= WorkerState.DRAINING

    def submit(self, sealed: SealedEnvelope) -> bool:
        """Take an envelope; True when accepted. Never blocks on a delivery, never raises for a full queue."""
        if self.on_own_thread:
            self.lose(LossReason.REENTRANT, sealed.quantities)
            return False
        sealed = self._queue.prepare(sealed)
        if self._queue.shared:
            return self._submit_shared(sealed)
        if self._lock.held():
            return self._submit_aside(sealed)
        with self._lock.rlock:
            accepted = self._admit_locked(sealed)
        self._leave()
        if self._end_left is not None:
            self._wait_at_end(self._end_left)
        return accepted

    def _submit_aside(self, sealed: SealedEnvelope) -> bool:
        """This thread is inside a critical section, and was interrupted: the section's end takes it in."""
        if self.closing:
            self.lose(LossReason.CLOSED, sealed.quantities)
            return False
        stats = self._queue.stats()
        if stats.waiting + stats.claimed + len(self._lock.aside) >= stats.max_items:
            self.lose(LossReason.QUEUE_OVERFLOW, sealed.quantities)
            return False
        self._lock.later(lambda: self._admit_locked(sealed))
        return True

    def _submit_shared(self, sealed: SealedEnvelope) -> bool:
        if self.closing:
            self.lose(LossReason.CLOSED, sealed.quantities)
            return False
        put = self._queue.put(sealed)

        def count() -> None:
            self._count_put_locked(sealed, put)
            if put.accepted:
                self._ledger.store(sealed.quantities)

        self._locked(count)
        return put.accepted

    def _admit_locked(self, sealed: SealedEnvelope) -> bool:
        if self._state >= WorkerState.DRAINING:
            self._ledger.lose(LossReason.CLOSED, sealed.quantities)
            return False
        put = self._queue.put(sealed)
        self._count_put_locked(sealed, put)
        return put.accepted

    def _count_put_locked(self, sealed: SealedEnvelope, put: Put) -> None:
        if self._state is WorkerState.NEW:
            self._state = WorkerState.RUNNING
        for claim in put.evicted:
            self._discard_locked(LossReason.QUEUE_OVERFLOW, claim.sealed.quantities)
            self._tick_locked(claim, delivered=False)
        if put.accepted:
            self._ledger.capture(sealed.quantities)
        else:
            self._lose_locked(LossReason.QUEUE_OVERFLOW, sealed.quantities)

    def lose(self, reason: LossReason, quantities: Quantities) -> None:
        """Count what was lost before it was submitted."""
        self._locked(lambda: self._lose_locked(reason, quantities))

    def _locked(self, action: Callable[[], object]) -> None:
        """Run `action` under the lock: now, or when this thread's interrupted critical section ends."""
        if self._lock.held():
            self._lock.later(action)
            return
        with self._lock.rlock:
            action()
        self._leave()

    def _lose_locked(self, reason: LossReason, quantities: Quantities) -> None:
        self._ledger.lose(reason, quantities)
        self._note_drop_locked(reason)

    def _note_drop_locked(self, reason: LossReason) -> None:
        if reason not in _WANTED_LOSSES:
            self._last_drop = self._clock()

    def full(self) -> bool:
        """Whether the next put has to sacrifice something."""
        stats = self._queue.stats()
        return stats.waiting + stats.claimed >= stats.max_items or stats.size >= stats.max_bytes

    # -- starting --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin delivering now: a durable queue may hold a backlog from before. No-op unless NEW."""
        if self._lock.held():
            return  # interrupted inside a critical section: the first capture starts it
        with self._lock.rlock:
            if self._state is WorkerState.NEW:
                self._state = WorkerState.RUNNING
                # Nothing waits yet in memory, so nobody would be missing: a backlog has to be looked for.
                spawn = self._claim_slot_locked(idle=True)
            else:
                spawn = False
        if spawn:
            self._spawn(float("inf"))

    def is_alive(self) -> bool:
        """Whether a sender thread lives."""
        return self._senders > 0

    def _leave(self, deadline: float | None = None) -> None:
        """After each critical section: take in what was left aside, and see that someone is watching."""
        self._lock.drain()
        if self._watching or self._followers or self._arriving or self._lock.held():
            return  # read without the lock: whoever changes these looks again after itself
        with self._lock.rlock:
            spawn = self._claim_slot_locked()
        if spawn:
            self._spawn(deadline)

    def _claim_slot_locked(self, *, idle: bool = False) -> bool:
        """Whether the caller must spawn a sender, for which a slot is then taken."""
        if self._watching or self._followers or self._arriving:
            return False
        if self._state not in (WorkerState.RUNNING, WorkerState.DRAINING):
            return False
        if self._senders >= self._options.max_senders:
            return False
        if not idle and not self._queue.shared:
            stats = self._queue.stats()
            if not stats.waiting and not self._report_wanted:
                return False
        self._senders += 1
        self._arriving += 1
        return True

    def _spawn(self, deadline: float | None = None) -> None:
        # Not threading.Thread: its start takes a lock of the threading module that an interrupted
        # thread may hold, and waits for the new thread; a signal handler must do neither.
        try:
            self._start_thread(self._run, ())
        except RuntimeError:
            with self._lock.rlock:
                self._senders -= 1
                self._arriving -= 1
                alone = self._senders == 0
            self._lock.drain()
            if alone:
                # The interpreter is ending, or the host is out of threads: deliver in the caller.
                limit = self._clock() + self._options.shutdown_timeout
                self._deliver_here(limit if deadline is None else min(deadline, limit))

    # -- sender threads --------------------------------------------------------------------------------

    def _run(self) -> None:
        self._own.delivering = True
        # A thread of ours obeys threading.settrace and setprofile like any other.
        if threading.gettrace() is not None:
            sys.settrace(threading.gettrace())
        if threading.getprofile() is not None:
            sys.setprofile(threading.getprofile())
        with self._lock.rlock:
            self._arriving -= 1
        try:
            while True:
                try:
                    task = self._next()
                except Exception as error:
                    # A queue that fails to be claimed from: nothing is lost, look again later.
                    log.error("a claim failed: %s", type(error).__name__)
                    with self._lock.rlock:
                        self._gate.wait(LINGER)
                    continue
                if task is None:
                    return
                self._perform(task, self._options.request_timeout)
        finally:
            with self._lock.rlock:
                self._senders -= 1
            self._leave()

    def _next(self) -> Claim | _Report | None:
        """The next task; None when this sender is no longer needed."""
        with self._lock.rlock:
            self._followers += 1
            try:
                while self._watching:
                    if self._state is WorkerState.CLOSED:
                        return None
                    if not self._follow.wait(LINGER) and self._watching:
                        return None
            finally:
                self._followers -= 1
            if self._state is WorkerState.CLOSED:
                return None
            self._watching = True
        try:
            return self._watch()
        finally:
            with self._lock.rlock:
                self._watching = False
                self._follow.notify()
            self._leave()

    def _watch(self) -> Claim | _Report | None:
        while True:
            with self._lock.rlock:
                self._lock.drain_locked()
                if self._state is WorkerState.CLOSED:
                    return None
                now = self._clock()
                if not self._breaker.permits(now):
                    # A probe's outcome, a flush and the end notify; otherwise the next probe's time comes.
                    probing = self._breaker.state == "probing"
                    pause = self._options.request_timeout if probing else self._breaker.next_probe - now
                    self._gate.wait(max(pause, 0.001))
                    continue
                if self._report_due_locked(now):
                    self._reporting = True
                    self._breaker = self._breaker.began(now)
                    return _Report.DUE
                timeout = self._options.client_report_interval
                if self._ledger.unreported:
                    timeout = max(0.05, self._last_report + timeout - now)
            for claim in self._queue.claim(1, timeout):
                if self._take_locked_in(claim):
                    return claim

    def _report_due_locked(self, now: float) -> bool:
        if not self._ledger.unreported or not self._options.send_client_reports:
            self._report_wanted = False
            return False
        waiting = self._queue.stats().waiting
        if waiting and not self._queue.shared:
            return False  # it rides on the next envelope
        return self._report_wanted or now - self._last_report >= self._options.client_report_interval

    def _take_locked_in(self, claim: Claim) -> bool:
        """Book a claim; False when the worker was closed between the claim and this."""
        with self._lock.rlock:
            if self._state is WorkerState.CLOSED:
                closed = True
            else:
                closed = False
                self._in_hand[claim.id] = claim
                self._breaker = self._breaker.began(self._clock())
                if self._queue.shared:
                    self._ledger.claim(claim.sealed.quantities)
        if closed and self._queue.shared:
            self._queue.release([claim])
        return not closed

    def _perform(self, task: Claim | _Report, within: float) -> None:
        began = self._clock()
        sealed = None if isinstance(task, _Report) else task.sealed
        try:
            outcome = self._deliver(sealed, within)
        except BaseException as error:
            outcome = Outcome(LossReason.INTERNAL_SDK_ERROR, answered=None)
            if not self._poisoned:
                self._poisoned = True
                log.error(
                    "an envelope could not be delivered and was discarded: %s; further ones are only counted",
                    type(error).__name__,
                )
        if isinstance(task, _Report):
            self._settle_report(outcome, began)
        else:
            self._settle(task, outcome, began)

    def _deliver_here(self, deadline: float) -> None:
        """Deliver in the caller until the queue is empty, an attempt fails, or `deadline` is reached."""
        self._own.delivering = True
        try:
            while (left := deadline - self._clock()) > 0 and not self._state >= WorkerState.CLOSED:
                with self._lock.rlock:
                    permitted = self._breaker.permits(self._clock())
                claims = self._queue.claim(1, 0.0) if permitted else []
                if not claims or not self._take_locked_in(claims[0]):
                    return
                self._perform(claims[0], left)
        finally:
            self._own.delivering = False

    # -- settling --------------------------------------------------------------------------------------

    def _settle(self, claim: Claim, outcome: Outcome, began: float) -> None:
        """Book what a delivery came to. Does nothing for a claim that `kill` counted meanwhile."""
        returned: float | None = None
        with self._lock.rlock:
            if self._in_hand.pop(claim.id, None) is None:
                return
            now = self._clock()
            self._learn_locked(outcome, began, now)
            expired = now - claim.put_at >= self._options.retry_window
            if outcome.again and not expired:
                delay = self._backoff.delay(claim.attempts + 1, self._draw())
                returned = max(now + delay, outcome.not_before)
                if self._queue.shared:
                    self._ledger.give_up_claim(claim.sealed.quantities)
                else:
                    self._queue.release([claim], returned)
            else:
                rest = claim.sealed.quantities
                for reason, quantities in outcome.lost:
                    self._discard_locked(reason, quantities)
                    rest = _minus(rest, quantities)
                if outcome.reason is None:
                    self._ledger.deliver(rest)
                else:
                    self._discard_locked(outcome.reason, rest)
                if not self._queue.shared:
                    self._queue.ack([claim])
                self._tick_locked(claim, delivered=outcome.reason is None)
        if self._queue.shared:
            if returned is not None:
                self._queue.release([claim], returned)
            elif outcome.reason is LossReason.INTERNAL_SDK_ERROR:
                self._queue.bury(claim, outcome.reason)
            else:
                self._queue.ack([claim])
        self._leave()

    def _settle_report(self, outcome: Outcome, began: float) -> None:
        with self._lock.rlock:
            self._learn_locked(outcome, began, self._clock())
            self._reporting = False
            self._report_wanted = False
            self._settled.notify_all()
        self._leave()

    def _learn_locked(self, outcome: Outcome, began: float, now: float) -> None:
        """Tell the breaker, and whoever waits at it."""
        before = self._breaker.state
        if outcome.answered:
            self._breaker = self._breaker.succeeded(now)
        elif outcome.answered is None:
            self._breaker = self._breaker.gave_up(now)
        else:
            self._breaker = self._breaker.failed(
                now, began=began, draw=self._draw(), not_before=outcome.not_before
            )
        if before != "closed":
            self._gate.notify_all()

    def _discard_locked(self, reason: LossReason, quantities: Quantities) -> None:
        self._ledger.discard(reason, quantities)
        self._note_drop_locked(reason)

    def _tick_locked(self, claim: Claim, *, delivered: bool) -> None:
        done = False
        for ticket in self._tickets:
            if claim.put_at <= ticket.at:
                ticket.remaining -= 1
                ticket.delivered += delivered
                ticket.discarded += not delivered
                done = done or ticket.remaining <= 0
        if done:
            self._settled.notify_all()

    @property
    def can_wait(self) -> bool:
        """Whether the calling thread may wait: not in an interrupted critical section, nor on a sender."""
        return not (self._lock.held() or self.on_own_thread)

    # -- client reports --------------------------------------------------------------------------------

    @property
    def unreported(self) -> bool:
        """Whether there are losses to report; a look without the lock."""
        return self._options.send_client_reports and self._ledger.unreported

    def take_report(self, *, alone: bool) -> Report:
        """The losses to tell the receiver now; empty when a report went out recently.

        Args:
            alone: Whether nothing else is sent, which only happens when a report is due.
        """
        with self._lock.rlock:
            now = self._clock()
            recently = now - self._last_report < self._options.client_report_interval
            if recently and not alone and not self._report_wanted:
                return ()
            self._last_report = now
            self._report_wanted = False
            taken = self._ledger.take_report()
        self._lock.drain()
        return taken

    def give_back(self, report: Report) -> None:
        """The request that carried `report` got no final answer."""
        with self._lock.rlock:
            self._ledger.give_back(report)
        self._lock.drain()

    # -- ending ----------------------------------------------------------------------------------------

    def flush(self, timeout: float, until: str = "settled") -> FlushReport:
        """Wait up to `timeout` seconds for all that was accepted before the call.

        From a sender thread, and from a thread interrupted inside a critical section, it returns at once:
        waiting there would wait for itself.
        """
        deadline = self._clock() + timeout
        if self.on_own_thread or self._lock.held():
            stats = self._queue.stats()
            pending = stats.waiting + stats.claimed
            return FlushReport(pending == 0, pending=pending)
        if self._queue.shared:
            return self._flush_shared(deadline, until)
        with self._lock.rlock:
            self._lock.drain_locked()
            stats = self._queue.stats()
            ticket = _Ticket(self._clock(), stats.waiting + stats.claimed)
            if self._state is WorkerState.CLOSED or not (ticket.remaining or self._ledger.unreported):
                return FlushReport(True)
            if self._state is WorkerState.NEW:
                self._state = WorkerState.RUNNING
            self._report_wanted = self._options.send_client_reports and self._ledger.unreported
            self._hasten_locked(ticket.at)
            self._tickets.append(ticket)
        self._leave(deadline)
        with self._lock.rlock:
            while (
                (ticket.remaining or self._report_wanted or self._reporting)
                and self._state is not WorkerState.CLOSED
                and (left := deadline - self._clock()) > 0
            ):
                self._settled.wait(left)
            self._tickets.remove(ticket)
        self._leave()
        return FlushReport(
            ticket.remaining <= 0, ticket.delivered, ticket.discarded, pending=max(ticket.remaining, 0)
        )

    def _flush_shared(self, deadline: float, until: str) -> FlushReport:
        """In a shared queue stored is settled; `delivered` waits for whoever drains it."""
        with self._lock.rlock:
            self._lock.drain_locked()
            self._hasten_locked(self._clock())
        self._leave(deadline)
        stats = self._queue.stats()
        with self._lock.rlock:
            while (
                until == "delivered"
                and stats.waiting + stats.claimed
                and (left := deadline - self._clock()) > 0
            ):
                self._settled.wait(min(left, 0.05))
                stats = self._queue.stats()
        held = stats.waiting + stats.claimed
        if until == "delivered":
            return FlushReport(held == 0, stored=held, pending=held)
        return FlushReport(True, stored=held)

    def _hasten_locked(self, now: float) -> None:
        """Someone waits: what waits for its next attempt, and the breaker's probe, may go now."""
        if now - self._last_hastened >= HASTEN_EVERY:
            self._last_hastened = now
            self._breaker = self._breaker.hastened(now)
        self._queue.wake()
        self._gate.notify_all()

    def close(self, timeout: float) -> FlushReport:
        """Refuse submissions, wait up to `timeout` seconds for what is left, then end. Idempotent."""
        if self._state is WorkerState.CLOSED:
            return FlushReport(True)
        self._locked(self._begin_draining_locked)
        report = self.flush(timeout)
        self._finish(LossReason.CLOSED)
        return report

    def end(self, seconds: float) -> int:
        """The process ends: wait up to `seconds` for what waits; how many envelopes are left behind.

        Captures are still taken, each delivered before its call returns. All these waits, and those of
        further calls, share the seconds of the first call.
        """
        if self._end_left is None:
            self._end_left = seconds
        if self._state is not WorkerState.CLOSED:
            self._wait_at_end(self._end_left)
        return self.pending

    def _wait_at_end(self, left: float) -> None:
        began = self._clock()
        self.flush(left)
        self._end_left = max(0.0, left - (self._clock() - began))

    def kill(self) -> None:
        """End now; what is left is counted. An attempt under way may still arrive, and is not counted so."""
        self._finish(LossReason.KILLED)

    def _begin_draining_locked(self) -> None:
        self._state = max(self._state, WorkerState.DRAINING)

    def _finish(self, reason: LossReason) -> None:
        in_hand: list[Claim] = []

        def end() -> None:
            # First what was captured before: it is left aside, and counts like the rest.
            self._lock.drain_locked()
            if self._state is WorkerState.CLOSED:
                return
            self._state = WorkerState.CLOSED
            in_hand.extend(self._in_hand.values())
            self._in_hand.clear()
            if self._queue.shared:
                for claim in in_hand:
                    self._ledger.give_up_claim(claim.sealed.quantities)
            else:
                for claim in self._queue.close():
                    self._discard_locked(reason, claim.sealed.quantities)
            for condition in (self._follow, self._gate, self._settled):
                condition.notify_all()

        self._locked(end)
        if self._queue.shared:
            self._queue.release(in_hand)
            self._queue.close()

    # -- saying ----------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Envelopes accepted and not settled, those left aside included."""
        stats = self._queue.stats()
        return stats.waiting + stats.claimed + len(self._lock.aside)

    def facts(self) -> WorkerFacts:
        """A snapshot in which ledger and queue belong together; no I/O."""
        self._lock.drain()
        with self._lock.rlock:
            facts = WorkerFacts(
                self._state,
                self._senders,
                self._queue.stats(),
                len(self._lock.aside),
                self._breaker,
                self._ledger.snapshot(),
                self._last_drop,
            )
        self._leave()
        return facts


def _minus(whole: Quantities, part: Quantities) -> Quantities:
    """What is left of `whole`; a part that was never in it takes nothing away."""
    if not part:
        return whole
    taken = dict(part)
    return tuple(
        (category, left) for category, n in whole if (left := max(0, n - taken.get(category, 0))) > 0
    )
