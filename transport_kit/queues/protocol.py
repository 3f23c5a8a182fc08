"""The queue protocol: a sealed envelope waits in a queue between its capture and its delivery.

This module owns the `Queue` protocol, which states the guarantees of every queue, and the values that queues
accept and return. The implementations are in `memory.py` and `spool/`. Accounting is the caller's: it records
what was accepted and lost.

Threads: every method of a queue may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from transport_kit.envelope.losses import Report
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.runtime.lock import StateLock

__all__ = ["Claim", "Put", "Queue", "QueueStats"]


@dataclass(slots=True, eq=False)
class Claim:
    """One envelope that a sender has claimed.

    Attributes:
        id: Grows with each put; unique within the queue.
        sealed: The envelope to deliver; may be compressed, see `SealedEnvelope.packed`.
        attempts: Deliveries begun before this claim.
        put_at: Monotonic seconds at which it was accepted.
        faults: Answers with a status of 500; the worker increments it, and `release` keeps it.
    """

    id: int
    sealed: SealedEnvelope
    attempts: int = 0
    put_at: float = 0.0
    faults: int = 0


class Put(NamedTuple):
    """The result of a put.

    Attributes:
        accepted: False if the envelope was refused.
        evicted: Claims of envelopes that the queue dropped to make room. A memory queue returns its internal
            list, not a copy: the caller removes each claim from it in the step that counts the loss, so that
            none is counted twice or not at all.
    """

    accepted: bool
    evicted: list[Claim] | tuple[Claim, ...] = ()


class QueueStats(NamedTuple):
    """A snapshot of a queue.

    Attributes:
        waiting: Envelopes that are not claimed, those that wait for their next attempt included.
        claimed: Envelopes that senders have claimed.
        size: Bytes of all these envelopes.
        max_items: Most envelopes that the queue holds.
        max_bytes: Most bytes that the queue holds.
        oldest_put_at: Monotonic seconds at which the oldest envelope was accepted, or None.
        last_id: Id of the envelope that was put last.
    """

    waiting: int
    claimed: int
    size: int
    max_items: int
    max_bytes: int
    oldest_put_at: float | None
    last_id: int = 0


class Queue(Protocol):
    """A queue of sealed envelopes. For callers, implementations differ only in `durable` and `shared`.

    Attributes:
        durable: True if accepted envelopes survive this process.
        shared: True if other processes put and claim too. Then `put`, `claim`, `ack`, `release` and `bury`
        may
            do I/O, and the worker never calls them while it holds its own lock.
        lock: The lock of a queue that is not shared; it also guards the worker's ledger.
    """

    durable: bool
    shared: bool
    lock: StateLock

    def prepare(self, sealed: SealedEnvelope) -> SealedEnvelope:
        """Return the form in which `put` will hold the envelope.

        Called before `put` and without the lock, as it may take long.
        """

    def put(self, sealed: SealedEnvelope) -> Put:
        """Accept or refuse an envelope; never waits for a claimer."""

    def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
        """Claim up to `limit` envelopes.

        Waits for the first one, at most `timeout` seconds, or until `wake` is called.
        """

    def ack(self, claims: Iterable[Claim]) -> None:
        """Settle claims: the queue forgets their envelopes."""

    def release(self, claims: Iterable[Claim], not_before: float = 0.0) -> None:
        """Return undelivered claims, to be claimed again from the monotonic second `not_before` on.

        Released and new envelopes are claimed in turn, so that an envelope that always fails does not hold up
        the others. A session or check-in keeps its place.
        """

    def bury(self, claim: Claim, reason: str) -> None:
        """Settle a claim whose envelope must not be sent again; a durable queue keeps it as a dead letter."""

    def wake(self, *, hasten: bool = False) -> None:
        """Make every blocked `claim` return; with `hasten`, also forget every `not_before`."""

    def stats(self) -> QueueStats:
        """Return a snapshot, without I/O."""

    def put_losses(self, report: Report, *, ending: bool = False) -> bool:
        """Leave loss counts to the drainer of a shared queue; return False if the caller must report them.

        Args:
            report: The counts.
            ending: True if the caller can't report any more, even if its process is the drainer.
        """

    def take_losses(self) -> Report:
        """Return the losses of the queue itself, and those left with `put_losses`, since the last call."""

    def take_given_up(self) -> Report:
        """Return the quantities that a shared queue gave up itself since the last call.

        They are also among the losses of `take_losses`, which reports them; the caller counts these.
        """

    def describe(self) -> Mapping[str, Any]:
        """Return what health shows of a shared queue beyond `stats`, as plain values and without I/O.

        `problems` is a list of short sentences.
        """

    def mend(self) -> tuple[list[Claim], list[Claim]]:
        """Repair the queue after an exception inside a locked section.

        Returns the claims that the queue holds, and those that it gave up and the caller has not counted. The
        second list is the queue's own, see `Put.evicted`. Not called for a shared queue.
        """

    def close(self) -> list[Claim]:
        """Refuse puts from now on; return the envelopes that the queue held and now forgets.

        The list is the queue's own, see `Put.evicted`.
        """
