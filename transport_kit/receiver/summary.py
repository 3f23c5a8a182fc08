"""The record of an envelope for lists: its sender, its contents, and an event's exception in one line.

This module owns the record of `/api/events`. Payloads are hostile input: any field may be missing, of another
type or huge, so `dig` and `text` read and bound every value.

Threads: pure functions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from transport_kit.envelope.encoder import dumps, loads
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.item import Item

__all__ = [
    "bounded",
    "dig",
    "exceptions",
    "frames",
    "load",
    "parse",
    "primary_item",
    "summarize",
    "text",
    "visible",
]

_LINE = 1_000
_MAX_BREADTH = 100
_MAX_DEPTH = 6
_MAX_HEADERS_BYTES = 16 * 1024
_EVENTS = ("event", "transaction", "feedback", "replay_event")
_COMPANIONS = frozenset({"attachment", "client_report", "user_report", "profile"})
# The escapes of a string in JSON: pairs of surrogates, lone surrogates, all others.
_SURROGATE = r"\\u[dD][{}][0-9a-fA-F]{{2}}"
_HIGH, _LOW, _ANY = (_SURROGATE.format(digits) for digits in ("89abAB", "c-fC-F", "89a-fA-F"))
_ESCAPE = re.compile(rf"({_HIGH}{_LOW})|({_ANY})|\\.".encode(), re.DOTALL)
# Unicode's categories of characters without a glyph: control, format (the bidi controls are of these),
# surrogate, private use, unassigned, and the separators of lines and paragraphs.
_INVISIBLE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Default_Ignorable_Code_Point of Unicode 15 without those of the categories above: fillers and selectors.
_INVISIBLE = frozenset(
    chr(point)
    for first, last in (
        (0x034F, 0x034F),
        (0x115F, 0x1160),
        (0x17B4, 0x17B5),
        (0x180B, 0x180F),
        (0x2800, 0x2800),  # an empty Braille pattern: not ignorable, and as invisible
        (0x3164, 0x3164),
        (0xFE00, 0xFE0F),
        (0xFFA0, 0xFFA0),
        (0xE0100, 0xE01EF),
    )
    for point in range(first, last + 1)
)


def parse(payload: bytes) -> tuple[Any, bool]:
    """Return the value of a payload's JSON, and True if it contains lone surrogates: U+FFFD replaces them.

    A client that cuts a text in the middle of an emoji writes half a pair. It is no valid Unicode, but the
    rest of the event is readable.

    Raises:
        ValueError: It is not JSON, or nested more deeply than the decoder follows.
    """
    try:
        return loads(payload), False
    except ValueError:
        # Only repaired where it has to be: this takes many times as long as reading.
        repaired = _ESCAPE.sub(lambda escape: rb"\ufffd" if escape[2] else escape[0], payload)
        if repaired == payload:
            raise
        return loads(repaired), True


def load(payload: bytes) -> Mapping[str, Any] | None:
    """Return a payload's JSON object; None for anything else."""
    try:
        value, _ = parse(payload)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def visible(line: str, *, layout: str = "") -> str:
    """Return a text whose invisible characters are written as escapes, such as `\\u202e`.

    They turn a text around, hide a part of it, or steer a terminal. Joiners in emoji are of these too.

    Args:
        line: A text from outside.
        layout: Control characters that are kept, such as a newline.
    """
    if line.isascii() and line.isprintable():
        return line
    return "".join(
        c.encode("unicode_escape").decode()
        if c not in layout and (unicodedata.category(c) in _INVISIBLE_CATEGORIES or c in _INVISIBLE)
        else c
        for c in line
    )


def dig(value: object, *path: str) -> Any:
    """Return the value under a path of names, or None if there is no such path."""
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def text(value: object, limit: int = _LINE) -> str | None:
    """Return a value as text of at most `limit` characters; None for null, an object or a list."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        return None
    return value if len(value) <= limit else f"{value[:limit]}…"


def bounded(value: object, depth: int = 0) -> object:
    """Return a copy with long strings, lists and objects cut, and at most six levels."""
    if isinstance(value, str):
        return text(value)
    if not isinstance(value, dict | list):
        return value
    if depth == _MAX_DEPTH:
        return "…"
    if isinstance(value, dict):
        head = list(value.items())[:_MAX_BREADTH]
        return {str(text(name)): bounded(content, depth + 1) for name, content in head}
    return [bounded(content, depth + 1) for content in value[:_MAX_BREADTH]]


def exceptions(event: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the event's exceptions: the one that was raised last, then its causes."""
    interface = event.get("exception")
    values = interface if isinstance(interface, list) else dig(interface, "values")
    if not isinstance(values, list):
        return []
    return [value for value in values[-_MAX_BREADTH:] if isinstance(value, dict)][::-1]


