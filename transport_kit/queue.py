"""Queues: where a sealed envelope waits between the capture and its delivery.

Owns the `Queue` protocol, which says what any queue promises, and `MemoryQueue`. Knows nothing of HTTP,
of threads that deliver, or of the ledger: the caller records what was accepted and lost.

Threads: every method may be called from any thread. `MemoryQueue` changes only while its `lock` is held,
which is also the worker's, so that queue and ledger change together.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from transport_kit.sealing import Priority, SealedEnvelope
from transport_kit.statelock import StateLock

__all__ = ["Claim", "MemoryQueue", "Put", "Queue", "QueueStats"]

#: Seconds between two looks while work came recently.
LOOK_EVERY = 0.005
#: Seconds after the last put during which a claimer looks instead of blocking.
AWAKE_FOR = 1.0
#: Share of `max_bytes` past which envelopes are held compressed.
PACK_ABOVE = 0.25
#: How many of a class are claimed before a lower one gets a turn, lowest class first.
WEIGHTS = (1, 2, 3, 4, 5)


@dataclass(slots=True, eq=False)
class Claim:
    """One envelope in a sender's hands.

    Attributes:
        id: Grows with each put; unique within the queue.
        sealed: What to deliver; may be in its packed form.
        attempts: Deliveries begun before this claim.
        put_at: Monotonic seconds at which it was accepted.
        lease_until: Monotonic seconds until which nobody else gets it.
    """

    id: int
    sealed: SealedEnvelope
    attempts: int = 0
    put_at: float = 0.0
    lease_until: float = float("inf")


class Put(NamedTuple):
    """What became of a put: accepted or not, and what was sacrificed for it."""

    accepted: bool
    evicted: tuple[Claim, ...] = ()


class QueueStats(NamedTuple):
    """A snapshot. `waiting + claimed` envelopes and `size` bytes are held of `max_items`, `max_bytes`."""

    waiting: int
    claimed: int
    size: int
    max_items: int
    max_bytes: int
    oldest_put_at: float | None


class Queue(Protocol):
    """Where envelopes wait. Implementations differ to callers only in `durable` and `shared`.

    Attributes:
        durable: Whether what was accepted survives this process.
        shared: Whether other processes put and claim too. Then `put` and `claim` may do I/O, and are
            never called while `lock` is held.
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
        """Not delivered: to be claimed again, from the monotonic second `not_before` on."""

    def extend(self, claims: Iterable[Claim]) -> None:
        """Still at work: prolong the lease."""

    def bury(self, claim: Claim, reason: str) -> None:
        """Poison: never to be claimed again; a durable queue keeps it as a dead letter."""

    def wake(self) -> None:
        """Make every blocked `claim` return."""

    def stats(self) -> QueueStats:
        """A snapshot; no I/O."""

    def close(self) -> list[Claim]:
        """Refuse puts from now on; returns what this queue held and now forgets."""


class _Lane:
    """The waiting envelopes of one class, oldest first, with the bytes they take."""

    __slots__ = ("size", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Claim] = deque()
        self.size = 0

    def append(self, claim: Claim) -> None:
        self.waiting.append(claim)
        self.size += claim.sealed.stored

    def put_back(self, claim: Claim) -> None:
        # Kept in order of age, so that what waited longest goes first and is what an overflow takes.
        self.size += claim.sealed.stored
        if not self.waiting or claim.id < self.waiting[0].id:
            self.waiting.appendleft(claim)
            return
        for index, other in enumerate(self.waiting):
            if claim.id < other.id:
                self.waiting.insert(index, claim)
                return
        self.waiting.append(claim)

    def popleft(self) -> Claim:
        claim = self.waiting.popleft()
        self.size -= claim.sealed.stored
        return claim


