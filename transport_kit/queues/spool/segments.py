"""The format of segments: names, headers, records, and reading past damage.

This module owns every byte of a segment file; docs/reference/spool-format.md describes them. It does no I/O
of its own: a reader is given a function that reads. The content of records is in `records.py`.

All input is untrusted: lengths are checked against the file's size before anything is allocated, and only
records with two valid checksums are returned. The salt is drawn per segment and part of the file's name, so
that request data inside a body can't be mistaken for a record, and a damaged header costs no record.

Threads: a `Reader` belongs to one thread at a time; all functions are pure.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple
from zlib import crc32

from transport_kit.envelope.item_types import Priority

__all__ = [
    "explain",
    "FIXED_BYTES",
    "Gap",
    "HEADER_BYTES",
    "is_header_of",
    "is_newer_version",
    "MAX_HEAD_BYTES",
    "Reader",
    "Record",
    "record_parts",
    "RecordKind",
    "Salt",
    "segment_header",
    "SegmentName",
    "VERSION",
]

VERSION: Final = 1
SALT_BYTES: Final = 8
#: Most bytes of a record's head, which takes some fifty bytes per item of an envelope.
MAX_HEAD_BYTES: Final = 1024 * 1024
MAX_BODY_BYTES: Final = 2**32 - 1

_SEGMENT: Final = struct.Struct("<8sBBH8sQI")
_SEGMENT_MAGIC: Final = b"\xf5TKspool"
HEADER_BYTES: Final = _SEGMENT.size

# Mark, version, kind, class, zero, head length, body length, created; then the two checksums.
_FIXED: Final = struct.Struct("<8sBBBBIIQ")
_CHECKS: Final = struct.Struct("<II")
# Bound once: with cold caches each attribute lookup costs a capture a part of a microsecond.
_pack_fixed: Final = _FIXED.pack
_pack_checks: Final = _CHECKS.pack
# 0xF5 occurs in no UTF-8 text, so a search never stops at JSON in a body.
_MAGIC: Final = b"\xf5TKr"
FIXED_BYTES: Final = _FIXED.size + _CHECKS.size

_NAME: Final = re.compile(r"([0-4])-([0-9]{1,20})-([0-9]{1,10})-([0-9a-f]{16})\.log")
#: Bytes read ahead: little memory, and enough to make the cost of a system call small.
WINDOW: Final = 128 * 1024


class RecordKind(IntEnum):
    """The content of a record."""

    ENVELOPE = 0
    LOSSES = 1


class Salt(NamedTuple):
    """The seed of a segment's checksums and the mark that begins its records, derived from its salt."""

    seed: int
    mark: bytes

    @classmethod
    def of(cls, salt: bytes) -> Salt:
        return cls(crc32(salt), _MAGIC + salt[:4])


class SegmentName(NamedTuple):
    """A parsed file name of a segment. Sorts by class, then by age; the time is used for nothing else.

    Attributes:
        rank: Class of all its records, a `Priority`.
        created_ns: Epoch nanoseconds at which it was created, by the clock of that process.
        pid: Id of the process that created it.
        salt: Eight random bytes.
    """

    rank: int
    created_ns: int
    pid: int
    salt: bytes

    def __str__(self) -> str:
        return f"{self.rank}-{self.created_ns:020d}-{self.pid}-{self.salt.hex()}.log"

    @classmethod
    def parse(cls, text: str) -> SegmentName | None:
        """Parse a file name; return None if it is no segment's."""
        match = _NAME.fullmatch(text)
        if match is None:
            return None
        rank, created, pid, salt = match.groups()
        return cls(int(rank), int(created), int(pid), bytes.fromhex(salt))


def segment_header(name: SegmentName) -> bytes:
    """Return the first bytes of a segment."""
    start = _SEGMENT.pack(_SEGMENT_MAGIC, VERSION, name.rank, 0, name.salt, name.created_ns, 0)[:-4]
    return start + struct.pack("<I", crc32(start))


def is_newer_version(header: bytes) -> bool:
    """Return True if a later version wrote the segment, which is then left alone.

    False for a damaged header: the file name contains all that is needed.
    """
    if len(header) < HEADER_BYTES:
        return False
    start = header[: HEADER_BYTES - 4]
    (checksum,) = struct.unpack_from("<I", header, HEADER_BYTES - 4)
    magic, version = start[:8], start[8]
    return magic == _SEGMENT_MAGIC and checksum == crc32(start) and version != VERSION


