"""Validation of headers: the rules that receivers apply beyond framing.

This module owns the rules for header values, required headers and combinations of items; never reads
payloads.

Threads: pure functions.

Source: docs/protocol.md, section 2 (rules 10 and 15, envelope headers) and section 3.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from transport_kit.config.dsn import Dsn
from transport_kit.runtime.errors import InvalidDsn, InvalidEnvelope

__all__ = ["check", "CONTAINER_TYPES", "is_event_id"]

_EVENT_ID: Final = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_RFC_3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_RESERVED: Final = frozenset({"integration", "security", "unreal_report", "form_data"})
# Without an event id, Relay assigns one; another receiver in use answers 400 for these types.
_NEEDS_EVENT_ID: Final = frozenset({"event", "transaction", "feedback"})
CONTAINER_TYPES: Final = {
    "log": "application/vnd.sentry.items.log+json",
    "trace_metric": "application/vnd.sentry.items.trace-metric+json",
    "span": "application/vnd.sentry.items.span.v2+json",
}
# Groups of types, and the maximum number of items of the group in one envelope.
_SLOTS: Final[tuple[tuple[frozenset[str], int], ...]] = (
    (frozenset({"event", "transaction", "feedback", "replay_event"}), 1),
    (frozenset({"check_in"}), 1),
    (frozenset({"log"}), 1),
    (frozenset({"trace_metric"}), 1),
    (frozenset({"profile", "profile_chunk"}), 1),
    (frozenset({"replay_recording"}), 1),
    (frozenset({"replay_video"}), 1),
    (frozenset({"session", "sessions"}), 100),
    (frozenset({"client_report"}), 100),
    (frozenset({"attachment"}), 30),
)


def is_event_id(value: object) -> bool:
    """Return True for 32 hex digits or a UUID with dashes, in upper or lower case."""
    return isinstance(value, str) and _EVENT_ID.fullmatch(value) is not None


def check(headers: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> None:
    """Check an envelope's headers and its items' headers.

    An unreadable `trace` header is allowed: receivers ignore it.

    Raises:
        InvalidEnvelope: With the first rule broken: `event_id`, `sent_at`, `dsn`, `missing_event_id`,
            `reserved_type`, `container` or `combination`.
    """
    _check_headers(headers)
    for item in items:
        _check_item(item, headers)
    counts = Counter(item["type"] for item in items)
    for group, slots in _SLOTS:
        if sum(counts[kind] for kind in group) > slots:
            raise _broken("combination", f"more than {slots} of {', '.join(sorted(group))}")
    # Several standalone spans are allowed, several containers of spans are not.
    if sum(item["type"] == "span" and "item_count" in item for item in items) > 1:
        raise _broken("combination", "more than 1 container of spans")


def _check_headers(headers: Mapping[str, Any]) -> None:
    event_id, sent_at, dsn = headers.get("event_id"), headers.get("sent_at"), headers.get("dsn")
    if event_id is not None and not is_event_id(event_id):
        raise _broken("event_id", "neither 32 hex digits nor a UUID")
    if sent_at is not None and not _is_timestamp(sent_at):
        raise _broken("sent_at", "not an RFC 3339 time with an offset")
    if dsn is not None:
        try:
            Dsn.parse(dsn if isinstance(dsn, str) else "")
        except InvalidDsn as error:
            raise _broken("dsn", f"not a DSN ({error.reason})") from None


def _check_item(item: Mapping[str, Any], headers: Mapping[str, Any]) -> None:
    kind = item["type"]
    if kind in _RESERVED:
        raise _broken("reserved_type", f"{kind} items are for receivers alone")
    if kind in _NEEDS_EVENT_ID and headers.get("event_id") is None:
        raise _broken("missing_event_id", f"an item of type {kind} needs event_id in the envelope's headers")
    # A span without a count is a single span, of the older form.
    if kind in CONTAINER_TYPES and (kind != "span" or "item_count" in item):
        count = item.get("item_count")
        if type(count) is not int or count < 0 or item.get("content_type") != CONTAINER_TYPES[kind]:
            raise _broken("container", f"{kind} needs item_count and content_type {CONTAINER_TYPES[kind]}")


def _is_timestamp(value: object) -> bool:
    if not isinstance(value, str) or _RFC_3339.fullmatch(value) is None:
        return False
    try:
        # Python reads six digits of a fraction; the pattern has checked the others.
        datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", value.upper()))
    except ValueError:
        return False
    return True


def _broken(rule: str, detail: str) -> InvalidEnvelope:
    return InvalidEnvelope(rule, -1, detail)
