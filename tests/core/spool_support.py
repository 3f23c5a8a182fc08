"""What the tests of the spool share: envelopes, and segments as bytes."""

from __future__ import annotations

import time
from collections.abc import Iterable

from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.spool import FileSpool
from transport_kit.queues.spool.records import envelope_record
from transport_kit.queues.spool.segments import (
    HEADER_BYTES,
    Gap,
    Reader,
    Record,
    RecordKind,
    Salt,
    SegmentName,
    record_parts,
    segment_header,
)

SALT = bytes(range(8))
NOW_MS = time.time_ns() // 1_000_000
NAME = SegmentName(4, NOW_MS * 1_000_000, 42, SALT)


def event(number: int, text: str = "", **more: object) -> SealedEnvelope:
    """A sealed event whose id says its number."""
    return Envelope.event({"event_id": f"{number:032x}", "message": text, **more}).seal()


def session(number: int) -> SealedEnvelope:
    """A sealed session; `number` is its `sid`."""
    envelope = Envelope()
    envelope.add_session({"sid": f"{number:032x}", "started": "2024-01-01T00:00:00Z", "status": "ok"})
    return envelope.seal()


def log_entry(number: int) -> SealedEnvelope:
    """A sealed batch of one log."""
    envelope = Envelope()
    envelope.add_log([{"body": f"{number:032x}", "level": "info", "timestamp": 1.0}])
    return envelope.seal()


def record(sealed: SealedEnvelope, *, salt: bytes = SALT, created_ms: int = NOW_MS) -> bytes:
    """The bytes that a writer appends."""
    rank, head, parts, length = envelope_record(sealed)
    return b"".join(record_parts(Salt.of(salt), RecordKind.ENVELOPE, rank, created_ms, head, parts, length))


def segment(envelopes: Iterable[SealedEnvelope]) -> bytes:
    """A whole segment's bytes."""
    return segment_header(NAME) + b"".join(record(sealed) for sealed in envelopes)


def reader(data: bytes, *, offset: int = HEADER_BYTES) -> Reader:
    """A reader of bytes in memory."""
    return Reader(lambda size, at: data[at : at + size], SALT, offset, len(data))


def read_all(data: bytes, *, final: bool = True, bodies: bool = True) -> list[Record | Gap]:
    """All that a reader finds."""
    walking = reader(data)
    found = []
    while (part := walking.next(final=final, bodies=bodies)) is not None:
        found.append(part)
    return found


def drained(spool: FileSpool) -> list[str | None]:
    """Event ids of all there is, each settled."""
    found = []
    while claims := spool.claim(1, 0.0):
        found += [claim.sealed.event_id for claim in claims]
        spool.ack(claims)
    return found


def ids(*numbers: int) -> list[str]:
    """The ids of `event`s."""
    return [f"{number:032x}" for number in numbers]