class MemoryQueue:
    """A bounded queue in this process's memory.

    Overflow sacrifices the oldest of the lowest class that waits, never a claimed one; a new envelope
    below all that waits is refused. Higher classes are claimed more often, lower ones still get a turn.
    Sessions and check-ins form one first-in-first-out lane: while one of them is claimed, or waits for
    its next attempt, no other of them is claimed.

    Args:
        max_items: Envelopes held, claimed ones included.
        max_bytes: Bytes held, claimed ones included.
        lock: Share the lock of whatever else must change together with the queue.
    """

    durable = False
    shared = False

    def __init__(self, max_items: int, max_bytes: int, lock: StateLock | None = None) -> None:
        self.lock = lock or StateLock()
        self._max_items = max_items
        self._max_bytes = max_bytes
        # All below is read and written only while holding `lock`, but for the one look of `prepare`.
        self._available = threading.Condition(self.lock.rlock)
        self._classes = tuple(_Lane() for _ in Priority)
        self._credits = list(WEIGHTS)
        self._delayed: list[tuple[float, int, Claim]] = []  # a heap, by the time of the next attempt
        self._claimed: dict[int, Claim] = {}
        self._lane_busy: int | None = None  # id of the session or check-in that holds up the others
        self._size = 0
        self._last_id = 0
        self._last_put = float("-inf")
        self._parked = 0  # claimers that only a put, a wake or a timeout brings back
        self._wakes = 0
        self._closed = False

    # -- putting ---------------------------------------------------------------------------------------

    def prepare(self, sealed: SealedEnvelope) -> SealedEnvelope:
        """Compressed when the queue is past a quarter of its bytes.

        Reads one number without the lock: an answer that is a moment old costs at most one envelope held
        in the other form.
        """
        if self._size > self._max_bytes * PACK_ABOVE:
            return sealed.packed()
        return sealed

    def put(self, sealed: SealedEnvelope) -> Put:
        with self.lock.rlock:
            rank = _rank(sealed)
            evicted = self._make_room(rank, sealed.stored)
            if evicted is None or self._closed:
                return Put(False)
            now = time.monotonic()
            self._last_id += 1
            self._classes[rank].append(Claim(self._last_id, sealed, put_at=now))
            self._size += sealed.stored
            self._last_put = now
            if self._parked:
                self._available.notify()
            return Put(True, evicted)

    def _make_room(self, rank: int, size: int) -> tuple[Claim, ...] | None:
        """What must go so that `size` bytes of class `rank` fit; None when nothing that may go suffices."""
        over_items = self._items() + 1 - self._max_items
        over_bytes = self._size + size - self._max_bytes
        if over_items <= 0 and over_bytes <= 0:
            return ()
        self._undelay(float("inf"))  # what waits for its next attempt may be sacrificed like the rest
        sacrificable = self._classes[: rank + 1]
        if (
            sum(len(lane.waiting) for lane in sacrificable) < over_items
            or sum(lane.size for lane in sacrificable) < over_bytes
        ):
            return None
        evicted = []
        for lane in sacrificable:
            while lane.waiting and (over_items > 0 or over_bytes > 0):
                claim = lane.popleft()
                over_items -= 1
                over_bytes -= claim.sealed.stored
                self._forget(claim)
                evicted.append(claim)
        return tuple(evicted)

    # -- claiming --------------------------------------------------------------------------------------

    def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
        """Look every few milliseconds while work came within the last second, then park.

        A put wakes only who is parked: waking a thread on every put would cost the capturing thread more
        than the capture itself. `_parked` is raised while holding the lock and after a last look, so no
        put can come between the look and the parking.
        """
        deadline = time.monotonic() + timeout
        with self.lock.rlock:
            wakes = self._wakes
            while True:
                now = time.monotonic()
                claims = self._take(limit, now)
                remaining = deadline - now
                if claims or remaining <= 0 or self._closed or self._wakes != wakes:
                    return claims
                if self._delayed:
                    remaining = min(remaining, max(self._delayed[0][0] - now, 0.001))
                if now - self._last_put < AWAKE_FOR:
                    self._available.wait(min(remaining, LOOK_EVERY))
                    continue
                self._parked += 1
                try:
                    self._available.wait(remaining)
                finally:
                    self._parked -= 1

    def _take(self, limit: int, now: float) -> list[Claim]:
        if self._delayed:
            self._undelay(now)
        claims: list[Claim] = []
        while len(claims) < limit:
            rank = self._next_class()
            if rank is None:
                break
            claim = self._classes[rank].popleft()
            if claim.sealed.ordered:
                self._lane_busy = claim.id
            self._claimed[claim.id] = claim
            claims.append(claim)
        return claims

    def _next_class(self) -> int | None:
        """The highest class with envelopes and credit; when all credit is spent, everyone gets it anew."""
        ready = [
            rank
            for rank in range(len(self._classes) - 1, -1, -1)
            if self._classes[rank].waiting and not (rank == Priority.SESSION and self._lane_busy is not None)
        ]
        if not ready:
            return None
        for rank in ready:
            if self._credits[rank]:
                self._credits[rank] -= 1
                return rank
        self._credits[:] = WEIGHTS
        self._credits[ready[0]] -= 1
        return ready[0]

    # -- settling --------------------------------------------------------------------------------------

    def ack(self, claims: Iterable[Claim]) -> None:
        with self.lock.rlock:
            for claim in claims:
                if self._claimed.pop(claim.id, None) is not None:
                    self._forget(claim)

    def bury(self, claim: Claim, reason: str) -> None:
        """Memory keeps no dead letters: the same as `ack`."""
        self.ack([claim])

    def release(self, claims: Iterable[Claim], not_before: float = 0.0) -> None:
        with self.lock.rlock:
            for claim in claims:
                if self._claimed.pop(claim.id, None) is None:
                    continue
                claim.attempts += 1
                # A session keeps its lane busy until its next attempt: nothing may overtake it.
                heapq.heappush(self._delayed, (not_before, claim.id, claim))
            self._available.notify()

    def extend(self, claims: Iterable[Claim]) -> None:
        """Memory leases never end."""

    def wake(self) -> None:
        with self.lock.rlock:
            self._wakes += 1
            self._available.notify_all()

    def stats(self) -> QueueStats:
        with self.lock.rlock:
            heads = [lane.waiting[0].put_at for lane in self._classes if lane.waiting]
            held = [claim.put_at for claim in self._claimed.values()]
            delayed = [claim.put_at for _, _, claim in self._delayed]
            return QueueStats(
                waiting=self._items() - len(self._claimed),
                claimed=len(self._claimed),
                size=self._size,
                max_items=self._max_items,
                max_bytes=self._max_bytes,
                oldest_put_at=min(heads + held + delayed, default=None),
            )

    def close(self) -> list[Claim]:
        with self.lock.rlock:
            self._closed = True
            self._undelay(float("inf"))
            left = [claim for lane in self._classes for claim in lane.waiting] + list(self._claimed.values())
            for lane in self._classes:
                lane.waiting.clear()
                lane.size = 0
            self._claimed.clear()
            self._lane_busy = None
            self._size = 0
            self.wake()
            return left

    # -- for callers that hold the lock ----------------------------------------------------------------

    def _items(self) -> int:
        return sum(len(lane.waiting) for lane in self._classes) + len(self._delayed) + len(self._claimed)

    def _undelay(self, until: float) -> None:
        """Back into their classes: what may be claimed at `until`."""
        while self._delayed and self._delayed[0][0] <= until:
            claim = heapq.heappop(self._delayed)[2]
            if self._lane_busy == claim.id:
                self._lane_busy = None
            self._classes[_rank(claim.sealed)].put_back(claim)

    def _forget(self, claim: Claim) -> None:
        self._size -= claim.sealed.stored
        if self._lane_busy == claim.id:
            self._lane_busy = None


def _rank(sealed: SealedEnvelope) -> int:
    """The class in which it waits: what is ordered waits in one lane, whatever else it carries."""
    return Priority.SESSION if sealed.ordered else sealed.priority
