"""The drainer's reader of one segment: opens it in its turn, follows its growth, and removes it when done.

This module owns the descriptor, the ack log and the counts of one segment. Threads: the drainer calls under
its lock.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

from transport_kit.envelope.losses import Quantities
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.spool.acklog import AckLog, Op, Progress, read_log, read_progress
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

#: Bytes that one step of a search for a record covers: some milliseconds. Segments of usual size need one
#: step.
SEARCH_STEP: Final = 4 * 1024 * 1024
#: Most steps of the search in a segment that is given up: enough to find all records behind a damaged
#: envelope of the usual greatest size.
SEARCH_STEPS: Final = 32


@dataclass(slots=True, eq=False)
class Tally:
    """The number of envelopes of all segments that were seen and are not settled."""

    pending: int = 0


@dataclass(slots=True, eq=False)
class Entry:
    """One envelope that was read and is not settled.

    Attributes:
        segment: The segment that holds the record.
        offset: Offset of the record in bytes.
        id: Id of its claims.
        rank: Its class, a `Priority`.
        ordered: True for the lane of sessions and check-ins.
        created_ms: Epoch milliseconds at which it was accepted.
        quantities: Quantities by data category.
        attempts: Deliveries begun.
        deaths: See `Progress`.
        alone: True if it is claimed only while no other entry is.
        claimed: True while a sender has it.
        sealed: The envelope; None while it waits for a retry, when it is read again.
        faults: Answers with a status of 500.
    """

    segment: SegmentReader
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
    faults: int = 0


class SegmentReader:
    """A segment from its first record to its removal.

    Attributes:
        name: The parsed file name.
        text: The file name.
        size: Bytes at the last look.
        newer_version: True if a later version wrote the segment, or the file is not this user's: it is left
            alone.
        retired: True if its writer is gone and this process holds the lock: the segment no longer grows.
        entries: Entries that were read and are not settled, by offset.
        seen: Records found so far.
        settled: Records of these that are settled.
        abandoned: True if the segment was removed before all was delivered; its entries are void.
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
        # Offset at which counting met a search of more than one step; reading does that search.
        self._gap_at = -1
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
        """The number of known envelopes that are not settled."""
        return self.seen - self.settled

    @property
    def opened(self) -> bool:
        return self._fd >= 0

    @property
    def searching(self) -> bool:
        """True if `next` returned None with its search unfinished."""
        return self._reader is not None and self._reader.searching

    @property
    def counted(self) -> bool:
        """True if `seen` covers the whole segment as of the last look."""
        return self.newer_version or self._counted >= self.size

    def open(self) -> Reader | None:
        """Open the segment and return its reader; None if `newer_version`.

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
            entries = read_log(system, self.name, within)
            self._progress = read_progress(entries, self.name.salt)
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

    def next(self) -> Record | Gap | None:
        """Return the next part; None if there is none now. The file may have grown, or lost its writer.

        Raises:
            OSError: It can't be read now.
        """
        reader = self.open()
        if reader is None:
            return None
        while True:
            part = reader.next(final=self.retired)
            if part is not None:
                self._count_part(part, reader)
                return part
            if self.retired or reader.searching:
                return None
            has_grown = self._refresh_size(reader)
            if not has_grown and not self.retired:
                return None

    def _refresh_size(self, reader: Reader) -> bool:
        """Update `size` and `retired`; return True if the segment has grown.

        Nothing else sets `retired`: the records that were written last would be overlooked.
        """
        size_before, system = reader.size, self._directory.system
        # The lock before the size: once the lock is acquired, the size does not change any more.
        retired = self.retired or system.try_flock(self._fd)
        self.size = reader.size = system.status(self._fd).st_size
        self.retired = retired
        return self.size > size_before

    def _count_part(self, part: Record | Gap, reader: Reader) -> None:
        """Count a part that was read, unless `count` did so before."""
        if reader.offset > self._counted:
            self._counted = reader.offset
            if isinstance(part, Record):
                self._count_record(part)
        elif isinstance(part, Gap) and part.head is not None and not part.incomplete:
            self.settle()  # `count` counted it by its head, and its body is damaged

    def _count_record(self, record: Record) -> None:
        # `pending` before `seen`: `FileSpool.stats` reads them in the other order and without the lock, so it
        # may count a record twice but misses none.
        self._tally.pending += 1
        self.seen += 1
        progress = self._progress.get(record.offset)
        if progress is not None and progress.settled:
            self.settle()

    def settle(self) -> None:
        """Count one of its records as settled."""
        self.settled += 1
        self._tally.pending -= 1

    def count(self) -> None:
        """Count the records that were not counted yet, by their heads; the reading position stays.

        Raises:
            OSError: It can't be read now.
        """
        if self._gap_at == self._counted:
            return
        was_open = self.opened
        if self.open() is None:
            return
        self.size = self._directory.system.status(self._fd).st_size
        counter = self._read_from(self._counted)
        while (part := counter.next(final=False, bodies=False)) is not None:
            if isinstance(part, Record):
                self._count_record(part)
        # An incomplete record at the end is looked at again; all before it is not.
        self._counted = max(self._counted, counter.offset)
        if counter.searching:
            self._gap_at = self._counted
        if not was_open:
            self.close()

    def is_idle(self) -> bool:
        """Return True if its writer is gone; this process then holds the lock. Reads no records.

        Raises:
            OSError: It can't be checked now.
        """
        if not self.retired and (reader := self.open()) is not None:
            self._refresh_size(reader)
        return self.retired

    def read_rest(self) -> list[Record | Gap]:
        """Return all parts from the reading position on, without bodies, and move the position to the end.

        If the search takes more than `SEARCH_STEPS` steps, the rest is one gap.

        Raises:
            OSError: It can't be read now.
        """
        reader = self.open()
        if reader is None:
            return []
        self._refresh_size(reader)
        parts: list[Record | Gap] = []
        for _ in range(SEARCH_STEPS):
            while (part := reader.next(final=True, bodies=False)) is not None:
                self._count_part(part, reader)
                parts.append(part)
            if not reader.searching:
                break
        else:
            parts.append(Gap(reader.offset, reader.size, incomplete=False))
            reader.offset = reader.size
        return parts

    @property
    def position(self) -> int:
        """The offset at which reading continues."""
        return HEADER_BYTES if self._reader is None else self._reader.offset

    @position.setter
    def position(self, offset: int) -> None:
        if self._reader is not None:
            self._reader.offset = offset

    def progress(self, offset: int) -> Progress:
        """Return what the ack log of earlier drainers contains about a record."""
        return self._progress.get(offset) or Progress()

    def read_again(self, offset: int) -> Record | None:
        """Read the record at `offset` again; None if it is damaged.

        Raises:
            OSError: It can't be read now.
        """
        reader = self.open()
        return None if reader is None else reader.at(offset)

    def log(self, op: Op, offset: int) -> None:
        """Append an operation on a record to the ack log; best effort."""
        if not self.abandoned:
            self._acks.append(op, offset)

    @property
    def done(self) -> bool:
        """True if the segment may be removed: it is retired, and all its records are settled."""
        return (
            self.retired
            and self._reader is not None
            and self._reader.offset >= self._reader.size
            and not self.entries
        )

    def remove(self) -> None:
        """Unlink the segment and then its ack log: a log without a segment is harmless.

        Raises:
            OSError: The directory does not allow it.
        """
        system, within = self._directory.system, self._directory.segments
        try:
            system.unlink(self.text, within)
        except FileNotFoundError:
            pass  # a person removed it before
        self._acks.remove()
        self.close()

    def sync(self) -> None:
        """Write the segment to the disk, if it is open."""
        if self._fd >= 0:
            self._directory.system.sync(self._fd)

    def close(self) -> None:
        """Close the descriptors, which releases the lock, and forget the reading position."""
        fd, self._fd = self._fd, -1
        self._reader = None
        self._progress = {}
        self.retired = False
        self._acks.close()
        if fd >= 0:
            self._directory.system.close(fd)
