"""Elections of the drainer, and the figures of processes when it changes, on a disk in memory."""

from __future__ import annotations

import pytest

from tests.core.spool_disk import IDENTITY, DiskSystem, Place
from tests.core.spool_support import drained, event, ids
from transport_kit.queues.spool import FileSpool
from transport_kit.queues.spool.directory import open_directory
from transport_kit.queues.spool.drain_loop import PUTS_A_CANDIDACY
from transport_kit.queues.spool.election import Election, holders


@pytest.fixture(name="place")
def _place() -> Place:
    return Place()


def test_an_app_leaves_the_drain_to_a_forwarder_that_comes(place: Place) -> None:
    """With a forwarder app processes only write, once their claimed envelopes are settled."""
    app = place.spool()
    for number in range(3):
        app.put(event(number))
    (in_hand,) = app.claim(1, 0.0)
    forwarder = place.spool(forwarder=True)
    assert forwarder.claim(1, 0.0) == []
    place.clock.now += 2
    assert app.claim(1, 0.0) == []
    assert app.facts().draining, "it still has one in hand"
    app._current().drainer.absorb((("queue_overflow", "error", 4),))  # type: ignore[union-attr]
    app.ack([in_hand])
    assert app.claim(1, 0.0) == []
    assert not app.facts().draining
    place.clock.now += 2
    assert drained(forwarder) == ids(1, 2)
    assert forwarder.take_losses() == (("queue_overflow", "error", 4),)
    place.clock.now += 2
    assert app.claim(1, 0.0) == []
    assert app.facts().drainer == forwarder._system.process()
    place.die(forwarder)
    app.put(event(5))
    place.clock.now += 2
    assert drained(app) == ids(5), "it comes back when the forwarder is gone"


def test_nobody_drains_is_said(place: Place) -> None:
    """Envelopes pile up, and health must show why."""
    spool = place.spool()
    spool.put(event(1))
    spool.claim(1, 0.0)
    assert spool.describe()["problems"] == []
    writer = place.spool(drain=False)
    assert writer.describe()["problems"] == []
    place.die(spool)
    writer.claim(0, 0.0)
    assert writer.describe()["problems"] == ["no process drains the spool"]


def test_a_process_that_only_writes_reports_the_one_that_drains(place: Place) -> None:
    """Its health must not report a missing drainer."""
    writer = place.spool(drain=False)
    drainer = place.spool()
    drainer.claim(0, 0.0)
    writer.claim(0, 0.0)
    assert writer.describe()["problems"] == []
    assert writer.facts().drainer == drainer._system.process()
    assert not writer.facts().draining
    place.die(drainer)
    place.clock.now += 1
    writer.claim(0, 0.0)
    assert writer.describe()["problems"] == ["no process drains the spool"]
    other = place.spool()
    other.claim(0, 0.0)
    place.clock.now += 1
    writer.claim(0, 0.0)
    assert writer.describe()["problems"] == []


def test_a_spool_that_only_writes_does_not_end_the_drain_of_another_in_its_process(place: Place) -> None:
    """Closing any descriptor of a lock file, even one opened to look at it, ends the process's lock."""
    system = DiskSystem(place.disk, 7)
    drainer = FileSpool("/spool", IDENTITY, system=system, clock=place.clock)
    writer = FileSpool("/spool", IDENTITY, system=system, clock=place.clock, drain=False)
    writer.claim(0, 0.0)
    drainer.claim(0, 0.0)
    place.clock.now += 1
    writer.claim(0, 0.0)
    assert writer.describe()["problems"] == []
    assert writer.facts().drainer == 7
    other = place.spool()
    other.claim(0, 0.0)
    assert other.facts().drainer == 7, "the lock is held"


