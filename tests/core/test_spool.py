"""FileSpool on a real directory: accepted envelopes survive, one process drains, the others write."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.core.spool_support import NAME, drained, event, ids, log_entry, segment, session
from tests.core.worker_support import Clock
from tests.timing import SOON, scaled
from transport_kit.queues.spool import FileSpool
from transport_kit.queues.spool.acklog import AckLog, Op, read_progress
from transport_kit.queues.spool.directory import open_directory
from transport_kit.queues.spool.drainer import CONVICTED_AFTER
from transport_kit.queues.spool.segments import SegmentName
from transport_kit.queues.spool.system import System
from transport_kit.runtime.errors import OptionsError

IDENTITY = "0123456789abcdef"
Make = Callable[..., FileSpool]


@pytest.fixture(name="make")
def _make(tmp_path: Path) -> Iterator[Make]:
    """Return a function that opens spools on one directory, and close them after the test."""
    made: list[FileSpool] = []

    def make(**options: object) -> FileSpool:
        spool = FileSpool(str(tmp_path / "spool"), IDENTITY, **options)  # type: ignore[arg-type]
        made.append(spool)
        return spool

    yield make
    for spool in made:
        spool.close()


@pytest.fixture(name="seg")
def _seg(tmp_path: Path) -> Path:
    """The directory of the segments."""
    return tmp_path / "spool" / IDENTITY / "seg"


def place(seg: Path, data: bytes, name: SegmentName = NAME) -> Path:
    """Write a segment as another process leaves it behind."""
    path = seg / str(name)
    path.write_bytes(data)
    return path


def test_what_was_put_before_is_there_after(make: Make, seg: Path) -> None:
    """A restart with a backlog and no capture delivers it."""
    first = make()
    for number in range(3):
        assert first.put(event(number)).accepted
    first.close()
    second = make()
    assert drained(second) == ids(0, 1, 2)
    assert list(seg.iterdir()) == []


def test_what_was_acked_is_not_delivered_again(make: Make) -> None:
    """The next drainer knows from the ack log what the last one settled."""
    first = make()
    for number in range(4):
        first.put(event(number))
    claims = first.claim(3, SOON)
    first.ack(claims[:2])
    first.close()
    assert sorted(filter(None, drained(make()))) == ids(2, 3)


def test_a_lost_ack_log_costs_duplicates_and_nothing_else(make: Make, seg: Path) -> None:
    """The log is advisory; the segments decide."""
    first = make()
    for number in range(4):
        first.put(event(number))
    first.ack(first.claim(3, SOON))
    first.close()
    for log in seg.glob("*.ack"):
        log.write_bytes(b"\x07" * 100)
    assert drained(make()) == ids(0, 1, 2, 3)


def test_a_second_spool_in_the_process_only_writes(make: Make) -> None:
    """A process loses a POSIX lock when it closes any descriptor of the file, so one object owns it."""
    first = make()
    second = make()
    first.put(event(1))
    assert len(first.claim(1, SOON)) == 1
    second.put(event(2))
    assert second.claim(1, 0.0) == []
    assert not second.facts().draining
    assert first.facts().draining
    first.close()
    assert sorted(i for i in drained_within(second, 2) if i) == ids(1, 2)


def drained_within(spool: FileSpool, number: int) -> list[str | None]:
    """Return the ids of `number` envelopes, waiting for an election if need be."""
    found: list[str | None] = []
    while len(found) < number:
        claims = spool.claim(1, SOON)
        assert claims
        found += [claim.sealed.event_id for claim in claims]
        spool.ack(claims)
    return found


def test_a_forwarder_is_preferred(make: Make) -> None:
    """While a forwarder runs, app processes only write. Locks of one process do not conflict, so this test
    sees only the candidacy."""
    forwarder = make(forwarder=True)
    forwarder.put(event(1))
    assert drained(forwarder) == ids(1)
    assert forwarder.facts().draining


def test_a_spool_that_may_not_drain_does_not(make: Make) -> None:
    """A process with `drain=False` never delivers."""
    writer = make(drain=False)
    writer.put(event(1))
    assert writer.claim(1, 0.0) == []
    writer.close()
    assert drained(make()) == ids(1)


def test_damage_costs_a_record_and_is_told(make: Make, seg: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No corrupt envelope is delivered, and the loss is reported by category."""
    spool = make()
    data = bytearray(segment([event(1), event(2), event(3)]))
    data[len(segment([event(1), event(2)])) - 3] ^= 1
    place(seg, bytes(data))
    assert drained(spool) == ids(1, 3)
    assert spool.take_losses() == (("internal_sdk_error", "error", 1),)
    assert spool.take_losses() == ()
    assert "damaged" in caplog.text
    assert not list(seg.iterdir())


