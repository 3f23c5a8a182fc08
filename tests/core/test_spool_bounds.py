"""The bounds of a spool, in bytes, number and age; what is given up for them; jumps of the clock."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.core.spool_support import NOW_MS, drained, event, ids, log_entry, record, session
from tests.core.worker_support import Clock
from transport_kit.config.dsn import Dsn
from transport_kit.envelope.losses import LossReason
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.spool import FileSpool
from transport_kit.queues.spool.ages import Ages, tolerance
from transport_kit.queues.spool.dead_letters import bury, count
from transport_kit.queues.spool.directory import (
    identity_of,
    open_directory,
    read_credentials,
    store_credentials,
)
from transport_kit.queues.spool.drainer import SEARCH_AGAIN
from transport_kit.queues.spool.segment_reader import SEARCH_STEP
from transport_kit.queues.spool.segments import RecordKind, Salt, SegmentName, record_parts, segment_header
from transport_kit.queues.spool.status import SpoolStatus, publish, read_status
from transport_kit.queues.spool.system import Stat, System
from transport_kit.queues.spool.writer import Full, Writer
from transport_kit.runtime.errors import OptionsError

IDENTITY = "0123456789abcdef"
DAY = 86_400.0
Make = Callable[..., FileSpool]


class Wall:
    """A wall clock that tests set."""

    def __init__(self) -> None:
        self.now = NOW_MS / 1000

    def __call__(self) -> float:
        return self.now


class Counting(System):
    """A system that counts the calls for each file, by the name of the method."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def open_file(self, name: str, within: int) -> int:
        self.calls["open"] += 1
        return super().open_file(name, within)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        data = super().read(fd, size, offset)
        self.calls["read"] += 1
        self.calls["bytes"] += len(data)
        return data

    def status_of(self, name: str, within: int) -> Stat:
        self.calls["status"] += 1
        return super().status_of(name, within)


@pytest.fixture(name="clock")
def _clock() -> Clock:
    return Clock()


@pytest.fixture(name="wall")
def _wall() -> Wall:
    return Wall()


@pytest.fixture(name="make")
def _make(tmp_path: Path, clock: Clock, wall: Wall) -> Iterator[Make]:
    """Return a function that opens spools on one directory, and close them after the test."""
    made: list[FileSpool] = []

    def make(**options: object) -> FileSpool:
        spool = FileSpool(str(tmp_path / "spool"), IDENTITY, clock=clock, wall=wall, **options)  # type: ignore[arg-type]
        made.append(spool)
        return spool

    yield make
    for spool in made:
        spool.close()


@pytest.fixture(name="seg")
def _seg(tmp_path: Path) -> Path:
    return tmp_path / "spool" / IDENTITY / "seg"


def begin_days_ago(make: Make, clock: Clock, wall: Wall, days: float = 30.0) -> None:
    """Begin the spool in the past, by clocks that were not set since: ages are known from then on."""
    clock.now -= days * DAY
    wall.now -= days * DAY
    make().close()
    clock.now += days * DAY
    wall.now += days * DAY


def place(
    seg: Path, rank: int, order: int, envelopes: list[SealedEnvelope], created_ms: int = NOW_MS
) -> Path:
    """Write the segment of a dead process; `order` is its age."""
    salt = bytes([rank, order] * 4)
    name = SegmentName(rank, created_ms * 1_000_000 + order, 42, salt)
    path = seg / str(name)
    path.write_bytes(
        segment_header(name) + b"".join(record(each, salt=salt, created_ms=created_ms) for each in envelopes)
    )
    return path


def test_what_is_over_the_bytes_goes_lowest_class_and_oldest_first(make: Make, seg: Path) -> None:
    """Logs are given up before errors, however old these are; each loss is counted by category."""
    spool = make(max_bytes=40_000)
    old_error = place(seg, 4, 0, [event(1, "x" * 9000)])
    logs = [place(seg, 1, order, [log_entry(order) for _ in range(40)]) for order in (1, 2, 3, 4)]
    spool.claim(0, 0.0)
    assert old_error.exists()
    assert [path.exists() for path in logs] == [False, False, True, True]
    assert {category: n for _, category, n in spool.take_losses()}["log_item"] == 80
    assert spool.facts().status is not None
    assert spool.facts().status.evicted == 80  # type: ignore[union-attr]


