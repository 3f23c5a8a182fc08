"""Failures of single system calls, on a disk in memory: none costs more than it must."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import pytest

from tests.core.spool_disk import IDENTITY, Description, DiskSystem, Node, Place
from tests.core.spool_support import NOW_MS, drained, event, ids, log_entry, session
from tests.core.worker_support import until
from tests.timing import SOON
from transport_kit.queues.protocol import Claim, QueueStats
from transport_kit.queues.spool import FileSpool, drain_loop
from transport_kit.queues.spool import spool as file_spool
from transport_kit.queues.spool.directory import identity_of, open_directory, store_credentials
from transport_kit.queues.spool.drainer import CONVICTED_AFTER
from transport_kit.queues.spool.segments import (
    HEADER_BYTES,
    Gap,
    Reader,
    Record,
    RecordKind,
    SegmentName,
    segment_header,
)
from transport_kit.queues.spool.state import SpoolFacts
from transport_kit.queues.spool.status import SpoolStatus
from transport_kit.queues.spool.writer import Full


@pytest.fixture(name="place")
def _place() -> Place:
    return Place()


def test_a_segment_that_can_not_be_read_is_tried_again(place: Place) -> None:
    """An error of the disk may pass; meanwhile other segments are read."""
    spool = place.spool()
    spool.put(event(1))
    spool.claim(0, 0.0)
    place.disk.failing = {"read": errno.EIO}
    assert spool.claim(1, 0.0) == []
    place.disk.failing = {}
    assert spool.claim(1, 0.0) == []
    place.clock.now += 2
    assert drained(spool) == ids(1)


def test_answers_of_500_are_counted_across_processes(place: Place) -> None:
    """Otherwise an envelope that breaks the server would be tried again after each restart."""
    spool = place.spool()
    spool.put(event(1))
    for faults in (1, 2, 2):
        (claim,) = spool.claim(1, 0.0)
        claim.faults = faults
        spool.release([claim])
        spool.close()
        spool = place.spool()
        (claim,) = spool.claim(1, 0.0)
        assert claim.faults == faults
        spool.release([claim])


def forget_what_was_read(spool: FileSpool) -> None:
    """Empty the buffers of its segments, so that records are read from the disk again."""
    drainer = spool._current().drainer
    assert drainer is not None
    for segment in drainer.segments.values():
        assert segment._reader is not None
        segment._reader._window = b""


def test_what_can_not_be_read_again_waits(place: Place) -> None:
    """A released envelope is not kept in memory: it is read again once the disk works."""
    spool = place.spool()
    spool.put(event(1))
    (claim,) = spool.claim(1, 0.0)
    spool.release([claim])
    place.disk.failing = {"read": errno.EIO}
    forget_what_was_read(spool)
    assert spool.claim(1, 0.0) == []
    place.disk.failing = {}
    place.clock.now += 2
    (claim,) = spool.claim(1, 0.0)
    spool.release([claim])
    node = place.disk.find(f"/spool/{IDENTITY}/seg/{place.segments()[0]}")
    assert node is not None
    node.data[-4] ^= 1
    forget_what_was_read(spool)
    place.clock.now += 2
    assert spool.claim(1, 0.0) == []
    assert spool.take_losses() == (("internal_sdk_error", "error", 1),)


def test_a_session_that_can_not_be_read_again_is_not_overtaken(place: Place) -> None:
    """It waits for the disk, and the other sessions wait for it."""
    spool = place.spool()
    for number in range(2):
        spool.put(session(number))
    (claim,) = spool.claim(5, 0.0)
    spool.release([claim])
    place.disk.failing = {"read": errno.EIO}
    forget_what_was_read(spool)
    assert spool.claim(5, 0.0) == []
    place.disk.failing = {}
    assert spool.claim(5, 0.0) == []
    place.clock.now += 2
    (again,) = spool.claim(5, 0.0)
    assert again.sealed.serialize() == session(0).serialize()
    spool.ack([again])
    assert len(drained(spool)) == 1


def test_what_is_in_hand_survives_that_a_person_removes_its_file(place: Place) -> None:
    """Its entries are known and its descriptor is open, so that a failed delivery can be repeated."""
    spool = place.spool()
    for number in range(2):
        spool.put(event(number))
    claims = spool.claim(1, 0.0)
    folder = place.disk.find(f"/spool/{IDENTITY}/seg")
    assert folder is not None
    for name in place.segments():
        folder.names.pop(name).links -= 1
    place.disk.touch(folder)
    for _ in range(5):
        place.clock.now += 0.3
        assert spool.claim(0, 0.0) == []
    assert spool.stats().claimed == 1
    spool.release(claims)
    assert sorted(filter(None, drained(spool))) == ids(0, 1)
    assert spool.stats().waiting == 0


def test_a_segment_that_can_not_be_removed_is_removed_later(place: Place) -> None:
    """Its envelopes are not delivered again, although the filesystem was read-only for a moment."""
    first = place.spool()
    first.put(event(1))
    place.die(first)
    spool = place.spool()
    place.disk.failing = {"unlink": errno.EROFS}
    assert drained(spool) == ids(1)
    assert len(place.segments()) == 1
    place.disk.failing = {}
    place.clock.now += 2
    assert drained(spool) == []
    assert place.segments() == []


def test_what_can_not_be_evicted_is_not_given_up(place: Place) -> None:
    """An envelope that still exists must not be counted as lost."""
    first = place.spool()
    for number in range(3):
        first.put(event(number, "x" * 9000))
    place.die(first)
    spool = place.spool(max_bytes=1000)
    place.disk.failing = {"unlink": errno.EACCES}
    spool.claim(0, 0.0)
    assert spool.take_losses() == ()
    place.disk.failing = {}
    assert drained(spool) == ids(0, 1, 2)


def test_a_directory_that_can_not_be_listed_is_trouble_and_passes(place: Place) -> None:
    """A claim never raises because of the disk."""
    spool = place.spool()
    spool.put(event(1))
    place.disk.failing = {"names": errno.EIO}
    assert spool.claim(1, 0.0) == []
    assert spool.facts().trouble is not None
    place.disk.failing = {}
    place.clock.now += 2
    assert drained(spool) == ids(1)


@pytest.mark.parametrize("call", ["open", "mkdir", "create", "write", "link", "stat"])
def test_whatever_fails_at_the_start_means_memory_and_not_an_exception(place: Place, call: str) -> None:
    """The app starts; its captures are held in memory until the directory can be used."""
    place.disk.failing = {call: errno.EACCES}
    spool = place.spool()
    assert spool.put(event(1)).accepted
    assert spool.facts().in_memory == 1
    place.disk.failing = {}
    place.clock.now += 1
    spool.claim(0, 0.0)
    assert spool.facts().in_memory == 0
    assert spool.facts().trouble is None
    assert drained(spool) == ids(1)
    assert spool.close() == []


def test_a_directory_to_put_right_is_trouble_for_a_child(place: Place) -> None:
    """Only the first queue of a transport raises; that of a forked child uses memory."""
    place.spool().close()
    node = place.disk.find(f"/spool/{IDENTITY}")
    assert node is not None
    node.mode |= 0o050
    spool = place.spool(strict=False)
    assert spool.put(event(1)).accepted
    assert "chmod 700" in str(spool.facts().trouble)
    assert "memory" in " ".join(spool.describe()["problems"])


def test_descriptors_that_somebody_closed_are_not_written_to(place: Place) -> None:
    """An app that becomes a daemon may close all descriptors: the record goes to a new segment."""
    spool = place.spool()
    spool.put(event(1))
    system = place.system(spool)
    (opened,) = place.written(spool)
    system.drop(opened)
    assert spool.put(event(2)).accepted
    assert spool.facts().in_memory == 0
    spool.claim(0, 0.0)
    assert spool.stats().waiting == 2
    assert drained(spool) == ids(1, 2)
    assert spool.stats().waiting == 0


def test_a_failed_sync_accepts_nothing_on_the_disk(place: Place) -> None:
    """After it the kernel has forgotten which pages were lost, so the file is not used any more."""
    spool = place.spool(durability="host")
    spool.put(event(1))
    place.disk.failing = {"sync": errno.EIO}
    assert spool.put(event(2)).accepted
    assert spool.facts().in_memory == 1
    place.disk.failing = {}
    place.clock.now += 1
    assert spool.put(event(3)).accepted
    assert {1, 3} <= {int(str(found), 16) for found in drained(spool)}


def test_who_waited_for_a_sync_that_failed_is_not_told_that_it_is_on_the_disk() -> None:
    """The kernel reports an error once: a second sync succeeds although the pages are lost."""
    begun, end = threading.Event(), threading.Event()

    class FailingOnce(DiskSystem):
        def sync(self, fd: int) -> None:
            if not begun.is_set():
                begun.set()
                end.wait(SOON)
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    place = Place()
    place.spool().close()  # creates the directory
    spool = FileSpool(
        "/spool", IDENTITY, durability="host", system=FailingOnce(place.disk, 7), clock=place.clock
    )
    first = threading.Thread(target=spool.put, args=(event(1),))
    first.start()
    assert begun.wait(SOON)
    spool.claim(0, 0.0)  # as its drainer it counts the records that are written
    second = threading.Thread(target=spool.put, args=(event(2),))
    second.start()
    assert until(lambda: spool.stats().waiting == 2)
    end.set()
    first.join(SOON)
    second.join(SOON)
    assert spool.facts().in_memory == 2
    place.clock.now += 1
    assert {1, 2} <= {int(str(found), 16) for found in drained(spool)}


class HostSystem(DiskSystem):
    """A process on a host that may lose power, and with it everything that was not synced."""

    def __init__(self, place: Place, pid: int) -> None:
        super().__init__(place.disk, pid)
        self._data: dict[Node, bytes] = {}
        self._names: dict[Node, dict[str, Node]] = {}

    def sync(self, fd: int) -> None:
        super().sync(fd)
        node = self._file(fd).node
        self._data[node] = bytes(node.data)

    def sync_directory(self, fd: int) -> None:
        super().sync_directory(fd)
        folder = self._within(fd)
        self._names[folder] = dict(folder.names)

    def lose_power(self) -> None:
        """Die, and leave on the disk only what was synced."""
        self.die()
        nodes = [self.disk.root]
        while nodes:
            node = nodes.pop()
            node.names = self._names.get(node, {})
            node.data = bytearray(self._data.get(node, b""))
            nodes += node.names.values()


def test_host_durability_survives_the_loss_of_power(place: Place) -> None:
    """The data must be on the disk, and the names of the file and of each directory above it."""
    system = HostSystem(place, 7)
    spool = FileSpool(
        "/spool", IDENTITY, durability="host", segment_bytes=16 * 1024, system=system, clock=place.clock
    )
    for number in range(9):
        assert spool.put(event(number, "x" * 9000)).accepted
        if number == 5:
            spool.claim(0, 0.0)  # creates the next segment ahead
    assert len(place.segments()) >= 4
    system.lose_power()
    assert sorted(filter(None, drained(place.spool()))) == ids(*range(9))


def test_host_durability_includes_directories_that_another_process_created(place: Place) -> None:
    """It may have created them just now, or have died before they were on the disk."""
    place.spool().close()
    system = HostSystem(place, 7)
    spool = FileSpool("/spool", IDENTITY, durability="host", system=system, clock=place.clock)
    system.sync(system.open_file("format", system.open_directory("/spool")))  # as the other process did
    assert spool.put(event(1)).accepted
    system.lose_power()
    assert drained(place.spool()) == ids(1)


def test_a_parent_directory_that_can_not_be_read_does_not_keep_a_spool_from_being_used(place: Place) -> None:
    """An administrator may have created the directory where its user can only pass through."""
    place.spool().close()

    class Restricted(DiskSystem):
        def open_directory(self, path: str, *, within: int | None = None) -> int:
            if path == "..":
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return super().open_directory(path, within=within)

    system = Restricted(place.disk, 7)
    spool = FileSpool("/spool", IDENTITY, durability="host", system=system, clock=place.clock)
    assert spool.facts().trouble is None
    assert spool.put(event(1)).accepted
    assert spool.facts().in_memory == 0


def test_nothing_is_appended_behind_a_write_that_came_short(place: Place) -> None:
    """The reader of a growing segment waits at a gap, so a record behind it would wait, too."""
    spool = place.spool()
    spool.put(event(1))
    place.disk.capacity = place.disk.used() + 50
    assert spool.put(event(2)).accepted
    assert spool.facts().in_memory == 1
    place.disk.capacity = 1 << 40
    place.clock.now += 1
    assert spool.put(event(3)).accepted
    spool.claim(0, 0.0)
    folder = place.disk.find(f"/spool/{IDENTITY}/seg")
    assert folder is not None
    found = [
        [type(part) for part in parts_of(text, bytes(folder.names[text].data))] for text in place.segments()
    ]
    assert found == [[Record, Gap], [Record]]
    assert sorted(filter(None, drained(spool))) == ids(1, 2, 3)


def parts_of(text: str, data: bytes) -> list[Record | Gap]:
    """Return the records and gaps of a segment."""
    name = SegmentName.parse(text)
    assert name is not None
    reader = Reader(lambda size, at: data[at : at + size], name.salt, size=len(data))
    parts = []
    while (part := reader.next(final=True)) is not None:
        parts.append(part)
    return parts


def test_a_file_that_a_person_removed_is_not_waited_for(place: Place) -> None:
    """Its envelopes were delivered, so a flush must not wait for the drainer to see them."""
    spool = place.spool()
    spool.put(event(1))
    assert drained(spool) == ids(1)
    folder = place.disk.find(f"/spool/{IDENTITY}/seg")
    assert folder is not None
    for name in place.segments():
        folder.names.pop(name).links -= 1
    place.disk.touch(folder)
    for _ in range(5):  # the drainer notices the removal before the writer does
        place.clock.now += 0.3
        spool.claim(0, 0.0)
    assert spool.stats().waiting == 0
    spool.put(event(2))
    assert spool.stats().waiting == 1
    assert drained(spool) == ids(2)


def test_a_fork_that_nobody_saw_begins_anew(place: Place) -> None:
    """The process id shows it: the child closes the parent's descriptors and begins new segments."""
    spool = place.spool()
    spool.put(event(1))
    system = place.system(spool)
    system.pid += 1000
    assert spool.put(event(2)).accepted
    assert spool.stats().last_id == 1
    assert sorted(name.split("-")[2] for name in place.segments()) == ["1011", "11"]
    assert sorted(filter(None, drained(spool))) == ids(1, 2)


