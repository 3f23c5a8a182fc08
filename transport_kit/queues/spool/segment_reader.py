"""One segment as the drainer sees it: opened when its turn comes, read on as it grows, removed when done.

Owns the descriptor, the ack log and the counts of one segment. Threads: the drainer calls under its lock.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

from transport_kit.envelope.losses import Quantities
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.spool.acklog import MAX_BYTES, AckLog, Op, Progress, ack_name, read_progress
from transport_kit.queues.spool.directory import Directory
from transport_kit.queues.spool.segments import (
    HEADER_BYTES,
    Gap,
    Reader,
    Record,
    SegmentName,
    is_newer_version,
)

__all__ = ["Entry", "SegmentReader", "Tally"]

#: Bytes that are searched for a record at once: some milliseconds. No segment of usual size takes a second.
SEARCH_STEP: Final = 4 * 1024 * 1024
#: Such steps in what is given up: behind a damaged envelope of the usual greatest size all is found.
SEARCH_STEPS: Final = 32


@dataclass(slots=True, eq=False)
class Tally:
    """What all segments hold together: envelopes seen and not settled."""

    pending: int = 0


@dataclass(slots=True, eq=False)
class Entry:
    """One envelope that was read and is not settled.

    Attributes:
        id: As its claims have it.
        sealed: Held from the reading until it is claimed, and while it is; not while it waits to be retried.
        deaths: See `Progress`.
        alone: It goes out while nothing else is under way.
        claimed: In a sender's hands.
    """

    tail: SegmentReader
    offset: int
    id: int
    rank: int
    ordered: bool
    created_ms: int
    quantities: Quantities
    attempts: int = 0
    deaths: int = 0
    alone: bool = False
    claimed: bool = False
    sealed: SealedEnvelope | None = None


class SegmentReader:
    """A segment from its first record to its removal.

    Attributes:
        name: Of the file.
        size: Bytes when last looked at.
        newer_version: A later version wrote it: it is left alone.
        retired: Its writer is gone, and the lock is ours: it does not grow any more.
        entries: Read and not settled, by offset.
        seen: Records found so far; `settled` of them need nothing more.
        abandoned: Removed before all was delivered; its entries are void.
        retry_at: Monotonic second before which it is not read again after an error.
    """

    __slots__ = (
        "_acks",
        "_counted",
        "_directory",
        "_fd",
        "_gap_at",
        "_progress",
        "_reader",
        "_tally",
        "abandoned",
        "entries",
        "name",
        "newer_version",
        "retired",
        "retry_at",
        "seen",
        "settled",
        "size",
        "text",
    )

    def __init__(self, directory: Directory, name: SegmentName, tally: Tally) -> None:
        self._directory = directory
        self._tally = tally
        self.name = name
        self.text = str(name)
        self._fd = -1
        self._acks = AckLog(directory.system, directory.segments, name)
        self._progress: dict[int, Progress] = {}
        self._reader: Reader | None = None
        self._counted = HEADER_BYTES
        self._gap_at = -1  # where counting came to a search that takes more than a step: reading does it
        self.size = 0
        self.newer_version = False
        self.retired = False
        self.abandoned = False
        self.retry_at = 0.0
        self.entries: dict[int, Entry] = {}
        self.seen = 0
        self.settled = 0

    @property
    def pending(self) -> int:
        """Envelopes known and not settled."""
        return self.seen - self.settled

    @property
    def opened(self) -> bool:
        return self._fd >= 0

    @property
    def searching(self) -> bool:
        """Whether `next` has more to search; there may be something."""
        return self._reader is not None and self._reader.searching

    @property
    def counted(self) -> bool:
        """Whether all of what it held when last looked at is in `seen`."""
        return self.newer_version or self._counted >= self.size

    def open(self) -> Reader | None:
        """Its reader; None for what is not ours to read.

        Raises:
            OSError: It can't be read now, or is gone.
        """
        if self._reader is not None or self.newer_version:
            return self._reader
        system, within = self._directory.system, self._directory.segments
        fd = system.open_file(self.text, within)
        try:
            status = system.status(fd)
            if (
                not system.is_file(status)
                or status.st_uid != system.user()
                or is_newer_version(system.read(fd, HEADER_BYTES, 0))
            ):
                self.newer_version = True
                system.close(fd)
                return None
            self._progress = read_progress(self._ack_bytes(), self.name.salt)
        except BaseException:
            if not self.newer_version:
                system.close(fd)
            raise
        self._fd = fd
        self.size = status.st_size
        self._reader = self._read_from(HEADER_BYTES)
        return self._reader

    def _read_from(self, offset: int) -> Reader:
        system, fd = self._directory.system, self._fd
        return Reader(
            functools.partial(system.read, fd),
            self.name.salt,
            offset,
            self.size,
            data=functools.partial(system.data_from, fd),
            step=SEARCH_STEP,
        )

    def _ack_bytes(self) -> bytes:
        system, within = self._directory.system, self._directory.segments
        try:
            fd = system.open_file(ack_name(self.name), within)
        except OSError:
            return b""
        try:
            return system.read(fd, MAX_BYTES, 0) if system.is_file(system.status(fd)) else b""
        except OSError:
            return b""
        finally:
            system.close(fd)

    def next(self) -> Record | Gap | None:
        """What comes next, of a file that may have grown or lost its writer meanwhile; None: nothing now.

        Raises:
            OSError: It can't be read now.
        """
        reader = self.open()
        if reader is None:
            return None
        while True:
            found = reader.next(final=self.retired)
            if found is not None:
                self._count(found, reader)
                return found
            if self.retired or reader.searching:
                return None
            grown = self._look(reader)
            if not grown and not self.retired:
                return None

    def _look(self, reader: Reader) -> bool:
        """Whether it has grown. Nothing else makes it retired: what was written last would be overlooked."""
        before, system = reader.size, self._directory.system
        # In this order: a lock that is free says that the size does not change any more.
        left = self.retired or system.try_flock(self._fd)
        self.size = reader.size = system.status(self._fd).st_size
        self.retired = left
        return self.size > before

    def _count(self, found: Record | Gap, reader: Reader) -> None:
        """Reading goes where counting has not been yet."""
        if reader.offset > self._counted:
            self._counted = reader.offset
            if isinstance(found, Record):
                self._see()
                self._settle_if_known(found)
        elif isinstance(found, Gap) and found.head is not None and not found.incomplete:
            self.settle()  # counted by its head, before its body was found damaged

    def _settle_if_known(self, found: Record) -> None:
        progress = self._progress.get(found.offset)
        if progress is not None and progress.settled:
            self.settle()

    def _see(self) -> None:
        # In this order: `FileSpool.stats` looks without the lock, and may count twice but never miss one.
        self._tally.pending += 1
        self.seen += 1

    def settle(self) -> None:
        """One envelope of it needs nothing more."""
        self.settled += 1
        self._tally.pending -= 1

    def count(self) -> None:
        """Count on from heads alone, without taking anything out.

        Raises:
            OSError: It can't be read now.
        """
        if self._gap_at == self._counted:
            return
        kept = self.opened
        if self.open() is None:
            return
        self.size = self._directory.system.status(self._fd).st_size
        counter = self._read_from(self._counted)
        while (found := counter.next(final=False, bodies=False)) is not None:
            if isinstance(found, Record):
                self._see()
                self._settle_if_known(found)
        # What can't be judged yet is not counted again and again, only from here on.
        self._counted = max(self._counted, counter.offset)
        if counter.searching:
            self._gap_at = self._counted
        if not kept:
            self.close()

    def is_idle(self) -> bool:
        """Whether its writer is gone, asked without reading; the lock is ours then.

        Raises:
            OSError: It can't be asked now.
        """
        if not self.retired and (reader := self.open()) is not None:
            self._look(reader)
        return self.retired

    def unread(self) -> list[Record | Gap]:
        """All from the reading position on, heads only; and that is then behind it.

        What would take long to search is a gap to the end.

        Raises:
            OSError: It can't be read now.
        """
        reader = self.open()
        if reader is None:
            return []
        self._look(reader)
        found: list[Record | Gap] = []
        for _ in range(SEARCH_STEPS):
            while (part := reader.next(final=True, bodies=False)) is not None:
                self._count(part, reader)
                found.append(part)
            if not reader.searching:
                break
        else:
            found.append(Gap(reader.offset, reader.size, incomplete=False))
            reader.offset = reader.size
        return found

    @property
    def position(self) -> int:
        """Where reading goes on."""
        return HEADER_BYTES if self._reader is None else self._reader.offset

    @position.setter
    def position(self, offset: int) -> None:
        if self._reader is not None:
            self._reader.offset = offset

    def progress(self, offset: int) -> Progress:
        """What the last drainer left about a record."""
        return self._progress.get(offset) or Progress()

    def again(self, offset: int) -> Record | None:
        """The record at `offset`, read anew.

        Raises:
            OSError: It can't be read now.
        """
        reader = self.open()
        return None if reader is None else reader.at(offset)

    def log(self, op: Op, offset: int) -> None:
        """Note what happened to a record; best effort."""
        if not self.abandoned:
            self._acks.append(op, offset)

    @property
    def done(self) -> bool:
        """Whether it may be removed."""
        return (
            self.retired
            and self._reader is not None
            and self._reader.offset >= self._reader.size
            and not self.entries
        )

    def remove(self) -> None:
        """Unlink it; its ack log after it, for a log without a segment is harmless.

        Raises:
            OSError: The directory does not allow it.
        """
        system, within = self._directory.system, self._directory.segments
        try:
            system.unlink(self.text, within)
        except FileNotFoundError:
            pass  # a person was faster
        self._acks.remove()
        self.close()

    def sync(self) -> None:
        """To the disk."""
        if self._fd >= 0:
            self._directory.system.sync(self._fd)

    def close(self) -> None:
        """Let go of descriptors and of the lock; what was read is forgotten."""
        fd, self._fd = self._fd, -1
        self._reader = None
        self._progress = {}
        self.retired = False
        self._acks.close()
        if fd >= 0:
            self._directory.system.close(fd)