def is_header_of(header: bytes, name: SegmentName) -> bool:
    """Return True if a segment's header is intact and matches its name; reading does not depend on it."""
    return header == segment_header(name)


def record_parts(
    salt: Salt, kind: int, rank: int, created_ms: int, head: bytes, body: Sequence[bytes], length: int
) -> tuple[bytes, ...]:
    """Return a record's bytes, for one write: fixed part, checksums, head, body.

    The first two take `FIXED_BYTES`.

    Args:
        salt: The segment's salt.
        kind: A `RecordKind`.
        rank: The class, a `Priority`.
        created_ms: Epoch milliseconds.
        head: The record's head.
        body: The parts of the body in order.
        length: Bytes of all parts.
    """
    seed, mark = salt
    fixed = _pack_fixed(mark, VERSION, kind, rank, 0, len(head), length, created_ms)
    head_check = body_check = crc32(head, crc32(fixed, seed))
    for part in body:
        body_check = crc32(part, body_check)
    return (fixed, _pack_checks(head_check, body_check), head, *body)


@dataclass(frozen=True, slots=True)
class Record:
    """One intact record, from `offset` to `end`. `body` is empty if only heads are read."""

    offset: int
    end: int
    kind: int
    rank: int
    created_ms: int
    head: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes from `offset` to `end` that contain no intact record.

    Attributes:
        offset: First byte.
        end: Offset behind the last byte.
        incomplete: True if the record was not written to its end, and so never accepted; False if damaged.
        head: Head of the lost record if it is intact, or None.
    """

    offset: int
    end: int
    incomplete: bool
    head: bytes | None = None


class _Fixed(NamedTuple):
    """A record's first part, with a head whose checksum is valid."""

    kind: int
    rank: int
    created_ms: int
    head: bytes
    body_at: int
    end: int
    head_check: int
    body_check: int


