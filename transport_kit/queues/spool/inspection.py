"""Inspection of a spool and its dead letters, for the command `transport-kit spool`.

This module works beside running writers and drainers, and holds no lock that they wait for. A file may be
removed or grow at any time, and its content is validated, as any file may be damaged.

Threads: an `Inspection` belongs to one thread.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

from transport_kit.envelope.encoder import loads
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.item_types import Priority
from transport_kit.envelope.losses import LossReason, Pairs, Quantities
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.spool.acklog import Progress, read_log, read_progress
from transport_kit.queues.spool.directory import Directory, open_directory, read_credentials
from transport_kit.queues.spool.election import holders
from transport_kit.queues.spool.records import (
    envelope_of,
    envelope_record,
    event_id_in_head,
    losses_record,
    quantities_of,
)
from transport_kit.queues.spool.segments import (
    HEADER_BYTES,
    Gap,
    Reader,
    Record,
    RecordKind,
    SegmentName,
    explain,
    is_header_of,
    is_newer_version,
)
from transport_kit.queues.spool.status import SpoolStatus, read_status
from transport_kit.queues.spool.system import System
from transport_kit.queues.spool.writer import Full, Writer
from transport_kit.runtime.errors import OptionsError

__all__ = ["Flaw", "Inspection", "Letter", "SegmentFacts", "Waiting"]

_LETTER: Final = re.compile(r"[0-9a-fA-F-]{32,36}")
#: Most bytes that are read of a dead letter's facts, and of its envelope.
_MAX_FACTS_BYTES: Final = 1024 * 1024
_MAX_LETTER_BYTES: Final = 1 << 30
#: Bytes of the largest block of any filesystem.
_BLOCK: Final = 64 * 1024

#: Called with the number of bytes read since the last call.
Progressed = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Waiting:
    """One envelope on the disk that is not settled.

    Attributes:
        identity: Name of its destination.
        segment: Name of its segment.
        offset: Offset of its record in bytes.
        event_id: Its event id, or None.
        quantities: Quantities by data category.
        size: Bytes of its record.
        created_ms: Epoch milliseconds at which it was accepted.
        attempts: Deliveries begun.
        under_way: True if the last delivery has no recorded end: it is being sent, or the drainer died.
    """

    identity: str
    segment: SegmentName
    offset: int
    event_id: str | None
    quantities: Quantities
    size: int
    created_ms: int
    attempts: int
    under_way: bool

    @property
    def reference(self) -> str:
        """A name for an envelope without an event id: the segment's salt and the offset."""
        return f"{self.segment.salt.hex()}:{self.offset}"


@dataclass(frozen=True, slots=True)
class Flaw:
    """One problem of a file.

    Attributes:
        file: Name of the file.
        offset: First byte concerned.
        end: Offset behind the last byte concerned.
        loss: True if a record is lost, or can't be delivered.
        text: Description for a person.
    """

    file: str
    offset: int
    end: int
    loss: bool
    text: str


