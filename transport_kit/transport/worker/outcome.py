"""Values exchanged between the worker, the delivery function and callers: outcomes, reports, snapshots.

This module owns no behaviour except small constructors.

Threads: instances never change, except a `Ticket`, which any thread changes, but only while holding the
worker's `StateLock`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self

from transport_kit.envelope.losses import LossReason, Pairs
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.protocol import QueueStats
from transport_kit.transport.worker.ledger import LedgerSnapshot
from transport_kit.transport.worker.retry import CircuitBreaker

__all__ = ["Deliver", "FlushReport", "Gate", "Outcome", "Ticket", "WorkerFacts", "WorkerState"]


class Gate(Protocol):
    """Limits the rate at which a worker begins deliveries. Called on sender threads; must not block."""

    def wait(self) -> float:
        """Return the seconds until the next envelope may be claimed; 0 or less means now."""

    def admit(self) -> bool:
        """Count a claimed envelope; return False if it must go back into the queue."""


class WorkerState(enum.IntEnum):
    """The state of a worker. It only increases; CLOSED is final."""

    NEW = 0
    RUNNING = 1
    DRAINING = 2
    CLOSED = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one delivery. It applies to all items of the envelope that are not in `lost`.

    Attributes:
        reason: None if the envelope was delivered. Otherwise the reason for which it is discarded; with
            `again`, only if it can't be retried.
        again: True if the envelope is to be retried.
        lost: Quantities left out before sending, with their reasons; counted once the envelope is settled.
        not_before: With `again`, the earliest time of the retry in monotonic seconds, or 0.0.
        answered: True if the receiver answered, False if it did not, None if it was not asked.
        server_fault: True for an answer of 5xx: the losses of an attached client report remain unreported.
        refusal: The status of an answer that may concern this envelope alone or all of them, or None; see
            `Refusals`.
    """

    reason: LossReason | None = None
    again: bool = False
    lost: tuple[tuple[LossReason, Pairs], ...] = ()
    not_before: float = 0.0
    answered: bool | None = True
    server_fault: bool = False
    refusal: int | None = None

    @classmethod
    def retry(cls, reason: LossReason, not_before: float = 0.0) -> Self:
        """Return the outcome of an attempt to retry; `reason` counts if the envelope can't be retried."""
        return cls(reason, again=True, not_before=not_before, answered=False)

    def with_lost(self, reason: LossReason, quantities: Pairs) -> Outcome:
        """Return a copy to which `quantities`, left out for `reason`, are added."""
        return replace(self, lost=(*self.lost, (reason, quantities)))


#: Delivers one envelope, or only a client report if it is None, within the given number of seconds.
Deliver = Callable[[SealedEnvelope | None, float], Outcome]


class WorkerFacts(NamedTuple):
    """A snapshot of a worker. Times are monotonic seconds."""

    state: WorkerState
    senders: int
    queue: QueueStats
    breaker: CircuitBreaker
    totals: LedgerSnapshot
    last_drop: float | None


@dataclass(frozen=True, slots=True)
class FlushReport:
    """The result of a flush, about the envelopes accepted before the call. True in a condition if `ok`.

    Attributes:
        ok: True if each envelope is settled, or stored in a durable queue. A discarded one is settled.
        delivered: Number of envelopes that this process delivered during the call.
        discarded: Number of envelopes that this process discarded during the call.
        stored: Number of envelopes stored in a durable queue.
        pending: Number of envelopes that are still waiting or being delivered.
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
    """The envelopes a flush waits for: those with an id up to `last` that are not settled.

    Attributes:
        last: Id of the last envelope put before the flush.
        remaining: Number of envelopes that are not settled.
        delivered: Number of envelopes delivered since.
        discarded: Number of envelopes discarded since.
    """

    last: int = 0
    remaining: int = 0
    delivered: int = 0
    discarded: int = 0