class Reader:
    """A reader of one segment, which may still be growing.

    Args:
        read: `read(size, offset)` returns bytes; fewer at the file's end.
        salt: Salt in the segment's name.
        offset: Offset to begin at: the end of a record or of the header.
        size: See below.
        data: `data(offset)` returns the first offset from there on that is not in a hole, or None.
        step: About the number of bytes that one call of `next` searches for a record.

    Attributes:
        offset: Offset of the next record.
        size: Bytes of the file that are read; its owner updates it as the file grows.
        searching: True if the last `next` returned None because its step ended: the next call continues.
    """

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        salt: bytes,
        offset: int = HEADER_BYTES,
        size: int = 0,
        *,
        data: Callable[[int], int | None] = lambda offset: offset,
        step: float = math.inf,
    ) -> None:
        self._read = read
        self._data = data
        self._step = step
        self.searching = False
        self._salt = Salt.of(salt)
        self.offset = offset
        self.size = size
        self._window = b""
        self._window_at = 0
        # While a writer may be at work, bytes without a record become a gap only once a valid record follows.
        # The last search without a result, which is not repeated: its begin, its end, and the file's size.
        self._searched = (-1, 0, 0)

    def next(self, *, final: bool, bodies: bool = True) -> Record | Gap | None:
        """Return the next record or gap; None if there is none, yet.

        Args:
            final: True if the writer is gone: an incomplete record will not be completed.
            bodies: False to read heads only; a record with a damaged body is then returned, too.
        """
        begin = self.offset
        self.searching = False
        if begin >= self.size:
            return None
        fixed = self._fixed_at(begin)
        if fixed is not None and fixed.end <= self.size:
            body = self._bytes(fixed.body_at, fixed.end - fixed.body_at) if bodies else b""
            if not bodies or crc32(body, fixed.head_check) == fixed.body_check:
                self.offset = fixed.end
                return Record(begin, fixed.end, fixed.kind, fixed.rank, fixed.created_ms, fixed.head, body)
        next_record = self._search(begin)
        if next_record is None and (self.searching or not final):
            return None
        self.offset = end = self.size if next_record is None else next_record
        is_incomplete = self._is_incomplete(begin, end, fixed)
        return Gap(begin, end, is_incomplete, None if fixed is None else fixed.head)

    def at(self, offset: int) -> Record | None:
        """Return the record that begins at `offset`; None if there is no intact one."""
        fixed = self._fixed_at(offset)
        if fixed is None or fixed.end > self.size:
            return None
        body = self._bytes(fixed.body_at, fixed.end - fixed.body_at)
        if crc32(body, fixed.head_check) != fixed.body_check:
            return None
        return Record(offset, fixed.end, fixed.kind, fixed.rank, fixed.created_ms, fixed.head, body)

    def _fixed_at(self, at: int) -> _Fixed | None:
        start = self._bytes(at, FIXED_BYTES)
        if len(start) < FIXED_BYTES or not start.startswith(self._salt.mark):
            return None
        _, version, kind, rank, zero, head_length, body_length, created = _FIXED.unpack_from(start)
        head_at = at + FIXED_BYTES
        body_at = head_at + head_length
        if version != VERSION or zero or rank > max(Priority) or head_length > MAX_HEAD_BYTES:
            return None
        if body_at > self.size:
            return None
        head_check, body_check = _CHECKS.unpack_from(start, _FIXED.size)
        head = self._bytes(head_at, head_length)
        if crc32(head, crc32(start[: _FIXED.size], self._salt.seed)) != head_check:
            return None
        return _Fixed(kind, rank, created, head, body_at, body_at + body_length, head_check, body_check)

    def _search(self, begin: int) -> int | None:
        """Return the offset of the next valid head after `begin`, or None.

        Sets `searching` if the step ended before the file's end.
        """
        at, mark, remaining = begin + 1, self._salt.mark, self._step
        searched_from, searched_to, size = self._searched
        if searched_from == begin:
            # A head that reached beyond the file's end may be valid now that the file is longer.
            if size != self.size:
                searched_to = min(searched_to, size - FIXED_BYTES - MAX_HEAD_BYTES)
            at = max(at, searched_to)
        while at < self.size and (data := self._data(at)) is not None:
            at = data
            if remaining <= 0:
                self.searching = True
                self._searched = begin, at, self.size
                return None
            chunk = self._bytes(at, min(WINDOW, self.size - at))
            index = chunk.find(mark)
            if index < 0:
                # The next chunk overlaps this one, as the mark may lie across the border.
                step = len(chunk) - len(mark) + 1
                if step <= 0 or at + len(chunk) >= self.size:
                    break
                at += step
                remaining -= step
                continue
            if self._fixed_at(at + index) is not None:
                return at + index
            at += index + 1
            remaining -= MAX_HEAD_BYTES  # `_fixed_at` may have read that much
        self._searched = begin, self.size, self.size
        return None

    def _is_incomplete(self, begin: int, end: int, fixed: _Fixed | None) -> bool:
        """Return True if the record that begins at `begin` is longer than the gap."""
        if fixed is not None:
            return fixed.end > end
        start = self._bytes(begin, min(FIXED_BYTES, end - begin))
        mark = self._salt.mark
        if len(start) < FIXED_BYTES:
            return mark.startswith(start[: len(mark)])
        head_length, body_length = struct.unpack_from("<II", start, 12)
        return start.startswith(mark) and begin + FIXED_BYTES + head_length + body_length > end

    def _bytes(self, at: int, size: int) -> bytes:
        """Return `size` bytes from the offset `at`, fewer at the end of the file."""
        size = min(size, self.size - at)
        if size <= 0:
            return b""
        start = at - self._window_at
        if start >= 0 and start + size <= len(self._window):
            return self._window[start : start + size]
        if size > WINDOW // 2:
            return self._read(size, at)
        self._window = self._read(min(WINDOW, self.size - at), at)
        self._window_at = at
        return self._window[:size]


def explain(read: Callable[[int, int], bytes], salt: bytes, gap: Gap) -> str:
    """Describe why there is no record at the begin of a gap, for a person who inspects the file."""
    start = read(min(FIXED_BYTES, gap.end - gap.offset), gap.offset)
    mark = Salt.of(salt).mark
    length = gap.end - gap.offset
    if len(start) < FIXED_BYTES:
        return f"{length} bytes, less than any record: a write came short, or is under way"
    if not start.startswith(_MAGIC):
        return f"{length} bytes that do not begin as a record does (F5 54 4B 72)"
    if not start.startswith(mark):
        return "a record with the mark of another segment"
    _, version, _, rank, zero, head_length, body_length, _ = _FIXED.unpack_from(start)
    record_length = FIXED_BYTES + head_length + body_length
    if gap.incomplete:
        return (
            f"a record of {record_length} bytes of which {length} are there: never written to its end and"
            " never accepted, or being written now"
        )
    if version != VERSION or zero or rank > max(Priority) or head_length > MAX_HEAD_BYTES:
        return "a record whose first bytes make no sense: version, class or length of the head"
    if gap.head is None:
        return "the checksum of a record's head does not fit: its first 36 bytes or its head are damaged"
    return "the checksum of a record's body does not fit: its body is damaged"
