"""Limits on the contents of one envelope: slots and sizes by item type, with Relay's defaults.

This module owns the table. `app.py`, which reads the body, enforces its limit.

Threads: pure functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from transport_kit.envelope.item import Item
from transport_kit.receiver.refusal import Refusal

__all__ = ["check_caps"]

_KIB = 1024
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Cap:
    """A group of item types: its largest number of items, and of bytes in all of them."""

    group: str
    slots: int
    size: int


# Source: docs/protocol.md, section 3, Relay's default configuration.
_EVENT = _Cap("event", 1, _MIB)
_ATTACHMENT = _Cap("attachment", 30, 200 * _MIB)
_SESSION = _Cap("session", 100, 10 * _MIB)
_PROFILE = _Cap("profile", 1, 50 * _MIB)
_METRIC = _Cap("statsd", 1, _MIB)
_SPAN_CONTAINER = _Cap("span container", 1, 12 * _MIB)
_CAPS = {
    "event": _EVENT,
    "transaction": _EVENT,
    "feedback": _EVENT,
    "replay_event": _EVENT,
    "attachment": _ATTACHMENT,
    "user_report": _ATTACHMENT,
    "session": _SESSION,
    "sessions": _SESSION,
    "check_in": _Cap("check_in", 1, 100 * _KIB),
    "client_report": _Cap("client_report", 100, 100 * _KIB),
    "log": _Cap("log", 1, 12 * _MIB),
    "trace_metric": _Cap("trace_metric", 1, 12 * _MIB),
    "span": _Cap("span", 25, 10 * _MIB),
    "profile": _PROFILE,
    "profile_chunk": _PROFILE,
    "replay_recording": _Cap("replay_recording", 1, 10 * _MIB),
    "replay_video": _Cap("replay_video", 1, 10 * _MIB),
    "statsd": _METRIC,
    "metric_buckets": _METRIC,
}


def check_caps(items: Iterable[Item]) -> None:
    """Refuse an envelope with too much of one group; unknown types have no cap.

    Raises:
        Refusal: 413, with the group, its number and the number allowed.
    """
    slots: Counter[_Cap] = Counter()
    sizes: Counter[_Cap] = Counter()
    for item in items:
        cap = _CAPS.get(item.type)
        if cap is None:
            continue
        if item.type == "span" and "item_count" in item.headers:
            cap = _SPAN_CONTAINER
        slots[cap] += 1
        sizes[cap] += len(item.get_bytes())
    for cap, count in slots.items():
        if count > cap.slots:
            cause = f"{count} items of the {cap.group} group, {cap.slots} allowed"
            raise Refusal(413, "envelope exceeded size limits", [cause])
        if sizes[cap] > cap.size:
            cause = f"{sizes[cap]} bytes in items of the {cap.group} group, {cap.size} allowed"
            raise Refusal(413, "envelope exceeded size limits", [cause])
