"""The books of a worker: tickets, counts and the schedule of reports."""

from __future__ import annotations

import threading

import pytest

from tests.core.worker_support import Clock, event, quick, session
from tests.timing import SOON
from transport_kit.envelope.losses import LossReason, Quantities
from transport_kit.queues.protocol import Claim, Put
from transport_kit.runtime.lock import StateLock
from transport_kit.transport.worker.books import Books
from transport_kit.transport.worker.outcome import Outcome, Ticket, WorkerState

EVENT = (("error", 1),)


def books(clock: Clock | None = None, *, shared: bool = False, **options: object) -> Books:
    return Books(StateLock(), shared, quick(client_report_interval=30.0, **options), clock or Clock())


def test_new_books_count_nothing_and_want_nothing() -> None:
    """Before the first capture nothing is pending and no report is due."""
    made, ticket = books(), Ticket()
    assert (made.state, made.last_drop, made.tickets) == (WorkerState.NEW, None, [])
    assert (made.report_wanted, made.reporting, made.transfers_in_progress) == (False, False, 0)
    assert (ticket.last, ticket.remaining, ticket.delivered, ticket.discarded) == (0, 0, 0, 0)


def test_a_flush_waits_for_what_was_put_before_it_and_for_nothing_else() -> None:
    """Otherwise later captures would keep a flush waiting under load."""
    made = books()
    first, second = Ticket(last=2, remaining=2), Ticket(last=3, remaining=3)
    made.tickets += [first, second]
    made.settle_ticket(Claim(3, event()), delivered=True)
    assert (first.remaining, first.delivered, first.discarded) == (2, 0, 0)
    assert (second.remaining, second.delivered, second.discarded) == (2, 1, 0)
    made.settle_ticket(Claim(2, event()), delivered=False)
    made.settle_ticket(Claim(4, event()), delivered=True)
    assert (first.remaining, first.delivered, first.discarded) == (1, 0, 1)
    assert (second.remaining, second.delivered, second.discarded) == (1, 1, 1)


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_whoever_waits_is_woken_by_the_last_of_its_envelopes(order: tuple[int, int]) -> None:
    """Also if another ticket has envelopes remaining."""
    made = books()
    tickets = [Ticket(last=1, remaining=1), Ticket(last=9, remaining=2)]
    made.tickets += [tickets[n - 1] for n in order]
    waiting = threading.Event()
    woken: list[bool] = []

    def wait() -> None:
        with made.settled:
            waiting.set()
            woken.append(made.settled.wait(SOON))

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(SOON)
    with made.settled:
        made.settle_ticket(Claim(1, event()), delivered=True)
    thread.join(SOON)
    assert woken == [True]


def test_only_a_loss_that_nobody_wished_for_is_one_to_look_at() -> None:
    """The app intends losses by sampling, hooks and the end; health warns of all others."""
    clock = Clock()
    wanted = (
        LossReason.SAMPLE_RATE,
        LossReason.BACKPRESSURE,
        LossReason.BEFORE_SEND,
        LossReason.EVENT_PROCESSOR,
        LossReason.IGNORED,
        LossReason.CLOSED,
        LossReason.KILLED,
    )
    for reason in LossReason:
        for lose in (Books.lose, Books.discard):
            made = books(clock)
            lose(made, reason, EVENT)
            assert made.last_drop == (None if reason in wanted else clock.now), reason


def test_what_a_full_queue_in_memory_gives_up_was_captured_before() -> None:
    """The one that is refused is lost in one step; the one that makes room was pending, and somebody may
    wait for it."""
    made = books()
    ticket = Ticket(last=1, remaining=1)
    made.tickets.append(ticket)
    made.count_put(EVENT, Put(True))
    assert made.state is WorkerState.RUNNING
    with made.settled:
        made.count_put((("session", 1),), Put(True, (Claim(1, event()),)))
    made.count_put((("log_item", 1),), Put(False))
    totals = made.ledger.snapshot()
    assert totals.captured == {"error": 1, "session": 1, "log_item": 1}
    assert totals.discarded == {"queue_overflow": {"error": 1, "log_item": 1}}
    assert totals.stored_in_shared == totals.claimed_from_shared == {}
    assert (ticket.remaining, ticket.discarded) == (0, 1)


def test_what_a_full_shared_queue_gives_up_was_stored_before() -> None:
    """The envelope may be of any process: it is claimed and discarded, and no flush waits for it."""
    made = books(shared=True)
    made.state = WorkerState.DRAINING
    ticket = Ticket(last=1, remaining=1)
    made.tickets.append(ticket)
    made.count_put((("session", 1),), Put(True, (Claim(1, event()),)))
    made.count_put((("log_item", 1),), Put(False))
    totals = made.ledger.snapshot()
    assert made.state is WorkerState.DRAINING
    assert totals.captured == {"session": 1, "log_item": 1}
    assert totals.stored_in_shared == {"session": 1}
    assert totals.claimed_from_shared == {"error": 1}
    assert totals.discarded == {"cache_overflow": {"error": 1, "log_item": 1}}
    assert ticket.remaining == 1
    made.forget_stored([Claim(2, session())], LossReason.INTERNAL_SDK_ERROR)
    totals = made.ledger.snapshot()
    assert totals.claimed_from_shared == {"error": 1, "session": 1}
    assert totals.discarded["internal_sdk_error"] == {"session": 1}


