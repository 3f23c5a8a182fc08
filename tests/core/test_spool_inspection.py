"""Inspection of a spool whose files appear, vanish or are damaged: cases that the command does not show."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from zlib import crc32

import pytest

from tests.core.spool_support import drained, event, ids, log_entry, record
from transport_kit import Dsn
from transport_kit.envelope.losses import LossReason, Quantities
from transport_kit.queues.spool import FileSpool, identity_of
from transport_kit.queues.spool.acklog import ack_name
from transport_kit.queues.spool.inspection import Flaw, Inspection, Letter, SegmentFacts, Waiting
from transport_kit.queues.spool.segments import HEADER_BYTES, SegmentName
from transport_kit.queues.spool.system import Stat, System

DSN = Dsn.parse("https://0123456789abcdef0123456789abcdef@sentry.example/42")
IDENTITY = identity_of(DSN)


class Failing(System):
    """A system on which some names can't be opened, or vanish between two calls."""

    def __init__(self, error: int, *names: str, calls: tuple[str, ...] = ("open",)) -> None:
        self._error = error
        self._names = names
        self._calls = calls

    def _fail(self, call: str, name: str) -> None:
        if call in self._calls and any(part in name for part in self._names):
            raise OSError(self._error, os.strerror(self._error))

    def open_file(self, name: str, within: int) -> int:
        self._fail("open", name)
        return super().open_file(name, within)

    def status_of(self, name: str, within: int) -> Stat:
        self._fail("status", name)
        return super().status_of(name, within)

    def unlink(self, name: str, within: int) -> None:
        self._fail("unlink", name)
        super().unlink(name, within)

    def create(self, name: str, within: int) -> int:
        self._fail("create", name)
        return super().create(name, within)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        self._fail("read", "read")
        return super().read(fd, size, offset)


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> str:
    """The directory of a spool with two waiting envelopes."""
    path = str(tmp_path / "spool")
    queue = FileSpool(path, IDENTITY, drain=False)
    for number in range(2):
        assert queue.put(event(number)).accepted
    queue.close()
    return path


def only(path: str) -> SegmentName:
    with Inspection(path, IDENTITY) as inspection:
        ((name, _),) = inspection.segments()
    return name


def test_a_segment_that_goes_while_it_is_looked_at_is_no_error(path: str) -> None:
    """The drainer removes a delivered segment at any moment."""
    name = only(path)
    for call in ("open", "status"):
        with Inspection(path, IDENTITY, Failing(errno.ENOENT, ".log", calls=(call,))) as inspection:
            assert list(inspection.waiting()) == []
            assert list(inspection.verify()) == []
    with Inspection(path, IDENTITY) as inspection:
        waiting = next(inspection.waiting())
        (Path(path) / IDENTITY / "seg" / str(name)).unlink()
        assert inspection.load(waiting) is None
        assert inspection.drop(name, 1 << 62) is None


def test_what_cant_be_read_is_said_and_not_taken_for_empty(path: str) -> None:
    """It may be on a failing disk, or belong to another user."""
    name = only(path)
    for calls in (("open",), ("read",)):
        system = Failing(errno.EIO, ".log", "read", calls=calls)
        opened = Inspection(path, IDENTITY)
        opened._system = system
        with opened as inspection:
            (facts,) = inspection.verify()
            flaw = Flaw(facts.name, 0, 0, True, "Input/output error")
            assert facts == SegmentFacts(str(name), 0, 0, 0, (flaw,))
    with Inspection(path, IDENTITY, Failing(errno.EACCES, ".lock", "dsn")) as inspection:
        assert inspection.holders() == (None, None)
        assert inspection.credentials() == ("Permission denied", ())


def test_an_envelope_that_was_damaged_since_it_was_listed_is_not_shown(path: str) -> None:
    """An inspection returns no corrupt envelope either."""
    name = only(path)
    file = Path(path) / IDENTITY / "seg" / str(name)
    with Inspection(path, IDENTITY) as inspection:
        waiting = next(inspection.waiting())
        data = bytearray(file.read_bytes())
        data[waiting.offset + waiting.size - 2] ^= 1
        file.write_bytes(data)
        assert inspection.load(waiting) is None