def test_what_is_in_flight_or_written_to_is_never_sacrificed(make: Make, seg: Path) -> None:
    """A claimed envelope may be under way and would be both delivered and lost; a writer may append more."""
    spool = make(max_bytes=20_000)
    claimed = place(seg, 4, 0, [event(1, "x" * 15_000)])
    assert len(spool.claim(1, 0.0)) == 1
    live = place(seg, 1, 1, [event(2, "x" * 15_000)])
    with live.open("ab") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        spool._current().maintenance._next = 0.0  # type: ignore[union-attr]
        spool.claim(0, 0.0)
        assert claimed.exists()
        assert live.exists()


def test_what_a_writer_left_between_the_last_look_and_its_end_survives_an_eviction(
    make: Make, seg: Path
) -> None:
    """A writer may append until the drainer has its lock, so the size is read again after that."""
    spool = make(max_bytes=20_000)
    live = place(seg, 4, 0, [event(1)])
    salt = bytes([4, 0] * 4)
    with live.open("ab") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert drained(spool) == ids(1)
        writer.write(record(event(2), salt=salt, created_ms=NOW_MS))
    victim = place(seg, 1, 1, [log_entry(n) for n in range(200)])
    for _ in range(2):
        spool._current().maintenance._next = 0.0  # type: ignore[union-attr]
        spool.claim(0, 0.0)
    assert not victim.exists()
    assert drained(spool) == ids(2)


def test_what_waits_for_its_next_attempt_can_be_sacrificed(make: Make, seg: Path, clock: Clock) -> None:
    """During an outage there is nothing else; the lane of a session that is given up is free again."""
    spool = make(max_bytes=4_000)
    place(seg, 3, 0, [session(1)] * 2)
    spool.release(spool.claim(1, 0.0), clock.now + 3600)
    place(seg, 3, 1, [session(n) for n in range(2, 34)])
    clock.now += 10
    spool.claim(0, 0.0)
    assert sum(n for _, _, n in spool.take_losses()) >= 2
    assert spool.stats().claimed == 0


def test_a_hole_in_a_segment_costs_no_envelope_and_no_time(make: Make, seg: Path, clock: Clock) -> None:
    """After `truncate -s 200G` the records are delivered, the hole is damage, and reading skips it."""
    system = Counting()
    spool = make(system=system)
    logs = place(seg, 1, 0, [log_entry(0)])
    errors = place(seg, 4, 1, [event(1), event(2)])
    os.truncate(errors, 200 << 30)
    late = place(seg, 4, 2, [event(3)])
    with errors.open("ab") as file:
        file.write(record(event(4), salt=bytes([4, 1] * 4)))
    system.calls.clear()
    assert spool.put(event(5)).accepted  # a writer does not take the spool for full either
    found = drained(spool)
    clock.now += 20
    found += drained(spool)
    assert system.calls["read"] < 100
    assert system.calls["bytes"] < 4 * SEARCH_STEP  # of the 200 GiB
    assert sorted(filter(None, found)) == ids(1, 2, 3, 4, 5)
    assert len(found) == 6
    assert [path.exists() for path in (logs, errors, late)] == [False] * 3
    status = spool.facts().status
    assert status is not None
    assert (status.damaged, status.evicted, status.pending, status.complete) == (1, 0, 0, True)


def test_noise_is_searched_while_others_are_delivered(make: Make, seg: Path, clock: Clock) -> None:
    """A file of noise with a segment's name must not delay other envelopes, or the end of the process."""
    spool = make()
    noise = place(seg, 4, 0, [event(1)])
    with noise.open("ab") as file:
        file.write(b"\x01" * (3 * SEARCH_STEP) + record(event(2), salt=bytes([4, 0] * 4)))
    place(seg, 4, 1, [event(3)])
    place(seg, 1, 1, [log_entry(1)])
    assert drained(spool) == [*ids(1, 3), None]
    spool.claim(0, 0.0)
    assert noise.exists()
    assert spool.stats().waiting == 0
    looks = 0
    while not (found := drained(spool)):
        looks += 1
        assert looks < 10
        clock.now += SEARCH_AGAIN
    assert found == ids(2)
    assert looks >= 2
    assert not noise.exists()
    clock.now += 20
    spool.claim(0, 0.0)
    status = spool.facts().status
    assert status is not None
    assert (status.damaged, status.pending, status.complete) == (1, 0, True)


def test_what_is_larger_than_all_may_be_goes_before_the_rest(make: Make, seg: Path) -> None:
    """Giving up others makes no room for it; the part that would take long to search is damage."""
    spool = make(max_bytes=2 * SEARCH_STEP)
    small = place(seg, 1, 0, [log_entry(0)])
    noise = place(seg, 4, 0, [event(1)])
    with noise.open("ab") as file:
        file.write(b"\x01" * (3 * SEARCH_STEP))
    spool.claim(0, 0.0)
    assert (small.exists(), noise.exists()) == (True, False)
    assert spool.take_losses() == (("cache_overflow", "error", 1),)
    status = spool.facts().status
    assert status is not None
    assert (status.damaged, status.evicted, status.pending) == (1, 1, 1)