def frames(exception: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the frames of an exception, innermost first."""
    listed = dig(exception, "stacktrace", "frames")
    if not isinstance(listed, list):
        return []
    return [frame for frame in listed[-250:] if isinstance(frame, dict)][::-1]


def primary_item(items: Sequence[Item]) -> Item | None:
    """Return the main item of an envelope; None if it is empty."""
    for kind in _EVENTS:
        for item in items:
            if item.type == kind:
                return item
    return next((item for item in items if item.type not in _COMPANIONS), items[0] if items else None)


def summarize(
    envelope: Envelope,
    *,
    event_id: str | None,
    received_at: datetime,
    project: str,
    client: str,
    content_encoding: str,
    size: int,
) -> dict[str, Any]:
    """Return the record of one envelope: a few kB at most, for any envelope."""
    item = primary_item(envelope.items)
    payload = (load(item.get_bytes()) if item is not None else None) or {}
    kind = text(item.type, 100) if item is not None else None
    raised = exceptions(payload)
    return {
        "event_id": event_id,
        "type": kind,
        "title": _title(item, payload, raised),
        "level": text(payload.get("level"), 20),
        "received_at": received_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "exception": _exception(raised),
        "culprit": _culprit(raised),
        "transaction": text(payload.get("transaction")),
        "request": _request(payload),
        "project": project,
        "client": text(client, 200),
        "content_encoding": content_encoding or None,
        "item_types": [text(each.type, 100) for each in envelope.items[:_MAX_BREADTH]],
        "size": size,
        "envelope_headers": _headers(envelope.headers),
    }


def _headers(headers: Mapping[str, Any]) -> object:
    listed = bounded(dict(headers))
    return listed if len(dumps(listed)) <= _MAX_HEADERS_BYTES else {"…": "too long to list"}


def _exception(raised: Sequence[Mapping[str, Any]]) -> dict[str, str | None] | None:
    if not raised:
        return None
    return {"type": text(raised[0].get("type")), "value": text(raised[0].get("value"))}


def _culprit(raised: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the innermost frame of the app's own code, else the innermost frame."""
    candidates = frames(raised[0]) if raised else []
    if not candidates:
        return None
    frame = next((frame for frame in candidates if frame.get("in_app") is True), candidates[0])
    line = frame.get("lineno")
    return {
        "function": text(frame.get("function")),
        "module": text(frame.get("module")),
        "filename": text(frame.get("filename")) or text(frame.get("abs_path")),
        "lineno": line if isinstance(line, int) else None,
        "context_line": text(frame.get("context_line")),
    }


def _request(payload: Mapping[str, Any]) -> dict[str, str | None] | None:
    request = payload.get("request")
    if not isinstance(request, dict):
        return None
    return {"method": text(request.get("method"), 20), "url": text(request.get("url"))}


def _title(item: Item | None, payload: Mapping[str, Any], raised: Sequence[Mapping[str, Any]]) -> str:
    """Return one line that identifies this envelope in a list."""
    if item is None:
        return "empty envelope"
    if raised:
        parts = (text(raised[0].get("type")), text(raised[0].get("value"), 200))
        return ": ".join(part for part in parts if part) or "exception"
    message = payload.get("message")
    candidates = {
        "event": (
            dig(payload, "logentry", "formatted"),
            dig(payload, "logentry", "message"),
            message,
            dig(message, "formatted"),
        ),
        "transaction": (payload.get("transaction"),),
        "feedback": (dig(payload, "contexts", "feedback", "message"),),
        "check_in": (payload.get("monitor_slug"),),
        "session": (payload.get("status"),),
        "log": (_first_log(payload),),
    }.get(item.type, ())
    title = next((line for line in (text(each, 200) for each in candidates) if line), None)
    if item.type == "check_in" and title:
        return f"{title}: {text(payload.get('status'), 50) or 'no status'}"
    return title or str(text(item.type, 100))


def _first_log(payload: Mapping[str, Any]) -> object:
    items = payload.get("items")
    return dig(items[0], "body") if isinstance(items, list) and items else None