def test_a_forked_child_closes_no_descriptor_that_means_another_file_by_now(place: Place) -> None:
    """The app may have closed all descriptors and opened files that have their numbers."""
    spool = place.spool()
    spool.put(event(1))
    spool.put(session(2))
    system = place.system(spool)
    ours, reused = place.written(spool)
    system.drop(reused)
    system.open_files[reused] = Description(place.disk.node(0o100600), True)
    system.pid += 1000
    assert spool.put(event(3)).accepted
    assert reused in system.open_files
    assert ours not in system.open_files


def test_a_roll_that_fails_leaves_the_old_segment_in_use(place: Place) -> None:
    """Without free inodes no file can be created, but the old one can be written to."""
    spool = place.spool(segment_bytes=16 * 1024)
    for number in range(2):
        spool.put(event(number, "x" * 9000))
    place.disk.failing = {"create": errno.ENOSPC}
    assert spool.put(event(2)).accepted
    assert spool.facts().in_memory == 0
    assert len(place.segments()) == 1


def test_a_busy_process_has_its_next_segment_ready(place: Place) -> None:
    """Creating a file takes longer than writing a record, so the claiming thread does it."""
    spool = place.spool(segment_bytes=32 * 1024)
    for number in range(2):
        spool.put(event(number, "x" * 9000))
    spool.claim(0, 0.0)
    assert len(place.segments()) == 2
    for number in range(2, 4):
        spool.put(event(number, "x" * 9000))
    place.disk.failing = {"create": errno.ENOSPC}
    assert spool.put(event(4)).accepted
    assert spool.facts().in_memory == 0
    assert HEADER_BYTES < place.sizes()[1] < 9000
    spool.claim(0, 0.0)
    place.disk.failing = {}
    assert sorted(filter(None, drained(spool))) == ids(0, 1, 2, 3, 4)
    spool.close()
    drained(place.spool())
    assert place.segments() == []


