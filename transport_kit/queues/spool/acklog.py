"""The ack log beside a segment: what was attempted, returned, settled.

Advisory: a segment without it, or with a damaged one, is delivered whole again; a duplicate is the price,
never a loss. Writing it is best effort, so that a full disk still drains.

Threads: a log belongs to the drainer, which calls under its lock.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from transport_kit.queues.spool.segments import SegmentName
from transport_kit.queues.spool.system import System

__all__ = ["AckLog", "Op", "Progress", "ack_name", "read_progress"]

_ENTRY: Final = struct.Struct("<QB3x")
ENTRY_BYTES: Final = _ENTRY.size + 4
#: A segment of small records has a few ten thousand; more is not read.
MAX_BYTES: Final = 64 * 1024 * 1024


class Op(IntEnum):
    """What happened to the record at an offset."""

    ATTEMPT = 1
    #: An attempt while nothing else was under way.
    ALONE = 2
    RELEASE = 3
    ACK = 4
    BURY = 5


@dataclass(slots=True)
class Progress:
    """What is known of one record.

    Attributes:
        attempts: Deliveries begun.
        settled: Nothing is left to do.
        open: The last attempt had no end: the drainer died during it, or is at it.
        deaths: Drainers that died while they attempted this record and no other, without a survivor since.
    """

    attempts: int = 0
    settled: bool = False
    open: bool = False
    deaths: int = 0


def ack_name(name: SegmentName) -> str:
    """The log's file name: the segment's with another ending."""
    return str(name).removesuffix(".log") + ".ack"


def _entry(op: int, offset: int, seed: int) -> bytes:
    start = _ENTRY.pack(offset, op)
    return start + struct.pack("<I", zlib.crc32(start, seed))


def read_progress(data: bytes, salt: bytes) -> dict[int, Progress]:
    """By offset of the record; entries that their checksum does not confirm are passed over."""
    seed = zlib.crc32(salt)
    found: dict[int, Progress] = {}
    alone: set[int] = set()
    at = 0
    while at + ENTRY_BYTES <= len(data):
        start = data[at : at + _ENTRY.size]
        (check,) = struct.unpack_from("<I", data, at + _ENTRY.size)
        if zlib.crc32(start, seed) != check:
            at += 1  # a write came short: the next entry begins anywhere
            continue
        at += ENTRY_BYTES
        offset, op = _ENTRY.unpack(start)
        progress = found.setdefault(offset, Progress())
        if op in (Op.ATTEMPT, Op.ALONE):
            if offset in alone:
                progress.deaths += 1
            progress.attempts += 1
            progress.open = True
        elif op == Op.RELEASE:
            progress.open = False
            progress.deaths = 0
        elif op in (Op.ACK, Op.BURY):
            progress.settled = True
        (alone.add if op == Op.ALONE else alone.discard)(offset)
    for offset in alone:
        found[offset].deaths += 1
    return found


class AckLog:
    """Appends to one segment's log; opened at the first entry."""

    __slots__ = ("_fd", "_segment", "_system", "_within")

    def __init__(self, system: System, within: int, name: SegmentName) -> None:
        self._system = system
        self._within = within
        self._segment = name
        self._fd = -1

    def append(self, op: Op, offset: int) -> bool:
        """Whether it was written."""
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
        """The segment is gone."""
        self.close()
        try:
            self._system.unlink(ack_name(self._segment), self._within)
        except OSError:
            pass  # never written, or removed later with the other leftovers