def test_each_part_of_an_envelope_is_settled_once() -> None:
    """Quantities left out have their own reasons, the rest has that of the outcome."""
    claim = Claim(1, event().with_items([]))
    made = books()
    left_out = Outcome().with_lost(LossReason.RATELIMIT_BACKOFF, (("error", 1),))
    left_out = left_out.with_lost(LossReason.SEND_ERROR, (("error", 3), ("span", 2)))
    made.settle(claim, left_out)
    totals = made.ledger.snapshot()
    assert totals.discarded == {"ratelimit_backoff": {"error": 1}}
    assert totals.delivered == {}
    ticket = Ticket(last=1, remaining=3)
    made.tickets.append(ticket)
    made.settle(claim, Outcome())
    assert (ticket.remaining, ticket.delivered, ticket.discarded) == (2, 1, 0)
    made.settle(claim, Outcome(LossReason.SEND_ERROR))
    assert (ticket.remaining, ticket.delivered, ticket.discarded) == (1, 1, 1)
    totals = made.ledger.snapshot()
    assert (totals.delivered, totals.discarded["send_error"]) == ({"error": 1}, {"error": 1})


def test_a_part_of_a_quantity_is_left_out_and_the_rest_delivered() -> None:
    """A limit concerns a category; an envelope may contain several items of it."""
    sealed = event()
    sealed.quantities = Quantities([("error", 1), ("attachment", 10)])
    made = books()
    made.settle(
        Claim(1, sealed), Outcome().with_lost(LossReason.RATELIMIT_BACKOFF, (("attachment", 4), ("span", 1)))
    )
    totals = made.ledger.snapshot()
    assert totals.discarded == {"ratelimit_backoff": {"attachment": 4}}
    assert totals.delivered == {"error": 1, "attachment": 6}


# -- client reports ----------------------------------------------------------------------------------------


def test_a_report_is_due_when_its_interval_is_over_or_somebody_wants_it() -> None:
    """No report is due while another one is under way."""
    clock = Clock()
    made = books(clock)
    assert not made.report_due(clock.now + 100)
    assert made.until_due(clock.now + 100) == 30.0
    made.lose(LossReason.SEND_ERROR, EVENT)
    assert not made.report_due(clock.now + 29.5)
    assert made.report_due(clock.now + 30.0)
    assert made.until_due(clock.now + 10) == 20.0
    assert made.until_due(clock.now + 60) == 0.05
    made.report_wanted = True
    assert made.report_due(clock.now)
    made.reporting = True
    assert not made.report_due(clock.now + 100)
    assert made.report_wanted


def test_a_wish_for_a_report_of_nothing_is_forgotten() -> None:
    """Otherwise a flush would wait for a report that is never sent."""
    made = books()
    made.report_wanted = True
    assert not made.report_due(0.0)
    assert not made.report_wanted


@pytest.mark.parametrize(
    ("passed", "alone", "wanted", "taken"),
    [
        (29.5, False, False, False),
        (30.0, False, False, True),
        (0.0, True, False, True),
        (0.0, False, True, True),
    ],
)
def test_a_report_rides_along_once_an_interval(passed: float, alone: bool, wanted: bool, taken: bool) -> None:
    """Otherwise the server would get one more item per loss."""
    clock = Clock()
    made = books(clock)
    made.lose(LossReason.SEND_ERROR, EVENT)
    made.report_wanted = wanted
    clock.now += passed
    assert made.take_report(alone=alone) == ((("send_error", "error", 1),) if taken else ())
    assert made.unreported is not taken
    assert not made.report_wanted
    made.lose(LossReason.SEND_ERROR, EVENT)
    clock.now += 29.0
    assert bool(made.take_report(alone=False)) is (not taken and passed + 29.0 >= 30.0)


def test_what_a_request_carried_comes_back_once() -> None:
    """The losses are given back by the failure of the request, or by the worker's end, not by both."""
    made = books()
    made.lose(LossReason.SEND_ERROR, EVENT)
    report = made.attach_report(alone=True)
    assert report == (("send_error", "error", 1),)
    made.give_back(report)
    assert made.take_unreported() == report
    assert made.take_unreported() == ()
    made.lose(LossReason.SEND_ERROR, EVENT)
    made.attach_report(alone=True)
    made.lose(LossReason.NETWORK_ERROR, EVENT)
    assert sorted(made.take_unreported()) == [("network_error", "error", 1), ("send_error", "error", 1)]
    made.lose(LossReason.SEND_ERROR, EVENT)
    made.attach_report(alone=True)
    made.end_request()
    made.end_request()
    assert made.take_unreported() == ()


def test_without_client_reports_nothing_is_there_to_tell() -> None:
    """Losses are counted even if they are not reported."""
    made = books(send_client_reports=False)
    made.lose(LossReason.SEND_ERROR, EVENT)
    assert not made.unreported
    assert made.take_unreported() == ()
    assert made.ledger.snapshot().discarded == {"send_error": {"error": 1}}


def test_a_report_that_went_alone_begins_the_interval_anew() -> None:
    """Also if the report was empty; a waiting flush continues."""
    clock = Clock()
    made = books(clock)
    made.reporting = made.report_wanted = True
    made.lose(LossReason.SEND_ERROR, EVENT)
    clock.now += 100
    with made.settled:
        made.end_report(clock.now)
    assert (made.reporting, made.report_wanted) == (False, False)
    assert not made.report_due(clock.now + 29.5)
    assert made.report_due(clock.now + 30.0)