def test_an_ack_log_that_is_a_device_is_not_read(path: str) -> None:
    """Reading it could block or never end."""
    name = only(path)
    os.mkfifo(Path(path) / IDENTITY / "seg" / ack_name(name))
    with Inspection(path, IDENTITY) as inspection:
        assert len(list(inspection.waiting())) == 2
        assert next(inspection.verify()).settled == 0


def test_a_dead_letter_that_makes_room_while_it_is_listed_is_no_error(path: str) -> None:
    """The drainer removes the oldest for a new one."""
    dead = Path(path) / IDENTITY / "dead"
    (dead / f"{1:032x}.envelope").write_bytes(b"{}\n")
    with Inspection(path, IDENTITY, Failing(errno.ENOENT, ".envelope", calls=("status",))) as inspection:
        assert inspection.letters() == []
    with Inspection(path, IDENTITY) as inspection:
        (letter,) = inspection.letters()
        assert inspection.remove_letter(letter)
        assert not inspection.remove_letter(letter)


def test_a_file_that_is_purged_is_counted_if_there_is_room_to_say_so(path: str) -> None:
    """On a full disk room matters more than the count; a file that was removed meanwhile is not counted."""
    name = only(path)
    with Inspection(path, IDENTITY, Failing(errno.ENOENT, ".log", calls=("unlink",))) as inspection:
        assert inspection.drop(name, 1 << 62) is None
    with Inspection(path, IDENTITY, Failing(errno.ENOSPC, ".", calls=("create",))) as inspection:
        assert inspection.drop(name, 1 << 62) == 2
        assert inspection.segments() == []


def test_a_link_in_the_place_of_a_dead_letter_is_not_followed(path: str, tmp_path: Path) -> None:
    """It would show the size and age of a file elsewhere as those of a letter."""
    dead = Path(path) / IDENTITY / "dead"
    (tmp_path / "elsewhere").write_bytes(b"x" * 1000)
    (dead / f"{1:032x}.envelope").symlink_to(tmp_path / "elsewhere")
    with Inspection(path, IDENTITY) as inspection:
        assert [letter.size for letter in inspection.letters() if letter.size == 1000] == []


def test_a_file_without_anything_that_waits_is_purged_without_a_count(path: str) -> None:
    """All its records were delivered, and its drainer died before it removed the file."""
    name = only(path)
    queue = FileSpool(path, IDENTITY)
    claims = queue.claim(2, 5.0)
    assert len(claims) + len(queue.claim(1, 0.0)) == 2
    data = (Path(path) / IDENTITY / "seg" / str(name)).read_bytes()
    queue.ack(claims)
    acks = Path(path) / IDENTITY / "seg" / ack_name(name)
    kept = acks.read_bytes() if acks.exists() else b""
    queue.close()
    (Path(path) / IDENTITY / "seg" / str(name)).write_bytes(data[:32])
    acks.write_bytes(kept)
    with Inspection(path, IDENTITY) as inspection:
        assert inspection.drop(name, 1 << 62) == 0
        assert inspection.segments() == []


def test_credentials_are_told_without_their_key(path: str) -> None:
    """The result is nothing, a problem, or the DSN without its key."""
    file = Path(path) / IDENTITY / "dsn"
    with Inspection(path, IDENTITY) as inspection:
        assert inspection.credentials() == (None, ())
        file.write_text("x")
        file.chmod(0o600)
        assert "not a DSN" in str(inspection.credentials()[0])
        file.write_text(DSN.reveal() + "\n")
        assert inspection.credentials() == (str(DSN), (DSN.public_key,))


