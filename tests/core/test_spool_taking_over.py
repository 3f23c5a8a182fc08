"""Who drains a spool, and what is known of it when that changes: processes on a disk in memory."""

from __future__ import annotations

import pytest

from tests.core.spool_disk import Place
from tests.core.spool_support import drained, event, ids
from transport_kit.spool.duty import PUTS_A_CANDIDACY


@pytest.fixture(name="place")
def _place() -> Place:
    return Place()


def test_an_app_leaves_the_drain_to_a_forwarder_that_comes(place: Place) -> None:
    """With a forwarder app processes only write; what is in their hands they bring to an end first."""
    app = place.spool()
    for number in range(3):
        app.put(event(number))
    (in_hand,) = app.claim(1, 0.0)
    forwarder = place.spool(forwarder=True)
    assert forwarder.claim(1, 0.0) == []
    place.clock.now += 2
    assert app.claim(1, 0.0) == []
    assert app.facts().draining, "it still has one in hand"
    app._life.drainer.absorb((("queue_overflow", "error", 4),))  # type: ignore[union-attr]
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
    """Envelopes pile up, and a health page must say why."""
    spool = place.spool()
    spool.put(event(1))
    spool.claim(1, 0.0)
    assert spool.describe()["problems"] == []
    writer = place.spool(drain=False)
    assert writer.describe()["problems"] == []


def test_what_others_delivered_is_not_waited_for_after_taking_over(place: Place) -> None:
    """A writer knows what it wrote; a flush until all is delivered must not wait for what is long gone."""
    drainer = place.spool()
    drainer.claim(0, 0.0)
    writer = place.spool(segment_bytes=1)
    for number in range(8):
        writer.put(event(number, "x" * 9000))
    assert len(drained(drainer)) == 8
    writer.claim(0, 0.0)  # closes what is full
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
    """A busy process need not come to its claims: the drain is taken over all the same."""
    drainer = place.spool()
    drainer.claim(0, 0.0)
    writer = place.spool()
    writer.claim(0, 0.0)
    place.die(drainer)
    for number in range(PUTS_A_CANDIDACY):
        writer.put(event(number))
    assert not writer._life.election.held, "it ran a moment ago"  # type: ignore[union-attr]
    place.clock.now += 0.2
    for number in range(PUTS_A_CANDIDACY):
        writer.put(event(number))
    assert writer._life.election.held  # type: ignore[union-attr]
    assert writer.claim(1, 0.0)


def test_what_was_released_is_not_suspected_by_the_next_drainer(place: Place) -> None:
    """It outlived its attempt: the death that came later was not its own, and it goes with the others."""
    first = place.spool()
    for number in range(3):
        first.put(event(number))
    first.release(first.claim(2, 0.0), place.clock.now + 60)
    place.die(first)
    place.clock.now += 2
    assert len(place.spool().claim(5, 0.0)) == 3
