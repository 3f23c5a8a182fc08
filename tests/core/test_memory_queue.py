"""The queue in memory: the contract of every queue, and its own behaviour."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.contract.queue_contract import MANY, MakeQueue, QueueContract
from tests.core.worker_support import CLASSES, Clock, event, held, session
from tests.timing import steps
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.memory import AWAKE_FOR, MemoryQueue
from transport_kit.queues.protocol import Claim, Queue


class TestMemoryQueue(QueueContract):
    """The contract of every queue."""

    @pytest.fixture(name="make")
    def _make(self) -> MakeQueue:
        def make(max_items: int, max_bytes: int) -> Queue:
            return MemoryQueue(max_items, max_bytes)

        return make


def test_small_envelopes_are_held_as_they_are() -> None:
    """Compressing a transaction of 1 kB takes a request as long as creating it."""
    small, large = event("", 1_000), event("", 10_000)
    queue = MemoryQueue(100, large.stored * 2)
    assert queue.put(large) == (True, ())
    assert queue.prepare(small) is small
    assert queue.prepare(large) is not large


def test_envelopes_are_packed_past_a_quarter_of_the_bytes() -> None:
    """Ten thousand events of 10 kB fit into 64 MiB; a queue at rest doesn't pay for it."""
    sealed = event("", 10_000)
    queue = MemoryQueue(10_000, sealed.stored * 8)
    forms = []
    for _ in range(12):
        prepared = queue.prepare(sealed)
        forms.append(prepared is sealed)
        assert queue.put(prepared) == (True, ())
    assert forms[:3] == [True] * 3
    assert not any(forms[3:])
    assert {claim.sealed.unpacked().serialize() for claim in queue.claim(12)} == {sealed.serialize()}


def test_ids_grow_with_each_put_and_the_newest_is_known() -> None:
    """A flush waits for the envelopes put before it, which it recognises by their ids."""
    queue = MemoryQueue(10, MANY)
    for n in range(1, 4):
        queue.put(event())
        assert queue.stats().last_id == n
    assert [claim.id for claim in queue.claim(3)] == [1, 2, 3]


def test_a_claimer_looks_while_work_is_fresh_and_parks_when_it_is_not() -> None:
    """While a claimer polls, a put causes no thread switch; a parked one must be woken."""
    clock = Clock()
    queue = MemoryQueue(10, MANY, clock=clock)
    queue.put(event())
    queue.ack(queue.claim(1))
    waits: list[tuple[float | None, int]] = []

    class Watched:
        """A substitute for the condition that records how a claimer waits."""

        def wait(self, timeout: float | None = None) -> bool:
            waits.append((timeout, queue._parked))
            clock.now += timeout or 0.0
            return False

        def notify_all(self) -> None:
            raise AssertionError("nobody is parked")

    queue._available = Watched()  # type: ignore[assignment]
    queue.put(event())  # notifies nobody
    queue.ack(queue.claim(1))
    assert queue.claim(1, 60.0) == []
    looks = [timeout for timeout, parked in waits if not parked]
    parks = [timeout for timeout, parked in waits if parked]
    assert len(looks) == pytest.approx(AWAKE_FOR / 0.005, abs=2)
    assert parks == [pytest.approx(60.0 - AWAKE_FOR, abs=0.1)]


def test_a_session_whose_turn_was_sacrificed_frees_its_lane() -> None:
    """The session that held up its lane was given up while it waited for its next attempt."""
    queue = MemoryQueue(2, MANY)
    queue.put(session("one"))
    queue.release(queue.claim(1), float("inf"))
    queue.put(session("two"))
    put = queue.put(event())
    assert [claim.id for claim in put.evicted] == [1]
    assert sorted(claim.id for claim in queue.claim(5)) == [2, 3]


def test_a_section_left_half_done_does_not_wedge_the_queue() -> None:
    """An exception of a signal handler leaves stale sums, and a busy lane without its session.

    The next owner of the lock calls `mend`, which repairs both.
    """
    queue = MemoryQueue(3, MANY)
    for n in range(3):
        queue.put(session(str(n)))
    queue.claim(1)
    with queue.lock.rlock:  # the state after an interrupted put, claim and ack
        queue._items += 2
        queue._size += 5000
        queue._claimed.clear()
    held, given_up = queue.mend()
    assert ([claim.id for claim in held], given_up) == ([2, 3], [])
    stats = queue.stats()
    assert (stats.waiting, stats.claimed) == (2, 0)
    assert stats.size == sum(claim.sealed.stored for lane in queue._lanes for claim in lane.waiting)
    (claim,) = queue.claim(1)
    queue.ack([claim])
    assert queue.put(session()).evicted == ()
    with queue.lock.rlock:
        queue._items += 1
    queue.mend()
    assert queue.put(event()).evicted == ()