def test_a_process_that_fills_several_segments_a_second_has_as_many_ready(place: Place) -> None:
    """`prepare` runs once a second: it creates as many segments as the last burst needed, up to a limit."""
    spool = place.spool(drain=False, segment_bytes=16 * 1024)
    for number in range(7):
        spool.put(event(number, "x" * 9000))
    assert len(place.segments()) == 4
    spool.claim(0, 0.0)
    place.disk.failing = {"create": errno.ENOSPC}
    for number in range(7, 14):
        assert spool.put(event(number, "x" * 9000)).accepted
    assert len(place.segments()) == 8, "none had to be made meanwhile"
    place.disk.failing = {}
    for number in range(14, 40):
        spool.put(event(number, "x" * 9000))
    spool.claim(0, 0.0)
    assert place.sizes().count(HEADER_BYTES) == 4
    spool.close()
    assert sorted(filter(None, drained(place.spool()))) == ids(*range(40))
    assert place.segments() == []


def test_who_can_not_roll_at_once_does_not_wait(place: Place) -> None:
    """While another thread changes the segment, or this one was interrupted there, a record gets its own."""
    spool = place.spool()
    writer = spool._current().writer
    assert writer is not None
    with writer._rolling:
        assert spool.put(event(1)).accepted
        assert spool.put(event(2)).accepted
    assert len(place.segments()) == 2
    assert place.written(spool) == []
    assert drained(spool) == ids(1, 2)


def test_interrupted_inside_its_lock_the_spool_does_not_wait_for_itself(place: Place) -> None:
    """A signal handler may settle, claim or close while this thread is inside a claim."""
    spool = place.spool()
    for number in range(3):
        spool.put(event(number))
    claims = spool.claim(3, 0.0)
    with spool.lock.rlock:
        assert spool.claim(1, 0.0) == []
        spool.ack(claims[:1])
        spool.release(claims[1:2])
        assert spool.stats().claimed == 3
    spool.lock.run_deferred()
    assert spool.stats().claimed == 1
    with spool.lock.rlock:
        assert spool.close() == []
    spool.lock.run_deferred()
    assert sorted(filter(None, drained(place.spool()))) == ids(1, 2)


def test_losses_that_find_no_place_stay_with_who_counted_them(place: Place) -> None:
    """That process writes them later, or reports them itself."""
    spool = place.spool(drain=False)
    report = (("queue_overflow", "error", 1),)
    place.disk.failing = {"create": errno.EIO}
    assert not spool.put_losses(report)
    place.disk.failing = {}
    assert spool.put_losses(report)
    spool.close()
    assert not spool.put_losses(report)