def test_what_lies_behind_a_large_damaged_envelope_is_counted_when_it_is_given_up(
    make: Make, seg: Path
) -> None:
    """The records behind a damaged attachment of some megabytes are intact."""
    spool = make(max_bytes=SEARCH_STEP)
    large = place(seg, 4, 0, [event(1)])
    with large.open("ab") as file:
        file.write(b"\x01" * (2 * SEARCH_STEP) + record(event(2), salt=bytes([4, 0] * 4)))
    spool.claim(0, 0.0)
    assert not large.exists()
    assert spool.take_losses() == (("cache_overflow", "error", 2),)


def test_a_number_of_envelopes_is_a_bound_too(make: Make, seg: Path) -> None:
    """Whole segments are given up, so the bound is exact to a segment."""
    spool = make(max_count=10)
    for order in range(4):
        place(seg, 4, order, [event(order * 10 + n) for n in range(5)])
    spool.claim(0, 0.0)
    assert len(drained(spool)) == 10
    assert spool.take_losses() == ((LossReason.CACHE_OVERFLOW.value, "error", 10),)


def test_what_is_too_old_is_given_up_and_counted(make: Make, seg: Path, clock: Clock, wall: Wall) -> None:
    """Old errors are of no use; segments that contain nothing else are not read."""
    begin_days_ago(make, clock, wall)
    spool = make()
    old = NOW_MS - int(8 * DAY * 1000)
    whole = place(seg, 1, 0, [log_entry(1)], created_ms=old)
    os.utime(whole, ns=(old * 1_000_000, old * 1_000_000))
    place(seg, 4, 0, [event(1), event(2)], created_ms=old)  # written to until now
    place(seg, 4, 1, [event(3)])
    assert drained(spool) == ids(3)
    assert not whole.exists()
    assert sorted(spool.take_losses())[0] == (LossReason.CACHE_OVERFLOW.value, "error", 2)


def test_what_is_young_in_an_old_segment_is_not_given_up_with_it(
    make: Make, seg: Path, clock: Clock, wall: Wall
) -> None:
    """A process that writes little uses one file for weeks, and its name is as old as its first record."""
    begin_days_ago(make, clock, wall)
    spool = make()
    old = NOW_MS - int(8 * DAY * 1000)
    path = place(seg, 4, 0, [event(1)], created_ms=old)
    with path.open("ab") as file:
        file.write(record(event(2), salt=bytes([4, 0] * 4), created_ms=NOW_MS))
    assert drained(spool) == ids(2)
    assert spool.take_losses() == ((LossReason.CACHE_OVERFLOW.value, "error", 1),)


def test_a_jump_of_the_clock_costs_nothing(make: Make, seg: Path, clock: Clock, wall: Wall) -> None:
    """After somebody set the clock, ages are ignored until every earlier record really is too old."""
    spool = make()
    spool.claim(0, 0.0)
    place(seg, 4, 0, [event(1)])
    wall.now += 400 * DAY
    clock.now += 1
    assert drained(spool) == ids(1)
    assert spool.take_losses() == ()


def test_ages_are_believed_again_after_a_while() -> None:
    """A jump during a time without a drainer is noticed, too, within one boot."""
    clock, wall = Clock(), Wall()
    before = SpoolStatus(boot="b", at=clock.now, wall=wall.now)
    ages = Ages(7 * DAY, clock=clock, wall=wall, before=before, boot="b")
    assert ages.oldest_ms == int((wall.now - 7 * DAY) * 1000)
    wall.now += 2 * DAY
    assert ages.look() == 0
    for passing in (1.0, 6 * DAY):
        clock.now += passing
        wall.now += passing
        assert ages.look() == 0
    clock.now += DAY
    wall.now += DAY
    assert ages.look() == int((wall.now - 7 * DAY) * 1000)
    before = SpoolStatus(boot="b", at=clock.now, wall=wall.now - 3 * DAY)
    assert Ages(DAY, clock=clock, wall=wall, before=before, boot="b").oldest_ms == 0
    before = SpoolStatus(boot="b", at=clock.now, wall=wall.now)
    assert Ages(DAY, clock=clock, wall=wall, before=before, boot="b").oldest_ms > 0


