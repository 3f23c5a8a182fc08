"""FileSpool as a queue: the contract of every queue, and the tests that replace parts of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.queue_contract import MANY, MakeQueue, QueueContract
from tests.core.worker_support import CLASSES, event
from tests.timing import SOON
from transport_kit.queues.protocol import Queue
from transport_kit.queues.spool import FileSpool

IDENTITY = "0123456789abcdef"


class TestFileSpool(QueueContract):
    """The contract. The drainer enforces bounds, by whole segments, and envelopes outlive the queue: tests in
    test_spool_bounds.py and test_spool.py replace those that are disabled below."""

    @pytest.fixture
    def make(self, tmp_path: Path) -> Iterator[MakeQueue]:
        made: list[FileSpool] = []

        def make(max_items: int, max_bytes: int) -> Queue:
            spool = FileSpool(str(tmp_path / str(len(made))), IDENTITY, max_bytes=max_bytes)
            made.append(spool)
            return spool

        yield make
        for spool in made:
            spool.close()

    # The drainer enforces bounds, not the put: test_spool_bounds.py.
    test_a_full_queue_keeps_its_pauses = None  # type: ignore[assignment]
    test_overflow_takes_the_oldest_of_the_lowest_class = None  # type: ignore[assignment]
    test_what_was_tried_is_older_and_goes_first_too = None  # type: ignore[assignment]
    test_what_is_below_all_that_waits_is_refused = None  # type: ignore[assignment]
    test_a_claimed_envelope_is_never_sacrificed = None  # type: ignore[assignment]
    test_bytes_are_bounded_too = None  # type: ignore[assignment]

    def test_what_is_settled_is_forgotten(self, make: MakeQueue) -> None:
        """Settling twice changes nothing. The segment stays while this process may append to it."""
        queue = make(1, MANY)
        queue.put(event())
        claims = queue.claim(1, SOON)
        queue.ack(claims)
        queue.ack(claims)
        queue.release(claims)
        queue.bury(claims[0], "internal_sdk_error")
        stats = queue.stats()
        assert (stats.waiting, stats.claimed, stats.oldest_put_at) == (0, 0, None)
        assert queue.put(event()).accepted
        assert len(queue.claim(5, SOON)) == 1

    def test_a_closed_queue_refuses_and_says_what_it_held(self, make: MakeQueue) -> None:
        """Envelopes on the disk are not lost, so they are not returned: the next queue finds them."""
        queue = make(10, MANY)
        assert isinstance(queue, FileSpool)
        for new in CLASSES:
            queue.put(new(""))
        claims = queue.claim(2, SOON)
        queue.release(claims[:1], 1e9)
        assert queue.close() == []
        assert queue.put(event()) == (False, ())
        assert queue.claim(1, SOON) == []
        queue.ack(claims)
        assert queue.close() == []
        again = FileSpool(queue.path, IDENTITY)
        found = 0
        while claims := again.claim(5, 0.0):
            again.ack(claims)
            found += len(claims)
        again.close()
        assert found == len(CLASSES)

    def test_the_statistics_say_what_is_there(self, make: MakeQueue) -> None:
        """Health shows them, and a flush waits for them; puts of this process count at once."""
        queue = make(10, MANY)
        assert queue.stats()[:3] == (0, 0, 0)
        for n in range(4):
            queue.put(event())
            assert queue.stats().waiting == n + 1
        claims = queue.claim(3, SOON)
        queue.release(claims[:1], 1e9)
        queue.release(claims[1:2], 1e9)
        queue.claim(0, 0.0)
        stats = queue.stats()
        assert (stats.waiting, stats.claimed) == (3, 1)
        assert stats.oldest_put_at is not None
        assert stats.size > 0
        assert stats.last_id == 4

    def test_many_threads_lose_nothing_and_share_nothing(self, make: MakeQueue) -> None:
        """As in the contract, except that the bytes of the current segment remain."""

        class Empty:
            """A queue whose size does not count."""

            def __init__(self, queue: Queue) -> None:
                self.put, self.claim, self.ack, self.release = (
                    queue.put,
                    queue.claim,
                    queue.ack,
                    queue.release,
                )
                self.stats = lambda: queue.stats()._replace(size=0)

        super().test_many_threads_lose_nothing_and_share_nothing(
            lambda items, size: Empty(make(items, size))  # type: ignore[arg-type, return-value]
        )
