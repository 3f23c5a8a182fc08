"""Item types: data category, priority class, order, and what travels with what.

Owns the table. Threads: nothing here changes.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

__all__ = ["INTERNAL", "ItemType", "KINDS", "Priority", "UNKNOWN"]

INTERNAL: Final = "internal"


class Priority(IntEnum):
    """Who is sacrificed first when a queue overflows: the lowest. An envelope has its items' highest.

    Source: the five weights of the telemetry processor, docs/protocol.md, section 10.
    """

    REPLAY = 0
    LOG = 1
    TRANSACTION = 2
    SESSION = 3
    ERROR = 4


class ItemType(NamedTuple):
    """What an item's type decides.

    Attributes:
        category: The data category that limits it; None means only a limit on everything does.
        ordered: Must not overtake another of its kind.
        identified: Belongs to the envelope's event id, by which a server recognises a repeat.
        leads: An event-like item that others travel with.
        follows: Makes no sense without its event or transaction, when the envelope has one.
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
    # An attachment's class counts only when nothing above it is there: it is the lowest.
    "attachment": ItemType("attachment", Priority.REPLAY, identified=True, follows=True),
    "replay_event": _REPLAY,
    "replay_recording": _REPLAY,
    "replay_video": _REPLAY,
}