def test_writers_refuse_when_nobody_evicts(make: Make, seg: Path, clock: Clock) -> None:
    """Without a drainer the spool must not fill the disk."""
    writer = make(drain=False, max_bytes=300_000)
    accepted = sum(writer.put(event(n, "x" * 9000)).accepted for n in range(100))
    assert 20 < accepted < 60
    assert sum(path.stat().st_size for path in seg.glob("*.log")) <= 300_000 * 9 / 8 + 40_000
    for path in seg.glob("*.log"):
        path.unlink()
    clock.now += 1
    assert writer.put(event(1)).accepted


def test_a_record_that_no_reader_would_take_is_not_written(tmp_path: Path) -> None:
    """Readers accept heads and bodies up to a limit, so writers refuse larger ones."""
    directory = open_directory(System(), str(tmp_path / "s"), IDENTITY)
    writer = Writer(directory, segment_bytes=1 << 20, max_bytes=1 << 30)
    with pytest.raises(OSError, match="large"):
        writer.append(0, 4, b"x" * (1 << 21), (), 0)
    writer.close()
    directory.close()
    assert issubclass(Full, Exception)


def test_dead_letters_are_bounded_and_their_names_are_ours(tmp_path: Path) -> None:
    """An event id is untrusted input; it becomes a file name only if it has the form of one."""
    directory = open_directory(System(), str(tmp_path / "s"), IDENTITY)

    def letter(event_id: str | None, size: int = 300) -> bool:
        return bury(
            directory,
            b"x" * size,
            event_id=event_id,
            reason="poison",
            attempts=3,
            created_ms=1,
            buried_ms=2,
            quantities=(("error", 1),),
            max_bytes=2000,
        )

    assert letter("../../../etc/passwd")
    assert letter(None)
    for number in range(6):
        assert letter(f"{number:032x}")
    assert count(directory) == 4
    names = os.listdir(tmp_path / "s" / IDENTITY / "dead")
    assert f"{5:032x}.json" in names
    assert not [name for name in names if "passwd" in name or name.startswith(".")]
    assert len(names) == 2 * 4, "what is known of a letter goes with it"
    assert not letter(None, 3000)
    directory.close()
    assert count(directory) == 0
    assert not letter(None)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"pid": "x"}', b'{"pending": -1}', b'{"oldest": true}', b"\xff" * 70_000],
)
def test_a_status_that_can_not_be_believed_is_none(tmp_path: Path, content: bytes) -> None:
    """The file is advisory, and validated like any other."""
    directory = open_directory(System(), str(tmp_path / "s"), IDENTITY)
    (tmp_path / "s" / IDENTITY / "status.json").write_bytes(content)
    assert read_status(directory) is None
    status = SpoolStatus(pid=1, pending=3, oldest=1.5, boot="x")
    assert publish(directory, status)
    assert read_status(directory) == status
    directory.close()
    assert not publish(directory, status)


def test_many_segments_cost_one_look_at_each_before_the_first_delivery(make: Make, seg: Path) -> None:
    """A long outage leaves thousands of files: each is opened once, however often the spool looks."""
    system = Counting()
    spool = make(system=system)
    number = 1000
    for order in range(number):
        salt = order.to_bytes(8, "big")
        name = SegmentName(4, NOW_MS * 1_000_000 + order, 42, salt)
        (seg / str(name)).write_bytes(segment_header(name) + record(event(order), salt=salt))
    system.calls.clear()
    (claim,) = spool.claim(1, 0.0)
    assert claim.sealed.event_id == ids(0)[0]
    assert spool.claim(0, 0.0) == []
    assert system.calls["open"] < 2 * number + 20  # the segment and its ack log
    assert system.calls["read"] < 2 * number + 20  # the header and the first records
    assert system.calls["status"] < number + 20


def test_a_clock_that_was_set_back_makes_nothing_younger_than_now(
    make: Make, seg: Path, clock: Clock, wall: Wall
) -> None:
    """An envelope from the future would never be old, and its age would be a negative number in health."""
    spool = make()
    spool.claim(0, 0.0)
    place(seg, 4, 0, [event(1)])
    wall.now -= 3600
    clock.now += 2
    (claim,) = spool.claim(1, 0.0)
    assert claim.put_at == clock.now
    assert spool.stats().oldest_put_at == clock.now
    assert spool.describe()["oldest_age"] == 0.0
    assert spool.take_losses() == ()


@pytest.mark.parametrize("max_age", [3.0, 3600.0, 7 * DAY])
def test_small_steps_of_the_clock_are_accepted_until_they_add_up(max_age: float) -> None:
    """Reading two clocks takes a moment; and many small steps are one large one."""
    clock, wall = Clock(), Wall()
    before = SpoolStatus(boot="b", at=clock.now, wall=wall.now)
    ages = Ages(max_age, clock=clock, wall=wall, before=before, boot="b")
    wall.now -= tolerance(max_age) * 0.9
    assert ages.look() == int((wall.now - max_age) * 1000)
    wall.now -= tolerance(max_age) * 0.9
    assert ages.look() == 0


