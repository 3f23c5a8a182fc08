"""The shared state of one worker: its state, its ledger, the tickets of flushes, and the report schedule.

This module owns no lock and no thread. Any thread calls methods that change something, but only while holding
the worker's `StateLock`, which also guards the queue unless that is shared. So queue and ledger change
together; `ledger.py` states their invariant.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from transport_kit.config.options import TransportOptions
from transport_kit.envelope.losses import LossReason, Pairs, Report
from transport_kit.queues.protocol import Claim, Put
from transport_kit.runtime.lock import StateLock
from transport_kit.transport.worker.ledger import Ledger
from transport_kit.transport.worker.outcome import Outcome, Ticket, WorkerState

__all__ = ["Books"]

#: Minimum seconds between two checks for a due report.
SOON = 0.05
#: Reasons of losses that the app intends; they do not change `last_drop`.
_INTENDED_LOSSES = frozenset(
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


class Books:
    """The state and the counts of a worker.

    Args:
        lock: The lock of the worker.
        shared: True if the worker's queue is shared with other processes.
        options: The options; `send_client_reports` and `client_report_interval` are used.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self, lock: StateLock, shared: bool, options: TransportOptions, clock: Callable[[], float]
    ) -> None:
        self._shared = shared
        self._options = options
        self._clock = clock
        # Any thread writes the following attributes, but only while holding `lock`. `state`, `unreported` and
        # the three attributes about reports and transfers may be read without it.
        self.ledger = Ledger()
        self.state = WorkerState.NEW
        self.last_drop: float | None = None
        self.tickets: list[Ticket] = []
        # Notified when a ticket, a report or a transfer of losses is done, and when the worker closes.
        self.settled = threading.Condition(lock.rlock)
        # True if a flush requested a report that is not due yet.
        self.report_wanted = False
        # True while a report without an envelope is being sent.
        self.reporting = False
        # Number of threads that transfer losses between a shared queue and the ledger.
        self.transfers_in_progress = 0
        # The losses attached to the current request of each sending thread, by its ident.
        self._attached: dict[int, Report] = {}
        self._last_report = clock()

    # -- counts ----------------------------------------------------------------------------------------

    def lose(self, reason: LossReason, quantities: Pairs) -> None:
        """Count items as captured and lost, without being pending in between."""
        self._note_drop(reason)
        self.ledger.lose(reason, quantities)

    def discard(self, reason: LossReason, quantities: Pairs) -> None:
        """Count pending items as lost."""
        self._note_drop(reason)
        self.ledger.discard(reason, quantities)

    def _note_drop(self, reason: LossReason) -> None:
        if reason not in _INTENDED_LOSSES:
            self.last_drop = self._clock()

    def count_put(self, quantities: Pairs, put: Put) -> None:
        """Count the result of a put, including the envelopes evicted by it."""
        if self.state is WorkerState.NEW:
            self.state = WorkerState.RUNNING
        if put.accepted and self._shared:
            self.ledger.store(quantities)
        elif put.accepted:
            self.ledger.capture(quantities)
        else:
            # A shared queue outlives the process: in the server's terms it is a cache.
            self.lose(LossReason.CACHE_OVERFLOW if self._shared else LossReason.QUEUE_OVERFLOW, quantities)
        if put.evicted:
            evicted = put.evicted if isinstance(put.evicted, list) else list(put.evicted)
            self.give_up(evicted, LossReason.CACHE_OVERFLOW if self._shared else LossReason.QUEUE_OVERFLOW)

    def give_up(self, claims: list[Claim], reason: LossReason) -> None:
        """Count claims that a queue gave up; each is removed from `claims` in the step that counts it."""
        while claims:
            claim = claims[-1]
            if self._shared:
                # The process that put it has counted it as stored.
                self.ledger.claim(claim.sealed.quantities)
            else:
                self.settle_ticket(claim, delivered=False)
            self.discard(reason, claim.sealed.quantities)
            del claims[-1]

    def mend(self, pending: Iterable[Claim]) -> None:
        """Recompute the counts and the tickets from the settled and the pending envelopes."""
        pending = tuple(pending)
        self.ledger.mend([claim.sealed.quantities for claim in pending])
        for ticket in self.tickets:
            ticket.remaining = sum([claim.id <= ticket.last for claim in pending])
        self.settled.notify_all()

    def forget_stored(self, claims: Iterable[Claim], reason: LossReason) -> None:
        """Count as lost the envelopes that a shared queue accepted but could not store."""
        for claim in claims:
            self.ledger.claim(claim.sealed.quantities)
            self.discard(reason, claim.sealed.quantities)

    def give_up_stored(self, report: Report) -> None:
        """Count items that a shared queue gave up, for their age for example."""
        if report:
            self.last_drop = self._clock()
            self.ledger.give_up_stored(report)

    def settle(self, claim: Claim, outcome: Outcome) -> None:
        """Count a final outcome, and the quantities left out before sending with their own reasons."""
        rest = claim.sealed.quantities
        for reason, quantities in outcome.lost:
            remainder = rest - quantities
            self.discard(reason, rest - remainder)  # no more than the envelope contains
            rest = remainder
        if outcome.reason is None:
            self.ledger.deliver(rest)
        else:
            self.discard(outcome.reason, rest)
        self.settle_ticket(claim, delivered=outcome.reason is None)

    def settle_ticket(self, claim: Claim, *, delivered: bool) -> None:
        """Update the tickets of the flushes that wait for a settled envelope."""
        done = False
        for ticket in self.tickets:
            if claim.id <= ticket.last:
                ticket.remaining -= 1
                ticket.delivered += delivered
                ticket.discarded += not delivered
                done = done or ticket.remaining <= 0
        if done:
            # This also removes the tickets of flushes that a signal handler ended by raising.
            self.tickets = [ticket for ticket in self.tickets if ticket.remaining > 0]
            self.settled.notify_all()

    # -- client reports --------------------------------------------------------------------------------

    @property
    def unreported(self) -> bool:
        """True if there are losses to report."""
        return self._options.send_client_reports and self.ledger.unreported

    def report_due(self, now: float) -> bool:
        """Return True if a report must be sent, without an envelope if necessary."""
        if not self.unreported:
            self.report_wanted = False
        if self.reporting or not self.unreported:
            return False
        return self.report_wanted or now - self._last_report >= self._options.client_report_interval

    def until_due(self, now: float) -> float:
        """Return the seconds until a report may be due; a later loss may wait for one more interval."""
        interval = self._options.client_report_interval
        return max(SOON, self._last_report + interval - now) if self.unreported else interval

    def take_report(self, *, alone: bool) -> Report:
        """Return the losses to report now; none within the interval of the last report, unless `alone`."""
        now = self._clock()
        recently = now - self._last_report < self._options.client_report_interval
        if recently and not alone and not self.report_wanted:
            return ()
        self._last_report = now
        self.report_wanted = False
        return self.ledger.take_report()

    def attach_report(self, *, alone: bool) -> Report:
        """Return `take_report` for a request of this thread, which ends with `end_request` or `give_back`."""
        report = self._attached[threading.get_ident()] = self.take_report(alone=alone)
        return report

    def give_back(self, report: Report) -> None:
        """Count the losses of `report` as unreported again: its request got no final answer."""
        self.end_request()
        self.ledger.give_back(report)

    def end_request(self) -> None:
        """End this thread's request: its losses are reported, or given back."""
        self._attached.pop(threading.get_ident(), None)

    def take_unreported(self) -> Report:
        """Return all losses that are unreported at the end, including those of unanswered requests."""
        if not self._options.send_client_reports:
            return ()
        while self._attached:
            self.ledger.give_back(self._attached.popitem()[1])
        return self.ledger.take_report()

    def end_report(self, now: float) -> None:
        """End a report that was sent without an envelope."""
        # Also if it was empty or limited: the next one is due after another interval.
        self._last_report = now
        self.reporting = self.report_wanted = False
        self.settled.notify_all()
