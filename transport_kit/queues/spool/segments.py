"""The format of segments: names, headers, records, and how a reader finds its way through damage.

Owns every byte of a segment file; docs/reference/spool-format.md describes them. Does no I/O of its own:
a reader is given a function that reads. Knows nothing of envelopes (`records.py`).

Everything read is hostile: lengths are checked against what is there before anything is allocated, and
only what both checksums confirm is returned. The salt is drawn per segment and known from the file's name,
so that request data inside a body can't pose as a record, and a damaged header costs no record.

Threads: a `Reader` belongs to one thread at a time; all else is pure.
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
#: A record's head names each item of an envelope; some fifty bytes an item.
MAX_HEAD_BYTES: Final = 1024 * 1024
MAX_BODY_BYTES: Final = 2**32 - 1

_SEGMENT: Final = struct.Struct("<8sBBH8sQI")
_SEGMENT_MAGIC: Final = b"\xf5TKspool"
HEADER_BYTES: Final = _SEGMENT.size

# Mark, version, kind, class, zero, head length, body length, created; then the two checksums.
_FIXED: Final = struct.Struct("<8sBBBBIIQ")
_CHECKS: Final = struct.Struct("<II")
# Bound once: with cold caches each thing that a capture has to look up costs it a part of a microsecond.
_pack_fixed: Final = _FIXED.pack
_pack_checks: Final = _CHECKS.pack
# 0xF5 occurs in no UTF-8 text, so no JSON in a body begins a search in vain.
_MAGIC: Final = b"\xf5TKr"
FIXED_BYTES: Final = _FIXED.size + _CHECKS.size

_NAME: Final = re.compile(r"([0-4])-([0-9]{1,20})-([0-9]{1,10})-([0-9a-f]{16})\.log")
#: Bytes read ahead; small next to what a process weighs, large next to a system call.
WINDOW: Final = 128 * 1024


class RecordKind(IntEnum):
    """What a record's body is."""

    ENVELOPE = 0
    LOSSES = 1


class Salt(NamedTuple):
    """A segment's salt and what is derived from it: `seed` begins all its checksums, `mark` its records."""

    seed: int
    mark: bytes

    @classmethod
    def of(cls, salt: bytes) -> Salt:
        return cls(crc32(salt), _MAGIC + salt[:4])


class SegmentName(NamedTuple):
    """What a segment's file name says. Sorts by class, then by age; the time decides nothing else.

    Attributes:
        rank: Class of all its records, a `Priority`.
        created_ns: Wall clock of the process that made it.
        pid: Of that process.
        salt: Random; eight bytes.
    """

    rank: int
    created_ns: int
    pid: int
    salt: bytes

    def __str__(self) -> str:
        return f"{self.rank}-{self.created_ns:020d}-{self.pid}-{self.salt.hex()}.log"

    @classmethod
    def parse(cls, text: str) -> SegmentName | None:
        """None for what no writer of ours would have written."""
        match = _NAME.fullmatch(text)
        if match is None:
            return None
        rank, created, pid, salt = match.groups()
        return cls(int(rank), int(created), int(pid), bytes.fromhex(salt))


def segment_header(name: SegmentName) -> bytes:
    """The first bytes of a segment."""
    start = _SEGMENT.pack(_SEGMENT_MAGIC, VERSION, name.rank, 0, name.salt, name.created_ns, 0)[:-4]
    return start + struct.pack("<I", crc32(start))


def is_newer_version(header: bytes) -> bool:
    """Whether a later version wrote this segment: leave it alone.

    A header that is damaged is not foreign: the name says all that is needed.
    """
    if len(header) < HEADER_BYTES:
        return False
    start = header[: HEADER_BYTES - 4]
    (check,) = struct.unpack_from("<I", header, HEADER_BYTES - 4)
    magic, version = start[:8], start[8]
    return magic == _SEGMENT_MAGIC and check == crc32(start) and version != VERSION


def is_header_of(header: bytes, name: SegmentName) -> bool:
    """Whether a segment's header is whole, and says what its name says; nothing depends on it."""
    return header == segment_header(name)


def record_parts(
    salt: Salt, kind: int, rank: int, created_ms: int, head: bytes, body: Sequence[bytes], length: int
) -> tuple[bytes, ...]:
    """A record's bytes, for one write: fixed part, checksums, head, body. `FIXED_BYTES` precede the head.

    Args:
        body: The body's parts in order.
        length: Their bytes.
    """
    seed, mark = salt
    fixed = _pack_fixed(mark, VERSION, kind, rank, 0, len(head), length, created_ms)
    head_check = body_check = crc32(head, crc32(fixed, seed))
    for part in body:
        body_check = crc32(part, body_check)
    return (fixed, _pack_checks(head_check, body_check), head, *body)


