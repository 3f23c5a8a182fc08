"""Appending to a spool: one segment per process and class, one write per record.

Owns this process's own segments. `append` takes no lock that anyone holds during I/O: a record is a single
write to a descriptor in append mode, which the kernel does not interleave with another. A segment is
closed by whoever leaves it last after it was retired, so no write can hit a closed, reused descriptor.

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

#: Seconds between two looks at the total of all processes, at least; and how much of the time they may take.
LOOK_EVERY: Final = 1.0
LOOK_AGAIN: Final = 0.25
LOOK_SHARE: Final = 20.0
#: Share of `max_bytes` beyond it that writers leave the drainer to evict before they refuse.
SLACK: Final = 1 / 8
#: Filled to this share, a segment's successor is made ahead; and where several were filled between two looks,
#: that many, up to a bound.
SPARE_FROM: Final = 1 / 4
MOST_SPARES: Final = 4
_TRIES: Final = range(3)


class Full(Exception):
    """The spool holds more than it may, and nobody evicts: what comes is refused."""


class _Open:
    """A segment that this process appends to.

    `users` holds a token per thread inside a write; list operations are atomic. A thread that finds
    `retired` set after leaving its token does not write. So once `retired` is set and `users` is empty
    nobody will write again, and whoever takes the one token of `last` closes.
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
        # A token per record that is whole: how many there are. One sync covers all that were there before it.
        self.records: list[None] = []
        self.synced = 0
        self.sync_failed = False
        self.sync_lock = threading.RLock()