def test_a_put_that_makes_room_costs_little_more_than_one_that_has_it() -> None:
    """Once a queue is full each capture makes room: three or four times the put, however much it holds."""
    small = event()
    full = MemoryQueue(10_000, MANY)
    for _ in range(10_000):
        full.put(small)

    def puts(queue: MemoryQueue) -> int:
        return steps(lambda: [queue.put(small) for _ in range(200)])

    assert puts(full) <= 4 * puts(MemoryQueue(10_000, MANY))


class Model(RuleBasedStateMachine):
    """After any calls the bounds hold, no envelope appears or vanishes, and sessions keep their order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.queue = MemoryQueue(6, 9_000, clock=self.clock)
        self.accepted = 0
        self.gone = 0
        self.claimed: list[Claim] = []
        self.paused: dict[int, float] = {}
        self.sessions: list[int] = []
        self.quantities: Counter[str] = Counter()

    def _lost(self, sealed: SealedEnvelope) -> None:
        self.gone += 1
        self.quantities.subtract(dict(sealed.quantities))

    @rule(new=st.sampled_from(CLASSES), padding=st.sampled_from(["", "x" * 3000]))
    def put(self, new: object, padding: str) -> None:
        sealed: SealedEnvelope = new(padding)  # type: ignore[operator]
        before = {claim.id for claim in self.claimed}
        waiting = [claim for lane in self.queue._lanes for claim in (*lane.retried, *lane.waiting)]
        waiting += [claim for _, _, claim in self.queue._delayed]
        put = self.queue.put(self.queue.prepare(sealed))
        if put.accepted:
            self.accepted += 1
            self.quantities.update(dict(sealed.quantities))
        for claim in put.evicted:
            assert claim.id not in before
            assert claim.sealed.priority <= sealed.priority
            older = [
                other.id
                for other in waiting
                if other.sealed.priority == claim.sealed.priority and other.id < claim.id
            ]
            assert set(older) <= {other.id for other in put.evicted}
            self._lost(claim.sealed)
        if not put.accepted:
            assert put.evicted == ()

    @rule(limit=st.integers(1, 4))
    def claim(self, limit: int) -> None:
        for claim in self.queue.claim(limit):
            assert claim.id not in {other.id for other in self.claimed}
            assert self.paused.pop(claim.id, 0.0) <= self.clock.now
            if claim.sealed.ordered:
                assert claim.id >= max(self.sessions, default=0), "a session was overtaken"
                self.sessions.append(claim.id)
            self.claimed.append(claim)
        assert sum(claim.sealed.ordered for claim in self.claimed) <= 1

    @rule(which=st.integers(0, 3), bury=st.booleans())
    def settle(self, which: int, bury: bool) -> None:
        if which < len(self.claimed):
            claim = self.claimed.pop(which)
            if bury:
                self.queue.bury(claim, "internal_sdk_error")
            else:
                self.queue.ack([claim])
            self._lost(claim.sealed)

    @rule(which=st.integers(0, 3), pause=st.sampled_from([0.0, 1.0, 30.0]))
    def release(self, which: int, pause: float) -> None:
        if which < len(self.claimed):
            claim = self.claimed.pop(which)
            if pause:
                self.paused[claim.id] = self.clock.now + pause
            self.queue.release([claim], self.clock.now + pause)

    @rule(seconds=st.sampled_from([0.5, 5.0, 60.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(hasten=st.booleans())
    def wake(self, hasten: bool) -> None:
        self.queue.wake(hasten=hasten)
        if hasten:
            self.paused.clear()

    @invariant()
    def nothing_vanishes(self) -> None:
        stats = self.queue.stats()
        assert stats.waiting + stats.claimed == self.accepted - self.gone
        assert stats.claimed == len(self.claimed)
        assert stats.waiting + stats.claimed <= 6
        assert 0 <= stats.size <= 9_000
        assert +held(self.queue) == +self.quantities
        ages = [claim.put_at for claim in self.claimed]
        assert (stats.oldest_put_at is None) == (stats.waiting + stats.claimed == 0)
        assert stats.oldest_put_at is None or stats.oldest_put_at <= min(ages, default=self.clock.now)


TestAnyHistory = Model.TestCase
TestAnyHistory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