def test_what_waits_is_listed_with_its_place_and_its_history(path: str) -> None:
    """Highest class first; what was delivered is not in it, and what is being delivered says so."""
    queue = FileSpool(path, IDENTITY, drain=False)
    queue.put(log_entry(2))
    queue.close()
    drainer = FileSpool(path, IDENTITY)
    (first,) = drainer.claim(1, 0.0)
    drainer.ack([first])
    assert drainer.claim(1, 0.0)
    read: list[int] = []
    with Inspection(path, IDENTITY) as inspection:
        (logs, logs_size), (errors, errors_size) = inspection.segments()
        error, log = inspection.waiting(read.append)
        assert (logs.rank, errors.rank) == (1, 4)
        before, size = (len(record(event(number))) for number in range(2))
        assert error == Waiting(
            IDENTITY,
            errors,
            HEADER_BYTES + before,
            ids(1)[0],
            Quantities((("error", 1),)),
            size,
            error.created_ms,
            1,
            True,
        )
        assert error.reference == f"{errors.salt.hex()}:{HEADER_BYTES + before}"
        assert (log.segment, log.event_id, log.attempts, log.under_way) == (logs, None, 0, False)
        assert read == [errors_size, logs_size]
        read.clear()
        assert list(inspection.verify(read.append)) == [
            SegmentFacts(str(logs), logs_size, 1, 0, ()),
            SegmentFacts(str(errors), errors_size, 2, 1, ()),
        ]
        assert read == [logs_size, errors_size]
        assert inspection.holders() == (os.getpid(), None)
    drainer.close()


def test_damage_is_shown_with_its_bytes_and_what_it_costs(path: str) -> None:
    """Whoever looks at it decides from that whether a file is worth saving."""
    name = only(path)
    file = Path(path) / IDENTITY / "seg" / str(name)
    data = bytearray(file.read_bytes())
    first, second = (len(record(event(number))) for number in range(2))
    data[0] ^= 1
    data[HEADER_BYTES + first - 3] ^= 1
    whole = len(data)
    data += record(event(5), salt=name.salt)[:-10]
    file.write_bytes(data)
    with Inspection(path, IDENTITY) as inspection:
        (facts,) = inspection.verify()
    header, body, torn = facts.flaws
    assert (facts.size, facts.records, facts.settled) == (len(data), 1, 0)
    assert (header.file, header.offset, header.end, header.loss) == (str(name), 0, HEADER_BYTES, False)
    assert (body.offset, body.end, body.loss) == (HEADER_BYTES, HEADER_BYTES + first, True)
    assert body.text.endswith(f"its body is damaged; its head is intact: event {ids(0)[0]}, error 1")
    assert (torn.offset, torn.end, torn.loss) == (whole, len(data), False)
    assert f"a record of {second} bytes of which {second - 10} are there" in torn.text
    file.write_bytes(data[:whole])
    os.truncate(file, 1 << 20)
    with Inspection(path, IDENTITY) as inspection:
        (facts,) = inspection.verify()
    assert facts.flaws[-1].text.endswith("nobody wrote there")
    assert (facts.flaws[-1].offset, facts.flaws[-1].end) == (whole, 1 << 20)


def test_dead_letters_are_listed_oldest_first_with_what_is_known(path: str) -> None:
    """A letter whose facts are lost is a letter nevertheless, as old as its file."""
    dead = Path(path) / IDENTITY / "dead"
    for number, buried in ((1, 3000), (2, 2000)):
        (dead / f"{number:032x}.envelope").write_bytes(b"{}\n")
        facts = {
            "reason": "poison",
            "attempts": 5,
            "created_ms": 1,
            "buried_ms": buried,
            "quantities": {"error": 2, "log_item": -1},
        }
        (dead / f"{number:032x}.json").write_text(json.dumps(facts))
    for number, text in ((3, "[]"), (4, "{")):
        (dead / f"{number:032x}.envelope").write_bytes(b"{}\n")
        (dead / f"{number:032x}.json").write_text(text)
        os.utime(dead / f"{number:032x}.envelope", ns=(0, number * 1_000_000))
    (dead / "other.envelope").write_bytes(b"{}\n")
    with Inspection(path, IDENTITY) as inspection:
        letters = inspection.letters()
    assert letters == [
        Letter(IDENTITY, f"{3:032x}", 3, "unknown", 0, 0, 3, ()),
        Letter(IDENTITY, f"{4:032x}", 3, "unknown", 0, 0, 4, ()),
        Letter(IDENTITY, f"{2:032x}", 3, "poison", 5, 1, 2000, (("error", 2), ("log_item", 0))),
        Letter(IDENTITY, f"{1:032x}", 3, "poison", 5, 1, 3000, (("error", 2), ("log_item", 0))),
    ]