class Writer:
    """Appends records for one process.

    Args:
        directory: Where; stays open as long as the writer lives.
        segment_bytes: A segment past this is retired, and the next one begun.
        max_bytes: Of all segments of all processes; past it and some slack `append` raises `Full`.
        host: Whether a record is on the disk, not only with the kernel, when `append` returns.
        clock: Monotonic seconds.
        wall_ns: Wall clock; only for names and ages.
    """

    __slots__ = (
        "_clock",
        "_counts",
        "_current",
        "_directory",
        "_full",
        "_host",
        "_limit",
        "_look_took",
        "_looked",
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
        # Replaced by whoever holds `_rolling`, and set to None by whoever found one broken; read by all.
        self._current: list[_Open | None] = [None] * len(Priority)
        # The next of each class, made ahead by `prepare`, taken by whoever holds `_rolling`; and how many
        # were begun since it looked last.
        self._spare: list[list[_Open]] = [[] for _ in Priority]
        self._rolled = [0] * len(Priority)
        # Retired by a put, to be closed by whoever comes first.
        self._full: list[_Open] = []
        # All that are open, for `close` and for a forked child. Items are set and deleted atomically.
        self._open: dict[SegmentName, _Open] = {}
        # How many records closed segments of ours have, while the files are there: for figures only.
        self._counts: dict[str, int] = {}
        # Only ever tried, never waited for: it is held during I/O.
        self._rolling = threading.Lock()
        self._over = False
        self._looked = float("-inf")
        self._look_took = 0.0
        self._total = 0
        self._written = 0  # by us since the last look

    def append(
        self,
        kind: int,
        rank: int,
        head: bytes,
        parts: Sequence[bytes],
        length: int,
        created_ms: int | None = None,
    ) -> None:
        """Write one record; once this returns, no death of a process loses it.

        Raises:
            Full: The spool is past its size.
            OSError: The directory does not take it. Nothing was accepted.
        """
        if len(head) > MAX_HEAD_BYTES or length > MAX_BODY_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if self._over and self._is_over():
            raise Full
        if created_ms is None:
            created_ms = self._wall_ns() // 1_000_000
        # In one piece: at rest, with cold caches, each further call costs a capture some microseconds.
        for _ in _TRIES:
            segment, once = self._current[rank], False
            if segment is None or segment.size >= self._segment_bytes:
                segment, once = self._segment(rank, segment)
            segment.users.append(None)
            try:
                if segment.retired:
                    continue
                record = record_parts(segment.salt, kind, rank, created_ms, head, parts, length)
                try:
                    written = self._write(segment.fd, record)
                except OSError as error:
                    if self._is_lost(segment, error):
                        continue
                    raise
                segment.size += written
                self._written += written
                if written != FIXED_BYTES + len(head) + length:
                    self._drop(segment)  # what is there is a gap for readers
                    continue
                segment.records.append(None)
                if self._host:
                    self._sync(segment, len(segment.records))
                return
            finally:
                segment.users.pop()
                if once:
                    self._retire(segment)
                elif segment.retired:
                    self._close_if_last(segment)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _is_lost(self, segment: _Open, error: OSError) -> bool:
        """After a write that failed: whether only this descriptor is at fault, and another may do."""
        if error.errno != errno.ENOSPC:
            self._drop(segment)
        if error.errno != errno.EBADF:
            return False
        # Someone closed our descriptors under us: the number is not ours any more.
        segment.last.clear()
        self._counts[segment.text] = len(segment.records)
        return True

    def _sync(self, segment: _Open, records: int) -> None:
        """Together with all who wrote meanwhile: whoever comes first syncs for those that wait here."""
        with segment.sync_lock:
            if segment.synced >= records:
                return
            if segment.sync_failed:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            upto = len(segment.records)
            try:
                self._system.sync(segment.fd)
            except OSError:
                # After a failed sync the kernel forgets which pages were lost: never trust the file again,
                # nor a second sync of those that wait here.
                segment.sync_failed = True
                self._drop(segment)
                raise
            segment.synced = upto

    # -- segments --------------------------------------------------------------------------------------

    def _segment(self, rank: int, segment: _Open | None) -> tuple[_Open, bool]:
        """Where to write instead of `segment`, which is full or None; and whether for one record only."""
        if not self._rolling.acquire(blocking=False):
            # Another thread is at it, or this one, interrupted. The old segment takes more than its share,
            # and where there is none this record gets one of its own.
            return (segment, False) if segment is not None else (self._begin(rank), True)
        try:
            known = self._current[rank]
            if known is not None and known is not segment:
                return known, False
            spares = self._spare[rank]
            ready = bool(spares)
            try:
                fresh = spares.pop(0) if ready else self._begin(rank)
            except OSError:
                if segment is None:
                    raise
                return segment, False
            self._current[rank] = fresh
            self._rolled[rank] += segment is not None
        finally:
            self._rolling.release()
        if segment is not None:
            self._drop(segment)
            self._full.append(segment)
        if not ready:
            self._tidy()  # else someone prepares, and does that too
        return fresh, False

    def prepare(self) -> None:
        """Make the next segments of each class that is being filled, and close full ones: captures then need
        not, for whom it is as expensive as several writes. One caller at a time.
        """
        self._tidy()
        for rank, segment in enumerate(self._current):
            if segment is None:
                continue
            rolled, self._rolled[rank] = self._rolled[rank], 0
            filling = segment.size >= self._segment_bytes * SPARE_FROM
            spares = self._spare[rank]
            while len(spares) < min(rolled + filling, MOST_SPARES):
                try:
                    spares.append(self._begin(rank))
                except OSError:
                    return  # the capture that needs it will find out

    def abandon_removed(self) -> None:
        """Write no more to files that somebody deleted: it would be lost. One caller at a time."""
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
                self._drop(segment)
                log.warning("a file of the spool was removed while it was written to: %s", segment.text)
            except OSError:
                pass  # the next write will tell
            finally:
                segment.users.pop()
                if segment.retired:
                    self._close_if_last(segment)
                if removed:
                    self.forget(segment.text)  # whoever drains may have seen it go before
        for spares in self._spare:
            spares[:] = [spare for spare in spares if not spare.retired]

    def _begin(self, rank: int) -> _Open:
        """A new segment: named at random, locked, and only then where readers look."""
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
            self._forget(draft)
            system.close(fd)
            raise
        self._forget(draft)
        opened = _Open(name, fd, (status.st_dev, status.st_ino))
        self._open[name] = opened
        return opened

    def _forget(self, draft: str) -> None:
        try:
            self._system.unlink(draft, self._directory.segments)
        except OSError:
            pass  # the drainer removes drafts that nobody holds

    def _drop(self, segment: _Open) -> None:
        """Never write to it again; the caller is still inside."""
        if self._current[segment.rank] is segment:
            self._current[segment.rank] = None
        segment.retired = True

    def _retire(self, segment: _Open) -> None:
        self._drop(segment)
        self._close_if_last(segment)

    def _close_if_last(self, segment: _Open) -> None:
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

    def _tidy(self) -> None:
        """What a segment's end is followed by."""
        while self._full:
            try:
                segment = self._full.pop()
            except IndexError:
                return  # another thread was faster
            self._close_if_last(segment)
            self._look()

    # -- the size of it all ----------------------------------------------------------------------------

    def _look(self) -> None:
        """Look at the total now and then: the drainer keeps it, and may be dead."""
        due = self._looked + max(LOOK_EVERY, self._look_took * LOOK_SHARE)
        # What we wrote ourselves may be too much already, whatever the time; that is once a segment.
        over = self._total + self._written > self._limit
        if over or self._clock() >= due:
            self._is_over(now=over)

    def _is_over(self, *, now: bool = False) -> bool:
        began = self._clock()
        if not now and began < self._looked + max(LOOK_AGAIN, self._look_took * LOOK_SHARE):
            return self._over
        self._looked = began
        total = 0
        try:
            for name in self.forget_removed():
                try:
                    status = self._system.status_of(name, self._directory.segments)
                    total += status.st_size if status.st_size <= self._limit else self._system.taken(status)
                except FileNotFoundError:
                    pass  # delivered meanwhile
        except OSError:
            total = 0  # what can't be looked at can't be judged; the write will tell
        self._look_took = self._clock() - began
        self._total = total
        self._written = 0
        self._over = total > self._limit
        return self._over

    def count_unseen(self, seen: Callable[[str], int]) -> int:
        """Records written here that a drainer has not seen yet; `seen` says how many of a segment."""
        # First the open ones: what is closed meanwhile is in both places, and not in neither.
        counts = {segment.text: len(segment.records) for segment in list(self._open.values())}
        counts |= self._counts
        return sum(max(0, count - seen(text)) for text, count in counts.items())

    def forget(self, text: str) -> None:
        """A segment is gone, with all that was in it dealt with."""
        self._counts.pop(text, None)

    def forget_removed(self) -> list[str]:
        """Forget the segments that others dealt with; the names that are there.

        Raises:
            OSError: The directory can't be read.
        """
        closed = set(self._counts)
        present = self._system.names(self._directory.segments)
        for text in closed.difference(present):
            self.forget(text)
        return present

    # -- ending ----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Retire all segments."""
        for segment in list(self._open.values()):
            self._retire(segment)

    def abandon(self) -> None:
        """In a forked child: close the parent's descriptors, and never unlock, which would unlock for it.

        A descriptor whose number now means another file is not ours to close.
        """
        for segment in list(self._open.values()):
            try:
                status = self._system.status(segment.fd)
                if (status.st_dev, status.st_ino) == segment.inode:
                    self._system.close(segment.fd)
            except OSError:
                pass  # closed already
        self._open.clear()
