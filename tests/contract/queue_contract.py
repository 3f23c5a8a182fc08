"""The contract of every queue. The test file of each queue runs these tests on its kind of queue.

A subclass has a fixture `make`, which makes a queue with the given bounds.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.core.worker_support import CLASSES, event, log_batch, replay, session, transaction
from tests.timing import SOON
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.protocol import Claim, Queue

MakeQueue = Callable[[int, int], Queue]
MANY = 1 << 30


def drained(queue: Queue, limit: int = 1) -> list[SealedEnvelope]:
    """Claim and settle `limit` envelopes at a time; return all in the order of claiming."""
    envelopes = []
    while claims := queue.claim(limit, 0.0):
        envelopes += [claim.sealed.unpacked() for claim in claims]
        queue.ack(claims)
    return envelopes


def contents(envelopes: list[SealedEnvelope]) -> list[bytes]:
    return [envelope.serialize() for envelope in envelopes]


class QueueContract:
    """The tests that every queue must pass."""

    def test_what_is_put_is_claimed_byte_for_byte(self, make: MakeQueue) -> None:
        """The sent bytes must be the captured ones."""
        queue = make(10, MANY)
        sealed = event("hello")
        assert queue.put(queue.prepare(sealed)) == (True, ())
        (claim,) = queue.claim(1, SOON)
        assert claim.attempts == 0
        assert claim.sealed.unpacked().serialize() == sealed.serialize()
        assert claim.sealed.quantities == sealed.quantities

    def test_nothing_is_claimed_twice(self, make: MakeQueue) -> None:
        """A duplicate makes the server's counts wrong."""
        queue = make(10, MANY)
        queue.put(event())
        assert len(queue.claim(5, SOON)) == 1
        assert queue.claim(5, 0.0) == []
        stats = queue.stats()
        assert (stats.waiting, stats.claimed) == (0, 1)

    def test_no_more_is_claimed_than_asked_for(self, make: MakeQueue) -> None:
        """A sender claims only as many envelopes as it can send."""
        queue = make(10, MANY)
        for _ in range(5):
            queue.put(event())
        assert len(queue.claim(2, SOON)) == 2
        assert queue.stats().waiting == 3

    def test_what_is_settled_is_forgotten(self, make: MakeQueue) -> None:
        """Settling frees room; settling again changes nothing."""
        queue = make(1, MANY)
        queue.put(event())
        claims = queue.claim(1, SOON)
        queue.ack(claims)
        queue.ack(claims)
        queue.release(claims)
        queue.bury(claims[0], "internal_sdk_error")
        stats = queue.stats()
        assert (stats.waiting, stats.claimed, stats.size) == (0, 0, 0)
        assert stats.oldest_put_at is None
        assert queue.put(event()).accepted
        assert len(queue.claim(5, SOON)) == 1

    def test_what_is_released_is_claimed_again_and_knows_it(self, make: MakeQueue) -> None:
        """The number of attempts determines the pause before the next one."""
        queue = make(10, MANY)
        queue.put(event("again"))
        for attempt in range(3):
            (claim,) = queue.claim(1, SOON)
            assert claim.attempts == attempt
            queue.release([claim])
        assert queue.stats().waiting == 1

    def test_what_is_released_for_later_comes_later(self, make: MakeQueue) -> None:
        """A pause that a server requested is observed, and a blocked claim waits exactly as long."""
        queue = make(10, MANY)
        queue.put(event())
        claims = queue.claim(1, SOON)
        due = time.monotonic() + 0.1
        queue.release(claims, due)
        assert queue.claim(1, 0.0) == []
        assert len(queue.claim(1, SOON)) == 1
        assert time.monotonic() >= due

    def test_a_full_queue_keeps_its_pauses(self, make: MakeQueue) -> None:
        """An overflow must not end a pause that a server requested."""
        queue = make(2, MANY)
        queue.put(event("paused"))
        queue.release(queue.claim(1, SOON), time.monotonic() + 3600)
        queue.put(transaction())
        queue.put(event("fresh"))
        assert [claim.sealed.event_id for claim in queue.claim(5, 0.0)] != []
        assert queue.claim(5, 0.0) == []
        assert queue.stats().waiting == 1

    def test_who_waits_hastens_what_was_put_off(self, make: MakeQueue) -> None:
        """At the end of a process, an attempt a minute from now would never be made."""
        queue = make(10, MANY)
        queue.put(event())
        queue.release(queue.claim(1, SOON), time.monotonic() + 3600)
        queue.wake()
        assert queue.claim(1, 0.0) == []
        queue.wake(hasten=True)
        assert len(queue.claim(1, 0.0)) == 1

    def test_what_is_buried_stays_so(self, make: MakeQueue) -> None:
        """A dead letter is not tried again."""
        queue = make(10, MANY)
        queue.put(event())
        (claim,) = queue.claim(1, SOON)
        queue.bury(claim, "internal_sdk_error")
        assert queue.claim(1, 0.0) == []
        assert queue.stats().claimed == 0

    def test_an_envelope_that_always_fails_lets_the_others_have_their_turn(self, make: MakeQueue) -> None:
        """One that makes a server fail must not block all others for an hour."""
        queue = make(10, MANY)
        queue.put(event("poison"))
        (poison,) = queue.claim(1, SOON)
        for _ in range(3):
            queue.put(event())
        queue.release([poison])
        is_poison = []
        for _ in range(8):
            (claim,) = queue.claim(1, SOON)
            is_poison.append(claim.id == poison.id)
            if claim.id == poison.id:
                queue.release([claim])
            else:
                queue.ack([claim])
        assert is_poison.count(False) == 3, "the others had their turns"
        assert True in is_poison[:4], "and the poison had its own"

    @pytest.mark.parametrize("new", CLASSES)
    def test_one_class_comes_out_in_the_order_it_went_in(
        self, new: Callable[[str], SealedEnvelope], make: MakeQueue
    ) -> None:
        """The envelope that has waited longest goes first."""
        queue = make(50, MANY)
        envelopes = [new(str(n)) for n in range(20)]
        for envelope in envelopes:
            queue.put(envelope)
        assert contents(drained(queue)) == contents(envelopes)

    def test_the_higher_class_goes_first_and_the_lower_gets_its_turn(self, make: MakeQueue) -> None:
        """Errors go before replays, but a flood of errors must not starve all other classes."""
        queue = make(1000, MANY)
        for _ in range(60):
            for new in CLASSES:
                queue.put(new(""))
        order = [envelope.priority for envelope in drained(queue)]
        assert order[0] == max(order)
        first = Counter(order[:60])
        assert [first[priority] for priority in sorted(first, reverse=True)] == sorted(
            first.values(), reverse=True
        )
        assert len(first) == len(CLASSES), "each class has a turn in the first sixty"

    def test_overflow_takes_the_oldest_of_the_lowest_class(self, make: MakeQueue) -> None:
        """The least important class is dropped first, and its oldest envelope first."""
        queue = make(5, MANY)
        for n in range(2):
            queue.put(log_batch(f"log {n}"))
        for n in range(3):
            queue.put(transaction(f"transaction {n}"))
        gone = []
        for n in range(5):
            put = queue.put(event(str(n)))
            assert put.accepted
            gone += [claim.sealed.unpacked() for claim in put.evicted]
            assert queue.stats().waiting <= 5
        assert [envelope.items[0].type for envelope in gone] == ["log"] * 2 + ["transaction"] * 3
        assert b"log 0" in gone[0].serialize()
        assert b"transaction 0" in gone[2].serialize()
        put = queue.put(event("newest"))
        assert put.accepted
        assert b'"0"' in put.evicted[0].sealed.unpacked().serialize()

    def test_what_was_tried_is_older_and_goes_first_too(self, make: MakeQueue) -> None:
        """An overflow in an outage: the envelope that waits for its next attempt is the oldest."""
        queue = make(3, MANY)
        for n in range(3):
            queue.put(event(f"number {n}"))
        queue.release(queue.claim(2, SOON), time.monotonic() + 3600)
        for expected in (b"number 0", b"number 1", b"number 2"):
            (gone,) = queue.put(event("new")).evicted
            assert expected in gone.sealed.unpacked().serialize()
        queue.release(queue.claim(1, SOON))
        (claim,) = queue.claim(1, SOON)  # again, so that it is ready and has been tried when room is needed
        queue.release([claim])
        queue.claim(0, 0.0)
        assert queue.put(event("newest")).evicted[0].id == claim.id

    def test_what_is_below_all_that_waits_is_refused(self, make: MakeQueue) -> None:
        """A replay must not displace an error."""
        queue = make(2, MANY)
        queue.put(event())
        queue.put(event())
        assert queue.put(replay()) == (False, ())
        assert queue.stats().waiting == 2

    def test_a_claimed_envelope_is_never_sacrificed(self, make: MakeQueue) -> None:
        """It may be on its way already, and would then be both delivered and lost."""
        queue = make(2, MANY)
        queue.put(replay("one"))
        queue.put(replay("two"))
        claims = queue.claim(2, SOON)
        assert queue.put(event()) == (False, ())
        queue.ack(claims[:1])
        assert queue.put(event()) == (True, ())

    def test_bytes_are_bounded_too(self, make: MakeQueue) -> None:
        """The bound on memory holds for many small envelopes and for a few large ones."""
        size = event("", 2000).stored
        queue = make(1000, size * 3)
        for _ in range(3):
            assert queue.put(event("", 2000)).accepted
        assert queue.stats().size <= size * 3
        assert len(queue.put(event("", 2000)).evicted) >= 1
        assert queue.put(event("", 20_000)) == (False, ()), "larger than the queue itself"
        assert len(queue.put(event("", 4000)).evicted) >= 2
        assert queue.stats().size <= size * 3

    def test_sessions_go_one_at_a_time(self, make: MakeQueue) -> None:
        """The end of a session must not overtake its beginning on another connection."""
        queue = make(50, MANY)
        for n in range(4):
            queue.put(session(str(n)))
        queue.put(event())
        first = queue.claim(5, SOON)
        assert [claim.sealed.ordered for claim in first].count(True) == 1
        (lead,) = [claim for claim in first if claim.sealed.ordered]
        assert queue.claim(5, 0.0) == []
        queue.ack([lead])
        (second,) = queue.claim(5, 0.0)
        assert b'"1"' in second.sealed.unpacked().serialize()

    def test_whatever_carries_a_session_goes_in_its_lane(self, make: MakeQueue) -> None:
        """An error that ends a session must not overtake the session's beginning."""
        queue = make(50, MANY)
        queue.put(session("one"))
        mixed = Envelope.event({"message": "crash"})
        mixed.add_session({"sid": "one", "status": "crashed"})
        queue.put(mixed.seal())
        queue.put(event("plain"))
        first = queue.claim(5, SOON)
        assert [claim.sealed.ordered for claim in first].count(True) == 1
        assert len(first) == 2
        queue.ack(first)
        assert b"crash" in drained(queue)[0].serialize()

    def test_a_session_that_failed_holds_up_the_others_until_it_is_over(self, make: MakeQueue) -> None:
        """Nothing overtakes it although its next attempt is a minute away."""
        queue = make(50, MANY)
        for n in range(3):
            queue.put(session(f"number {n}"))
        claims = queue.claim(1, SOON)
        queue.release(claims, time.monotonic() + 3600)
        assert queue.claim(5, 0.0) == []
        queue.wake(hasten=True)
        assert b"number 0" in drained(queue)[0].serialize()

    def test_a_session_that_fails_again_and_again_is_overtaken_by_none(self, make: MakeQueue) -> None:
        """In other classes new and tried envelopes alternate; here the first must arrive first."""
        queue = make(50, MANY)
        for n in range(3):
            queue.put(session(f"number {n}"))
        for _ in range(4):
            (claim,) = queue.claim(5, SOON)
            assert b"number 0" in claim.sealed.unpacked().serialize()
            queue.release([claim])
        assert [b"number %d" % n in body for n, body in enumerate(contents(drained(queue, 5)))] == [True] * 3

    def test_the_end_of_a_session_wakes_who_waits_for_the_next(self, make: MakeQueue) -> None:
        """No put wakes a parked claimer then, so the settling must."""
        queue = make(50, MANY)
        queue.put(session("one"))
        (one,) = queue.claim(1, SOON)
        queue.put(session("two"))
        blocked = Claimer(queue)
        queue.ack([one])
        assert len(blocked.result()) == 1

    def test_a_put_wakes_a_blocked_claim(self, make: MakeQueue) -> None:
        """A capture at rest must be sent at once."""
        queue = make(10, MANY)
        blocked = Claimer(queue)
        queue.put(event())
        assert len(blocked.result()) == 1

    def test_a_release_shortens_the_wait_of_a_blocked_claim(self, make: MakeQueue) -> None:
        """It was blocked for an hour, and an envelope is due in a moment."""
        queue = make(10, MANY)
        queue.put(event())
        claims = queue.claim(1, SOON)
        blocked = Claimer(queue)
        queue.release(claims, time.monotonic() + 0.05)
        assert len(blocked.result()) == 1

    def test_a_wake_ends_every_blocked_claim(self, make: MakeQueue) -> None:
        """A claimer that finds nothing must notice a flush."""
        queue = make(10, MANY)
        blocked = [Claimer(queue) for _ in range(3)]
        queue.wake()
        assert [claimer.result() for claimer in blocked] == [[], [], []]

    def test_a_claim_ends_in_time(self, make: MakeQueue) -> None:
        """Every wait has a deadline."""
        queue = make(10, MANY)
        began = time.monotonic()
        assert queue.claim(1, 0.05) == []
        assert 0.04 <= time.monotonic() - began < SOON / 2

    def test_a_closed_queue_refuses_and_says_what_it_held(self, make: MakeQueue) -> None:
        """The caller of `close` counts the remaining envelopes: waiting, paused, or claimed."""
        queue = make(10, MANY)
        for new in CLASSES:
            queue.put(new(""))
        claims = queue.claim(2, SOON)
        queue.release(claims[:1], time.monotonic() + 3600)
        blocked = Claimer(make(10, MANY))
        assert len(queue.close()) == len(CLASSES)
        assert queue.put(event()) == (False, ())
        assert queue.claim(1, SOON) == []
        queue.ack(claims)
        assert queue.close() == []
        assert queue.stats()[:3] == (0, 0, 0)
        blocked.queue.close()
        assert blocked.result() == []

    def test_the_statistics_say_what_is_there(self, make: MakeQueue) -> None:
        """Health shows them, and a flush waits for them."""
        queue = make(10, MANY)
        assert queue.stats()[:6] == (0, 0, 0, 10, MANY, None)
        before = time.monotonic()
        for _ in range(4):
            queue.put(event())
        after = time.monotonic()
        claims = queue.claim(3, SOON)
        queue.release(claims[:1], time.monotonic() + 3600)
        queue.release(claims[1:2])
        queue.claim(0, 0.0)
        stats = queue.stats()
        assert (stats.waiting, stats.claimed) == (3, 1)
        assert stats.oldest_put_at is not None
        assert before <= stats.oldest_put_at <= after
        assert stats.size > 0

    def test_many_threads_lose_nothing_and_share_nothing(self, make: MakeQueue) -> None:
        """Four threads put, four claim, some release: each envelope is settled once."""
        queue = make(100_000, MANY)
        puts, settled = 4 * 250, list[int]()
        done = threading.Event()

        def put() -> None:
            for n in range(250):
                assert queue.put((event, session, transaction)[n % 3](str(n))).accepted

        def claim() -> None:
            while not done.is_set():
                for claim in queue.claim(3, 0.05):
                    if claim.attempts == 0 and claim.id % 7 == 0:
                        queue.release([claim])
                        continue
                    queue.ack([claim])
                    settled.append(claim.id)
                    if len(settled) == puts:
                        done.set()

        threads = [threading.Thread(target=target) for target in (put, claim) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert done.wait(SOON * 2)
        for thread in threads:
            thread.join(SOON)
        assert len(set(settled)) == puts
        assert queue.stats()[:3] == (0, 0, 0)


class Claimer:
    """A thread that is blocked in `claim` for up to an hour."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self._claims: list[Claim] | None = None
        entered = threading.Event()

        def run() -> None:
            entered.set()
            self._claims = queue.claim(1, 3600.0)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert entered.wait(SOON)
        self._thread.join(0.05)  # usually long enough for it to block; the tests hold in any case

    def result(self) -> list[Claim]:
        self._thread.join(SOON)
        assert self._claims is not None, "still blocked"
        return self._claims
