"""The ledger: what became of every item, by data category, and the client reports that say so.

Counts quantities, not envelopes. Owns no lock: all methods are called by a caller that holds the lock
which also guards the queue, so that whenever that lock is free, per category,

    captured + claimed_from_shared == delivered + discarded + pending + stored_in_shared + returned_to_shared

Source of reasons and of what is reported: the client-report protocol; new reason names need a server's
allow-list, so those of our own are never reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from transport_kit.sealing import Quantities

__all__ = ["Ledger", "LedgerSnapshot", "LossReason", "Quantities", "Report"]

#: Losses taken for one client report: `(reason, category, quantity)`.
Report = tuple[tuple[str, str, int], ...]


class LossReason(StrEnum):
    """Why an item was not delivered. The first group is reported to the server, the second is not."""

    QUEUE_OVERFLOW = "queue_overflow"
    CACHE_OVERFLOW = "cache_overflow"
    BUFFER_OVERFLOW = "buffer_overflow"
    RATELIMIT_BACKOFF = "ratelimit_backoff"
    NETWORK_ERROR = "network_error"
    SEND_ERROR = "send_error"
    SAMPLE_RATE = "sample_rate"
    BACKPRESSURE = "backpressure"
    BEFORE_SEND = "before_send"
    EVENT_PROCESSOR = "event_processor"
    IGNORED = "ignored"
    INTERNAL_SDK_ERROR = "internal_sdk_error"
    INSUFFICIENT_DATA = "insufficient_data"
    INVALID = "invalid"

    #: The transport was closed before the item came, or before it could be sent.
    CLOSED = "closed"
    #: `kill` gave it up.
    KILLED = "killed"
    #: The server answered 429; it has counted the item itself.
    RATE_LIMITED = "rate_limited"
    #: Captured by our own sending or sealing on the same thread.
    REENTRANT = "reentrant"
    #: The DSN or an option can't be used.
    MISCONFIGURED = "misconfigured"
    #: There is no DSN, which is valid and means off.
    DISABLED = "disabled"

    @property
    def reported(self) -> bool:
        """Whether the server is told."""
        return self not in _LOCAL_ONLY


_LOCAL_ONLY = frozenset(
    {
        LossReason.CLOSED,
        LossReason.KILLED,
        LossReason.RATE_LIMITED,
        LossReason.REENTRANT,
        LossReason.MISCONFIGURED,
        LossReason.DISABLED,
    }
)


@dataclass(frozen=True, slots=True)
class LedgerSnapshot:
    """Totals at one moment, each a mapping from data category to quantity."""

    captured: Mapping[str, int]
    delivered: Mapping[str, int]
    discarded: Mapping[str, Mapping[str, int]]
    claimed_from_shared: Mapping[str, int]
    stored_in_shared: Mapping[str, int]
    returned_to_shared: Mapping[str, int]

    def settled(self, category: str) -> int:
        """Quantity of `category` that was delivered or discarded."""
        return self.delivered.get(category, 0) + sum(
            by_category.get(category, 0) for by_category in self.discarded.values()
        )


class Ledger:
    """Counts per process, transport and life of it. Not thread-safe: see the module's first lines."""

    __slots__ = (
        "_captured",
        "_claimed_from_shared",
        "_delivered",
        "_discarded",
        "_returned_to_shared",
        "_stored_in_shared",
        "_unreported",
    )

    def __init__(self) -> None:
        self._captured: Counter[str] = Counter()
        self._delivered: Counter[str] = Counter()
        self._discarded: dict[str, Counter[str]] = {}
        self._claimed_from_shared: Counter[str] = Counter()
        self._stored_in_shared: Counter[str] = Counter()
        self._returned_to_shared: Counter[str] = Counter()
        self._unreported: Counter[tuple[str, str]] = Counter()

    def capture(self, quantities: Quantities) -> None:
        """Accepted: pending from now on."""
        for category, quantity in quantities:
            self._captured[category] += quantity

    def lose(self, reason: LossReason, quantities: Quantities) -> None:
        """Captured and discarded in one step: it never was pending."""
        self.capture(quantities)
        self.discard(reason, quantities)

    def deliver(self, quantities: Quantities) -> None:
        """From pending to delivered."""
        for category, quantity in quantities:
            self._delivered[category] += quantity

    def discard(self, reason: LossReason, quantities: Quantities) -> None:
        """From pending to discarded."""
        by_category = self._discarded.setdefault(reason.value, Counter())
        for category, quantity in quantities:
            by_category[category] += quantity
            if reason.reported:
                self._unreported[reason.value, category] += quantity

    def store(self, quantities: Quantities) -> None:
        """Captured into a shared queue: this process has done its part."""
        for category, quantity in quantities:
            self._stored_in_shared[category] += quantity

    def claim(self, quantities: Quantities) -> None:
        """Taken from a shared queue: pending here from now on."""
        for category, quantity in quantities:
            self._claimed_from_shared[category] += quantity

    def give_up_claim(self, quantities: Quantities) -> None:
        """Returned to a shared queue: no longer pending here."""
        for category, quantity in quantities:
            self._returned_to_shared[category] += quantity

    @property
    def unreported(self) -> bool:
        """Whether there is something for a client report."""
        return bool(self._unreported)

    def take_report(self) -> Report:
        """What the next client report says; taken and reset in one step."""
        taken = tuple((reason, category, n) for (reason, category), n in self._unreported.items() if n)
        self._unreported.clear()
        return taken

    def give_back(self, report: Iterable[tuple[str, str, int]]) -> None:
        """Undo `take_report` after a request without an answer, or with a 5xx."""
        for reason, category, quantity in report:
            self._unreported[reason, category] += quantity

    def snapshot(self) -> LedgerSnapshot:
        """A copy that no later call changes."""
        return LedgerSnapshot(
            captured=dict(self._captured),
            delivered=dict(self._delivered),
            discarded={reason: dict(counts) for reason, counts in self._discarded.items()},
            claimed_from_shared=dict(self._claimed_from_shared),
            stored_in_shared=dict(self._stored_in_shared),
            returned_to_shared=dict(self._returned_to_shared),
        )
