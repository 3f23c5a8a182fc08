"""The ack log beside a segment: attempts, releases and settlements of its records.

Advisory: a segment whose log is missing or damaged is delivered again as a whole, which may send duplicates
and loses nothing. Writing is best effort, so that a full disk still drains.

Threads: a log belongs to the drainer, which calls under its lock.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from transport_kit.queues.spool.segments import SegmentName
from transport_kit.queues.spool.system import System

__all__ = ["AckLog", "Op", "Progress", "ack_name", "read_log", "read_progress"]

_ENTRY: Final = struct.Struct("<QB3x")
ENTRY_BYTES: Final = _ENTRY.size + 4
#: Most bytes of a log that are read. A segment of small records has a few ten thousand entries.
MAX_BYTES: Final = 64 * 1024 * 1024
#: Bytes read at once.
_CHUNK: Final = 1024 * 1024
#: Most damaged bytes that are passed over, and most entries with a wrong checksum. What follows more damage
#: than that is not read.
MAX_DAMAGE: Final = 4 * 1024 * 1024
MAX_FAILURES: Final = 10_000
#: The bytes that can be an entry: any offset, an operation, three zeros, any checksum.
_FORM: Final = re.compile(rb"(?=.{8}[\x01-\x05]\x00\x00\x00.{4})", re.DOTALL)


class Op(IntEnum):
    """An operation on the record at an offset."""

    ATTEMPT = 1
    #: An attempt while no other envelope was being delivered.
    ALONE = 2
    RELEASE = 3
    ACK = 4
    BURY = 5
    #: The server answered 500 to the last attempt.
    FAULT = 6


@dataclass(slots=True)
class Progress:
    """The state of one record, as its ack log shows it.

    Attributes:
        attempts: Deliveries begun.
        settled: True if the record is delivered, discarded or buried.
        open: True if the log contains no end of the last attempt: it is under way, or the drainer died.
        deaths: Drainers that died in a row while they attempted this record and no other.
        faults: Answers with a status of 500.
    """

    attempts: int = 0
    settled: bool = False
    open: bool = False
    deaths: int = 0
    faults: int = 0


def ack_name(name: SegmentName) -> str:
    """Return the file name of a segment's ack log."""
    return str(name).removesuffix(".log") + ".ack"


def _entry(op: int, offset: int, seed: int) -> bytes:
    start = _ENTRY.pack(offset, op)
    return start + struct.pack("<I", zlib.crc32(start, seed))


def read_log(system: System, name: SegmentName, within: int) -> bytes:
    """Return the content of a segment's ack log without its holes; empty if it can't be read.

    Returns at most `MAX_BYTES`: a file that somebody made longer costs neither time nor memory.
    """
    try:
        fd = system.open_file(ack_name(name), within)
    except OSError:
        return b""
    data = bytearray()
    try:
        if not system.is_file(system.status(fd)):
            return b""
        offset: int | None = 0
        while (
            len(data) < MAX_BYTES
            and offset is not None
            and (begin := system.data_from(fd, offset)) is not None
        ):
            chunk = system.read(fd, _CHUNK, begin)
            data += chunk
            offset = begin + len(chunk) if chunk else None
    except OSError:
        return b""
    finally:
        system.close(fd)
    return bytes(data)


def read_progress(data: bytes, salt: bytes) -> dict[int, Progress]:
    """Parse an ack log; return the progress of each record by its offset.

    Entries with a wrong checksum are skipped; see `MAX_DAMAGE`.

    Args:
        data: The log's content.
        salt: The segment's salt.
    """
    seed = zlib.crc32(salt)
    records: dict[int, Progress] = {}
    alone: set[int] = set()  # offsets of records whose last operation is `ALONE`
    position = 0
    damage = failures = 0
    while position + ENTRY_BYTES <= len(data):
        start = data[position : position + _ENTRY.size]
        (checksum,) = struct.unpack_from("<I", data, position + _ENTRY.size)
        if zlib.crc32(start, seed) != checksum:
            # After a short write the next entry may begin at any byte.
            match = _FORM.search(data, position + 1, position + 1 + MAX_DAMAGE)
            failures += 1
            if match is None or failures > MAX_FAILURES:
                break
            damage += match.start() - position
            if damage > MAX_DAMAGE:
                break
            position = match.start()
            continue
        position += ENTRY_BYTES
        offset, op = _ENTRY.unpack(start)
        progress = records.setdefault(offset, Progress())
        if op in (Op.ATTEMPT, Op.ALONE):
            if offset in alone:
                progress.deaths += 1
            progress.attempts += 1
            progress.open = True
        elif op == Op.RELEASE:
            progress.open = False
            progress.deaths = 0
        elif op == Op.FAULT:
            progress.faults += 1
        elif op in (Op.ACK, Op.BURY):
            progress.settled = True
        (alone.add if op == Op.ALONE else alone.discard)(offset)
    for offset in alone:
        records[offset].deaths += 1
    return records


class AckLog:
    """The writer of one segment's ack log; the file is created with the first entry."""

    __slots__ = ("_fd", "_segment", "_system", "_within")

    def __init__(self, system: System, within: int, name: SegmentName) -> None:
        self._system = system
        self._within = within
        self._segment = name
        self._fd = -1

    def append(self, op: Op, offset: int) -> bool:
        """Append an entry; return True if it was written."""
        try:
            if self._fd < 0:
                self._fd = self._system.append_to(ack_name(self._segment), self._within)
            entry = _entry(op, offset, zlib.crc32(self._segment.salt))
            return self._system.write(self._fd, (entry,)) == len(entry)
        except OSError:
            return False

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._system.close(fd)

    def remove(self) -> None:
        """Remove the log, after its segment."""
        self.close()
        try:
            self._system.unlink(ack_name(self._segment), self._within)
        except OSError:
            pass  # it never existed, or the drainer's listing removes it later