def test_what_others_delivered_is_not_waited_for_after_taking_over(place: Place) -> None:
    """A new drainer knows what it wrote itself; a flush must not wait for envelopes delivered long ago."""
    drainer = place.spool()
    drainer.claim(0, 0.0)
    writer = place.spool(segment_bytes=1)
    for number in range(8):
        writer.put(event(number, "x" * 9000))
    assert len(drained(drainer)) == 8
    writer.claim(0, 0.0)  # closes full segments
    place.clock.now += 2
    assert drained(drainer) == []
    place.die(drainer)
    place.clock.now += 2
    assert writer.claim(1, 0.0) == []
    assert writer.facts().draining
    assert writer.stats().waiting == 0
    writer.put(event(9))
    assert writer.stats().waiting == 1
    assert drained(writer) == ids(9)


def test_a_process_that_puts_a_lot_runs_for_the_drain_meanwhile(place: Place) -> None:
    """A busy process may not reach its next claim, so puts try to become the drainer, too."""
    drainer = place.spool()
    drainer.claim(0, 0.0)
    writer = place.spool()
    writer.claim(0, 0.0)
    place.die(drainer)
    for number in range(PUTS_A_CANDIDACY):
        writer.put(event(number))
    assert not writer._current().election.draining, "it ran a moment ago"  # type: ignore[union-attr]
    place.clock.now += 0.2
    for number in range(PUTS_A_CANDIDACY):
        writer.put(event(number))
    assert writer._current().election.draining  # type: ignore[union-attr]
    assert writer.claim(1, 0.0)


def test_what_was_released_is_not_suspected_by_the_next_drainer(place: Place) -> None:
    """Its drainer survived the attempt and died later, so it is claimed with the others."""
    first = place.spool()
    for number in range(3):
        first.put(event(number))
    first.release(first.claim(2, 0.0), place.clock.now + 60)
    place.die(first)
    place.clock.now += 2
    assert len(place.spool().claim(5, 0.0)) == 3


def test_no_other_spool_of_the_process_ends_the_drain_of_the_first(place: Place) -> None:
    """Closing any descriptor of a lock file would end the lock, so no second one is opened."""
    system = DiskSystem(place.disk, 7)
    first, second, third = (FileSpool("/spool", IDENTITY, system=system, clock=place.clock) for _ in range(3))
    first.claim(0, 0.0)
    assert first.facts().drainer == 7
    second.claim(0, 0.0)
    second.close()
    third.claim(0, 0.0)
    assert not third.facts().draining
    directory = first._current().directory
    assert directory is not None
    assert holders(directory) == (7, None)
    third.close()
    other = place.spool()
    other.claim(0, 0.0)
    assert other.facts().drainer == 7
    assert first.facts().draining


def test_one_of_a_forked_child_s_spools_drains(place: Place) -> None:
    """It does not use its parent's election; one object of the child takes its place for all spools."""
    system = DiskSystem(place.disk, 7)
    spools = [FileSpool("/spool", IDENTITY, system=system, clock=place.clock) for _ in range(2)]
    spools[0].claim(0, 0.0)
    system.pid = 8
    for spool in spools:
        spool.claim(0, 0.0)
    assert [spool.facts().draining for spool in spools] == [True, False]


def test_what_nobody_has_looked_at_yet_may_wait(place: Place) -> None:
    """Right after the start, a flush must not take the spool for empty: its drainer may have been killed."""
    first = place.spool(drain=False)
    first.put(event(1))
    place.die(first)
    assert place.spool().stats().waiting == 1


def test_of_two_candidates_in_a_process_the_second_wins_when_the_first_has_resigned(place: Place) -> None:
    """The kernel's lock belongs to the process, so it can't decide between them."""
    system = DiskSystem(place.disk, 7)
    directory = open_directory(system, "/spool", IDENTITY)
    before = set(system.open_files)
    first, second = Election(directory), Election(directory)
    assert [first.attempt(), second.attempt(), first.attempt()] == [True, False, True]
    assert holders(directory) == (7, None)
    second.resign()
    assert not second.attempt(), "resigning what it never held takes nothing from the first"
    first.resign()
    assert second.attempt()
    assert not first.attempt()
    second.resign()
    assert set(system.open_files) == before