def test_credentials_of_another_user_are_not_believed(tmp_path: Path) -> None:
    """Whoever can write them decides where reports go; whoever can read them can send as the app."""
    dsn = Dsn.parse("https://0123456789abcdef0123456789abcdef@sentry.example/42")
    identity = identity_of(dsn)
    directory = open_directory(System(), str(tmp_path / "s"), identity)
    assert read_credentials(directory, identity) is None
    store_credentials(directory, dsn.reveal())
    assert read_credentials(directory, identity) == dsn
    file = tmp_path / "s" / identity / "dsn"
    for mode in (0o640, 0o604, 0o610):
        file.chmod(mode)
        with pytest.raises(OptionsError, match="ours alone"):
            read_credentials(directory, identity)
    file.chmod(0o600)

    class Stranger(System):
        def user(self) -> int:
            return super().user() + 1

    directory.system = Stranger()
    with pytest.raises(OptionsError, match="ours alone"):
        read_credentials(directory, identity)
    directory.close()


def test_what_is_too_old_as_a_whole_is_counted_by_heads_alone(
    make: Make, seg: Path, clock: Clock, wall: Wall
) -> None:
    """After a long outage there are gigabytes of it; to read them would take the time of what can be sent."""
    begin_days_ago(make, clock, wall)
    system = Counting()
    spool = make(system=system)
    old = NOW_MS - int(8 * DAY * 1000)
    path = place(seg, 4, 0, [event(number, "x" * 500_000) for number in range(3)], created_ms=old)
    os.utime(path, ns=(old * 1_000_000, old * 1_000_000))
    assert drained(spool) == []
    assert not path.exists()
    assert spool.take_losses() == ((LossReason.CACHE_OVERFLOW.value, "error", 3),)
    assert system.calls["bytes"] < 900_000


@pytest.mark.parametrize(
    ("kind", "head", "lost"),
    [
        (RecordKind.ENVELOPE, b"[]", ()),
        (RecordKind.ENVELOPE, b'[null,9,[["event",1,2,"error",[["error",3]]]]]', (("error", 3),)),
        (RecordKind.LOSSES, b'[["reason","error",-1]]', ()),
    ],
)
def test_a_whole_record_that_no_writer_of_ours_wrote_is_damage_once(
    make: Make,
    seg: Path,
    clock: Clock,
    kind: RecordKind,
    head: bytes,
    lost: tuple[tuple[str, int], ...],
) -> None:
    """Its checksums fit and its content does not: what its head names is lost, what follows is delivered."""
    spool = make()
    salt = bytes([4, 0] * 4)
    path = place(seg, 4, 0, [event(1)])
    with path.open("ab") as file:
        file.write(b"".join(record_parts(Salt.of(salt), kind, 4, NOW_MS, head, (b"body",), 4)))
        file.write(record(event(2), salt=salt))
    assert drained(spool) == ids(1, 2)
    assert spool.take_losses() == tuple(("internal_sdk_error", category, n) for category, n in lost)
    clock.now += 2
    spool.claim(0, 0.0)
    assert spool.describe()["damaged"] == 1
    assert spool.stats().waiting == 0
    assert not path.exists()


def test_a_record_that_was_damaged_while_it_waited_for_its_next_attempt_is_counted_once(
    make: Make, seg: Path, clock: Clock
) -> None:
    """It was whole when it was read first; what it cost is known from then."""
    spool = make()
    path = place(seg, 4, 0, [event(1, "x" * 300_000), event(2)])
    (claim,) = spool.claim(1, 0.0)
    spool.release([claim], clock.now + 1)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    clock.now += 2
    assert drained(spool) == ids(2)
    assert spool.take_losses() == (("internal_sdk_error", "error", 1),)
    clock.now += 2
    spool.claim(0, 0.0)
    assert spool.describe()["damaged"] == 1
    assert not path.exists()


def test_without_options_a_spool_has_room_for_an_outage(make: Make) -> None:
    """Half a gigabyte on the disk, and in memory what a broken disk may need."""

    class Broken(System):
        def create(self, name: str, within: int) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    make().close()
    spool = make(system=Broken())
    stats = spool.stats()
    assert (stats.max_bytes, stats.max_items) == (512 * 1024 * 1024, 4 * 1024 * 1024)
    draw = random.Random(0)
    for number in range(4):
        assert spool.put(event(number, draw.randbytes(400_000).hex())).accepted
    assert spool.facts().in_memory == 4