def test_a_torn_tail_is_no_loss(make: Make, seg: Path) -> None:
    """A killed writer's last record was never accepted."""
    spool = make()
    place(seg, segment([event(1), event(2)])[:-5])
    assert drained(spool) == ids(1)
    assert spool.take_losses() == ()


def test_a_live_segment_is_read_and_not_removed(make: Make, seg: Path) -> None:
    """Removal needs the writer's lock, as the writer may append at any moment; delivery does not."""
    spool = make()
    path = place(seg, segment([event(1)]))
    with path.open("ab", buffering=0) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert drained(spool) == ids(1)
        assert path.exists()
        other.write(segment([event(2)])[32:])
        assert drained(spool) == ids(2)
        assert path.exists()
    assert spool.claim(1, 0.0) == []
    assert not path.exists()


def test_a_segment_of_a_later_version_is_left_alone(make: Make, seg: Path) -> None:
    """Two versions of the format can be used side by side."""
    import zlib

    spool = make()
    data = bytearray(segment([event(1)]))
    data[8] = 2
    data[28:32] = zlib.crc32(data[:28]).to_bytes(4, "little")
    path = place(seg, bytes(data))
    spool.put(event(2))
    assert drained(spool) == ids(2)
    assert path.read_bytes() == bytes(data)


@pytest.mark.parametrize("kind", ["fifo", "directory", "symlink", "device"])
def test_what_is_no_segment_is_not_read(make: Make, seg: Path, tmp_path: Path, kind: str) -> None:
    """The directory is untrusted, names included: reading never blocks and follows no link."""
    spool = make()
    path = seg / str(NAME)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else tmp_path / "elsewhere")
        (tmp_path / "elsewhere").write_bytes(segment([event(9)]))
    (seg / "somebody's.txt").write_text("notes")
    spool.put(event(1))
    assert drained(spool) == ids(1)
    assert (seg / "somebody's.txt").exists()
    assert os.path.lexists(path)


def test_drafts_and_orphaned_ack_logs_are_cleared(make: Make, seg: Path) -> None:
    """They remain if a writer dies before it links its segment, or a drainer between its two removals."""
    clock = Clock()
    spool = make(clock=clock)
    (seg / f".{NAME}").write_bytes(b"half")
    (seg / str(NAME).replace(".log", ".ack")).write_bytes(b"x")
    locked = seg / f".{NAME}2"
    with locked.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert spool.claim(1, 0.0) == []
        assert len(list(seg.iterdir())) == 2, "a draft is left to its maker for a while"
        clock.now += 10
        assert spool.claim(1, 0.0) == []
        assert [path.name for path in seg.iterdir()] == [locked.name]


def test_losses_of_writers_reach_the_drainer_once(make: Make) -> None:
    """Client reports are never spooled; loss counts are, and the drainer reports them."""
    writer = make(drain=False)
    assert writer.put_losses((("queue_overflow", "error", 2),))
    assert writer.put_losses((("queue_overflow", "error", 3), ("network_error", "session", 1)))
    drainer = make()
    assert drainer.claim(1, 0.0) == []
    assert sorted(drainer.take_losses()) == [("network_error", "session", 1), ("queue_overflow", "error", 5)]
    drainer.close()
    last = make()
    assert last.claim(1, 0.0) == []
    assert last.take_losses() == ()
    assert last.stats().waiting == 0