def test_closing_with_losses_on_a_full_disk_ends_all_the_same(place: Place) -> None:
    """Losing the counts is better than an exception at the end."""
    spool = place.spool()
    spool.put(event(1))
    spool.claim(0, 0.0)
    spool._current().drainer.absorb((("queue_overflow", "error", 1),))  # type: ignore[union-attr]
    place.disk.capacity = 0
    spool.close()
    assert spool.claim(1, 0.0) == []


def test_credentials_that_can_not_be_stored_leave_nothing(place: Place) -> None:
    """A part of a DSN would be worse than none."""
    system = DiskSystem(place.disk, 5)
    directory = open_directory(system, "/spool", IDENTITY)
    place.disk.failing = {"rename": errno.EIO}
    with pytest.raises(OSError, match="Input"):
        store_credentials(directory, "https://key@host/1")
    folder = place.disk.find(f"/spool/{IDENTITY}")
    assert folder is not None
    assert [name for name in folder.names if "dsn" in name] == []
    place.disk.failing = {"rename": errno.EIO}
    failing = place.spool(credentials="https://key@host/1")
    assert failing.facts().trouble is not None
    assert identity_of is not None


def test_a_full_spool_keeps_memory_waiting(place: Place) -> None:
    """The envelopes in memory are written to the disk when there is room."""
    spool = place.spool(max_bytes=100_000, drain=False)
    place.disk.failing = {"write": errno.EIO}
    spool.put(event(1))
    place.disk.failing = {}
    writer = spool._current().writer
    assert writer is not None
    writer._over, writer._measured_at = True, place.clock.now + 0.9
    place.clock.now += 1.0
    spool.claim(0, 0.0)
    assert spool.facts().trouble == "it is full"
    place.clock.now += 2.0
    spool.claim(0, 0.0)
    assert spool.facts().trouble is None
    writer._over, writer._measured_at = True, place.clock.now
    with pytest.raises(Full):
        writer.append(RecordKind.ENVELOPE, 4, b"", (), 0)


def test_the_lanes_of_all_classes_are_read_ahead_and_survive_an_eviction(place: Place) -> None:
    """An entry that was read ahead must not be claimed after its segment was given up."""
    first = place.spool()
    for number in range(3):
        first.put(log_entry(number))
        first.put(session(number))
    place.die(first)
    spool = place.spool(max_bytes=1 << 30)
    (claim,) = spool.claim(1, 0.0)
    assert claim.sealed.ordered
    spool._current().maintenance._max_bytes = 10  # type: ignore[union-attr]
    place.clock.now += 2
    spool.claim(0, 0.0)
    assert spool.claim(5, 0.0) == []
    spool.ack([claim])
    assert dict((c, n) for _, c, n in spool.take_losses())["log_item"] == 3  # noqa: C402


def test_a_claim_that_waits_looks_again_when_something_is_put() -> None:
    """An idle drainer looks four times a second, but a capture of its process wakes it."""
    place = Place()
    spool = FileSpool("/spool", IDENTITY, system=DiskSystem(place.disk, 1))
    found: list[object] = []
    waiter = threading.Thread(target=lambda: found.extend(spool.claim(1, SOON)))
    waiter.start()
    waiter.join(0.6)
    spool.put(event(1))
    waiter.join(SOON)
    assert len(found) == 1
    spool.close()


class FailingAt(DiskSystem):
    """A process whose system call number `at` fails, unless it is a close."""

    def __init__(self, place: Place, at: int) -> None:
        super().__init__(place.disk, 7)
        self._at = at

    def _call(self, name: str) -> None:
        super()._call(name)
        if name != "close" and self.calls == self._at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("durability", ["process", "host"])
def test_no_call_that_fails_at_the_start_leaves_a_descriptor(place: Place, durability: str) -> None:
    """Opening is tried again four times a second while the disk is broken: descriptors would run out."""
    for at in range(1, 200):
        system = FailingAt(Place(), at)
        spool = FileSpool(
            "/spool",
            IDENTITY,
            durability=durability,
            system=system,
            clock=place.clock,
            credentials="https://key@host/1",
        )
        if system.calls < at:
            break
        if spool.facts().trouble is not None:
            assert system.open_files == {}, at
        else:
            assert len(system.open_files) == 3, at
    assert at > 10


def test_a_directory_that_somebody_else_opens_up_leaves_no_descriptor(place: Place) -> None:
    """The same for a directory that a person has to correct."""
    place.spool().close()
    node = place.disk.find(f"/spool/{IDENTITY}/dead")
    assert node is not None
    node.mode |= 0o050
    spool = place.spool(strict=False)
    system = place.system(spool)
    assert system.open_files == {}


class SlowerSystem(DiskSystem):
    """A process whose files and directories another process creates just before it does."""

    def make_directory(self, path: str, *, within: int | None = None) -> None:
        super().make_directory(path, within=within)
        super().make_directory(path, within=within)

    def link(self, old: str, new: str, within: int) -> None:
        super().link(old, new, within)
        if new == "format":
            super().link(old, new, within)


def test_processes_that_begin_a_spool_at_once_do_not_disturb_each_other(place: Place) -> None:
    """All workers of an app start together on an empty disk; none leaves a draft."""
    spool = FileSpool("/spool", IDENTITY, system=SlowerSystem(place.disk, 7), clock=place.clock)
    assert spool.facts().trouble is None
    root = place.disk.find("/spool")
    assert root is not None
    assert sorted(root.names) == [IDENTITY, "format"]


def test_what_is_removed_is_told_from_what_is_not(place: Place) -> None:
    """Records in a removed file are lost; a needless new segment costs a warning."""
    system = DiskSystem(place.disk, 7)
    directory = open_directory(system, "/spool", IDENTITY)
    fd = system.create("a", directory.segments)
    folder = place.disk.find(f"/spool/{IDENTITY}/seg")
    assert folder is not None
    node = folder.names["a"]
    assert not directory.is_removed(fd, "a", directory.segments)
    system.rename("a", "b", directory.segments)
    assert not directory.is_removed(fd, "a", directory.segments), "moved, and not removed"
    node.links = 0
    assert not directory.is_removed(fd, "b", directory.segments), "a filesystem that counts no links"
    assert directory.is_removed(fd, "a", directory.segments)
    system.create("a", directory.segments)
    assert directory.is_removed(fd, "a", directory.segments), "another file has its name"