def test_a_segment_that_is_purged_leaves_the_count_of_what_waited_in_it(path: str) -> None:
    """The drainer reports it; only segments that are old enough and nobody's go."""
    name = only(path)
    written_ms = (Path(path) / IDENTITY / "seg" / str(name)).stat().st_mtime_ns // 1_000_000
    writer = FileSpool(path, IDENTITY, drain=False)
    writer.put(event(7))
    with Inspection(path, IDENTITY) as inspection:
        assert inspection.drop(name, written_ms) is None
        ((_, _), (live, _)) = inspection.segments()
        assert inspection.drop(live, 1 << 62) is None
        assert inspection.drop(name, written_ms + 1) == 2
    writer.close()
    drainer = FileSpool(path, IDENTITY)
    assert drained(drainer) == ids(7)
    assert drainer.take_losses() == (("cache_overflow", "error", 2),)
    drainer.close()


def test_a_dead_letter_without_an_event_id_is_listed_and_readable(path: str) -> None:
    """A batch of logs has none: its letter gets a random name, which must be one of a letter."""
    queue = FileSpool(path, IDENTITY)
    queue.put(log_entry(9))
    for claim in queue.claim(9, 0.0):
        if claim.sealed.event_id is None:
            queue.bury(claim, "poison")
    queue.close()
    with Inspection(path, IDENTITY) as inspection:
        (letter,) = inspection.letters()
        assert (letter.reason, letter.attempts, letter.quantities) == ("poison", 1, log_entry(9).quantities)
        assert inspection.read_letter(letter).serialize() == log_entry(9).serialize()
        assert inspection.remove_letter(letter)
        assert inspection.letters() == []


def test_an_envelope_that_a_worker_gives_up_becomes_a_dead_letter(path: str) -> None:
    """The worker passes the reason as a member of an enum, which strict JSON does not contain."""
    queue = FileSpool(path, IDENTITY)
    for claim in queue.claim(9, 0.0):
        queue.bury(claim, LossReason.INTERNAL_SDK_ERROR)
    queue.close()
    with Inspection(path, IDENTITY) as inspection:
        letters = inspection.letters()
        assert letters
        assert {letter.reason for letter in letters} == {"internal_sdk_error"}


def test_a_file_that_is_not_ours_and_one_of_a_later_version_are_left_alone(path: str) -> None:
    """Each is one flaw over the whole file; only what nobody will ever read is a loss."""
    name = only(path)
    file = Path(path) / IDENTITY / "seg" / str(name)

    class Stranger(System):
        def user(self) -> int:
            return super().user() + 1

    opened = Inspection(path, IDENTITY)
    opened._system = Stranger()
    size = file.stat().st_size
    with opened as inspection:
        ((_, read), (facts,)) = inspection.segments()[0], inspection.verify()
    assert read == size
    said = "not a file of this user: the drainer leaves it alone"
    assert facts == SegmentFacts(str(name), size, 0, 0, (Flaw(str(name), 0, size, True, said),))
    header = bytearray(file.read_bytes())
    header[8] += 1
    header[HEADER_BYTES - 4 : HEADER_BYTES] = crc32(bytes(header[: HEADER_BYTES - 4])).to_bytes(4, "little")
    file.write_bytes(header)
    with Inspection(path, IDENTITY) as inspection:
        (facts,) = inspection.verify()
        assert list(inspection.waiting()) == []
        assert inspection.drop(name, 1 << 62) is None
    said = "of another version of the format: left alone"
    assert facts == SegmentFacts(str(name), size, 0, 0, (Flaw(str(name), 0, size, False, said),))


def test_what_is_replayed_into_a_full_spool_is_refused(path: str) -> None:
    """A person replays a thousand letters: those that found no room stay letters."""
    large, accepted = event(1, "x" * 400_000), 0
    with Inspection(path, IDENTITY) as inspection:
        with inspection.writing(max_bytes=1_000_000) as put:
            refused = None
            while refused is None and accepted < 20:
                try:
                    put(large)
                    accepted += 1
                except OSError as error:
                    refused = error
        assert len(list(inspection.waiting())) == 2 + accepted
    assert "the spool is full" in str(refused)
    assert 2 <= accepted <= 4