def test_what_was_lost_and_not_told_is_left_for_the_next(make: Make, seg: Path) -> None:
    """A drainer that ends leaves its counts to the next one."""
    first = make()
    data = bytearray(segment([event(1)]))
    data[-3] ^= 1
    place(seg, bytes(data) + segment([event(2)])[32:])
    assert drained(first) == ids(2)
    first.close()
    second = make()
    second.claim(0, 0.0)
    second.claim(1, 0.0)
    assert second.take_losses() == (("internal_sdk_error", "error", 1),)


def suspect(seg: Path, *ops: Op, number: int = 1) -> None:
    """Write a segment and an ack log for its first record."""
    place(seg, segment([event(number), event(number + 1)]))
    within = os.open(seg, os.O_RDONLY)
    log = AckLog(System(), within, NAME)
    for op in ops:
        assert log.append(op, 32)
    log.close()
    os.close(within)


def test_who_may_have_killed_the_drainer_goes_out_alone(make: Make, seg: Path) -> None:
    """Suspects are delivered one at a time, so that a death shows which of them caused it."""
    spool = make()
    suspect(seg, Op.ATTEMPT)
    spool.put(session(5))
    (alone,) = spool.claim(5, SOON)
    assert (alone.sealed.event_id, alone.attempts) == (ids(1)[0], 1)
    assert spool.claim(5, 0.0) == []
    spool.release([alone], 0.0)
    assert len(spool.claim(5, SOON)) == 3, "it survived its attempt"


def test_a_suspect_waits_until_nothing_else_is_under_way(make: Make, seg: Path) -> None:
    """If the process dies while only one envelope is claimed, that one caused it."""
    spool = make()
    spool.put(session(5))
    other = spool.claim(1, SOON)
    suspect(seg, Op.ATTEMPT)
    for _ in range(6):
        assert [c for c in spool.claim(1, 0.05) if c.sealed.event_id == ids(1)[0]] == []
    spool.ack(other)


def test_only_a_lone_suspect_is_convicted_and_only_after_several_deaths(make: Make, seg: Path) -> None:
    """Drainers that are killed for other reasons must not cost an envelope."""
    spool = make()
    suspect(seg, *[Op.ATTEMPT] * 9)
    assert sorted(filter(None, drained(spool))) == ids(1, 2)
    spool.close()
    suspect(seg, *[Op.ALONE] * (CONVICTED_AFTER - 1))
    again = make()
    assert sorted(filter(None, drained(again))) == ids(1, 2)
    again.close()
    suspect(seg, *[Op.ALONE] * CONVICTED_AFTER)
    last = make()
    assert drained(last) == ids(2)
    assert last.take_losses() == (("internal_sdk_error", "error", 1),)
    letter = seg.parent / "dead" / f"{ids(1)[0]}.envelope"
    assert letter.read_bytes() == event(1).serialize()
    assert b"died" in letter.with_suffix(".json").read_bytes()


def test_an_ack_log_says_what_happened() -> None:
    """It yields attempts, ends and deaths; an incomplete or foreign entry in between changes nothing."""
    import struct
    import zlib

    def entry(op: int, offset: int, salt: bytes = b"12345678") -> bytes:
        start = struct.pack("<QB3x", offset, op)
        return start + struct.pack("<I", zlib.crc32(start, zlib.crc32(salt)))

    data = (
        entry(1, 10)
        + entry(4, 10)[:7]
        + entry(2, 20)
        + entry(2, 20)
        + entry(3, 20)
        + entry(4, 30, b"87654321")
        + entry(2, 40)
        + entry(5, 40)
        + entry(9, 50)
        + b"\0" * 9
    )
    found = read_progress(data, b"12345678")
    assert (found[10].attempts, found[10].open, found[10].settled) == (1, True, False)
    assert (found[20].attempts, found[20].open, found[20].deaths) == (2, False, 0)
    assert found[40].settled
    assert 30 not in found