def test_segments_that_are_done_leave_no_descriptor(place: Place) -> None:
    """The descriptors of segment and ack log are closed, as a drainer reads thousands of them."""
    spool = place.spool()
    spool.claim(0, 0.0)
    system = place.system(spool)
    before = len(system.open_files)
    for number in range(6):
        other = place.spool(drain=False)
        other.put(event(number))
        other.close()
    assert len(drained(spool)) == 6
    other = place.spool(drain=False)
    other.put(event(7))
    other.close()
    folder = place.disk.find(f"/spool/{IDENTITY}/seg")
    assert folder is not None
    place.clock.now += 2
    (claim,) = spool.claim(1, 0.0)
    for name in place.segments():
        folder.names.pop(name).links -= 1
    place.disk.touch(folder)
    spool.ack([claim])
    place.clock.now += 2
    spool.claim(0, 0.0)
    assert len(system.open_files) == before


def test_counting_a_backlog_keeps_no_segment_open(place: Place) -> None:
    """There may be more segments than descriptors, so only those being read are open."""
    for number in range(20):
        other = place.spool(drain=False)
        other.put(event(number))
        other.close()
    spool = place.spool()
    spool.claim(0, 0.0)
    system = place.system(spool)
    status = spool.facts().status
    assert status is not None
    assert (status.pending, status.complete) == (20, True)
    assert len(system.open_files) < 10


def test_what_was_held_in_memory_is_as_old_as_it_was(place: Place) -> None:
    """Its age counts from the put, and it is one of this process's puts."""
    spool = place.spool()
    place.disk.failing = {"write": errno.EIO}
    spool.put(event(1))
    place.disk.failing = {}
    place.clock.now += 5
    (claim,) = spool.claim(1, 0.0)
    assert claim.put_at == pytest.approx(1000.0, abs=0.01)
    assert spool.stats().last_id == 1


