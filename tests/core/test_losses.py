"""Quantities: how much of each data category something is, and the arithmetic on it."""

import copy
import pickle
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport_kit.envelope.losses import Quantities

PAIRS = st.lists(st.tuples(st.sampled_from(["error", "span", "log_byte"]), st.integers(0, 5)))


def test_quantities_are_the_pairs_that_users_iterate() -> None:
    """They have always been a tuple of pairs: equal to one, hashed as one, and accepted by `dict`."""
    quantities = Quantities([("transaction", 1), ("span", 4)])
    assert hash(quantities) == hash((("transaction", 1), ("span", 4)))
    assert quantities.by_category == dict(quantities) == {"transaction": 1, "span": 4}
    assert quantities.total == 5
    assert quantities == (("transaction", 1), ("span", 4))


def test_a_category_is_there_once_and_only_when_something_is_counted() -> None:
    """A client report has one entry per category, and none of zero, which some servers refuse."""
    assert Quantities([("span", 1), ("error", 0), ("span", 2)]) == (("span", 3),)
    assert Quantities({"error": 2, "span": -1}.items()) == (("error", 2),)
    assert not Quantities()
    assert not Quantities([("error", 0)])


def test_a_sum_has_the_categories_in_the_order_of_their_first_part() -> None:
    """People compare logs and reports: the order must not change from run to run."""
    transaction = Quantities([("transaction", 1), ("span", 4)])
    more = Quantities([("attachment", 3), ("span", 1)])
    total = transaction + more
    assert total == (("transaction", 1), ("span", 5), ("attachment", 3))
    assert isinstance(total, Quantities)
    assert Quantities.sum([transaction, Quantities(), total]) == (
        ("transaction", 2),
        ("span", 9),
        ("attachment", 3),
    )
    assert Quantities.sum([]) == ()


def test_the_sum_of_one_part_is_that_part() -> None:
    """Most envelopes hold one item that is counted; summing them must not cost a copy in each capture."""
    part = Quantities([("error", 1)])
    assert Quantities.sum([part, Quantities()]) is part


def test_a_difference_takes_away_no_more_than_there_is() -> None:
    """A limit may name a category that the envelope never contained, which must not be counted elsewhere."""
    held = Quantities([("error", 1), ("attachment", 10)])
    assert held - (("attachment", 4), ("span", 1)) == (("error", 1), ("attachment", 6))
    assert held - (("error", 3),) == (("attachment", 10),)
    assert held - () is held
    assert held - held == ()
    assert isinstance(held - held, Quantities)


@given(PAIRS, PAIRS)
def test_what_is_added_can_be_taken_away(some: list[tuple[str, int]], more: list[tuple[str, int]]) -> None:
    """`+` and `-` are each other's inverse, and neither makes a count out of nothing."""
    first, second = Quantities(some), Quantities(more)
    total = first + second
    assert (total - second).by_category == first.by_category
    assert total.total == first.total + second.total
    assert all(count > 0 for _, count in total)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))]
)
def test_quantities_are_copied_as_such(copied: Callable[[Quantities], Quantities]) -> None:
    """Health and sealed envelopes are copied, and sent between processes by a test runner."""
    quantities = Quantities([("error", 1)])
    assert copied(quantities) == quantities
    assert type(copied(quantities)) is Quantities
