"""Losses: their reasons, and their quantities by data category.

This module owns the reasons, and the types in which queues, the ledger and client reports exchange
quantities.

Source of the reasons: docs/protocol.md, section 6. Servers accept only the names on their list, so the
reasons of the second group are never reported.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from itertools import chain
from typing import Self, TypeAlias

__all__ = ["LossReason", "Pairs", "Quantities", "Report"]

#: Quantities in their plain form, `(data category, count)`; accepted wherever quantities are only read.
Pairs: TypeAlias = tuple[tuple[str, int], ...]

#: The losses of one client report: `(reason, category, quantity)`.
Report = tuple[tuple[str, str, int], ...]


class Quantities(tuple[tuple[str, int], ...]):
    """A count per data category, such as `(("transaction", 1), ("span", 4))`.

    A tuple of pairs, so it compares, hashes and iterates as one. Each category occurs once, in the order of
    its first occurrence, with a count above 0. The unit depends on the category: items, or bytes for
    `attachment`, `log_byte` and `trace_metric_byte`.

    Args:
        pairs: Data categories and counts. Counts of one category are added; a count of 0 or less is left out.
    """

    __slots__ = ()

    def __new__(cls, pairs: Iterable[tuple[str, int]] = ()) -> Self:
        counts: dict[str, int] = {}
        for category, count in pairs:
            counts[category] = counts.get(category, 0) + count
        return tuple.__new__(cls, [pair for pair in counts.items() if pair[1] > 0])

    @classmethod
    def unchecked(cls, *pairs: tuple[str, int]) -> Self:
        """Return quantities of distinct categories and counts above 0, without the checks."""
        return tuple.__new__(cls, pairs)

    @classmethod
    def sum(cls, parts: Iterable[Self]) -> Self:
        """Return the sum of all parts, by category."""
        filled = [part for part in parts if part]
        # The usual case in a capture: one item that is counted.
        if len(filled) == 1:
            return filled[0]
        counts: dict[str, int] = {}
        for part in filled:
            for category, count in part:
                counts[category] = counts.get(category, 0) + count
        return tuple.__new__(cls, counts.items())

    # `tuple.__add__` concatenates, so a category could appear twice in the result.
    def __add__(self, other: Iterable[tuple[str, int]]) -> Self:  # type: ignore[override]
        return type(self)(chain(self, other))

    def __radd__(self, other: Iterable[tuple[str, int]]) -> Self:
        return type(self)(chain(other, self))

    def __sub__(self, other: Iterable[tuple[str, int]]) -> Self:
        """Return what is left without `other`: no count falls below 0, and no category is added."""
        if not other:
            return self
        negated = [(category, -count) for category, count in other]
        return type(self)(chain(self, negated))

    @property
    def total(self) -> int:
        """The sum of all counts, whatever their units."""
        return sum(count for _, count in self)

    @property
    def by_category(self) -> dict[str, int]:
        """A new dict of the counts by category."""
        return dict(self)


class LossReason(StrEnum):
    """Reasons why an item was not delivered. The first group is reported to the server, the second is not."""

    QUEUE_OVERFLOW = "queue_overflow"
    CACHE_OVERFLOW = "cache_overflow"
    BUFFER_OVERFLOW = "buffer_overflow"
    RATELIMIT_BACKOFF = "ratelimit_backoff"
    NETWORK_ERROR = "network_error"
    SEND_ERROR = "send_error"
    SAMPLE_RATE = "sample_rate"
    BACKPRESSURE = "backpressure"
    BEFORE_SEND = "before_send"
    EVENT_PROCESSOR = "event_processor"
    IGNORED = "ignored"
    INTERNAL_SDK_ERROR = "internal_sdk_error"
    INSUFFICIENT_DATA = "insufficient_data"
    INVALID = "invalid"

    #: The transport was closed before the item was captured, or before it could be sent.
    CLOSED = "closed"
    #: Discarded by `kill`.
    KILLED = "killed"
    #: The server answered 429, and counted the item itself.
    RATE_LIMITED = "rate_limited"
    #: Captured by the transport's own sending or sealing, on the same thread.
    REENTRANT = "reentrant"
    #: The DSN or an option can't be used.
    MISCONFIGURED = "misconfigured"
    #: There is no DSN, which is valid and means off.
    DISABLED = "disabled"

    @property
    def reported(self) -> bool:
        """True if client reports contain this reason."""
        return self not in _LOCAL_ONLY


_LOCAL_ONLY = frozenset(
    {
        LossReason.CLOSED,
        LossReason.KILLED,
        LossReason.RATE_LIMITED,
        LossReason.REENTRANT,
        LossReason.MISCONFIGURED,
        LossReason.DISABLED,
    }
)
