"""What a delivery, a flush and a worker came to: the values between worker, deliverer and caller.

Owns no behaviour but small constructors. Threads: instances never change, but for a `Ticket`, which changes
only while the worker's lock is held.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from transport_kit.envelope.losses import LossReason, Pairs
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.protocol import QueueStats
from transport_kit.transport.worker.ledger import LedgerSnapshot
from transport_kit.transport.worker.retry import CircuitBreaker

__all__ = ["Deliver", "FlushReport", "Outcome", "Ticket", "WorkerFacts", "WorkerState"]


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
    lost: tuple[tuple[LossReason, Pairs], ...] = ()
    not_before: float = 0.0
    answered: bool | None = True
    server_fault: bool = False

    @classmethod
    def retry(cls, reason: LossReason, not_before: float = 0.0) -> Self:
        """Not delivered, and worth another attempt; `reason` counts if there can't be one."""
        return cls(reason, again=True, not_before=not_before, answered=False)

    def with_lost(self, reason: LossReason, quantities: Pairs) -> Outcome:
        """The same, and `quantities` were left out for `reason`."""
        return replace(self, lost=(*self.lost, (reason, quantities)))


#: Delivers one envelope within so many seconds; None for the envelope means: only a client report.
Deliver = Callable[[SealedEnvelope | None, float], Outcome]


class WorkerFacts(NamedTuple):
    """A snapshot of a worker; times are monotonic seconds."""

    state: WorkerState
    senders: int
    queue: QueueStats
    breaker: CircuitBreaker
    totals: LedgerSnapshot
    last_drop: float | None


@dataclass(frozen=True, slots=True)
class FlushReport:
    """What became of the envelopes accepted before the call; truthy iff `ok`.

    Attributes:
        ok: Whether each of them is settled, or stored in a durable queue.
        delivered, discarded: Envelopes settled during the call. Discarded ones don't make it false.
        stored: Envelopes that a durable queue keeps.
        pending: Envelopes that are still waiting or on their way.
    """

    ok: bool
    delivered: int = 0
    discarded: int = 0
    stored: int = 0
    pending: int = 0

    def __bool__(self) -> bool:
        return self.ok


@dataclass(slots=True, eq=False)
class Ticket:
    """What a flush waits for: the envelopes put up to the one with the id `last` that are not settled."""

    last: int = 0
    remaining: int = 0
    delivered: int = 0
    discarded: int = 0
