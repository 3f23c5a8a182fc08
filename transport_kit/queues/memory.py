"""MemoryQueue: a bounded queue in this process's memory.

This module owns the choice of the next envelope, the choice of envelopes to give up, the waiting of claimers,
and the turns of the priority classes, which the spool's drainer uses too. The guarantees are stated in
`protocol.py`.

Threads: every method may be called from any thread. The queue changes only while its `lock` is held, which
is also the worker's, so that queue and ledger change together.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from transport_kit.envelope.item_types import Priority
from transport_kit.envelope.losses import Report
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.protocol import Claim, Put, QueueStats
from transport_kit.runtime.lock import StateLock

__all__ = ["HIGHEST_FIRST", "MemoryQueue", "ORDERED", "Turns"]

#: Seconds between two polls of a claimer that is not parked.
LOOK_EVERY = 0.005
#: Seconds after the last put during which a claimer polls instead of being parked.
AWAKE_FOR = 1.0
#: Seconds after which a parked claimer looks anyway: the system limits the timeout of a wait.
LONGEST_WAIT = 3600.0
#: Share of `max_bytes` above which envelopes are compressed.
PACK_ABOVE = 0.25
#: Bytes of the smallest envelope that is compressed. Below, the objects around the bytes take as much memory
#: as is saved, and setting up the compressor costs a capture more than everything else.
PACK_FROM = 4 * 1024

#: Number of envelopes of a class that are claimed before a lower class gets a turn, lowest class first.
_WEIGHTS: Final = (1, 2, 3, 4, 5)
#: The class of sessions and check-ins, which form one first-in-first-out lane.
ORDERED: Final = int(Priority.SESSION)
#: All classes, highest first.
HIGHEST_FIRST: Final = tuple(sorted((int(priority) for priority in Priority), reverse=True))


class _Lane:
    """The envelopes of one class that are not claimed.

    `waiting` contains those that were never claimed, oldest first; `retried` contains released ones, which
    are older. Both may be claimed. `size` is their bytes, plus those of this class in the queue's `_delayed`.
    """

    __slots__ = ("_turn", "retried", "size", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Claim] = deque()
        self.retried: deque[Claim] = deque()
        self.size = 0
        self._turn = False

    def pop(self) -> Claim:
        """Remove and return the next claim: new and released ones in turn, so that neither wait long."""
        self._turn = bool(self.retried) and not (self._turn and self.waiting)
        return self.retried.popleft() if self._turn else self.waiting.popleft()


class MemoryQueue:
    """A bounded queue in this process's memory.

    On overflow the oldest waiting envelope of the lowest class is given up, never a claimed one; a new
    envelope of a class below all waiting ones is refused. Higher classes are claimed more often, lower ones
    still get a turn. Sessions and check-ins form one first-in-first-out lane: while one of them is claimed,
    or waits for its next attempt, no other of them is claimed.

    Args:
        max_items: Most envelopes held, claimed ones included.
        max_bytes: Most bytes held, claimed ones included.
        lock: The lock of other state that must change together with the queue; None for a lock of its own.
        clock: Monotonic seconds.
    """

    durable = False
    shared = False

    def __init__(
        self,
        max_items: int,
        max_bytes: int,
        lock: StateLock | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lock = lock or StateLock()
        self._clock = clock
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._pack_above = max_bytes * PACK_ABOVE
        # All fields below are read and written only while `lock` is held, except that `prepare` reads
        # `_size`.
        self._available = threading.Condition(self.lock.rlock)
        # An envelope is in one of three places: in its lane, in `_delayed`, or in `_claimed`.
        self._lanes = tuple(_Lane() for _ in Priority)
        self._delayed: list[tuple[float, int, Claim]] = []  # a heap, by the time of the next attempt
        self._claimed: dict[int, Claim] = {}
        # Envelopes given up for a put or by `close`, until the caller counts them and takes them out.
        self._given_up: list[Claim] = []
        # Number and bytes of all envelopes held. A signal handler that raises inside a section may leave
        # these sums stale; `mend` repairs them.
        self._items = 0
        self._size = 0
        self._turns = Turns()
        self._lane_busy: int | None = None  # id of the session or check-in that holds up the others
        self._last_id = 0
        self._last_put = float("-inf")
        self._parked = 0  # claimers that return only for a notification or a timeout
        self._wakes = 0
        self._closed = False

    # -- putting ---------------------------------------------------------------------------------------

    def prepare(self, sealed: SealedEnvelope) -> SealedEnvelope:
        """Compress the envelope if the queue is over a quarter of its bytes and the envelope is not small.

        Reads `_size` without the lock: with a stale value, an envelope is held in the other form.
        """
        return sealed.packed() if self._size > self._pack_above and sealed.size >= PACK_FROM else sealed

    def put(self, sealed: SealedEnvelope) -> Put:
        with self.lock.rlock:
            if self._closed:
                return _REFUSED
            size = sealed.stored
            rank = _rank(sealed)
            put = _ACCEPTED
            if self._items >= self._max_items or self._size + size > self._max_bytes:
                self._given_up = []
                if not self._make_room(rank, size):
                    return _REFUSED
                put = Put(True, self._given_up)
            now = self._clock()
            number = self._last_id + 1
            claim = Claim(number, sealed, 0, now)
            if self._parked:
                self._available.notify_all()  # it continues once the lock is free
            lane = self._lanes[rank]
            waiting = lane.waiting
            # No Python function is called from here to the end, so no signal handler runs in between.
            waiting += (claim,)
            lane.size += size
            self._items += 1
            self._size += size
            self._last_id = number
            self._last_put = now
            return put

    def _make_room(self, rank: int, size: int) -> bool:
        """Give up envelopes so that one of `size` bytes and class `rank` fits; return False if that can't be.

        Runs in every capture once the queue is full. So the usual case comes first: the oldest envelopes of
        the lowest class suffice, and none of that class was claimed before.
        """
        over_items = self._items + 1 - self._max_items
        over_bytes = self._size + size - self._max_bytes
        lanes = self._lanes[: rank + 1]
        for lane in () if self._delayed else lanes:
            if lane.retried:
                break
            if lane.waiting:
                if len(lane.waiting) < over_items or lane.size < over_bytes:
                    break
                while over_items > 0 or over_bytes > 0:
                    over_items -= 1
                    over_bytes -= self._sacrifice(lane, lane.waiting, 0)
                return True
        return self._make_room_by_class(lanes, over_items, over_bytes)

    def _make_room_by_class(self, lanes: Sequence[_Lane], over_items: int, over_bytes: int) -> bool:
        delayed = [_rank(claim.sealed) for _, _, claim in self._delayed]
        counts = [len(lane.waiting) + len(lane.retried) + delayed.count(n) for n, lane in enumerate(lanes)]
        if sum(counts) < over_items or sum(lane.size for lane in lanes) < over_bytes:
            return False
        for n, lane in enumerate(lanes):
            for _ in range(counts[n]):
                if over_items <= 0 and over_bytes <= 0:
                    return True
                over_items -= 1
                over_bytes -= self._sacrifice_oldest(lane)
        return True

    def _sacrifice(self, lane: _Lane, claims: deque[Claim] | list[Claim], index: int) -> int:
        """Give up `claims[index]`, which belongs to this lane; return its bytes."""
        claim = claims[index]
        size = claim.sealed.stored
        given_up = self._given_up
        # No Python function is called from here to the end, so no signal handler runs in between.
        given_up += (claim,)
        del claims[index]
        lane.size -= size
        self._items -= 1
        self._size -= size
        if self._lane_busy == claim.id:
            self._lane_busy = None
        return size

    def _sacrifice_oldest(self, lane: _Lane) -> int:
        """Give up the oldest envelope of a lane; return its bytes.

        Released envelopes are older than new ones. There are few, as claiming stops with failures.
        """
        released = list(lane.retried)
        released += [entry[2] for entry in self._delayed if self._lanes[_rank(entry[2].sealed)] is lane]
        if not released:
            return self._sacrifice(lane, lane.waiting, 0)
        oldest = min(released, key=lambda claim: claim.id)
        if oldest not in lane.retried:
            # `_delayed` is replaced by a copy, so that at no time both lists lack the claim.
            delayed = [entry for entry in self._delayed if entry[2] is not oldest]
            heapq.heapify(delayed)
            retried = lane.retried
            retried += (oldest,)
            self._delayed = delayed
        return self._sacrifice(lane, lane.retried, lane.retried.index(oldest))

    # -- claiming --------------------------------------------------------------------------------------

    def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
        """Claim up to `limit` envelopes; see `Queue.claim`.

        Polls every few milliseconds for a second after the last put, and then parks. A put wakes parked
        claimers only: waking a thread with every put would cost the capturing thread more than the capture
        itself. `_parked` is incremented after a last look and under the same hold of the lock, so any later
        change finds it set.
        """
        deadline = self._clock() + timeout
        with self.lock.rlock:
            wakes = self._wakes
            while True:
                now = self._clock()
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
                    self._available.wait(min(remaining, LONGEST_WAIT))
                finally:
                    self._parked -= 1

    def _take(self, limit: int, now: float) -> list[Claim]:
        if self._delayed:
            self._undelay(now)
        claims: list[Claim] = []
        while len(claims) < limit:
            rank = self._turns.choose(self._ready())
            if rank is None:
                break
            lane = self._lanes[rank]
            claim = lane.pop()
            lane.size -= claim.sealed.stored
            if claim.sealed.ordered:
                self._lane_busy = claim.id
            self._claimed[claim.id] = claim
            claims.append(claim)
        return claims

    def _ready(self) -> Iterator[int]:
        """Yield the classes that have something to claim, highest first."""
        for rank in HIGHEST_FIRST:
            lane = self._lanes[rank]
            if (lane.waiting or lane.retried) and not (rank == ORDERED and self._lane_busy is not None):
                yield rank

    # -- settling --------------------------------------------------------------------------------------

    def ack(self, claims: Iterable[Claim]) -> None:
        with self.lock.rlock:
            self._ack(claims)

    def _ack(self, claims: Iterable[Claim]) -> None:
        for claim in claims:
            if self._claimed.pop(claim.id, None) is not None:
                self._forget(claim)

    def bury(self, claim: Claim, reason: str) -> None:
        """Settle the claim, as `ack` does: the queue in memory keeps no dead letters."""
        self.ack([claim])

    def release(self, claims: Iterable[Claim], not_before: float = 0.0) -> None:
        with self.lock.rlock:
            self._release(claims, not_before)

    def _release(self, claims: Iterable[Claim], not_before: float) -> None:
        for claim in claims:
            if self._claimed.pop(claim.id, None) is None:
                continue
            claim.attempts += 1
            self._lanes[_rank(claim.sealed)].size += claim.sealed.stored
            # A session keeps its lane busy until its next attempt: nothing may overtake it.
            heapq.heappush(self._delayed, (not_before, claim.id, claim))
        if self._parked:
            self._available.notify_all()

    def put_losses(self, report: Report, *, ending: bool = False) -> bool:
        return False

    def take_losses(self) -> Report:
        return ()

    def take_given_up(self) -> Report:
        return ()

    def describe(self) -> Mapping[str, Any]:
        return {}

    def wake(self, *, hasten: bool = False) -> None:
        with self.lock.rlock:
            if hasten:
                self._undelay(float("inf"))
            self._wakes += 1
            self._available.notify_all()

    def stats(self) -> QueueStats:
        with self.lock.rlock:
            oldest = self._oldest()
            claimed = len(self._claimed)
            return QueueStats(
                self._items - claimed,
                claimed,
                self._size,
                self._max_items,
                self._max_bytes,
                oldest,
                self._last_id,
            )

    def _oldest(self) -> float | None:
        ages = [claim.put_at for claim in self._claimed.values()]
        ages += [entry[2].put_at for entry in self._delayed]
        for lane in self._lanes:
            ages += [claim.put_at for claim in lane.retried]
            if lane.waiting:
                ages.append(lane.waiting[0].put_at)
        return min(ages, default=None)

    def close(self) -> list[Claim]:
        with self.lock.rlock:
            claims = self._all_claims()
            if self._closed and not claims:
                return []
            self._closed = True
            lanes = tuple([_Lane() for _ in Priority])
            self.wake()
            given_up = self._given_up
            # No Python function is called from here to the end, so no signal handler runs in between.
            given_up += claims
            self._lanes = lanes
            self._delayed = []
            self._claimed = {}
            self._lane_busy = None
            self._items = self._size = 0
            return given_up

    def mend(self) -> tuple[list[Claim], list[Claim]]:
        with self.lock.rlock:
            return self._recount(), self._given_up

    # -- for callers that hold the lock ----------------------------------------------------------------

    def _undelay(self, until: float) -> None:
        """Return the claims whose pause ends by `until` to their lanes."""
        while self._delayed and self._delayed[0][0] <= until:
            claim = heapq.heappop(self._delayed)[2]
            lane = self._lanes[_rank(claim.sealed)]
            if claim.sealed.ordered:
                self._lane_busy = None
                lane.waiting.appendleft(claim)  # only one of this lane is out at a time, so it is the oldest
            else:
                lane.retried.append(claim)

    def _all_claims(self) -> list[Claim]:
        claims = [claim for lane in self._lanes for claim in (*lane.retried, *lane.waiting)]
        claims += [entry[2] for entry in self._delayed]
        claims += self._claimed.values()
        return claims

    def _recount(self) -> list[Claim]:
        """Compute all sums again after an exception inside a locked section; return the claims held."""
        claimed, delayed = list(self._claimed.values()), [entry[2] for entry in self._delayed]
        for lane in self._lanes:
            lane.size = sum([claim.sealed.stored for claim in (*lane.waiting, *lane.retried)])
        for claim in delayed:
            self._lanes[_rank(claim.sealed)].size += claim.sealed.stored
        if self._lane_busy not in {claim.id for claim in (*claimed, *delayed)}:
            self._lane_busy = None
        if self._parked:
            self._available.notify_all()
        claims = self._all_claims()
        self._size = sum([claim.sealed.stored for claim in claims])
        self._items = len(claims)
        return claims

    def _forget(self, claim: Claim) -> None:
        self._items -= 1
        self._size -= claim.sealed.stored
        if self._lane_busy == claim.id:
            self._lane_busy = None
            if self._parked:  # the next envelope of this lane may be claimed now
                self._available.notify_all()


_ACCEPTED = Put(True)
_REFUSED = Put(False)


def _rank(sealed: SealedEnvelope) -> int:
    """Return the class of an envelope; an ordered one is in the ordered lane whatever its items are."""
    return ORDERED if sealed.ordered else sealed.priority


class Turns:
    """The turns of the priority classes, by weights: a higher class is chosen more often."""

    __slots__ = ("_credits",)

    def __init__(self) -> None:
        self._credits = list(_WEIGHTS)

    def choose(self, ready: Iterable[int]) -> int | None:
        """Return the first of the classes in `ready` that has credit left; None if `ready` is empty.

        When none of them has credit left, the credit of all classes is renewed.

        Args:
            ready: The classes that have something to claim, highest first.
        """
        highest = None
        for rank in ready:
            if self._credits[rank]:
                self._credits[rank] -= 1
                return rank
            if highest is None:
                highest = rank
        if highest is not None:
            self._credits[:] = _WEIGHTS
            self._credits[highest] -= 1
        return highest
