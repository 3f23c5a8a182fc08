"""MemoryQueue: a bounded queue in this process's memory.

Owns which envelope goes next, which goes when there is no room, when a claimer looks or sleeps, and the turns
of the priority classes, which the spool's drainer shares. The promises are in `protocol.py`; the caller
records what was accepted and lost.

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

#: Seconds between two looks while work came recently.
LOOK_EVERY = 0.005
#: Seconds after the last put during which a claimer looks instead of blocking.
AWAKE_FOR = 1.0
#: Seconds after which a parked claimer looks all the same; the system's clock calls take no more than years.
LONGEST_WAIT = 3600.0
#: Share of `max_bytes` past which envelopes are held compressed.
PACK_ABOVE = 0.25
#: Bytes of an envelope from which on it is. Below, the objects around them weigh as much as is gained, and
#: setting up the compressor costs a capture more than all the rest of it.
PACK_FROM = 4 * 1024

#: How many of a class are claimed before a lower one gets a turn, lowest class first.
_WEIGHTS: Final = (1, 2, 3, 4, 5)
#: The class of sessions and check-ins, which are one first-in-first-out lane.
ORDERED: Final = int(Priority.SESSION)
HIGHEST_FIRST: Final = tuple(sorted((int(priority) for priority in Priority), reverse=True))


class _Lane:
    """What is held of one class and not claimed.

    `waiting` was never tried, oldest first; `retried` was, and is older; both may be claimed. `size` is
    their bytes, and of this class in the queue's `_delayed`.
    """

    __slots__ = ("_turn", "retried", "size", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Claim] = deque()
        self.retried: deque[Claim] = deque()
        self.size = 0
        self._turn = False

    def pop(self) -> Claim:
        """The next to be tried: new and old ones by turns, so that none keeps the others waiting."""
        self._turn = bool(self.retried) and not (self._turn and self.waiting)
        return self.retried.popleft() if self._turn else self.waiting.popleft()


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
        # All below is read and written only while holding `lock`, but for the one look of `prepare`.
        self._available = threading.Condition(self.lock.rlock)
        # An envelope is in one of three places: ready in its lane, in `_delayed`, or in `_claimed`.
        self._lanes = tuple(_Lane() for _ in Priority)
        self._delayed: list[tuple[float, int, Claim]] = []  # a heap, by the time of the next attempt
        self._claimed: dict[int, Claim] = {}
        # What had to make room, and what was held at the end, until whoever counts it takes it out.
        self._given_up: list[Claim] = []
        # How many are held, and their bytes: sums that save a put the counting.
        self._items = 0
        self._size = 0
        self._turns = Turns()
        self._lane_busy: int | None = None  # id of the session or check-in that holds up the others
        self._last_id = 0
        self._last_put = float("-inf")
        self._parked = 0  # claimers that only a change, a wake or a timeout brings back
        self._wakes = 0
        self._closed = False

    # -- putting ---------------------------------------------------------------------------------------

    def prepare(self, sealed: SealedEnvelope) -> SealedEnvelope:
        """Compressed when the queue is past a quarter of its bytes, and the envelope is no small one.

        Reads one number without the lock: an answer that is a moment old costs at most one envelope held
        in the other form.
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
                self._available.notify_all()  # it goes on when the lock is free
            lane = self._lanes[rank]
            waiting = lane.waiting
            # One step to the end.
            waiting += (claim,)
            lane.size += size
            self._items += 1
            self._size += size
            self._last_id = number
            self._last_put = now
            return put

    def _make_room(self, rank: int, size: int) -> bool:
        """Give up what must go so that `size` bytes of class `rank` fit; False when that would not do.

        A capture pays for this, and once the queue is full each does. So the usual case comes first: the
        oldest of the lowest class that is held are enough, and none of it was tried.
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
        held = [len(lane.waiting) + len(lane.retried) + delayed.count(n) for n, lane in enumerate(lanes)]
        if sum(held) < over_items or sum(lane.size for lane in lanes) < over_bytes:
            return False
        for n, lane in enumerate(lanes):
            for _ in range(held[n]):
                if over_items <= 0 and over_bytes <= 0:
                    return True
                over_items -= 1
                over_bytes -= self._sacrifice_oldest(lane)
        return True

    def _sacrifice(self, lane: _Lane, held: deque[Claim] | list[Claim], at: int) -> int:
        """Give up `held[at]`, which waits in this lane; its bytes."""
        claim = held[at]
        size = claim.sealed.stored
        given_up = self._given_up
        # One step to the end.
        given_up += (claim,)
        del held[at]
        lane.size -= size
        self._items -= 1
        self._size -= size
        if self._lane_busy == claim.id:
            self._lane_busy = None
        return size

    def _sacrifice_oldest(self, lane: _Lane) -> int:
        """What was tried is older than what was not; there is little of it, as failures stop the claiming."""
        tried = list(lane.retried)
        tried += [entry[2] for entry in self._delayed if self._lanes[_rank(entry[2].sealed)] is lane]
        if not tried:
            return self._sacrifice(lane, lane.waiting, 0)
        oldest = min(tried, key=lambda claim: claim.id)
        if oldest not in lane.retried:
            # Moved by a copy, so that it is in one of both.
            delayed = [entry for entry in self._delayed if entry[2] is not oldest]
            heapq.heapify(delayed)
            retried = lane.retried
            retried += (oldest,)
            self._delayed = delayed
        return self._sacrifice(lane, lane.retried, lane.retried.index(oldest))

    # -- claiming --------------------------------------------------------------------------------------

    def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
        """Look every few milliseconds while work came within the last second, then park.

        A put wakes only who is parked: waking a thread on every put would cost the capturing thread more
        than the capture itself. `_parked` is raised while holding the lock and after a last look, so
        nothing can change between the look and the parking without seeing it.
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
        """Classes of which something may be claimed, highest first."""
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
        """Memory keeps no dead letters: the same as `ack`."""
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
            held = self._held()
            if self._closed and not held:
                return []
            self._closed = True
            lanes = tuple([_Lane() for _ in Priority])
            self.wake()
            given_up = self._given_up
            # One step to the end.
            given_up += held
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
        """Back into their lanes: what may be claimed at `until`."""
        while self._delayed and self._delayed[0][0] <= until:
            claim = heapq.heappop(self._delayed)[2]
            lane = self._lanes[_rank(claim.sealed)]
            if claim.sealed.ordered:
                self._lane_busy = None
                lane.waiting.appendleft(claim)  # it was the only one out, so it is the oldest
            else:
                lane.retried.append(claim)

    def _held(self) -> list[Claim]:
        held = [claim for lane in self._lanes for claim in (*lane.retried, *lane.waiting)]
        held += [entry[2] for entry in self._delayed]
        held += self._claimed.values()
        return held

    def _recount(self) -> list[Claim]:
        """Make the sums true again after a section that was left half done; what is held."""
        claimed, delayed = list(self._claimed.values()), [entry[2] for entry in self._delayed]
        for lane in self._lanes:
            lane.size = sum([claim.sealed.stored for claim in (*lane.waiting, *lane.retried)])
        for claim in delayed:
            self._lanes[_rank(claim.sealed)].size += claim.sealed.stored
        if self._lane_busy not in {claim.id for claim in (*claimed, *delayed)}:
            self._lane_busy = None
        if self._parked:
            self._available.notify_all()
        held = self._held()
        self._size = sum([claim.sealed.stored for claim in held])
        self._items = len(held)
        return held

    def _forget(self, claim: Claim) -> None:
        self._items -= 1
        self._size -= claim.sealed.stored
        if self._lane_busy == claim.id:
            self._lane_busy = None
            if self._parked:  # the lane's next may be claimed now, and nobody else would say so
                self._available.notify_all()


_ACCEPTED = Put(True)
_REFUSED = Put(False)


def _rank(sealed: SealedEnvelope) -> int:
    """The class in which it waits: what is ordered waits in one lane, whatever else it carries."""
    return ORDERED if sealed.ordered else sealed.priority


class Turns:
    """See the module."""

    __slots__ = ("_credits",)

    def __init__(self) -> None:
        self._credits = list(_WEIGHTS)

    def choose(self, ready: Iterable[int]) -> int | None:
        """The first of the classes that have something, highest first, that has credit left; None for none.

        When those that are ready have spent theirs, everyone gets it anew.
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