def test_the_ordered_lane_survives_a_restart(make: Make) -> None:
    """Sessions are claimed one at a time and in order from the disk, too."""
    first = make()
    for number in range(3):
        first.put(session(number))
    first.release(first.claim(1, SOON), 0.0)
    first.close()
    second = make()
    for number in range(3):
        (claim,) = second.claim(5, SOON)
        assert f"{number:032x}".encode() in claim.sealed.serialize()
        second.ack([claim])


# -- the directory ---------------------------------------------------------------------------------------


def test_the_directory_is_ours_alone(make: Make, tmp_path: Path) -> None:
    """Reports contain user input, which no other user of the host may read."""
    make().put(event(1))
    root = tmp_path / "spool"
    for path in (root, *root.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    assert (root / "format").read_bytes() == b"transport-kit spool 1\n"


def test_a_directory_that_is_open_to_others_is_refused(make: Make, tmp_path: Path) -> None:
    """A person has to decide; the message contains the command."""
    (tmp_path / "spool").mkdir(mode=0o750)
    with pytest.raises(OptionsError, match="chmod 700"):
        make()
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_symbolic_link_is_refused(make: Make, tmp_path: Path) -> None:
    """The owner of the link could choose where reports go."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "spool").symlink_to(tmp_path / "real")
    with pytest.raises(OptionsError, match="symbolic link"):
        make()


class Elsewhere(System):
    """An operating system with another user, or another filesystem."""

    def __init__(self, kind: str = "ext4", user: int | None = None) -> None:
        self._kind = kind
        self._user = os.geteuid() if user is None else user

    def filesystem(self, fd: int) -> str:
        return self._kind

    def user(self) -> int:
        return self._user


def test_a_directory_of_another_user_is_refused(make: Make) -> None:
    """That user could read and change it."""
    with pytest.raises(OptionsError, match="belongs to user"):
        make(system=Elsewhere(user=os.geteuid() + 1))


def test_a_network_filesystem_is_refused_unless_forced(make: Make) -> None:
    """Its locks and appends are done by another host."""
    with pytest.raises(OptionsError, match="nfs4"):
        make(system=Elsewhere("nfs4"))
    make(system=Elsewhere("nfs4"), force=True).put(event(1))


def test_a_spool_of_another_version_is_refused(make: Make, tmp_path: Path) -> None:
    """An older release must not write into the spool of a newer one."""
    make().close()
    (tmp_path / "spool" / "format").write_bytes(b"transport-kit spool 2\n")
    with pytest.raises(OptionsError, match="another version"):
        make()


def test_an_identity_is_sixteen_hex_digits(tmp_path: Path) -> None:
    """It becomes part of a path."""
    with pytest.raises(OptionsError, match="16 hex"):
        FileSpool(str(tmp_path / "s"), "../../etc/shadow")
    with pytest.raises(OptionsError, match="durability"):
        FileSpool(str(tmp_path / "s"), IDENTITY, durability="maybe")


def test_the_real_filesystem_has_a_name(tmp_path: Path) -> None:
    """`System.filesystem` reads it from /proc."""
    system = System()
    fd = system.open_directory(str(tmp_path))
    assert system.filesystem(fd)
    assert system.boot()
    system.close(fd)
    directory = open_directory(system, str(tmp_path / "s"), IDENTITY)
    directory.close()
    directory.close()


# -- memory, while the directory can't be used -----------------------------------------------------------


def test_a_missing_directory_means_memory_until_it_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, no loss, and the envelopes in memory are written to the disk once that works."""
    caplog.set_level(logging.INFO)
    clock = Clock()
    parent = tmp_path / "missing"
    spool = FileSpool(str(parent / "spool"), IDENTITY, clock=clock)
    for number in range(3):
        assert spool.put(event(number)).accepted
    facts = spool.facts()
    assert (facts.in_memory, facts.fell_back) == (3, 3)
    assert facts.trouble is not None
    assert caplog.text.count("can't be used") == 1
    claims = spool.claim(1, 0.0)
    assert len(claims) == 1, "memory is delivered from, too"
    spool.release(claims)
    parent.mkdir()
    clock.now += 1.0
    spool.claim(0, 0.0)
    facts = spool.facts()
    assert (facts.in_memory, facts.trouble) == (0, None)
    assert "again" in caplog.text
    assert sorted(filter(None, drained(spool))) == ids(0, 1, 2)
    spool.close()


class Failing(System):
    """An operating system whose writes fail while `error` is set, after `short` bytes of each."""

    def __init__(self) -> None:
        self.error: int | None = None
        self.short: int | None = None

    def write(self, fd: int, parts):  # type: ignore[no-untyped-def]
        if self.short is not None:
            whole = b"".join(parts)
            return super().write(fd, (whole[: self.short],))
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        return super().write(fd, parts)


@pytest.mark.parametrize("error", [28, 5, 30, 122], ids=["ENOSPC", "EIO", "EROFS", "EDQUOT"])
def test_a_disk_that_fails_means_memory_until_it_works(make: Make, error: int) -> None:
    """Envelopes are accepted all the same; the facts show that they are in memory."""
    clock, system = Clock(), Failing()
    spool = make(clock=clock, system=system)
    spool.put(event(0))
    system.error = error
    for number in range(1, 4):
        assert spool.put(event(number)).accepted
    assert spool.facts().in_memory == 3
    assert spool.facts().trouble == os.strerror(error)
    assert not spool.put_losses((("queue_overflow", "error", 1),))
    clock.now += 1.0
    assert spool.put(event(4)).accepted
    assert spool.facts().in_memory == 4
    system.error = None
    clock.now += 1.0
    spool.put(event(5))
    assert spool.facts().trouble is None
    assert sorted(filter(None, drained(spool))) == ids(0, 1, 2, 3, 4, 5)


def test_a_short_write_is_repeated_elsewhere(make: Make) -> None:
    """An incomplete record was not accepted, and costs no other record."""
    clock, system = Clock(), Failing()
    spool = make(clock=clock, system=system)
    spool.put(event(1))
    system.short = 50
    assert spool.put(event(2)).accepted
    assert spool.facts().in_memory == 1
    system.short = None
    clock.now += 1.0
    spool.put(event(3))
    assert sorted(filter(None, drained(spool))) == ids(1, 2, 3)


def test_closing_moves_memory_to_the_disk_or_hands_it_back(make: Make, tmp_path: Path) -> None:
    """What can't be written at the end is returned, for the caller to count."""
    clock, system = Clock(), Failing()
    spool = make(clock=clock, system=system)
    system.error = 28
    for number in range(2):
        spool.put(event(number))
    claims = spool.claim(1, 0.0)
    assert len(claims) == 1
    system.error = None
    assert spool.close() == []
    again = make(clock=clock, system=system)
    assert sorted(filter(None, drained(again))) == ids(0, 1)
    system.error = 28
    again.put(event(7))
    (left,) = again.close()
    assert left.sealed.event_id == ids(7)[0]


def test_a_buried_envelope_in_memory_is_gone(make: Make) -> None:
    """Dead letters are kept on the disk only."""
    system = Failing()
    spool = make(system=system)
    system.error = 28
    spool.put(event(1))
    (claim,) = spool.claim(1, 0.0)
    spool.bury(claim, "internal_sdk_error")
    spool.ack([claim])
    assert spool.stats().waiting == spool.stats().claimed == 0


# -- forks -----------------------------------------------------------------------------------------------


def test_a_forked_child_writes_segments_of_its_own(make: Make, seg: Path) -> None:
    """The child closes its parent's descriptors without unlocking, which would end the parent's lock."""
    spool = make()
    spool.put(event(1))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if spool.put(event(2)).accepted and spool._current().writer is not None else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    pids = {SegmentName.parse(path.name).pid for path in seg.glob("*.log")}  # type: ignore[union-attr]
    assert pids == {os.getpid(), pid}
    with next(seg.glob(f"*-{os.getpid()}-*.log")).open() as mine, pytest.raises(BlockingIOError):
        fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert sorted(filter(None, drained(spool))) == ids(1, 2)


def test_another_process_takes_over_when_the_drainer_dies(make: Make) -> None:
    """Within a second, as the kernel ends the lock; the claims of the dead process are delivered again."""
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            child = make()
            for number in range(3):
                child.put(event(number))
            claims = child.claim(1, SOON)
            os.write(ready[1], b"%d" % len(claims))
            os.read(go[0], 1)
        finally:
            os._exit(0)
    assert os.read(ready[0], 1) == b"1"
    spool = make()
    assert spool.claim(1, 0.0) == []
    assert spool.facts().drainer == pid
    assert spool.stats().waiting >= 0
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    began = time.monotonic()
    assert len(spool.claim(1, SOON)) == 1
    assert time.monotonic() - began < scaled(3.0)  # it looks once a second
    for fd in (*ready, *go):
        os.close(fd)


def test_threads_that_write_at_once_do_not_harm_each_other(make: Make) -> None:
    """A record is one append; small segments make the threads change segments all the time."""
    spool = make(segment_bytes=1, max_bytes=1 << 30)
    barrier = threading.Barrier(8)

    def write(thread: int) -> None:
        barrier.wait(SOON)
        for number in range(100):
            assert spool.put(event(thread * 1000 + number, "x" * 3000)).accepted

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    found = drained(spool)
    assert sorted(filter(None, found)) == sorted(ids(*(t * 1000 + n for t in range(8) for n in range(100))))


def test_host_durability_syncs_before_it_accepts(make: Make) -> None:
    """Syncs are grouped: threads that come during one share the next."""

    class Counting(System):
        synced = 0

        def sync(self, fd: int) -> None:
            Counting.synced += 1
            super().sync(fd)

    spool = make(durability="host", system=Counting())
    Counting.synced = 0  # not counting the file that names the format
    spool.put(event(1))
    assert Counting.synced == 1
    threads = [threading.Thread(target=spool.put, args=(event(n),)) for n in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert 2 <= Counting.synced <= 9
    assert len(drained(spool)) == 9


def test_logs_come_after_errors_but_come(make: Make) -> None:
    """The classes take turns as in memory, as each segment belongs to one class."""
    spool = make()
    for number in range(20):
        spool.put(log_entry(number))
    spool.put(event(1))
    (claim,) = spool.claim(1, SOON)
    assert claim.sealed.event_id == ids(1)[0]


def test_files_and_directories_are_ours_alone_whatever_the_umask(make: Make, tmp_path: Path) -> None:
    """Reports hold what users typed; an app may run with a umask that opens all it writes."""
    before = os.umask(0)
    try:
        spool = make(credentials="https://key@host/1")
        spool.put(event(1))
        (claim,) = spool.claim(1, SOON)
        spool.bury(claim, "poison")
        spool.put(event(2))
        spool.release(spool.claim(1, SOON))
    finally:
        os.umask(before)
    found = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "spool").rglob("*")}
    assert {path: mode for path, mode in found.items() if mode not in (0o600, 0o700)} == {}
    assert found["seg"] == found["dead"] == found[IDENTITY] == 0o700
    assert found["dsn"] == found["format"] == found["drain.lock"] == found["status.json"] == 0o600
    assert {Path(name).suffix for name in found} >= {".log", ".ack", ".envelope", ".json"}


@pytest.mark.parametrize("name", ["format", "drain.lock", "forward.lock"])
def test_a_symbolic_link_in_place_of_a_file_is_not_followed(make: Make, tmp_path: Path, name: str) -> None:
    """It would have the app create or lock a file anywhere its user may write."""
    make().close()
    folder = tmp_path / "spool" if name == "format" else tmp_path / "spool" / IDENTITY
    (folder / name).unlink(missing_ok=True)
    target = tmp_path / "target"
    (folder / name).symlink_to(target)
    spool = make()
    spool.claim(0, 0.0)
    assert not target.exists()
    assert not spool.facts().draining
