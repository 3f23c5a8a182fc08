"""Looking at a spool from outside, and dealing with its dead letters: what `transport-kit spool` does.

Owns no file: it makes nothing, locks nothing that writers or the drainer want, and works beside them. What
is read may be gone or longer a moment later, and is the hostile input that any file is.

Threads: an `Inspection` belongs to one.
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
from transport_kit.envelope.losses import LossReason, Quantities
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.spool.acklog import MAX_BYTES, Progress, ack_name, read_progress
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
_MOST_FACTS: Final = 1024 * 1024
_MOST_LETTER: Final = 1 << 30
#: No filesystem has larger blocks.
_BLOCK: Final = 64 * 1024

#: Called with bytes that were read since the last call.
Progressed = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Waiting:
    """One envelope on the disk that is not settled.

    Attributes:
        reference: Names it when it has no event id: the segment's salt and the offset.
        size: Bytes.
        attempts: Deliveries begun.
        under_way: The last one has no end: it is being delivered, or its drainer died.
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
        return f"{self.segment.salt.hex()}:{self.offset}"


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something that is not as it should be, in a file from a byte on."""

    file: str
    offset: int
    end: int
    loss: bool
    text: str


@dataclass(frozen=True, slots=True)
class SegmentFacts:
    """What reading a whole segment found. `settled` of its `records` need nothing more."""

    name: str
    size: int
    records: int
    settled: int
    flaws: tuple[Flaw, ...]


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter; what is known about it may be incomplete."""

    identity: str
    name: str
    size: int
    reason: str
    attempts: int
    created_ms: int
    buried_ms: int
    quantities: Quantities


