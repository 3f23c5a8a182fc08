"""The books of one worker: how far its life is, what became of what, who waits for it, what to report.

Owns no lock and no thread. Every method that changes something is called while holding the lock that
guards the queue too, so that queue and books change together; see `ledger.py` for what then always holds.
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

#: Seconds that a look for a due report waits at least.
SOON = 0.05
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


class Books:
    """What a worker knows of itself and of its envelopes.

    Args:
        lock: The worker's.
        shared: Whether its queue is.
        options: Whether and how often to report losses.
        clock: Monotonic seconds.
    """

    def __init__(
        self, lock: StateLock, shared: bool, options: TransportOptions, clock: Callable[[], float]
    ) -> None:
        self._shared = shared
        self._options = options
        self._clock = clock
        # All of it is written only while holding the lock. `state` and `unreported` may be read without.
        self.ledger = Ledger()
        self.state = WorkerState.NEW
        self.last_drop: float | None = None
        self.tickets: list[Ticket] = []
        self.settled = threading.Condition(lock.rlock)  # a ticket or a report is done, or all is over
        # A flush wants the losses reported now; `reporting` while that request is under way.
        self.report_wanted = False
        self.reporting = False
        # So many threads move loss counts between a shared queue and the ledger.
        self.transfers_in_progress = 0
        # Losses that a request carries now, by the thread that sends it.
        self._carried: dict[int, Report] = {}
        self._last_report = clock()

    # -- what became of what ---------------------------------------------------------------------------

    def lose(self, reason: LossReason, quantities: Pairs) -> None:
        """Captured and lost in one."""
        self._note_drop(reason)
        self.ledger.lose(reason, quantities)

    def discard(self, reason: LossReason, quantities: Pairs) -> None:
        """Lost after it was pending."""
        self._note_drop(reason)
        self.ledger.discard(reason, quantities)

    def _note_drop(self, reason: LossReason) -> None:
        if reason not in _WANTED_LOSSES:
            self.last_drop = self._clock()

    def count_put(self, quantities: Pairs, put: Put) -> None:
        """What a put came to, the envelopes that were sacrificed for it included."""
        if self.state is WorkerState.NEW:
            self.state = WorkerState.RUNNING
        if put.accepted and self._shared:
            self.ledger.store(quantities)
        elif put.accepted:
            self.ledger.capture(quantities)
        else:
            # A shared queue outlives the process, and is a cache to the server.
            self.lose(LossReason.CACHE_OVERFLOW if self._shared else LossReason.QUEUE_OVERFLOW, quantities)
        if put.evicted:
            evicted = put.evicted if isinstance(put.evicted, list) else list(put.evicted)
            self.give_up(evicted, LossReason.CACHE_OVERFLOW if self._shared else LossReason.QUEUE_OVERFLOW)

    def give_up(self, claims: list[Claim], reason: LossReason) -> None:
        """Count what a queue let go; each claim is taken out in the step that counts it."""
        while claims:
            claim = claims[-1]
            if self._shared:
                # It was counted as stored, by whichever process put it.
                self.ledger.claim(claim.sealed.quantities)
            else:
                self.settle_ticket(claim, delivered=False)
            self.discard(reason, claim.sealed.quantities)
            del claims[-1]

    def mend(self, pending: Iterable[Claim]) -> None:
        """Make the counts true again from what is settled and what is pending."""
        pending = tuple(pending)
        self.ledger.mend([claim.sealed.quantities for claim in pending])
        for ticket in self.tickets:
            ticket.remaining = sum([claim.id <= ticket.last for claim in pending])
        self.settled.notify_all()

    def forget_stored(self, claims: Iterable[Claim], reason: LossReason) -> None:
        """A shared queue could not keep what was counted as stored."""
        for claim in claims:
            self.ledger.claim(claim.sealed.quantities)
            self.discard(reason, claim.sealed.quantities)

    def settle(self, claim: Claim, outcome: Outcome) -> None:
        """A final outcome: what was left out on the way is counted now, once."""
        rest = claim.sealed.quantities
        for reason, quantities in outcome.lost:
            kept = rest - quantities
            self.discard(reason, rest - kept)  # no more than there was
            rest = kept
        if outcome.reason is None:
            self.ledger.deliver(rest)
        else:
            self.discard(outcome.reason, rest)
        self.settle_ticket(claim, delivered=outcome.reason is None)

    def settle_ticket(self, claim: Claim, *, delivered: bool) -> None:
        """Tell the flushes that wait for it that an envelope is settled."""
        done = False
        for ticket in self.tickets:
            if claim.id <= ticket.last:
                ticket.remaining -= 1
                ticket.delivered += delivered
                ticket.discarded += not delivered
                done = done or ticket.remaining <= 0
        if done:
            # Those of flushes that a signal handler ended, too.
            self.tickets = [ticket for ticket in self.tickets if ticket.remaining > 0]
            self.settled.notify_all()

    # -- client reports --------------------------------------------------------------------------------

    @property
    def unreported(self) -> bool:
        """Whether there are losses to report."""
        return self._options.send_client_reports and self.ledger.unreported

    def report_due(self, now: float) -> bool:
        """Whether to report, alone if need be."""
        if not self.unreported:
            self.report_wanted = False
        if self.reporting or not self.unreported:
            return False
        return self.report_wanted or now - self._last_report >= self._options.client_report_interval

    def until_due(self, now: float) -> float:
        """Seconds until a report may be due; a loss that comes meanwhile waits one interval more."""
        interval = self._options.client_report_interval
        return max(SOON, self._last_report + interval - now) if self.unreported else interval

    def take_report(self, *, alone: bool) -> Report:
        """The losses to tell now; none when a report went out recently, unless it goes alone."""
        now = self._clock()
        recently = now - self._last_report < self._options.client_report_interval
        if recently and not alone and not self.report_wanted:
            return ()
        self._last_report = now
        self.report_wanted = False
        return self.ledger.take_report()

    def attach_report(self, *, alone: bool) -> Report:
        """`take_report` for a request that this thread sends; `carried` or `give_back` is its end."""
        report = self._carried[threading.get_ident()] = self.take_report(alone=alone)
        return report

    def give_back(self, report: Report) -> None:
        """No final answer came to the request that carried it."""
        self.carried()
        self.ledger.give_back(report)

    def carried(self) -> None:
        """This thread's request is over, and what it carried told or given back."""
        self._carried.pop(threading.get_ident(), None)

    def take_untold(self) -> Report:
        """At the end: losses that nobody was told of, and those on their way without an answer so far."""
        if not self._options.send_client_reports:
            return ()
        while self._carried:
            self.ledger.give_back(self._carried.popitem()[1])
        return self.ledger.take_report()

    def end_report(self, now: float) -> None:
        """A report that went alone is over."""
        # Also when there was nothing to say, or a limit forbade it: the next one has its own time.
        self._last_report = now
        self.reporting = self.report_wanted = False
        self.settled.notify_all()