@dataclass(frozen=True, slots=True)
class Record:
    """One whole record at `offset` up to `end`. `body` is empty when only heads were asked for."""

    offset: int
    end: int
    kind: int
    rank: int
    created_ms: int
    head: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes from `offset` to `end` that hold no whole record.

    Attributes:
        incomplete: The record was never written to its end, and so never accepted. Otherwise it is damaged.
        head: The lost record's head when that much is intact.
    """

    offset: int
    end: int
    incomplete: bool
    head: bytes | None = None


class _Fixed(NamedTuple):
    """A record's first part, with a head that its checksum confirms."""

    kind: int
    rank: int
    created_ms: int
    head: bytes
    body_at: int
    end: int
    head_check: int
    body_check: int


class Reader:
    """Walks through one segment, which may still be growing.

    Args:
        read: `read(size, offset)`, short at the file's end.
        salt: From the segment's name.
        offset: Where to begin: the end of a record.
        data: `data(offset)`: where the first byte from there on lies that is not in a hole; None: nowhere.
        step: Bytes that one call of `next` searches for a record, about.

    Attributes:
        offset: Where the next record begins.
        size: Bytes of the file that may be looked at; the owner sets it anew as the file grows.
        searching: The last `next` returned None only because its step was over: the next call goes on.
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
        # While a writer may be at work a bad spot is judged only once something valid follows it. What
        # was searched in vain isn't searched again: from where, up to where, at which size of the file.
        self._searched = (-1, 0, 0)

    def next(self, *, final: bool, bodies: bool = True) -> Record | Gap | None:
        """What comes next; None when nothing does, yet.

        Args:
            final: The writer is gone: what is incomplete stays so.
            bodies: Whether to read and check bodies; without, a record with a damaged body passes.
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
        found = self._search(begin)
        if found is None and (self.searching or not final):
            return None
        self.offset = end = self.size if found is None else found
        return Gap(begin, end, self._is_torn(begin, end, fixed), None if fixed is None else fixed.head)

    def at(self, offset: int) -> Record | None:
        """The whole record that begins at `offset`; None when there is none any more."""
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
        """Where the next believable record after `begin` is; None with `searching` when a step is over."""
        at, mark, left = begin + 1, self._salt.mark, self._step
        searched, upto, size = self._searched
        if searched == begin:
            # What reached beyond the file was judged by the size that it had.
            at = max(at, upto if size == self.size else min(upto, size - FIXED_BYTES - MAX_HEAD_BYTES))
        while at < self.size and (data := self._data(at)) is not None:
            at = data
            if left <= 0:
                self.searching = True
                self._searched = begin, at, self.size
                return None
            chunk = self._bytes(at, min(WINDOW, self.size - at))
            found = chunk.find(mark)
            if found < 0:
                # The mark may lie across the border.
                step = len(chunk) - len(mark) + 1
                if step <= 0 or at + len(chunk) >= self.size:
                    break
                at += step
                left -= step
                continue
            if self._fixed_at(at + found) is not None:
                return at + found
            at += found + 1
            left -= MAX_HEAD_BYTES  # so much was read to see that it is none
        self._searched = begin, self.size, self.size
        return None

    def _is_torn(self, begin: int, end: int, fixed: _Fixed | None) -> bool:
        """Whether what begins at `begin` reaches beyond what there is of it."""
        if fixed is not None:
            return fixed.end > end
        start = self._bytes(begin, min(FIXED_BYTES, end - begin))
        mark = self._salt.mark
        if len(start) < FIXED_BYTES:
            return mark.startswith(start[: len(mark)])
        head_length, body_length = struct.unpack_from("<II", start, 12)
        return start.startswith(mark) and begin + FIXED_BYTES + head_length + body_length > end

    def _bytes(self, at: int, size: int) -> bytes:
        """`size` bytes at `at`, fewer at the end of the file."""
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
    """Why there is no record at a gap's beginning, for whoever looks at the file. Decides nothing."""
    start = read(min(FIXED_BYTES, gap.end - gap.offset), gap.offset)
    mark = Salt.of(salt).mark
    there = gap.end - gap.offset
    if len(start) < FIXED_BYTES:
        return f"{there} bytes, less than any record: a write came short, or is under way"
    if not start.startswith(_MAGIC):
        return f"{there} bytes that do not begin as a record does (F5 54 4B 72)"
    if not start.startswith(mark):
        return "a record with the mark of another segment"
    _, version, _, rank, zero, head_length, body_length, _ = _FIXED.unpack_from(start)
    whole = FIXED_BYTES + head_length + body_length
    if gap.incomplete:
        return (
            f"a record of {whole} bytes of which {there} are there: never written to its end and never"
            " accepted, or being written now"
        )
    if version != VERSION or zero or rank > max(Priority) or head_length > MAX_HEAD_BYTES:
        return "a record whose first bytes make no sense: version, class or length of the head"
    if gap.head is None:
        return "the checksum of a record's head does not fit: its first 36 bytes or its head are damaged"
    return "the checksum of a record's body does not fit: its body is damaged"
