"""Inspection of a spool whose files appear, vanish or are damaged: cases that the command does not show."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.core.spool_support import event
from transport_kit import Dsn
from transport_kit.queues.spool import FileSpool, identity_of
from transport_kit.queues.spool.acklog import ack_name
from transport_kit.queues.spool.inspection import Inspection
from transport_kit.queues.spool.segments import SegmentName
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
    for calls in (("open",), ("read",)):
        system = Failing(errno.EIO, ".log", "read", calls=calls)
        opened = Inspection(path, IDENTITY)
        opened._system = system
        with opened as inspection:
            (facts,) = inspection.verify()
            assert facts.flaws[0].loss
            assert facts.flaws[0].text == "Input/output error"
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
