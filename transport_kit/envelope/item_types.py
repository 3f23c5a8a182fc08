"""Item types: their data category, priority and order, and the items that belong to an event.

This module owns the table. Threads: all of it is immutable.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

__all__ = ["INTERNAL", "ItemType", "KINDS", "Priority", "UNKNOWN"]

INTERNAL: Final = "internal"


class Priority(IntEnum):
    """The order of eviction when a queue overflows, the lowest first. An envelope has its items' highest.

    Source: docs/protocol.md, section 10, the five weights of the telemetry processor.
    """

    REPLAY = 0
    LOG = 1
    TRANSACTION = 2
    SESSION = 3
    ERROR = 4


class ItemType(NamedTuple):
    """The properties of all items of one type.

    Attributes:
        category: The data category of its rate limit; None: only a limit on all categories applies.
        priority: The priority in a full queue.
        ordered: True if items of this type must be sent in order of capture.
        identified: True if the envelope's event id identifies the item, so that a server recognises a repeat.
        leads: True for an event or the like, which other items of the envelope depend on.
        follows: True if the item is useless without the event or transaction of its envelope.
    """

    category: str | None
    priority: Priority
    ordered: bool = False
    identified: bool = False
    leads: bool = False
    follows: bool = False


UNKNOWN: Final = ItemType(None, Priority.LOG)
_REPLAY: Final = ItemType("replay", Priority.REPLAY, identified=True, follows=True)
KINDS: Final[dict[str, ItemType]] = {
    "event": ItemType("error", Priority.ERROR, identified=True, leads=True),
    "feedback": ItemType("feedback", Priority.ERROR, identified=True, leads=True),
    "user_report": ItemType("feedback", Priority.ERROR, identified=True),
    "transaction": ItemType("transaction", Priority.TRANSACTION, identified=True, leads=True),
    "client_report": ItemType(INTERNAL, Priority.TRANSACTION),
    "span": ItemType("span", Priority.TRANSACTION),
    "check_in": ItemType("monitor", Priority.SESSION, ordered=True),
    "session": ItemType("session", Priority.SESSION, ordered=True),
    "sessions": ItemType("session", Priority.SESSION, ordered=True),
    "log": ItemType("log_item", Priority.LOG),
    "trace_metric": ItemType("trace_metric", Priority.LOG),
    "profile": ItemType("profile", Priority.LOG, identified=True, follows=True),
    "profile_chunk": ItemType("profile_chunk", Priority.LOG),
    "statsd": ItemType("metric_bucket", Priority.LOG),
    "metric_buckets": ItemType("metric_bucket", Priority.LOG),
    # The lowest priority: an attachment's counts only in an envelope without other items.
    "attachment": ItemType("attachment", Priority.REPLAY, identified=True, follows=True),
    "replay_event": _REPLAY,
    "replay_recording": _REPLAY,
    "replay_video": _REPLAY,
}
