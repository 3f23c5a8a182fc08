"""Losses: how much is lost, per data category, and why.

Owns the reasons, and the forms in which queues, the ledger and client reports exchange quantities.

Source of the reasons: the client-report protocol; new names need a server's allow-list, so those of our own
are never reported.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

__all__ = ["LossReason", "Quantities", "Report"]

Quantities: TypeAlias = tuple[tuple[str, int], ...]

#: Losses taken for one client report: `(reason, category, quantity)`.
Report = tuple[tuple[str, str, int], ...]


class LossReason(StrEnum):
    """Why an item was not delivered. The first group is reported to the server, the second is not."""

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

    #: The transport was closed before the item came, or before it could be sent.
    CLOSED = "closed"
    #: `kill` gave it up.
    KILLED = "killed"
    #: The server answered 429; it has counted the item itself.
    RATE_LIMITED = "rate_limited"
    #: Captured by our own sending or sealing on the same thread.
    REENTRANT = "reentrant"
    #: The DSN or an option can't be used.
    MISCONFIGURED = "misconfigured"
    #: There is no DSN, which is valid and means off.
    DISABLED = "disabled"

    @property
    def reported(self) -> bool:
        """Whether the server is told."""
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
