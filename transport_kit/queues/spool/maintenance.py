"""Keeps a spool within its bounds, counts it, and publishes its figures.

Owns eviction by size and number, expiry by age, and the comparison of the wall clock with the monotonic one:
nothing is given up for its age because somebody set the clock. Each step is short, and takes at most a
twentieth of the time however many segments there are.

Threads: every method wants the lock of the `FileSpool` that owns it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from transport_kit.queues.spool import dead_letters
from transport_kit.queues.spool.directory import Directory
from transport_kit.queues.spool.drainer import Drainer
from transport_kit.queues.spool.segment_reader import SegmentReader
from transport_kit.queues.spool.status import SpoolStatus, publish
from transport_kit.runtime.log import log

__all__ = ["Ages", "JUMP", "Maintenance"]

#: Seconds between two rounds, at least, and the share of the time they may take.
EVERY: Final = 0.25
SHARE: Final = 20.0
#: Seconds of counting per round.
COUNTING: Final = 0.005
#: Seconds between two publications of figures that changed, and of figures that did not: replacing a file may
#: put the process to sleep once more, and write to a disk that rests.
PUBLISH_EVERY: Final = 1.0
REPEAT_EVERY: Final = 60.0
#: Seconds after which segments with a backlog are written to the disk: the kernel would do it in 30.
SYNC_AFTER: Final = 1.0

#: Seconds by which the two clocks may drift apart before nothing is believed of the wall clock.
JUMP: Final = 86_400.0


class Maintenance:
    """One drainer's household.

    Args:
        max_bytes: Of all segments.
        max_count: Envelopes; None for no bound.
        clock: Monotonic seconds.
        wall: Epoch seconds.

    Attributes:
        status: The newest figures.
    """

    def __init__(
        self,
        directory: Directory,
        drainer: Drainer,
        ages: Ages,
        *,
        max_bytes: int,
        max_count: int | None,
        clock: Callable[[], float],
        wall: Callable[[], float],
        boot: str,
    ) -> None:
        self._directory = directory
        self._drainer = drainer
        self._ages = ages
        self._max_bytes = max_bytes
        self._max_count = max_count
        self._clock = clock
        self._wall = wall
        self._boot = boot
        self._next = float("-inf")
        self._published = float("-inf")
        self._synced: set[str] = set()
        self._dead = dead_letters.count(directory)
        self._buried = 0
        self._warned = False
        self._size = 0
        self.status = SpoolStatus()
        drainer.oldest_ms = ages.oldest_ms

    def round(self) -> None:
        """Do what is due."""
        now = self._clock()
        if now < self._next:
            return
        self._drainer.oldest_ms = self._ages.look()
        self._drainer.sweep()
        self._measure()
        self._count(now)
        self._shrink()
        self._figures(now)
        took = self._clock() - now
        self._next = now + max(EVERY, took * SHARE)

    def _measure(self) -> None:
        system, within = self._directory.system, self._directory.segments
        total = 0
        for tail in self._drainer.tails.values():
            if not tail.retired:
                try:
                    tail.size = system.status_of(tail.text, within).st_size
                except OSError:
                    continue  # gone, which the next scan will see
            total += self._taken(tail)
        self._size = total

    def _taken(self, tail: SegmentReader) -> int:
        """Bytes that count. Of a segment that is larger than all may be most is a hole, perhaps."""
        if tail.size <= self._max_bytes:
            return tail.size
        system = self._directory.system
        try:
            return system.taken(system.status_of(tail.text, self._directory.segments))
        except OSError:
            return tail.size

    def _count(self, now: float) -> None:
        for tail in list(self._drainer.tails.values()):
            if tail.counted or tail.retry_at > now:
                continue
            try:
                tail.count()
            except OSError:
                tail.retry_at = now + EVERY
            if self._clock() - now > COUNTING and self._max_count is None:
                return

    # -- giving up -------------------------------------------------------------------------------------

    def _shrink(self) -> None:
        """Evict what is over the bounds; what no writer touched for `max_age` is too old as a whole."""
        over_count = self._max_count is not None and self._drainer.tally.pending > self._max_count
        oldest_ns = self._ages.oldest_ms * 1_000_000
        if self._size <= self._max_bytes and not over_count:
            aged = [tail for tail in self._drainer.tails.values() if tail.name.created_ns < oldest_ns]
            if not aged:
                return
        for tail in self._drainer.victims(self._max_bytes):
            over = self._size > self._max_bytes or (
                self._max_count is not None and self._drainer.tally.pending > self._max_count
            )
            if over:
                self._drainer.evicted += self._sacrifice(tail)
            elif self._last_written_ns(tail) < oldest_ns:
                self._drainer.expired += self._sacrifice(tail)

    def _last_written_ns(self, tail: SegmentReader) -> float:
        if tail.name.created_ns >= self._ages.oldest_ms * 1_000_000:
            return float("inf")
        try:
            return self._directory.system.status_of(tail.text, self._directory.segments).st_mtime_ns
        except OSError:
            return float("inf")

    def _sacrifice(self, tail: SegmentReader) -> int:
        size = self._taken(tail)
        try:
            lost = self._drainer.sacrifice(tail)
        except OSError:
            return 0
        self._size -= size
        if lost and not self._warned:
            self._warned = True
            log.warning(
                "the spool gives up what is over its size or age: %d envelopes of %s", lost, tail.text
            )
        return lost

    # -- saying ----------------------------------------------------------------------------------------

    def _figures(self, now: float) -> None:
        drainer = self._drainer
        if drainer.buried != self._buried:
            self._buried = drainer.buried
            self._dead = dead_letters.count(self._directory)
        tails = drainer.tails.values()
        figures = SpoolStatus(
            pid=self._directory.system.process(),
            boot=self._boot,
            at=now,
            wall=self._wall(),
            pending=max(0, drainer.tally.pending),
            complete=all(tail.counted for tail in tails),
            size=self._size,
            segments=len(tails),
            oldest=drainer.oldest(),
            dead=self._dead,
            evicted=drainer.evicted,
            expired=drainer.expired,
            damaged=drainer.damaged,
            torn=drainer.incomplete,
            foreign=sum(tail.newer_version for tail in tails),
        )
        before = self.status
        changed = (figures.pending, figures.size, figures.complete) != (
            before.pending,
            before.size,
            before.complete,
        )
        if now >= self._published + (PUBLISH_EVERY if changed else REPEAT_EVERY):
            publish(self._directory, figures)
            self._published = now
            self.status = figures

    def sync_backlog(self) -> None:
        """Nothing else to do: put a segment that was retired and still waits on the disk, once each."""
        for tail in self._drainer.tails.values():
            if tail.retired and tail.pending and tail.text not in self._synced:
                self._synced.add(tail.text)
                self._synced &= self._drainer.tails.keys()
                try:
                    tail.sync()
                except OSError:
                    pass  # the kernel will do it later, or tell the reader
                return


class Ages:
    """Which records are too old.

    After a jump of more than a day ages are ignored for `max_age` monotonic seconds: by then whatever was
    stamped before the jump is that old.

    Args:
        max_age: Seconds.
        before: What the last drainer published: a jump while nobody drained is seen too, within one boot.
        boot: Names this start of the kernel.
    """

    def __init__(
        self,
        max_age: float,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        before: SpoolStatus | None,
        boot: str,
    ) -> None:
        self._max_age = max_age
        self._clock = clock
        self._wall = wall
        self._suspended_until = float("-inf")
        self._difference = wall() - clock()
        if before is not None and boot and before.boot == boot:
            self._difference = before.wall - before.at
        self.oldest_ms = self.look()

    def look(self) -> int:
        """Epoch milliseconds before which a record is too old; 0 while ages are ignored."""
        now, wall = self._clock(), self._wall()
        if abs(wall - now - self._difference) > JUMP:
            self._suspended_until = now + self._max_age
        self._difference = wall - now
        self.oldest_ms = 0 if now < self._suspended_until else int((wall - self._max_age) * 1000)
        return self.oldest_ms
