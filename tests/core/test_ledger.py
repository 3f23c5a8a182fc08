"""The ledger: the totals of every item, and the losses to report."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport_kit.envelope.losses import LossReason, Quantities
from transport_kit.transport.worker.ledger import Ledger, LedgerSnapshot

ONE = Quantities([("error", 1)])
TRANSACTION = Quantities([("transaction", 1), ("span", 3)])
LOCAL = {"closed", "killed", "rate_limited", "reentrant", "misconfigured", "disabled"}


def test_an_item_moves_from_captured_to_where_it_ended() -> None:
    """Health shows these totals."""
    ledger = Ledger()
    for _ in range(3):
        ledger.capture(TRANSACTION)
    ledger.deliver(TRANSACTION)
    ledger.discard(LossReason.SEND_ERROR, TRANSACTION)
    totals = ledger.snapshot()
    assert totals.captured == {"transaction": 3, "span": 9}
    assert totals.delivered == {"transaction": 1, "span": 3}
    assert totals.discarded == {"send_error": {"transaction": 1, "span": 3}}
    assert totals.settled("span") == 6
    assert totals.settled("error") == 0


def test_what_is_lost_at_the_door_counts_as_captured_too() -> None:
    """Otherwise more items would be lost than captured."""
    ledger = Ledger()
    ledger.lose(LossReason.QUEUE_OVERFLOW, ONE)
    totals = ledger.snapshot()
    assert totals.captured == {"error": 1}
    assert totals.settled("error") == 1


def test_a_shared_queue_has_its_own_columns() -> None:
    """Items put or claimed by another process are neither captured nor lost in this one."""
    ledger = Ledger()
    ledger.store(ONE)
    ledger.claim(ONE)
    ledger.give_up_claim(ONE)
    totals = ledger.snapshot()
    assert (totals.stored_in_shared, totals.claimed_from_shared, totals.returned_to_shared) == (
        {"error": 1},
        {"error": 1},
        {"error": 1},
    )
    assert totals.settled("error") == 0


@pytest.mark.parametrize("reason", list(LossReason))
def test_a_reason_is_reported_unless_it_is_our_own(reason: LossReason) -> None:
    """Servers accept only known reasons, and have counted a 429 themselves."""
    ledger = Ledger()
    ledger.lose(reason, ONE)
    assert reason.reported is (reason.value not in LOCAL)
    assert ledger.unreported is reason.reported
    assert ledger.take_report() == (((reason.value, "error", 1),) if reason.reported else ())


def test_losses_are_taken_once_and_summed_by_reason_and_category() -> None:
    """A second report of the same loss would count it twice on the server."""
    ledger = Ledger()
    ledger.lose(LossReason.QUEUE_OVERFLOW, TRANSACTION)
    ledger.lose(LossReason.QUEUE_OVERFLOW, TRANSACTION)
    ledger.lose(LossReason.SEND_ERROR, ONE)
    assert set(ledger.take_report()) == {
        ("queue_overflow", "transaction", 2),
        ("queue_overflow", "span", 6),
        ("send_error", "error", 1),
    }
    assert ledger.take_report() == ()
    assert not ledger.unreported
    assert ledger.snapshot().settled("error") == 1, "reporting a loss does not undo it"


def test_what_is_given_back_joins_what_came_meanwhile() -> None:
    """The losses of an unanswered report are added to those of the next one."""
    ledger = Ledger()
    ledger.lose(LossReason.SEND_ERROR, ONE)
    taken = ledger.take_report()
    ledger.lose(LossReason.SEND_ERROR, ONE)
    ledger.give_back(taken)
    assert ledger.take_report() == (("send_error", "error", 2),)


def test_a_report_says_nothing_of_nothing() -> None:
    """A quantity of zero is useless, and some servers reject it."""
    ledger = Ledger()
    ledger.lose(LossReason.SEND_ERROR, (("error", 0),))
    assert ledger.take_report() == ()


def test_a_snapshot_does_not_change() -> None:
    """Health reads it without the lock."""
    ledger = Ledger()
    ledger.lose(LossReason.SEND_ERROR, ONE)
    totals = ledger.snapshot()
    ledger.lose(LossReason.SEND_ERROR, ONE)
    assert totals.captured == {"error": 1}
    assert totals.discarded == {"send_error": {"error": 1}}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["deliver", "discard", "keep", "lose"]),
            st.sampled_from(list(LossReason)),
            st.lists(
                st.tuples(st.sampled_from(["error", "span", "log_byte"]), st.integers(0, 9)), max_size=3
            ),
        )
    )
)
def test_captured_is_delivered_discarded_or_pending(
    history: list[tuple[str, LossReason, list[tuple[str, int]]]],
) -> None:
    """The invariant holds after any sequence of calls; giving a report back restores the losses."""
    ledger, pending, losses = Ledger(), Counter[str](), Counter[str]()
    for verb, reason, pairs in history:
        quantities = tuple(pairs)
        if verb == "lose":
            ledger.lose(reason, quantities)
        else:
            ledger.capture(quantities)
        if verb == "deliver":
            ledger.deliver(quantities)
        elif verb == "discard":
            ledger.discard(reason, quantities)
        for category, n in quantities:
            if verb == "keep":
                pending[category] += n
            elif verb != "deliver" and reason.reported:
                losses[category] += n
    totals = ledger.snapshot()
    for category, captured in totals.captured.items():
        assert captured == totals.settled(category) + pending[category]
    ledger.give_back(ledger.take_report())
    reported = Counter[str]()
    for _, category, n in ledger.take_report():
        reported[category] += n
    assert +reported == +losses


def test_pending_is_what_came_and_has_not_gone() -> None:
    """Items captured by this process, or claimed from a shared queue, by category."""
    totals = LedgerSnapshot(
        captured={"error": 9, "session": 2},
        delivered={"error": 1, "span": 1},
        discarded={"send_error": {"error": 1}, "closed": {"error": 1}},
        claimed_from_shared={"error": 4, "span": 6},
        stored_in_shared={"error": 2, "session": 2},
        returned_to_shared={"error": 1, "span": 2},
    )
    assert totals.pending == {"error": 7, "span": 3}