def test_a_disk_in_trouble_costs_a_capture_nothing(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """The disk is tried four times a second and not with each capture; one warning is logged."""
    spool = place.spool(drain=False)
    place.disk.failing = {"create": errno.EIO}
    spool.put(event(1))
    system = place.system(spool)
    calls = system.calls
    for number in range(2, 9):
        spool.put(event(number))
    assert system.calls == calls
    for number in range(9, 12):
        place.clock.now += 1
        spool.put(event(number))
    assert system.calls > calls
    assert caplog.text.count("can't be used") == 1


def test_a_change_that_the_directorys_stamp_does_not_show_is_seen(place: Place) -> None:
    """A modification time is as coarse as the kernel's tick, and some filesystems have none."""
    spool = place.spool()
    folder = place.disk.find(f"/spool/{IDENTITY}/seg")
    assert folder is not None
    writer = place.spool(drain=False)
    writer.put(event(1))
    assert drained(spool) == ids(1)
    for number, later in ((2, 0.05), (3, 2.0)):
        stamp = folder.mtime_ns
        place.spool(drain=False).put(event(number))
        folder.mtime_ns = stamp
        place.clock.now += later
        assert drained(spool) == ids(number)


def test_a_status_that_can_not_be_replaced_leaves_no_draft(place: Place) -> None:
    """The status is published once a second, so drafts would pile up."""
    spool = place.spool()
    place.disk.failing = {"rename": errno.EIO}
    spool.claim(0, 0.0)
    folder = place.disk.find(f"/spool/{IDENTITY}")
    assert folder is not None
    assert [name for name in folder.names if name.startswith(".")] == []


def test_a_letter_that_can_not_be_kept_leaves_no_draft_and_one_that_is_kept_is_counted(place: Place) -> None:
    """The number in the status makes a person inspect the dead letters."""
    spool = place.spool()
    for number in range(2):
        spool.put(event(number))
    first, second = spool.claim(2, 0.0)
    place.disk.failing = {"rename": errno.EIO}
    spool.bury(first, "poison")
    folder = place.disk.find(f"/spool/{IDENTITY}/dead")
    assert folder is not None
    assert folder.names == {}
    place.disk.failing = {}
    spool.bury(second, "poison")
    place.clock.now += 2
    spool.claim(0, 0.0)
    status = spool.facts().status
    assert status is not None
    assert status.dead == 1


def test_figures_that_do_not_change_are_published_once_a_minute(place: Place) -> None:
    """Replacing a file every second would keep a disk from resting."""
    spool = place.spool()
    spool.claim(0, 0.0)
    folder = place.disk.find(f"/spool/{IDENTITY}")
    assert folder is not None
    published = []
    for _ in range(70):
        place.clock.now += 1
        spool.claim(0, 0.0)
        published.append(folder.names["status.json"].number)
    assert len(set(published)) == 2


def test_a_backlog_is_written_to_the_disk_once(place: Place) -> None:
    """An idle drainer syncs each segment that no longer grows."""
    first = place.spool(drain=False)
    first.put(event(1))
    first.close()
    synced: list[int] = []

    class Counting(DiskSystem):
        def sync(self, fd: int) -> None:
            synced.append(self._file(fd).node.number)

    spool = FileSpool("/spool", IDENTITY, system=Counting(place.disk, 7), clock=place.clock)
    spool.put(session(2))
    claims = spool.claim(5, 0.0)
    assert synced == [], "there was something to deliver"
    spool.release(claims, place.clock.now + 3600)
    for _ in range(5):
        place.clock.now += 2
        assert spool.claim(1, 0.0) == []
    assert len(synced) == 1


def test_the_size_of_an_ended_sync_is_not_that_of_what_came_during_it() -> None:
    """A record that was appended during a sync may not be on the disk: it needs another one."""
    begun, end, synced = threading.Event(), threading.Event(), []

    class Slow(DiskSystem):
        def sync(self, fd: int) -> None:
            synced.append(fd)
            if len(synced) == 1:
                begun.set()
                end.wait(SOON)

    place = Place()
    place.spool().close()  # creates the directory
    spool = FileSpool("/spool", IDENTITY, durability="host", system=Slow(place.disk, 7), clock=place.clock)
    threads = [threading.Thread(target=spool.put, args=(event(number),)) for number in range(3)]
    threads[0].start()
    assert begun.wait(SOON)
    spool.claim(0, 0.0)  # as its drainer it counts the records that are written
    for thread in threads[1:]:
        thread.start()
    assert until(lambda: spool.stats().waiting == 3)
    end.set()
    for thread in threads:
        thread.join(SOON)
    assert len(synced) == 2, "one for the first, and one for both that came meanwhile"


# -- what a writer leaves behind -----------------------------------------------------------------------


def folder_of(place: Place) -> Node:
    """The directory of the segments."""
    folder = place.disk.find(f"/spool/{IDENTITY}/seg")
    assert folder is not None
    return folder


def test_a_segment_is_locked_and_has_its_header_before_readers_see_it(place: Place) -> None:
    """A drainer takes a segment without a lock for one of a dead process, and removes it."""
    seen: list[tuple[bool, bool]] = []

    class Watched(DiskSystem):
        def link(self, old: str, new: str, within: int) -> None:
            node = self._within(within).names[old]
            if new.endswith(".log"):
                seen.append((node.flocked is not None, len(node.data) == HEADER_BYTES))
            super().link(old, new, within)

    spool = FileSpool("/spool", IDENTITY, system=Watched(place.disk, 7), clock=place.clock)
    spool.put(event(1))
    spool.put(session(2))
    assert seen == [(True, True)] * 2


@pytest.mark.parametrize("call", ["flock", "write", "link", "stat", "sync"])
def test_a_segment_that_can_not_be_begun_leaves_neither_descriptor_nor_draft(place: Place, call: str) -> None:
    """It is tried again four times a second as long as the disk is broken: both would run out."""
    spool = place.spool(durability="host")
    before = set(place.system(spool).open_files)
    place.disk.failing = {call: errno.EIO}
    assert spool.put(event(1)).accepted
    assert spool.facts().in_memory == 1
    assert set(place.system(spool).open_files) == before
    assert [name for name in folder_of(place).names if name.startswith(".")] == []


def test_a_new_segment_that_somebody_else_has_locked_is_not_used(place: Place) -> None:
    """A drainer tries the locks of old drafts; a segment without a lock of ours could be removed by it."""

    class Locked(DiskSystem):
        def try_flock(self, fd: int) -> bool:
            return False

    system = Locked(place.disk, 7)
    spool = FileSpool("/spool", IDENTITY, system=system, clock=place.clock)
    before = set(system.open_files)
    assert spool.put(event(1)).accepted
    assert spool.facts().in_memory == 1
    assert set(system.open_files) == before
    assert folder_of(place).names == {}


def test_a_segment_whose_header_came_short_is_not_used(place: Place) -> None:
    """Nothing could be read of it by any process of a later version."""
    spool = place.spool()
    place.disk.capacity = place.disk.used() + 10
    assert spool.put(event(1)).accepted
    assert spool.facts().in_memory == 1
    assert folder_of(place).names == {}
    place.disk.capacity = 1 << 40
    place.clock.now += 1
    assert drained(spool) == ids(1)


def test_a_segment_is_closed_by_the_last_thread_that_writes_to_it(place: Place) -> None:
    """Its number would mean another file by the time of the write, a socket of the app perhaps."""
    begun, end = threading.Event(), threading.Event()

    class Slow(DiskSystem):
        def write(self, fd: int, parts: Sequence[bytes]) -> int:
            if any(b"slow" in part for part in parts):
                begun.set()
                end.wait(SOON)
            return super().write(fd, parts)

    system = Slow(place.disk, 7)
    spool = FileSpool("/spool", IDENTITY, segment_bytes=16 * 1024, system=system, clock=place.clock)
    assert spool.put(event(0)).accepted
    (old,) = [fd for fd, opened in system.open_files.items() if opened.writable]
    thread = threading.Thread(target=spool.put, args=(event(1, "slow"),))
    thread.start()
    try:
        assert begun.wait(SOON)
        for number in range(2, 5):
            assert spool.put(event(number, "x" * 9000)).accepted
        spool.claim(0, 0.0)
        assert len(place.segments()) > 1, "another one is in use"
        assert old in system.open_files
    finally:
        end.set()
        thread.join(SOON)
    assert old not in system.open_files
    assert spool.stats().waiting == 5
    assert sorted(filter(None, drained(spool))) == ids(*range(5))


def test_after_a_failed_sync_nothing_more_is_written_to_the_file(place: Place) -> None:
    """What is said to be on the disk would stand behind pages that the kernel has lost."""
    spool = place.spool(durability="host")
    spool.put(event(1))
    (text,) = place.segments()
    place.disk.failing = {"sync": errno.EIO}
    spool.put(event(2))
    size = len(folder_of(place).names[text].data)
    place.disk.failing = {}
    place.clock.now += 1
    assert spool.put(event(3)).accepted
    assert len(place.segments()) == 2
    assert len(folder_of(place).names[text].data) == size


def test_what_is_put_after_a_person_removed_the_segments_is_delivered(place: Place) -> None:
    """Neither the one in use nor the one made ahead is written to, and what was in them is not waited for."""
    spool = place.spool(drain=False, segment_bytes=32 * 1024)
    for number in range(2):
        spool.put(event(number, "x" * 9000))
    spool.claim(0, 0.0)
    assert len(place.segments()) == 2
    for text in place.segments():
        folder_of(place).names.pop(text).links = 0
    place.clock.now += 2
    spool.claim(0, 0.0)
    for number in range(2, 9):
        assert spool.put(event(number, "x" * 9000)).accepted
    spool.close()
    drainer = place.spool()
    assert sorted(filter(None, drained(drainer))) == ids(*range(2, 9))
    assert drainer.stats().waiting == 0


def test_a_removed_directory_is_begun_anew_and_holds_nothing(place: Place) -> None:
    """A flush must not wait for what went with it; what is put from then on is kept."""
    spool = place.spool(drain=False)
    for number in range(3):
        spool.put(event(number))
    spool.claim(0, 0.0)
    removed = place.disk.root.names.pop("spool")
    for node in place.disk._all(removed):
        node.links = 0
        node.names = {}
    place.clock.now += 2
    spool.claim(0, 0.0)
    assert spool.stats().waiting == 0
    assert spool.put(event(4)).accepted
    assert spool.stats().waiting == 1
    assert spool.facts().in_memory == 0
    assert drained(place.spool()) == ids(4)


@pytest.mark.parametrize("alive", [False, True])
def test_a_draft_is_cleared_when_its_maker_is_dead(place: Place, alive: bool) -> None:
    """After five seconds, in which a live one has locked it; looking at it leaves no descriptor."""
    spool = place.spool()
    spool.claim(0, 0.0)
    maker = DiskSystem(place.disk, 99)
    within = maker.open_directory(f"/spool/{IDENTITY}/seg")
    fd = maker.create(".draft", within)
    if alive:
        assert maker.try_flock(fd)
    before = set(place.system(spool).open_files)
    left = []
    for later in (0.0, 4.9, 0.2):
        place.clock.now += later
        place.disk.touch(folder_of(place))
        spool.claim(0, 0.0)
        left.append(".draft" in folder_of(place).names)
    assert left == [True, True, alive]
    assert set(place.system(spool).open_files) == before


# -- what a drainer makes of it ------------------------------------------------------------------------


def test_only_deaths_over_an_envelope_that_was_alone_convict_it(place: Place) -> None:
    """The first death may be that of its neighbour; then it goes out alone, and five deaths are its own."""
    first = place.spool()
    for number in range(2):
        first.put(event(number))
    assert len(first.claim(2, 0.0)) == 2
    place.die(first)
    for deaths in range(CONVICTED_AFTER):
        spool = place.spool()
        (claim,) = spool.claim(2, 0.0)
        assert (claim.sealed.event_id, claim.attempts) == (ids(0)[0], 1 + deaths)
        assert spool.claim(2, 0.0) == []
        place.die(spool)
    last = place.spool()
    assert drained(last) == ids(1)
    assert last.take_losses() == (("internal_sdk_error", "error", 1),)
    assert drained(place.spool()) == []


@pytest.mark.parametrize("failing", [{}, {"write": errno.EIO}])
def test_a_capture_wakes_the_claim_that_sleeps(
    place: Place, monkeypatch: pytest.MonkeyPatch, failing: dict[str, int]
) -> None:
    """At rest nobody looks for a while; no capture waits for that, one that had to go to memory neither."""
    for module in (drain_loop, file_spool):
        for name in ("LOOK_FIRST", "LOOK_LAST", "LOOK_QUIET"):
            monkeypatch.setattr(module, name, 10 * SOON)
    spool = place.spool()
    claims: list[Claim] = []
    waiter = threading.Thread(target=lambda: claims.extend(spool.claim(1, 9 * SOON)), daemon=True)
    waiter.start()
    assert until(lambda: sys._current_frames()[waiter.ident or 0].f_code.co_name == "wait")
    place.disk.failing = failing
    spool.put(event(1))
    waiter.join(SOON)
    assert [claim.sealed.event_id for claim in claims] == ids(1)
    place.disk.failing = {}


@pytest.mark.parametrize("written", [False, True])
def test_what_grows_too_old_while_one_process_drains_is_given_up_and_counted(
    place: Place, written: bool
) -> None:
    """A drainer lives for months; and a segment that is still written to is read, not removed."""
    spool = place.spool(max_age=100.0)
    spool.claim(0, 0.0)
    other = place.spool(drain=False)
    other.put(event(1))
    place.clock.now += 101
    if written:
        other.put(event(2))
    else:
        other.close()
    assert drained(spool) == (ids(2) if written else [])
    assert spool.take_losses() == (("cache_overflow", "error", 1),)
    place.clock.now += 2
    spool.claim(0, 0.0)
    assert spool.describe()["expired"] == 1
    assert spool.describe()["evicted"] == 0


def test_nobody_drains_between_an_app_that_left_and_a_forwarder_that_hangs(place: Place) -> None:
    """Envelopes pile up, and a health page must say why."""
    app = place.spool()
    app.claim(0, 0.0)
    forwarder = place.spool(forwarder=True)
    forwarder.claim(0, 0.0)
    place.clock.now += 2
    app.claim(0, 0.0)
    place.clock.now += 2
    app.claim(0, 0.0)
    assert app.describe()["problems"] == ["no process drains the spool"]
    forwarder.claim(0, 0.0)
    place.clock.now += 2
    app.claim(0, 0.0)
    assert app.describe()["problems"] == []
    assert app.describe()["drainer"] == place.system(forwarder).pid


# -- figures and times ---------------------------------------------------------------------------------


def test_the_figures_of_a_spool_are_those_of_its_files(place: Place) -> None:
    """Health, alerts and the forwarder's metrics are read off them."""
    for number in range(3):
        other = place.spool(drain=False)
        other.put(event(number))
        other.close()
    later = place.disk.node(0o100600)
    header = bytearray(segment_header(SegmentName(4, 1, 1, bytes(8))))
    header[8] += 1
    header[-4:] = crc32(bytes(header[:-4])).to_bytes(4, "little")
    later.data += header
    folder_of(place).names[str(SegmentName(4, 1, 1, bytes(8)))] = later
    spool = place.spool(max_bytes=128_000)
    poison, delivered = spool.claim(2, 0.0)
    spool.bury(poison, "poison")
    place.clock.now += 2
    spool.claim(0, 0.0)
    near: Any = pytest.approx
    wall = NOW_MS / 1000 + 2
    size = sum(len(folder_of(place).names[text].data) for text in place.segments())
    expected = SpoolStatus(
        pid=place.system(spool).pid,
        boot="boot",
        at=1002.0,
        wall=wall,
        pending=2,
        complete=True,
        size=size,
        segments=3,
        oldest=near(NOW_MS / 1000, abs=0.002),
        dead=1,
        foreign=1,
        ages_from=near(NOW_MS / 1000, abs=0.002),
    )
    assert spool.facts().status == expected
    assert spool.stats() == QueueStats(1, 1, size, 1000, 128_000, near(1000.0, abs=0.01), 0)
    other = place.spool(max_bytes=128_000, drain=False)
    place.clock.now += 1
    other.put(session(9))
    assert other.facts() == SpoolFacts(
        path="/spool",
        draining=False,
        drainer=None,
        trouble=None,
        in_memory=0,
        fell_back=0,
        status=expected,
        status_age=near(1.0),
    )
    assert other.stats()[:2] == (3, 0), "what was published, and what was put here since"
    described = other.describe()
    assert (described["oldest_age"], described["status_age"]) == pytest.approx((3.0, 1.0), abs=0.002)
    spool.ack([delivered])


def test_a_disk_that_failed_is_tried_again_after_a_quarter_of_a_second(place: Place) -> None:
    """Less often, and memory would be full of what could be safe; more often, and captures would pay."""
    spool = place.spool(drain=False)
    place.disk.failing = {"write": errno.EIO}
    spool.put(event(1))
    place.disk.failing = {}
    in_memory = []
    for number, later in ((2, 0.24), (3, 0.01)):
        place.clock.now += later
        spool.put(event(number))
        in_memory.append(spool.facts().in_memory)
    assert in_memory == [2, 2]


def test_a_segment_that_could_not_be_read_is_tried_again_after_a_second(place: Place) -> None:
    """A disk that fails takes long to say so, and the drainer holds its lock meanwhile."""
    spool = place.spool()
    spool.put(event(1))
    spool.claim(0, 0.0)
    place.disk.failing = {"read": errno.EIO}
    assert spool.claim(1, 0.0) == []
    place.disk.failing = {}
    place.clock.now += 0.99
    assert spool.claim(1, 0.0) == []
    place.clock.now += 0.01
    assert drained(spool) == ids(1)


def test_the_drain_is_taken_over_within_a_second(place: Place) -> None:
    """Not before: each look is a few system calls in every process of the app."""
    first, second = place.spool(), place.spool()
    first.claim(0, 0.0)
    second.claim(0, 0.0)
    place.die(first)
    draining = []
    for later in (0.98, 0.02):
        place.clock.now += later
        second.claim(0, 0.0)
        draining.append(second.facts().draining)
    assert draining == [False, True]


def test_figures_that_change_are_published_once_a_second(place: Place) -> None:
    """Every process of the app reads them; replacing a file may put the drainer to sleep."""
    spool = place.spool()
    spool.claim(0, 0.0)
    published = []
    for number, later in ((1, 0.7), (2, 0.29), (3, 0.3)):
        place.clock.now += later
        spool.put(event(number))
        spool.claim(0, 0.0)
        published.append(spool.describe()["pending"])
    assert published == [0, 0, 3]


def test_dead_letters_take_an_eighth_of_the_room(place: Place) -> None:
    """The oldest makes room for the newest, and one that is larger than all may be is not kept."""
    spool = place.spool(max_bytes=160_000)
    for number, size in enumerate((12_000, 12_000, 20_000)):
        spool.put(event(number, "x" * size))
    dead = place.disk.find(f"/spool/{IDENTITY}/dead")
    assert dead is not None
    kept = []
    for claim in spool.claim(3, 0.0):
        spool.bury(claim, "poison")
        kept.append([name for name in dead.names if name.endswith(".envelope")])
    first, second = (f"{number}.envelope" for number in ids(0, 1))
    assert kept == [[first], [second], [second]]
    assert spool.stats().waiting == 0


@pytest.mark.parametrize(("max_bytes", "segments"), [(16 * 64 * 1024, 1), (16 * 20 * 1024, 2), (100_000, 3)])
def test_a_segment_is_a_sixteenth_of_the_room_and_at_least_16_kilobytes(
    place: Place, max_bytes: int, segments: int
) -> None:
    """Whole segments are given up: there must be an old one to give."""
    spool = place.spool(max_bytes=max_bytes, drain=False)
    for number in range(5):
        spool.put(event(number, "x" * 8000))
    assert len(place.segments()) == segments


@pytest.mark.parametrize("inner", ["", f"/{IDENTITY}", f"/{IDENTITY}/seg", f"/{IDENTITY}/dead"])
def test_what_is_open_to_others_is_named_with_its_whole_path(place: Place, inner: str) -> None:
    """A person copies the command from the message."""
    place.spool().close()
    node = place.disk.find(f"/spool{inner}")
    assert node is not None
    node.mode |= 0o007
    spool = place.spool(strict=False)
    assert f"/spool{inner} is open to others; chmod 700 /spool{inner}" in str(spool.facts().trouble)


def test_a_dead_letter_has_all_that_is_known_of_its_envelope(place: Place) -> None:
    """Whoever decides about it later has nothing else to go by."""
    spool = place.spool()
    spool.put(event(1))
    spool.release(spool.claim(1, 0.0))
    place.clock.now += 5
    (claim,) = spool.claim(1, 0.0)
    spool.bury(claim, "poison")
    letter = place.disk.find(f"/spool/{IDENTITY}/dead/{ids(1)[0]}.json")
    body = place.disk.find(f"/spool/{IDENTITY}/dead/{ids(1)[0]}.envelope")
    assert letter is not None
    assert body is not None
    assert bytes(body.data) == event(1).serialize()
    assert json.loads(letter.data) == {
        "event_id": ids(1)[0],
        "reason": "poison",
        "attempts": 2,
        "created_ms": pytest.approx(NOW_MS, abs=2),
        "buried_ms": pytest.approx(NOW_MS + 5000, abs=2),
        "quantities": {"error": 1},
    }


def test_a_writer_refuses_an_eighth_beyond_the_room_and_looks_again_after_a_quarter_of_a_second(
    place: Place,
) -> None:
    """The drainer gets that much time to evict; then a dead one must not cost the host its disk."""
    spool = place.spool(drain=False, max_bytes=1_600_000, segment_bytes=16 * 1024)
    number = 0
    while spool.put(event(number, "x" * 9000)).accepted:
        number += 1
        assert number < 400
    used = sum(len(folder_of(place).names[text].data) for text in place.segments())
    assert 1_800_000 < used <= 1_800_000 + 2 * 18_700
    assert spool.facts().in_memory == 0, "refused and counted, as a full queue is"
    for text in place.segments()[:5]:
        folder_of(place).names.pop(text).links = 0
    accepted = []
    for later in (0.24, 0.01):
        place.clock.now += later
        accepted.append(spool.put(event(99)).accepted)
    assert accepted == [False, True]


def test_a_segment_gets_its_successor_when_it_is_filled_to_a_quarter(place: Place) -> None:
    """A process that writes little needs none, and each is a file that the drainer looks at."""
    spool = place.spool(drain=False, segment_bytes=64 * 1024)
    segments = []
    for number, size in enumerate((15_000, 2_000)):
        spool.put(event(number, "x" * size))
        spool.claim(0, 0.0)
        segments.append(len(place.segments()))
    assert segments == [1, 2]


def test_a_segment_that_can_not_be_removed_is_tried_again_after_a_second(place: Place) -> None:
    """A directory that became read-only stays so for a while, and the drainer has other work."""
    first = place.spool(drain=False)
    first.put(event(1))
    first.close()
    spool = place.spool()
    place.disk.failing = {"unlink": errno.EROFS}
    assert drained(spool) == ids(1)
    place.disk.failing = {}
    left = []
    for later in (0.5, 0.4, 0.4):
        place.clock.now += later
        spool.claim(0, 0.0)
        left.append(len(place.segments()))
    assert left == [1, 1, 0]
