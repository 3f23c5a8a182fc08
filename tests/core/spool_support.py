"""Helpers of the spool's tests: envelopes, and the bytes of segments."""

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
    """Return a sealed event; `number` is its id."""
    return Envelope.event({"event_id": f"{number:032x}", "message": text, **more}).seal()


def session(number: int) -> SealedEnvelope:
    """Return a sealed session; `number` is its `sid`."""
    envelope = Envelope()
    envelope.add_session({"sid": f"{number:032x}", "started": "2024-01-01T00:00:00Z", "status": "ok"})
    return envelope.seal()


def log_entry(number: int) -> SealedEnvelope:
    """Return a sealed batch of one log."""
    envelope = Envelope()
    envelope.add_log([{"body": f"{number:032x}", "level": "info", "timestamp": 1.0}])
    return envelope.seal()


def record(sealed: SealedEnvelope, *, salt: bytes = SALT, created_ms: int = NOW_MS) -> bytes:
    """Return the bytes that a writer appends for an envelope."""
    rank, head, parts, length = envelope_record(sealed)
    return b"".join(record_parts(Salt.of(salt), RecordKind.ENVELOPE, rank, created_ms, head, parts, length))


def segment(envelopes: Iterable[SealedEnvelope]) -> bytes:
    """Return the bytes of a segment."""
    return segment_header(NAME) + b"".join(record(sealed) for sealed in envelopes)


def reader(data: bytes, *, offset: int = HEADER_BYTES) -> Reader:
    """Return a reader of bytes in memory."""
    return Reader(lambda size, at: data[at : at + size], SALT, offset, len(data))


def read_all(data: bytes, *, final: bool = True, bodies: bool = True) -> list[Record | Gap]:
    """Return all records and gaps that a reader finds."""
    walking = reader(data)
    found = []
    while (part := walking.next(final=final, bodies=bodies)) is not None:
        found.append(part)
    return found


def drained(spool: FileSpool) -> list[str | None]:
    """Claim and settle everything; return the event ids."""
    found = []
    while claims := spool.claim(1, 0.0):
        found += [claim.sealed.event_id for claim in claims]
        spool.ack(claims)
    return found


def ids(*numbers: int) -> list[str]:
    """Return the ids of `event`s by their numbers."""
    return [f"{number:032x}" for number in numbers]
