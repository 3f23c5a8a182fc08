"""The values that the page shows of one envelope: plain, bounded, in reading order.

This module owns the choice of values. It renders no HTML: the templates escape the values.

Threads: pure functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from transport_kit.envelope.encoder import indented
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.item import Item
from transport_kit.receiver.summary import bounded, dig, exceptions, frames, parse, primary_item, text

__all__ = ["describe"]

_MAX_RAW = 256 * 1024
_MAX_ITEM = 64 * 1024
_MAX_ITEMS = 50
_CONTEXT_LINES = 10
# The page shows these elsewhere.
_SHOWN = frozenset({"exception", "request", "event_id", "level", "message"})
_REQUEST_SHOWN = frozenset({"method", "url", "query_string", "headers", "cookies", "data", "env"})
_Rows = list[tuple[str, str]]


def describe(body: bytes) -> dict[str, Any]:
    """Return the values for the page of one stored envelope."""
    items = Envelope.deserialize(body).items
    item = primary_item(items)
    payload, has_lone_surrogates = _object(item)
    event = payload or {}
    return {
        "exceptions": [_exception(raised) for raised in exceptions(event)],
        "request": _request(event.get("request")),
        "facts": _rows((name, value) for name, value in event.items() if name not in _SHOWN),
        "items": [_item(each) for each in items[:_MAX_ITEMS]],
        "more_items": max(0, len(items) - _MAX_ITEMS),
        "has_lone_surrogates": has_lone_surrogates,
        "unreadable": item is not None and payload is None and item.type != "attachment",
        "raw": body[:_MAX_RAW].decode("utf-8", "replace"),
        "raw_cut": len(body) > _MAX_RAW,
        "raw_size": len(body),
    }


def _object(item: Item | None) -> tuple[Mapping[str, Any] | None, bool]:
    """Return an item's JSON object, None for anything else, and True if it contains lone surrogates."""
    if item is None:
        return None, False
    try:
        value, has_lone_surrogates = parse(item.get_bytes())
    except ValueError:
        return None, False
    return (value if isinstance(value, dict) else None), has_lone_surrogates


def _exception(raised: Mapping[str, Any]) -> dict[str, Any]:
    views = [_frame(frame) for frame in frames(raised)]
    # The page opens the innermost frame of the app's own code, else the innermost.
    first = next((view for view in views if view["in_app"]), views[0] if views else None)
    if first is not None:
        first["open"] = True
    return {
        "type": text(raised.get("type")) or "exception",
        "module": text(raised.get("module")),
        "value": text(raised.get("value"), 10_000),
        "mechanism": text(dig(raised, "mechanism", "type")),
        "unhandled": dig(raised, "mechanism", "handled") is False,
        "frames": views,
    }


def _frame(frame: Mapping[str, Any]) -> dict[str, Any]:
    variables = frame.get("vars")
    return {
        "function": text(frame.get("function"), 300) or "?",
        "file": text(frame.get("filename"), 300) or text(frame.get("abs_path"), 300) or "?",
        "path": text(frame.get("abs_path")),
        "line": text(frame.get("lineno")),
        "in_app": frame.get("in_app") is True,
        "open": False,
        "context": _context(frame),
        "variables": _rows(variables.items()) if isinstance(variables, dict) else [],
    }


def _context(frame: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Return source lines as number, text and whether it is the frame's own line."""
    line = frame.get("lineno")
    current = text(frame.get("context_line"))
    if current is None or not isinstance(line, int):
        return []
    before = _lines(frame.get("pre_context"))[-_CONTEXT_LINES:]
    after = _lines(frame.get("post_context"))[:_CONTEXT_LINES]
    first = line - len(before)
    return [
        (str(first + place), content, place == len(before))
        for place, content in enumerate([*before, current, *after])
    ]


def _lines(value: object) -> list[str]:
    return [text(line) or "" for line in value] if isinstance(value, list) else []


def _request(request: object) -> dict[str, Any] | None:
    if not isinstance(request, dict):
        return None
    return {
        "method": text(request.get("method"), 20),
        "url": text(request.get("url"), 2_000),
        "query": _readable(request.get("query_string")),
        "headers": _rows(_pairs(request.get("headers"))),
        "cookies": _rows(_pairs(request.get("cookies"))),
        "data": _readable(request.get("data")),
        "env": _rows(_pairs(request.get("env"))),
        "other": _rows((name, value) for name, value in request.items() if name not in _REQUEST_SHOWN),
    }


def _pairs(value: object) -> list[tuple[Any, Any]]:
    """Return pairs from either form that the protocol has for headers: an object, or a list of pairs."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list):
        return [(pair[0], pair[1]) for pair in value if isinstance(pair, list) and len(pair) == 2]
    return []


def _rows(pairs: Iterable[tuple[Any, Any]]) -> _Rows:
    rows: _Rows = []
    for name, value in pairs:
        readable = _readable(value)
        if readable and len(rows) < 100:
            rows.append((text(name, 200) or "?", readable))
    return rows


def _readable(value: object) -> str:
    """Return a value as text for people; empty for an empty value."""
    if value is None or value in ({}, [], ""):
        return ""
    if isinstance(value, dict | list):
        return indented(bounded(value))
    return text(value, 10_000) or ""


def _item(item: Item) -> dict[str, Any]:
    payload = item.get_bytes()
    return {
        "type": text(item.type, 100),
        "headers": _readable({name: value for name, value in item.headers.items() if name != "type"}),
        "size": len(payload),
        "cut": len(payload) > _MAX_ITEM,
        "payload": _payload(payload[:_MAX_ITEM]),
    }


def _payload(payload: bytes) -> str:
    """Return JSON indented, anything else as text."""
    try:
        return indented(parse(payload)[0])
    except (ValueError, TypeError):
        return payload.decode("utf-8", "replace")