@dataclass(frozen=True, slots=True)
class SegmentFacts:
    """The result of reading a whole segment.

    Attributes:
        name: File name.
        size: Bytes.
        records: Number of intact records.
        settled: Number of these that are settled.
        flaws: Problems found.
    """

    name: str
    size: int
    records: int
    settled: int
    flaws: tuple[Flaw, ...]


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter. Facts that can't be read have defaults.

    Attributes:
        identity: Name of its destination.
        name: File name without its ending.
        size: Bytes of the envelope.
        reason: The reason why it is not sent.
        attempts: Deliveries begun.
        created_ms: Epoch milliseconds at which the envelope was accepted; 0 if unknown.
        buried_ms: Epoch milliseconds at which it became a dead letter.
        quantities: Quantities by data category.
    """

    identity: str
    name: str
    size: int
    reason: str
    attempts: int
    created_ms: int
    buried_ms: int
    quantities: Pairs


class Inspection:
    """One identity of a spool; a context manager.

    Raises:
        OptionsError: The directory can't be trusted, or holds no spool of this version.
        OSError: It can't be read, or is missing.
    """

    def __init__(self, path: str, identity: str, system: System | None = None) -> None:
        self.identity = identity
        self._system = system or System()
        self._directory: Directory = open_directory(self._system, path, identity, force=True, make=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._directory.close()

    # -- figures ---------------------------------------------------------------------------------------

    def status(self) -> SpoolStatus | None:
        """Return the status that the drainer published last, or None."""
        status = read_status(self._directory)
        return status if status is not None and status.pid else None

    def holders(self) -> tuple[int | None, int | None]:
        """Return the process ids of the drainer and the forwarder; None for none, 0 if unknown."""
        try:
            return holders(self._directory)
        except OSError:
            return None, None

    def credentials(self) -> tuple[str | None, tuple[str, ...]]:
        """Return the stored DSN without its key, or the problem with it; and the keys, which are secret."""
        try:
            dsn = read_credentials(self._directory, self.identity)
        except OptionsError as error:
            return error.problem, ()
        except OSError as error:
            return error.strerror, ()
        if dsn is None:
            return None, ()
        return str(dsn), tuple(key for key in (dsn.public_key, dsn.secret_key) if key)

    def segments(self) -> list[tuple[SegmentName, int]]:
        """Return the names and sizes in bytes of all segments, lowest class and oldest first."""
        segments = []
        for text in self._system.names(self._directory.segments):
            name = SegmentName.parse(text)
            if name is not None:
                try:
                    segments.append((name, self._system.status_of(text, self._directory.segments).st_size))
                except FileNotFoundError:
                    pass  # delivered meanwhile
        return sorted(segments)

    # -- envelopes -------------------------------------------------------------------------------------

    def waiting(self, progressed: Progressed = lambda _: None) -> Iterator[Waiting]:
        """Yield the unsettled envelopes, by their heads: highest class first, oldest first within one."""
        for name, size in sorted(self.segments(), key=lambda segment: (-segment[0].rank, segment[0])):
            with self._open_segment(name) as opened:
                if opened is not None:
                    reader, acks = opened
                    while (part := reader.next(final=False, bodies=False)) is not None:
                        if isinstance(part, Record) and part.kind == RecordKind.ENVELOPE:
                            progress = acks.get(part.offset) or Progress()
                            if not progress.settled:
                                yield self._waiting(name, part, progress)
            progressed(size)

    def _waiting(self, name: SegmentName, record: Record, progress: Progress) -> Waiting:
        return Waiting(
            self.identity,
            name,
            record.offset,
            event_id_in_head(record.head),
            quantities_of(record.head),
            record.end - record.offset,
            record.created_ms,
            progress.attempts,
            progress.open,
        )

    def load(self, waiting: Waiting) -> SealedEnvelope | None:
        """Return the envelope; None if it is gone or damaged."""
        with self._open_segment(waiting.segment) as opened:
            if opened is None:
                return None
            record = opened[0].at(waiting.offset)
            try:
                return None if record is None else envelope_of(record.head, record.body)
            except ValueError:
                return None

    @contextlib.contextmanager
    def _open_segment(self, name: SegmentName) -> Iterator[tuple[Reader, dict[int, Progress]] | None]:
        """Return a reader of a segment and its parsed ack log; None if it can't be read by this version."""
        system, within = self._system, self._directory.segments
        try:
            fd = system.open_file(str(name), within)
        except OSError:
            yield None
            return
        try:
            status = system.status(fd)
            if not system.is_file(status) or is_newer_version(system.read(fd, HEADER_BYTES, 0)):
                yield None
                return
            progress = read_progress(read_log(system, name, within), name.salt)
            yield self._reader(fd, name, status.st_size), progress
        finally:
            system.close(fd)

    def _reader(self, fd: int, name: SegmentName, size: int) -> Reader:
        system = self._system
        read, data = functools.partial(system.read, fd), functools.partial(system.data_from, fd)
        return Reader(read, name.salt, HEADER_BYTES, size, data=data)

    def _read_file(self, name: str, within: int, limit: int) -> bytes:
        system = self._system
        fd = system.open_file(name, within)
        try:
            status = system.status(fd)
            if not system.is_file(status):
                raise OSError(0, "not a file")
            data = bytearray()
            while len(data) < min(status.st_size, limit):
                chunk = system.read(fd, min(status.st_size, limit) - len(data), len(data))
                if not chunk:
                    break
                data += chunk
            return bytes(data)
        finally:
            system.close(fd)

    # -- damage ----------------------------------------------------------------------------------------

    def verify(self, progressed: Progressed = lambda _: None) -> Iterator[SegmentFacts]:
        """Read every segment, check the checksums of heads and bodies, and yield the results."""
        for name, size in self.segments():
            facts = self._verify_segment(name)
            if facts is not None:
                yield facts
            progressed(size)

    def _verify_segment(self, name: SegmentName) -> SegmentFacts | None:
        text = str(name)
        system, within = self._system, self._directory.segments
        try:
            fd = system.open_file(text, within)
        except FileNotFoundError:
            return None
        except OSError as error:
            return SegmentFacts(text, 0, 0, 0, (Flaw(text, 0, 0, True, error.strerror or "can't be read"),))
        try:
            status = system.status(fd)
            size = status.st_size
            if not system.is_file(status) or status.st_uid != system.user():
                flaw = Flaw(text, 0, size, True, "not a file of this user: the drainer leaves it alone")
                return SegmentFacts(text, size, 0, 0, (flaw,))
            header = system.read(fd, HEADER_BYTES, 0)
            if is_newer_version(header):
                flaw = Flaw(text, 0, size, False, "of another version of the format: left alone")
                return SegmentFacts(text, size, 0, 0, (flaw,))
            return self._verify_records(name, fd, size, header)
        except OSError as error:
            return SegmentFacts(text, 0, 0, 0, (Flaw(text, 0, 0, True, error.strerror or "can't be read"),))
        finally:
            system.close(fd)

    def _verify_records(self, name: SegmentName, fd: int, size: int, header: bytes) -> SegmentFacts:
        text = str(name)
        flaws = []
        if not is_header_of(header, name):
            explanation = "the header is damaged, which costs nothing: the file's name says all that is in it"
            flaws.append(Flaw(text, 0, min(HEADER_BYTES, size), False, explanation))
        acks = read_progress(read_log(self._system, name, self._directory.segments), name.salt)
        reader = self._reader(fd, name, size)
        records = settled = 0
        # Not final: an incomplete record at the end may be under way.
        while (part := reader.next(final=False)) is not None:
            if isinstance(part, Gap):
                flaws.append(self._describe_gap(fd, name, part))
                continue
            records += 1
            settled += (acks.get(part.offset) or Progress()).settled
        if reader.offset < size:
            rest = reader.next(final=True)
            if isinstance(rest, Gap):
                flaws.append(self._describe_gap(fd, name, rest))
        return SegmentFacts(text, size, records, settled, tuple(flaws))

    def _describe_gap(self, fd: int, name: SegmentName, gap: Gap) -> Flaw:
        explanation = explain(functools.partial(self._system.read, fd), name.salt, gap)
        # A hole begins at the border of a block, up to a block behind the gap's begin.
        inside = gap.offset + _BLOCK
        if inside < gap.end and ((data := self._system.data_from(fd, inside)) is None or data >= gap.end):
            explanation += "; nearly all of them are a hole: the file was made longer, and nobody wrote there"
        if gap.head is not None:
            event_id = event_id_in_head(gap.head)
            quantities = ", ".join(f"{category} {n}" for category, n in quantities_of(gap.head))
            explanation += (
                f"; its head is intact: event {event_id or 'without an id'},"
                f" {quantities or 'nothing countable'}"
            )
        return Flaw(str(name), gap.offset, gap.end, not gap.incomplete, explanation)

    # -- dead letters ----------------------------------------------------------------------------------

    def letters(self) -> list[Letter]:
        """Return all dead letters, oldest first."""
        letters = []
        for file in self._system.names(self._directory.dead):
            name = file.removesuffix(".envelope")
            if name == file or not _LETTER.fullmatch(name):
                continue
            try:
                status = self._system.status_of(file, self._directory.dead)
            except OSError:
                continue  # the drainer removed it meanwhile
            letters.append(self._letter(name, status.st_size, status.st_mtime_ns // 1_000_000))
        return sorted(letters, key=lambda letter: (letter.buried_ms, letter.name))

    def _letter(self, name: str, size: int, written_ms: int) -> Letter:
        try:
            facts: Any = loads(self._read_file(f"{name}.json", self._directory.dead, _MAX_FACTS_BYTES))
        except (OSError, ValueError):
            facts = {}
        if not isinstance(facts, dict):
            facts = {}
        reason = facts.get("reason")
        counts = facts.get("quantities")
        return Letter(
            self.identity,
            name,
            size,
            reason if isinstance(reason, str) else "unknown",
            _count(facts.get("attempts")),
            _count(facts.get("created_ms")),
            _count(facts.get("buried_ms")) or written_ms,
            tuple((str(category), _count(n)) for category, n in counts.items())
            if isinstance(counts, dict)
            else (),
        )

    def read_letter(self, letter: Letter) -> SealedEnvelope:
        """Return the envelope of a dead letter, parsed strictly.

        Raises:
            OSError: It is gone, or can't be read.
            InvalidEnvelope: The file is no valid envelope.
            SealError: The envelope can't be sent.
        """
        data = self._read_file(f"{letter.name}.envelope", self._directory.dead, _MAX_LETTER_BYTES)
        return Envelope.deserialize(data).seal(
            max_event_bytes=_MAX_LETTER_BYTES,
            max_attachment_bytes=_MAX_LETTER_BYTES,
            max_envelope_bytes=_MAX_LETTER_BYTES,
        )

    def remove_letter(self, letter: Letter) -> bool:
        """Remove a dead letter; return True if it existed."""
        existed = False
        # The facts first: an envelope without them is still a dead letter.
        for ending in ("json", "envelope"):
            try:
                self._system.unlink(f"{letter.name}.{ending}", self._directory.dead)
                existed = True
            except FileNotFoundError:
                pass
        return existed

    # -- changing segments -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self, *, max_bytes: int) -> Iterator[Callable[[SealedEnvelope], None]]:
        """Return a function that puts an envelope into the spool; it raises OSError if that fails."""
        writer = Writer(self._directory, segment_bytes=1024 * 1024, max_bytes=max_bytes)

        def put(sealed: SealedEnvelope) -> None:
            try:
                writer.append(RecordKind.ENVELOPE, *envelope_record(sealed))
            except Full:
                raise OSError(0, "the spool is full") from None

        try:
            yield put
        finally:
            writer.close()

    def drop(self, name: SegmentName, older_than_ms: int) -> int | None:
        """Remove a segment whose last write is older than `older_than_ms`, in epoch milliseconds.

        Returns the number of its unsettled envelopes; None if it was not removed, as it is younger, locked by
        its writer or the drainer, or of another version.
        """
        system, within = self._system, self._directory.segments
        text = str(name)
        try:
            fd = system.open_file(text, within)
        except OSError:
            return None
        try:
            status = system.status(fd)
            newer_version = not system.is_file(status) or is_newer_version(system.read(fd, HEADER_BYTES, 0))
            # Its writer holds the lock as long as it writes; after that the drainer does, once it has read
            # all.
            if newer_version or status.st_mtime_ns // 1_000_000 >= older_than_ms or not system.try_flock(fd):
                return None
            acks = read_progress(read_log(system, name, within), name.salt)
            reader = self._reader(fd, name, status.st_size)
            losses: dict[tuple[str, str], int] = {}
            dropped = 0
            while (part := reader.next(final=True, bodies=False)) is not None:
                progress = acks.get(part.offset) or Progress()
                if isinstance(part, Record) and part.kind == RecordKind.ENVELOPE and not progress.settled:
                    dropped += 1
                    for category, n in quantities_of(part.head):
                        key = (LossReason.CACHE_OVERFLOW.value, category)
                        losses[key] = losses.get(key, 0) + n
            system.unlink(text, within)
            self._write_losses(losses)
            return dropped
        except FileNotFoundError:
            return None
        finally:
            system.close(fd)

    def _write_losses(self, losses: dict[tuple[str, str], int]) -> None:
        """Write loss counts into the spool, for the drainer to report; best effort."""
        if not losses:
            return
        writer = Writer(self._directory, segment_bytes=1024 * 1024, max_bytes=1 << 50)
        try:
            report = tuple((reason, category, n) for (reason, category), n in losses.items())
            writer.append(RecordKind.LOSSES, int(Priority.TRANSACTION), losses_record(report), (), 0)
        except (OSError, Full):
            pass  # on a full disk, removing the segment matters more than its counts
        finally:
            writer.close()


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 2**53 else 0
