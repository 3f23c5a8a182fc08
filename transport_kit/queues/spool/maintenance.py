"""Maintenance of a spool: enforces the limits of size, count and age, and publishes `status.json`.

This module owns eviction by size and number, and expiry by the age limit of `ages.py`. Each round is short,
and rounds take at most a twentieth of the time however many segments there are.

Threads: every method requires the lock of the `FileSpool` that owns the object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from transport_kit.queues.spool import dead_letters
from transport_kit.queues.spool.ages import Ages
from transport_kit.queues.spool.directory import Directory
from transport_kit.queues.spool.drainer import Drainer
from transport_kit.queues.spool.segment_reader import SegmentReader
from transport_kit.queues.spool.status import SpoolStatus, publish

__all__ = ["Maintenance"]

#: Least seconds between two rounds, and the divisor of the time they may take: a twentieth.
EVERY: Final = 0.25
SHARE: Final = 20.0
#: Seconds of counting per round.
COUNTING: Final = 0.005
#: Seconds between two publications of figures that changed, and of figures that did not. Replacing a file may
#: block, and write to a disk that would otherwise rest.
PUBLISH_EVERY: Final = 1.0
REPEAT_EVERY: Final = 60.0


class Maintenance:
    """Enforces size, count and age limits and publishes `status.json`.

    Args:
        directory: The directory of the spool.
        drainer: The drainer of the segments.
        ages: The age limit.
        max_bytes: Bytes of all segments.
        max_count: Envelopes; None for no bound.
        clock: Monotonic seconds.
        wall: Epoch seconds.
        boot: Id of this boot of the kernel.

    Attributes:
        status: The figures that were published last.
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
        self._size = 0
        self.status = SpoolStatus()
        drainer.oldest_ms = ages.oldest_ms

    def round(self) -> None:
        """Do one round, if it is due."""
        now = self._clock()
        if now < self._next:
            return
        self._drainer.oldest_ms = self._ages.look()
        self._drainer.sweep()
        self._measure()
        self._count(now)
        self._shrink()
        self._publish_figures(now)
        duration = self._clock() - now
        self._next = now + max(EVERY, duration * SHARE)

    def _measure(self) -> None:
        system, within = self._directory.system, self._directory.segments
        total = 0
        for segment in self._drainer.segments.values():
            if not segment.retired:
                try:
                    segment.size = system.status_of(segment.text, within).st_size
                except OSError:
                    continue  # removed; the next scan finds out
            total += self._disk_bytes(segment)
        self._size = total

    def _disk_bytes(self, segment: SegmentReader) -> int:
        """Return the size of a segment, or its bytes on the disk if it exceeds the limit by itself.

        Such a segment may be mostly a hole.
        """
        if segment.size <= self._max_bytes:
            return segment.size
        system = self._directory.system
        try:
            return system.taken(system.status_of(segment.text, self._directory.segments))
        except OSError:
            return segment.size

    def _count(self, now: float) -> None:
        for segment in list(self._drainer.segments.values()):
            if segment.counted or segment.retry_at > now:
                continue
            try:
                segment.count()
            except OSError:
                segment.retry_at = now + EVERY
            if self._clock() - now > COUNTING and self._max_count is None:
                return

    # -- giving up -------------------------------------------------------------------------------------

    def _shrink(self) -> None:
        """Evict segments above the limits; remove those that were last written more than `max_age` ago."""
        over_count = self._max_count is not None and self._drainer.tally.pending > self._max_count
        oldest_ns = self._ages.oldest_ms * 1_000_000
        if self._size <= self._max_bytes and not over_count:
            expired = [
                segment for segment in self._drainer.segments.values() if segment.name.created_ns < oldest_ns
            ]
            if not expired:
                return
        for segment in self._drainer.victims(self._max_bytes):
            is_over = self._size > self._max_bytes or (
                self._max_count is not None and self._drainer.tally.pending > self._max_count
            )
            if is_over:
                self._drainer.count_evicted(self._sacrifice(segment))
            elif self._last_written_ns(segment) < oldest_ns:
                self._drainer.count_expired(self._sacrifice(segment))

    def _last_written_ns(self, segment: SegmentReader) -> float:
        if segment.name.created_ns >= self._ages.oldest_ms * 1_000_000:
            return float("inf")
        try:
            return self._directory.system.status_of(segment.text, self._directory.segments).st_mtime_ns
        except OSError:
            return float("inf")

    def _sacrifice(self, segment: SegmentReader) -> int:
        size = self._disk_bytes(segment)
        try:
            lost = self._drainer.sacrifice(segment)
        except OSError:
            return 0
        self._size -= size
        return lost

    # -- figures ---------------------------------------------------------------------------------------

    def _publish_figures(self, now: float) -> None:
        drainer = self._drainer
        if drainer.buried != self._buried:
            self._buried = drainer.buried
            self._dead = dead_letters.count(self._directory)
        segments = drainer.segments.values()
        figures = SpoolStatus(
            pid=self._directory.system.process(),
            boot=self._boot,
            at=now,
            wall=self._wall(),
            pending=max(0, drainer.tally.pending),
            complete=all(segment.counted for segment in segments),
            size=self._size,
            segments=len(segments),
            oldest=drainer.oldest(),
            dead=self._dead,
            evicted=drainer.evicted,
            expired=drainer.expired,
            damaged=drainer.damaged,
            torn=drainer.incomplete,
            foreign=sum(segment.newer_version for segment in segments),
            ages_from=self._ages.begin,
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
        """Write one retired segment with unsettled envelopes to the disk; each once. Called when idle."""
        for segment in self._drainer.segments.values():
            if segment.retired and segment.pending and segment.text not in self._synced:
                self._synced.add(segment.text)
                self._synced &= self._drainer.segments.keys()
                try:
                    segment.sync()
                except OSError:
                    pass  # the kernel writes it later, or reading fails
                return
