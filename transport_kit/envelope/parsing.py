"""Strict parsing of the framing of envelopes: from untrusted bytes to headers and payloads.

This module owns the grammar of envelopes and of their headers; never reads payloads. Time is linear in the
input; memory is one copy of the payloads plus the headers, which are limited in length and number.

Threads: pure functions.

Source: docs/protocol.md, section 2, rules 1 to 14.
"""

from __future__ import annotations

import json
from typing import Any, Final

from transport_kit.envelope.encoder import check_depth, dumps, finite, integer, refuse_constant
from transport_kit.runtime.errors import InvalidEnvelope

__all__ = ["MAX_HEADER_BYTES", "MAX_ITEMS", "parse_envelope"]

MAX_HEADER_BYTES: Final = 1024 * 1024
# Python needs about twenty bytes of memory per byte of tiny JSON values, so the sum is limited too.
MAX_HEADERS_BYTES: Final = 8 * MAX_HEADER_BYTES
MAX_ITEMS: Final = 1000
_MAX_LENGTH: Final = 2**32 - 1
_NEWLINE: Final = 0x0A

# Receivers read these into typed fields, where a repeated key is an error. Of other keys the last counts.
_ENVELOPE_KEYS: Final = frozenset({"event_id", "dsn", "sdk", "sent_at", "trace"})
_ITEM_KEYS: Final = frozenset(
    {"type", "length", "content_type", "filename", "attachment_type", "item_count", "platform", "meta_length"}
)

_Headers = dict[str, Any]


def parse_envelope(
    data: bytes, *, max_items: int = MAX_ITEMS
) -> tuple[_Headers, list[tuple[_Headers, bytes]]]:
    """Return the envelope's headers as received, and each item's headers and payload.

    Raises:
        InvalidEnvelope: `empty`, `envelope_header`, `item_header`, `truncated`, `unterminated` or
            `too_many_items`, with the offset of the first wrong byte.
    """
    if not data:
        raise InvalidEnvelope("empty", 0, "no bytes")
    headers, at = _header_line(data, 0, "envelope_header", _ENVELOPE_KEYS)
    items: list[tuple[_Headers, bytes]] = []
    room = MAX_HEADERS_BYTES - at
    while at < len(data):
        if len(items) == max_items:
            raise InvalidEnvelope("too_many_items", at, f"more than {max_items} items")
        start = at
        item_headers, at = _header_line(data, start, "item_header", _ITEM_KEYS)
        room -= at - start
        if room < 0:
            raise InvalidEnvelope(
                "item_header", start, f"headers of more than {MAX_HEADERS_BYTES} bytes in all"
            )
        end = _payload_end(data, at, _length(item_headers, start))
        items.append((item_headers, data[at:end]))
        at = end + 1
    return headers, items


def _payload_end(data: bytes, at: int, length: int | None) -> int:
    size = len(data)
    if length is None:
        newline = data.find(b"\n", at)
        return size if newline < 0 else newline
    # `at` is one past the end if the input ends with the item header.
    if length > max(size - at, 0):
        left = max(size - at, 0)
        raise InvalidEnvelope("truncated", min(at, size), f"{left} bytes left of a payload of {length}")
    end = at + length
    if end < size and data[end] != _NEWLINE:
        raise InvalidEnvelope("unterminated", end, f"byte {data[end]:#04x} after a payload, not a newline")
    return end


def _header_line(data: bytes, at: int, reason: str, known: frozenset[str]) -> tuple[_Headers, int]:
    """Return the JSON object on the line that begins at `at`, and the offset of the next line."""
    newline = data.find(b"\n", at, at + MAX_HEADER_BYTES + 1)
    if newline < 0:
        newline = len(data)
        if newline - at > MAX_HEADER_BYTES:
            raise InvalidEnvelope(reason, at, f"a header line of more than {MAX_HEADER_BYTES} bytes")
    try:
        return _header(data[at:newline], known), newline + 1
    except ValueError as error:
        raise InvalidEnvelope(reason, at, str(error)) from None


def _header(line: bytes, known: frozenset[str]) -> _Headers:
    if line[:1] != b"{" or line[-1:] != b"}":
        raise ValueError("not exactly one JSON object on its line, without padding")
    pairs: list[tuple[str, Any]] = []

    def record_pairs(object_pairs: list[tuple[str, Any]]) -> _Headers:
        nonlocal pairs
        pairs = object_pairs  # the last call is for the outermost object
        return dict(object_pairs)

    try:
        text = line.decode("utf-8")
        check_depth(text)
        headers: _Headers = json.loads(
            text,
            object_pairs_hook=record_pairs,
            parse_constant=refuse_constant,
            parse_float=finite,
            parse_int=_integer,
        )
        # Headers that can't be encoded again are refused: lone surrogates, and deep nesting.
        dumps(headers)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except TypeError:
        raise ValueError("a lone surrogate, or nested too deeply") from None
    seen: set[str] = set()
    for key, _ in pairs:
        if key in known and key in seen:
            raise ValueError(f"two values of {key}")
        seen.add(key)
    return headers


def _integer(text: str) -> int | float:
    """Return an int, or a float beyond 64 bits and for -0, as Relay's parser does."""
    return -0.0 if text == "-0" else integer(text)


def _length(headers: _Headers, at: int) -> int | None:
    if type(headers.get("type")) is not str:
        raise InvalidEnvelope("item_header", at, "type is not a string")
    length = headers.get("length")
    if length is None:
        return None
    if type(length) is not int or not 0 <= length <= _MAX_LENGTH:
        raise InvalidEnvelope("item_header", at, "length is not an unsigned 32-bit integer")
    return length
