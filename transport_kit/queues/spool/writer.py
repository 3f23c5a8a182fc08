"""The writer of a spool: one segment per process and class, one write per record.

This module owns the segments that this process writes. `append` waits for no lock that is held during I/O,
except with `host`: a record is a single write to a descriptor in append mode, which the kernel does not
interleave with another. A retired segment is closed by the last thread that leaves it, so no write can go to
a descriptor that was closed and reused.

Threads: any number call `append`; a signal handler may interrupt one in `append` and call it again.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from transport_kit.envelope.item_types import Priority
from transport_kit.queues.spool.directory import Directory
from transport_kit.queues.spool.segments import (
    FIXED_BYTES,
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    Salt,
    SegmentName,
    record_parts,
    segment_header,
)
from transport_kit.runtime.log import log

__all__ = ["Full", "Writer"]

#: Least seconds between two measurements of the size of all segments: while it is under the limit, and while
#: it is over. `LOOK_SHARE` divides the time that they may take: a twentieth.
LOOK_EVERY: Final = 1.0
LOOK_AGAIN: Final = 0.25
LOOK_SHARE: Final = 20.0
#: Share of `max_bytes` by which the spool may exceed it before writers refuse: the drainer evicts meanwhile.
SLACK: Final = 1 / 8
#: Share of a segment that is filled when the next one is created ahead.
SPARE_FROM: Final = 1 / 4
#: Most segments of one class that are created ahead, if several are filled between two calls of `prepare`.
MOST_SPARES: Final = 4
_TRIES: Final = range(3)


class Full(Exception):
    """The spool is over its size and no drainer evicts: a new record is refused."""


class _OpenSegment:
    """A segment that this process appends to.

    `users` contains one token per thread inside a write; list operations are atomic. A thread adds its token
    before it reads `retired`, and does not write if that is set. So once `retired` is set and `users` is
    empty, no thread writes any more, and the thread that takes the only token of `last` closes the file.
    """

    __slots__ = (
        "fd",
        "inode",
        "last",
        "name",
        "rank",
        "records",
        "retired",
        "salt",
        "size",
        "sync_failed",
        "sync_lock",
        "synced",
        "text",
        "users",
    )

    def __init__(self, name: SegmentName, fd: int, inode: tuple[int, int]) -> None:
        self.name = name
        self.text = str(name)
        self.rank = name.rank
        self.salt = Salt.of(name.salt)
        self.fd = fd
        self.inode = inode
        self.size = 0
        self.retired = False
        self.users: list[None] = []
        self.last: list[None] = [None]
        # One token per complete record, as appending is atomic. One sync covers all records written before
        # it.
        self.records: list[None] = []
        self.synced = 0
        self.sync_failed = False
        self.sync_lock = threading.RLock()


class Writer:
    """Appends the records of one process.

    Args:
        directory: The directory; stays open as long as the writer lives.
        segment_bytes: Bytes after which a segment is retired, and the next one begun.
        max_bytes: Bytes of all segments of all processes; over it and some slack `append` raises `Full`.
        host: True to write each record to the disk before `append` returns; otherwise the kernel has it.
        clock: Monotonic seconds.
        wall_ns: Epoch nanoseconds; used only for names and ages.
    """

    __slots__ = (
        "_clock",
        "_counts",
        "_current",
        "_directory",
        "_duration",
        "_full",
        "_host",
        "_limit",
        "_measured_at",
        "_open",
        "_over",
        "_pid",
        "_rolled",
        "_rolling",
        "_segment_bytes",
        "_spare",
        "_system",
        "_total",
        "_wall_ns",
        "_write",
        "_written",
    )

    def __init__(
        self,
        directory: Directory,
        *,
        segment_bytes: int,
        max_bytes: int,
        host: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._directory = directory
        self._system = directory.system
        self._write = directory.system.write
        self._segment_bytes = segment_bytes
        self._limit = max_bytes + int(max_bytes * SLACK)
        self._host = host
        self._clock = clock
        self._wall_ns = wall_ns
        self._pid = self._system.process()
        # The segment of each class that is written to. Read by every thread; replaced by the thread that
        # holds `_rolling`, and set to None by a thread whose write to it failed.
        self._current: list[_OpenSegment | None] = [None] * len(Priority)
        # Segments of each class created ahead: added by `prepare`, taken by the thread that holds `_rolling`.
        self._spare: list[list[_OpenSegment]] = [[] for _ in Priority]
        # Segments of each class begun since the last `prepare`.
        self._rolled = [0] * len(Priority)
        # Segments that a put retired; any thread may close them.
        self._full: list[_OpenSegment] = []
        # All open segments, for `close` and for a forked child. Items are set and deleted atomically.
        self._open: dict[SegmentName, _OpenSegment] = {}
        # Number of records in closed segments of this process, as long as the files exist: for figures only.
        self._counts: dict[str, int] = {}
        # Guards the change to the next segment. Held during I/O, so it is acquired without blocking only.
        self._rolling = threading.Lock()
        self._over = False
        self._measured_at = float("-inf")
        self._duration = 0.0  # of the last measurement
        self._total = 0
        self._written = 0  # bytes written by this process since the last measurement

    def append(
        self,
        kind: int,
        rank: int,
        head: bytes,
        parts: Sequence[bytes],
        length: int,
        created_ms: int | None = None,
    ) -> None:
        """Write one record; once this returns, it survives the death of every process.

        Args:
            kind: A `RecordKind`.
            rank: The class, a `Priority`.
            head: The record's head.
            parts: The parts of the body.
            length: Bytes of all parts.
            created_ms: Epoch milliseconds; None for now.

        Raises:
            Full: The spool is over its size.
            OSError: The record can't be written. Nothing was accepted.
        """
        if len(head) > MAX_HEAD_BYTES or length > MAX_BODY_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if self._over and self._is_over():
            raise Full
        if created_ms is None:
            created_ms = self._wall_ns() // 1_000_000
        # One piece: with cold caches each further function call costs a capture some microseconds.
        for _ in _TRIES:
            segment, single_use = self._current[rank], False
            if segment is None or segment.size >= self._segment_bytes:
                segment, single_use = self._next_segment(rank, segment)
            segment.users.append(None)
            try:
                if segment.retired:
                    continue
                record = record_parts(segment.salt, kind, rank, created_ms, head, parts, length)
                try:
                    written = self._write(segment.fd, record)
                except OSError as error:
                    if self._is_descriptor_lost(segment, error):
                        continue
                    raise
                segment.size += written
                self._written += written
                if written != FIXED_BYTES + len(head) + length:
                    self._mark_retired(segment)  # readers find a gap at its end
                    continue
                segment.records.append(None)
                if self._host:
                    self._sync(segment, len(segment.records))
                return
            finally:
                segment.users.pop()
                if single_use:
                    self._retire(segment)
                elif segment.retired:
                    self._close_if_last(segment)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _is_descriptor_lost(self, segment: _OpenSegment, error: OSError) -> bool:
        """Handle a failed write; return True if another segment may be tried."""
        if error.errno != errno.ENOSPC:
            self._mark_retired(segment)
        if error.errno != errno.EBADF:
            return False
        # The app closed all descriptors: this number may soon belong to another file, so nobody closes it.
        segment.last.clear()
        self._counts[segment.text] = len(segment.records)
        return True

    def _sync(self, segment: _OpenSegment, records: int) -> None:
        """Write the segment to the disk, unless another thread did so after this record was written."""
        with segment.sync_lock:
            if segment.synced >= records:
                return
            if segment.sync_failed:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            count = len(segment.records)
            try:
                self._system.sync(segment.fd)
            except OSError:
                # After a failed sync the kernel forgets which pages were lost: a later sync of this file
                # would succeed without them. So the records of the threads that wait here fail, too.
                segment.sync_failed = True
                self._mark_retired(segment)
                raise
            segment.synced = count

    # -- segments --------------------------------------------------------------------------------------

    def _next_segment(self, rank: int, segment: _OpenSegment | None) -> tuple[_OpenSegment, bool]:
        """Return the segment to write to in place of `segment`, which is full or None.

        The second value is True if it is for one record only.
        """
        if not self._rolling.acquire(blocking=False):
            # Another thread is changing the segment, or this thread was interrupted while it did. Then the
            # old segment exceeds its size; if there is none, this record gets a segment of its own.
            return (segment, False) if segment is not None else (self._begin(rank), True)
        try:
            current = self._current[rank]
            if current is not None and current is not segment:
                return current, False
            spares = self._spare[rank]
            has_spare = bool(spares)
            try:
                new = spares.pop(0) if has_spare else self._begin(rank)
            except OSError:
                if segment is None:
                    raise
                return segment, False
            self._current[rank] = new
            self._rolled[rank] += segment is not None
        finally:
            self._rolling.release()
        if segment is not None:
            self._mark_retired(segment)
            self._full.append(segment)
        if not has_spare:
            self._close_full()  # otherwise `prepare` is called regularly, and does it
        return new, False

    def prepare(self) -> None:
        """Create the next segments of each class that is being filled, and close full ones.

        Takes as long as several writes, and saves captures that time. One caller at a time.
        """
        self._close_full()
        for rank, segment in enumerate(self._current):
            if segment is None:
                continue
            rolled, self._rolled[rank] = self._rolled[rank], 0
            is_filling = segment.size >= self._segment_bytes * SPARE_FROM
            spares = self._spare[rank]
            while len(spares) < min(rolled + is_filling, MOST_SPARES):
                try:
                    spares.append(self._begin(rank))
                except OSError:
                    return  # the capture that needs the segment handles the error

    def abandon_removed(self) -> None:
        """Retire segments whose files were deleted: further records would be lost. One caller at a time."""
        for segment in (*self._current, *(spare for spares in self._spare for spare in spares)):
            if segment is None:
                continue
            removed = False
            segment.users.append(None)
            try:
                if segment.retired or not self._directory.is_removed(
                    segment.fd, segment.text, self._directory.segments
                ):
                    continue
                removed = True
                self._mark_retired(segment)
                log.warning("a file of the spool was removed while it was written to: %s", segment.text)
            except OSError:
                pass  # the next write handles the error
            finally:
                segment.users.pop()
                if segment.retired:
                    self._close_if_last(segment)
                if removed:
                    self.forget(segment.text)  # the drainer may have forgotten it before it was retired
        for spares in self._spare:
            spares[:] = [spare for spare in spares if not spare.retired]

    def _begin(self, rank: int) -> _OpenSegment:
        """Create a segment: write and lock a draft, then link it under the name that readers look for."""
        system, within = self._system, self._directory.segments
        name = SegmentName(rank, self._wall_ns(), self._pid, system.random(8))
        draft = f".{name}"
        fd = system.create(draft, within)
        try:
            if not system.try_flock(fd):
                raise OSError(errno.EAGAIN, "a new file is locked")
            header = segment_header(name)
            if system.write(fd, (header,)) != len(header):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            system.link(draft, str(name), within)
            if self._host:
                system.sync_directory(within)
            status = system.status(fd)
        except BaseException:
            self._remove_draft(draft)
            system.close(fd)
            raise
        self._remove_draft(draft)
        segment = _OpenSegment(name, fd, (status.st_dev, status.st_ino))
        self._open[name] = segment
        return segment

    def _remove_draft(self, draft: str) -> None:
        try:
            self._system.unlink(draft, self._directory.segments)
        except OSError:
            pass  # the drainer removes drafts that no process has locked

    def _mark_retired(self, segment: _OpenSegment) -> None:
        """Keep threads from beginning a write to the segment; the caller makes sure that it is closed."""
        if self._current[segment.rank] is segment:
            self._current[segment.rank] = None
        segment.retired = True

    def _retire(self, segment: _OpenSegment) -> None:
        self._mark_retired(segment)
        self._close_if_last(segment)

    def _close_if_last(self, segment: _OpenSegment) -> None:
        if segment.users:
            return
        try:
            segment.last.pop()
        except IndexError:
            self._open.pop(segment.name, None)
            return
        self._counts[segment.text] = len(segment.records)
        self._open.pop(segment.name, None)
        fd, segment.fd = segment.fd, -1
        self._system.close(fd)

    def _close_full(self) -> None:
        """Close the segments in `_full`, and measure the size of all segments if that is due."""
        while self._full:
            try:
                segment = self._full.pop()
            except IndexError:
                return  # another thread took the last one
            self._close_if_last(segment)
            self._measure_if_due()

    # -- the size of all segments ----------------------------------------------------------------------

    def _measure_if_due(self) -> None:
        """Measure the size of all segments: the drainer enforces the limit, and may be dead."""
        due_at = self._measured_at + max(LOOK_EVERY, self._duration * LOOK_SHARE)
        # This process alone may have exceeded the limit since the last measurement; checked once per segment.
        is_over = self._total + self._written > self._limit
        if is_over or self._clock() >= due_at:
            self._is_over(now=is_over)

    def _is_over(self, *, now: bool = False) -> bool:
        """Return True if the segments exceed the limit. Measures them if that is due, or with `now`."""
        start = self._clock()
        if not now and start < self._measured_at + max(LOOK_AGAIN, self._duration * LOOK_SHARE):
            return self._over
        self._measured_at = start
        total = 0
        try:
            for name in self.forget_removed():
                try:
                    status = self._system.status_of(name, self._directory.segments)
                    total += status.st_size if status.st_size <= self._limit else self._system.taken(status)
                except FileNotFoundError:
                    pass  # delivered meanwhile
        except OSError:
            total = 0  # the size is unknown; the write fails if the directory can't be used
        self._duration = self._clock() - start
        self._total = total
        self._written = 0
        self._over = total > self._limit
        return self._over

    def count_unseen(self, seen: Callable[[str], int]) -> int:
        """Return the number of records written by this process that the drainer has not seen yet.

        Args:
            seen: Returns the number of records of a segment, given by its file name, that were seen.
        """
        # Open segments first: one that is closed meanwhile is then in both places, and not in neither.
        counts = {segment.text: len(segment.records) for segment in list(self._open.values())}
        counts |= self._counts
        return sum(max(0, count - seen(text)) for text, count in counts.items())

    def forget(self, text: str) -> None:
        """Forget the record count of a segment that was removed."""
        self._counts.pop(text, None)

    def forget_removed(self) -> list[str]:
        """Forget the segments whose files are gone; return the names in the directory.

        Raises:
            OSError: The directory can't be read.
        """
        closed = set(self._counts)
        present = self._system.names(self._directory.segments)
        for text in closed.difference(present):
            self.forget(text)
        return present

    # -- closing ---------------------------------------------------------------------------------------

    def close(self) -> None:
        """Retire all segments; each is closed once no thread writes to it."""
        for segment in list(self._open.values()):
            self._retire(segment)

    def abandon(self) -> None:
        """Close the parent's descriptors in a forked child, without unlocking, as that would end its locks.

        A descriptor whose number now belongs to another file is left open.
        """
        for segment in list(self._open.values()):
            try:
                status = self._system.status(segment.fd)
                if (status.st_dev, status.st_ino) == segment.inode:
                    self._system.close(segment.fd)
            except OSError:
                pass  # closed already
        self._open.clear()
