"""What a delivery came to, and what a worker says of itself: the values between worker and deliverer.

Owns no behaviour but small constructors. Threads: instances never change.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from transport_kit.ledger import LedgerSnapshot, LossReason, Quantities
from transport_kit.queue import QueueStats
from transport_kit.retry import CircuitBreaker
from transport_kit.sealing import SealedEnvelope

__all__ = ["Deliver", "Outcome", "WorkerFacts", "WorkerState"]


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
