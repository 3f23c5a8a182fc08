"""The ledger: the quantities captured, delivered and discarded, and the losses for client reports.

Counts quantities per data category, not envelopes. Owns no lock: any thread calls its methods, but only while
holding the worker's `StateLock`, which also guards the queue unless that is shared. Whenever the lock is
free, for each category,

    captured + claimed_from_shared == delivered + discarded + pending + stored_in_shared + returned_to_shared
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from transport_kit.envelope.losses import LossReason, Pairs, Report

__all__ = ["Ledger", "LedgerSnapshot"]


@dataclass(frozen=True, slots=True)
class LedgerSnapshot:
    """The totals at one moment, by data category; those of `discarded` by reason and data category."""

    captured: Mapping[str, int]
    delivered: Mapping[str, int]
    discarded: Mapping[str, Mapping[str, int]]
    claimed_from_shared: Mapping[str, int]
    stored_in_shared: Mapping[str, int]
    returned_to_shared: Mapping[str, int]

    def settled(self, category: str) -> int:
        """Return the quantity of `category` that was delivered or discarded."""
        return self.delivered.get(category, 0) + sum(
            by_category.get(category, 0) for by_category in self.discarded.values()
        )

    @property
    def pending(self) -> dict[str, int]:
        """Quantities that are neither delivered, discarded nor in a shared queue; a new dict by category."""
        pending: dict[str, int] = {}
        for category in {**self.captured, **self.claimed_from_shared}:
            count = (
                self.captured.get(category, 0)
                + self.claimed_from_shared.get(category, 0)
                - self.settled(category)
                - self.stored_in_shared.get(category, 0)
                - self.returned_to_shared.get(category, 0)
            )
            # Not `Quantities`: a negative count, which would be an error of the ledger, must be seen.
            if count:
                pending[category] = count
        return pending


_Key = TypeVar("_Key")
_Loss: TypeAlias = tuple[
    dict[str, int], dict[str, int], dict[tuple[str, str], int], dict[tuple[str, str], int]
]


class Ledger:
    """The counts of one worker. Not thread-safe: see the module's docstring.

    Each method changes all its counts in one step, its last one, which no signal handler can interrupt (see
    `runtime/lock.py`).
    """

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
        self._captured: dict[str, int] = {}
        self._claimed_from_shared: dict[str, int] = {}
        self._delivered: dict[str, int] = {}
        self._discarded: dict[str, dict[str, int]] = {}
        self._returned_to_shared: dict[str, int] = {}
        self._stored_in_shared: dict[str, int] = {}
        self._unreported: dict[tuple[str, str], int] = {}

    def capture(self, quantities: Pairs) -> None:
        """Count items as accepted. They are pending until they are delivered or lost."""
        captured = self._captured
        captured |= _grown(captured, quantities)

    def lose(self, reason: LossReason, quantities: Pairs) -> None:
        """Count items as captured and discarded, without being pending in between."""
        captured = self._captured
        grown = _grown(captured, quantities)
        discarded, lost, unreported, reportable = self._loss(reason, quantities)
        captured |= grown
        discarded |= lost
        unreported |= reportable

    def deliver(self, quantities: Pairs) -> None:
        """Count pending items as delivered."""
        delivered = self._delivered
        delivered |= _grown(delivered, quantities)

    def discard(self, reason: LossReason, quantities: Pairs) -> None:
        """Count pending items as discarded."""
        discarded, lost, unreported, reportable = self._loss(reason, quantities)
        discarded |= lost
        unreported |= reportable

    def _loss(self, reason: LossReason, quantities: Pairs) -> _Loss:
        """Return the two dicts that a loss changes, each followed by its changed entries."""
        discarded = self._discarded.setdefault(reason.value, {})
        unreported = self._unreported
        losses = [((reason.value, name), n) for name, n in quantities if reason.reported]
        return discarded, _grown(discarded, quantities), unreported, _grown(unreported, losses)

    def capture_delivered(self, quantities: Pairs) -> None:
        """Count items as captured and delivered, without being pending in between."""
        captured, delivered = self._captured, self._delivered
        grown, more = _grown(captured, quantities), _grown(delivered, quantities)
        captured |= grown
        delivered |= more

    def store(self, quantities: Pairs) -> None:
        """Count items as captured and stored in a shared queue; they are not pending in this process."""
        captured, stored = self._captured, self._stored_in_shared
        grown, more = _grown(captured, quantities), _grown(stored, quantities)
        captured |= grown
        stored |= more

    def claim(self, quantities: Pairs) -> None:
        """Count items claimed from a shared queue, which are pending in this process then."""
        claimed = self._claimed_from_shared
        claimed |= _grown(claimed, quantities)

    def give_up_claim(self, quantities: Pairs) -> None:
        """Count pending items as returned to a shared queue."""
        returned = self._returned_to_shared
        returned |= _grown(returned, quantities)

    def give_up_stored(self, report: Report) -> None:
        """Count items that a shared queue gave up; `give_back` has them reported."""
        claimed, discarded = self._claimed_from_shared, self._discarded
        more = _grown(claimed, [(category, n) for _, category, n in report])
        lost: dict[str, dict[str, int]] = {}
        for reason, category, n in report:
            counts = lost.setdefault(reason, dict(discarded.get(reason, {})))
            counts[category] = counts.get(category, 0) + n
        claimed |= more
        discarded |= lost

    def mend(self, pending: Iterable[Pairs]) -> None:
        """Recompute `captured` from the settled and the pending quantities. Not for a shared queue."""
        captured: dict[str, int] = {}
        for counts in (self._delivered, *self._discarded.values()):
            captured |= _grown(captured, counts.items())
        for quantities in pending:
            captured |= _grown(captured, quantities)
        self._captured = captured

    @property
    def unreported(self) -> bool:
        """True if there are losses for a client report."""
        return bool(self._unreported)

    def take_report(self) -> Report:
        """Return the unreported losses, and count them as reported."""
        report = tuple([(reason, category, n) for (reason, category), n in self._unreported.items() if n])
        self._unreported = {}
        return report

    def give_back(self, report: Iterable[tuple[str, str, int]]) -> None:
        """Count losses as unreported again, after a request without an answer or with a 5xx."""
        unreported = self._unreported
        unreported |= _grown(unreported, [((reason, category), n) for reason, category, n in report])

    def snapshot(self) -> LedgerSnapshot:
        """Return a copy of the counts."""
        return LedgerSnapshot(
            captured=dict(self._captured),
            delivered=dict(self._delivered),
            discarded={reason: dict(counts) for reason, counts in self._discarded.items() if counts},
            claimed_from_shared=dict(self._claimed_from_shared),
            stored_in_shared=dict(self._stored_in_shared),
            returned_to_shared=dict(self._returned_to_shared),
        )


def _grown(counts: Mapping[_Key, int], more: Iterable[tuple[_Key, int]]) -> dict[_Key, int]:
    """Return the entries of `counts` that change when `more` is added, with their new values."""
    grown: dict[_Key, int] = {}
    for key, quantity in more:
        grown[key] = (grown[key] if key in grown else counts.get(key, 0)) + quantity
    return grown
