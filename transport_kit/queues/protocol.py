"""Queues: where a sealed envelope waits between the capture and its delivery.

Owns the `Queue` protocol, which says what any queue promises, and what goes in and comes out. Implements
none: see `memory.py` and `spool/`. Knows nothing of HTTP, of threads that deliver, or of the ledger:
the caller records what was accepted and lost.

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
    """One envelope in a sender's hands.

    Attributes:
        id: Grows with each put; unique within the queue.
        sealed: What to deliver; may be in its packed form.
        attempts: Deliveries begun before this claim.
        put_at: Monotonic seconds at which it was accepted.
    """

    id: int
    sealed: SealedEnvelope
    attempts: int = 0
    put_at: float = 0.0


class Put(NamedTuple):
    """What became of a put: accepted or not, and what was sacrificed for it.

    A queue in memory hands out its own list: whoever counts a claim takes it out in the same step.
    """

    accepted: bool
    evicted: list[Claim] | tuple[Claim, ...] = ()


class QueueStats(NamedTuple):
    """A snapshot. `waiting + claimed` envelopes and `size` bytes are held of `max_items`, `max_bytes`.

    `waiting` includes what waits for its next attempt. `last_id` is that of the newest envelope put.
    """

    waiting: int
    claimed: int
    size: int
    max_items: int
    max_bytes: int
    oldest_put_at: float | None
    last_id: int = 0


class Queue(Protocol):
    """Where envelopes wait. Implementations differ to callers only in `durable` and `shared`.

    Attributes:
        durable: Whether what was accepted survives this process.
        shared: Whether other processes put and claim too. Then `put`, `claim` and what settles may do
            I/O, and the worker never calls them while holding its own lock.
        lock: Guards a queue that is not shared, together with its worker's ledger.
    """

    durable: bool
    shared: bool
    lock: StateLock

    def prepare(self, sealed: SealedEnvelope) -> SealedEnvelope:
        """The form in which `put` will hold it. Called before `put`, without the lock: may take long."""

    def put(self, sealed: SealedEnvelope) -> Put:
        """Accept or refuse; never waits for a claimer."""

    def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
        """Up to `limit` envelopes; waits up to `timeout` seconds, or until `wake`, for the first."""

    def ack(self, claims: Iterable[Claim]) -> None:
        """Settled: forget them."""

    def release(self, claims: Iterable[Claim], not_before: float = 0.0) -> None:
        """Not delivered: to be claimed again, from the monotonic second `not_before` on.

        What was tried and what was not take turns: an envelope that always fails must not keep the others
        from theirs. A session or check-in keeps its place.
        """

    def bury(self, claim: Claim, reason: str) -> None:
        """Poison: never to be claimed again; a durable queue keeps it as a dead letter."""

    def wake(self, *, hasten: bool = False) -> None:
        """Make every blocked `claim` return; with `hasten`, forget every `not_before`: someone waits."""

    def stats(self) -> QueueStats:
        """A snapshot; no I/O."""

    def put_losses(self, report: Report, *, ending: bool = False) -> bool:
        """Leave loss counts to whoever drains a shared queue; False when the caller is to report them.

        Args:
            ending: The caller can't report any more, even if it is the one that drains.
        """

    def take_losses(self) -> Report:
        """What the queue itself gave up, or was left with `put_losses`, since the last call."""

    def describe(self) -> Mapping[str, Any]:
        """What health says of a shared queue beyond `stats`: plain values; no I/O. `problems` is a list of
        short sentences."""

    def mend(self) -> tuple[list[Claim], list[Claim]]:
        """After a section that was left half done: what this queue holds, and what it gave up uncounted.

        Not called for a shared queue. Whoever counts a claim of the second takes it out in the same step.
        """

    def close(self) -> list[Claim]:
        """Refuse puts from now on; returns what this queue held and now forgets, as a list like `Put`'s."""