class Inspection:
    """One identity of a spool; a context manager.

    Raises:
        OptionsError: The directory is not one to trust, or no spool of this version.
        OSError: It can't be read, or is not there.
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
        """What the drainer published last."""
        return read_status(self._directory)

    def holders(self) -> tuple[int | None, int | None]:
        """The process that drains, and the forwarder; 0 when its number is unknown."""
        try:
            return holders(self._directory)
        except OSError:
            return None, None

    def credentials(self) -> tuple[str | None, tuple[str, ...]]:
        """The stored DSN without its key, or why there is none to be used; and what must not be shown."""
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
        """Names and bytes, lowest class and oldest first."""
        found = []
        for text in self._system.names(self._directory.segments):
            name = SegmentName.parse(text)
            if name is not None:
                try:
                    found.append((name, self._system.status_of(text, self._directory.segments).st_size))
                except FileNotFoundError:
                    pass  # delivered meanwhile
        return sorted(found)

    # -- envelopes -------------------------------------------------------------------------------------

    def waiting(self, progressed: Progressed = lambda _: None) -> Iterator[Waiting]:
        """What is not settled, by heads alone; highest class first, and oldest first within one."""
        for name, size in sorted(self.segments(), key=lambda each: (-each[0].rank, each[0])):
            with self._reading(name) as found:
                if found is not None:
                    reader, progress = found
                    while (part := reader.next(final=False, bodies=False)) is not None:
                        if isinstance(part, Record) and part.kind == RecordKind.ENVELOPE:
                            known = progress.get(part.offset) or Progress()
                            if not known.settled:
                                yield self._waiting(name, part, known)
            progressed(size)

    def _waiting(self, name: SegmentName, part: Record, known: Progress) -> Waiting:
        return Waiting(
            self.identity,
            name,
            part.offset,
            event_id_in_head(part.head),
            quantities_of(part.head),
            part.end - part.offset,
            part.created_ms,
            known.attempts,
            known.open,
        )

    def load(self, waiting: Waiting) -> SealedEnvelope | None:
        """The envelope itself; None when it is gone or damaged."""
        with self._reading(waiting.segment) as found:
            if found is None:
                return None
            record = found[0].at(waiting.offset)
            try:
                return None if record is None else envelope_of(record.head, record.body)
            except ValueError:
                return None

    @contextlib.contextmanager
    def _reading(self, name: SegmentName) -> Iterator[tuple[Reader, dict[int, Progress]] | None]:
        """A reader of a segment and what its ack log says; None for what can't be read, or is not ours."""
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
            progress = read_progress(self._ack_bytes(name), name.salt)
            yield self._reader(fd, name, status.st_size), progress
        finally:
            system.close(fd)

    def _reader(self, fd: int, name: SegmentName, size: int) -> Reader:
        system = self._system
        read, data = functools.partial(system.read, fd), functools.partial(system.data_from, fd)
        return Reader(read, name.salt, HEADER_BYTES, size, data=data)

    def _ack_bytes(self, name: SegmentName) -> bytes:
        try:
            return self._file(ack_name(name), self._directory.segments, MAX_BYTES)
        except OSError:
            return b""

    def _file(self, name: str, within: int, limit: int) -> bytes:
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
        """Read every segment, checksums of bodies included, and say what is wrong where."""
        for name, size in self.segments():
            facts = self._verified(name)
            if facts is not None:
                yield facts
            progressed(size)

    def _verified(self, name: SegmentName) -> SegmentFacts | None:
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
            return self._walked(name, fd, size, header)
        except OSError as error:
            return SegmentFacts(text, 0, 0, 0, (Flaw(text, 0, 0, True, error.strerror or "can't be read"),))
        finally:
            system.close(fd)

    def _walked(self, name: SegmentName, fd: int, size: int, header: bytes) -> SegmentFacts:
        text = str(name)
        flaws = []
        if not is_header_of(header, name):
            said = "the header is damaged, which costs nothing: the file's name says all that is in it"
            flaws.append(Flaw(text, 0, min(HEADER_BYTES, size), False, said))
        acks = self._ack_bytes(name)
        progress = read_progress(acks, name.salt)
        reader = self._reader(fd, name, size)
        records = settled = 0
        # Not final: what is incomplete at the end may be a record that is being written now.
        while (part := reader.next(final=False)) is not None:
            if isinstance(part, Gap):
                flaws.append(self._gap(fd, name, part))
                continue
            records += 1
            settled += (progress.get(part.offset) or Progress()).settled
        if reader.offset < size:
            rest = reader.next(final=True)
            if isinstance(rest, Gap):
                flaws.append(self._gap(fd, name, rest))
        return SegmentFacts(text, size, records, settled, tuple(flaws))

    def _gap(self, fd: int, name: SegmentName, gap: Gap) -> Flaw:
        said = explain(functools.partial(self._system.read, fd), name.salt, gap)
        # The block in which a hole begins is no part of it.
        inside = gap.offset + _BLOCK
        if inside < gap.end and ((data := self._system.data_from(fd, inside)) is None or data >= gap.end):
            said += "; nearly all of them are a hole: the file was made longer, and nobody wrote there"
        if gap.head is not None:
            event_id = event_id_in_head(gap.head)
            what = ", ".join(f"{category} {n}" for category, n in quantities_of(gap.head))
            said += (
                f"; its head is intact: event {event_id or 'without an id'}, {what or 'nothing countable'}"
            )
        return Flaw(str(name), gap.offset, gap.end, not gap.incomplete, said)

    # -- dead letters ----------------------------------------------------------------------------------

    def letters(self) -> list[Letter]:
        """All dead letters, oldest first."""
        found = []
        for file in self._system.names(self._directory.dead):
            name = file.removesuffix(".envelope")
            if name == file or not _LETTER.fullmatch(name):
                continue
            try:
                status = self._system.status_of(file, self._directory.dead)
            except OSError:
                continue  # made room meanwhile
            found.append(self._letter(name, status.st_size, status.st_mtime_ns // 1_000_000))
        return sorted(found, key=lambda letter: (letter.buried_ms, letter.name))

    def _letter(self, name: str, size: int, written_ms: int) -> Letter:
        try:
            facts: Any = loads(self._file(f"{name}.json", self._directory.dead, _MOST_FACTS))
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
        """What it holds, parsed strictly.

        Raises:
            OSError: It is gone, or can't be read.
            InvalidEnvelope, SealError: It is no envelope.
        """
        data = self._file(f"{letter.name}.envelope", self._directory.dead, _MOST_LETTER)
        return Envelope.deserialize(data).seal(
            max_event_bytes=_MOST_LETTER, max_attachment_bytes=_MOST_LETTER, max_envelope_bytes=_MOST_LETTER
        )

    def remove_letter(self, letter: Letter) -> bool:
        """Whether it was there."""
        there = False
        # What is known about it first: an envelope without it is still a letter.
        for ending in ("json", "envelope"):
            try:
                self._system.unlink(f"{letter.name}.{ending}", self._directory.dead)
                there = True
            except FileNotFoundError:
                pass
        return there

    # -- changing what waits ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self, *, max_bytes: int) -> Iterator[Callable[[SealedEnvelope], None]]:
        """A function that puts an envelope back among those that wait; it raises OSError when it can't."""
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
        """Remove a whole segment whose newest write is older; how many envelopes waited in it.

        None when it is not to be removed: younger, being written, in the drainer's hands, of another version.
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
            # The lock is its writer's while there is one, and the drainer's from when it has read it.
            if newer_version or status.st_mtime_ns // 1_000_000 >= older_than_ms or not system.try_flock(fd):
                return None
            progress = read_progress(self._ack_bytes(name), name.salt)
            reader = self._reader(fd, name, status.st_size)
            lost: dict[tuple[str, str], int] = {}
            dropped = 0
            while (part := reader.next(final=True, bodies=False)) is not None:
                known = progress.get(part.offset) or Progress()
                if isinstance(part, Record) and part.kind == RecordKind.ENVELOPE and not known.settled:
                    dropped += 1
                    for category, n in quantities_of(part.head):
                        key = (LossReason.CACHE_OVERFLOW.value, category)
                        lost[key] = lost.get(key, 0) + n
            system.unlink(text, within)
            self._leave(lost)
            return dropped
        except FileNotFoundError:
            return None
        finally:
            system.close(fd)

    def _leave(self, lost: dict[tuple[str, str], int]) -> None:
        """Loss counts for the drainer, who reports them; best effort."""
        if not lost:
            return
        writer = Writer(self._directory, segment_bytes=1024 * 1024, max_bytes=1 << 50)
        try:
            report = tuple((reason, category, n) for (reason, category), n in lost.items())
            writer.append(RecordKind.LOSSES, int(Priority.TRANSACTION), losses_record(report), (), 0)
        except (OSError, Full):
            pass  # a full disk: the room that was made comes first
        finally:
            writer.close()


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 2**53 else 0
