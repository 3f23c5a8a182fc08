"""Items as the caller makes them: payload, headers, quantities, and their encoding to bytes.

This module owns item headers and quantities, and reads the files that the caller names; no other I/O. The
properties of item types are in `item_types.py`.

Threads: an item belongs to one thread until it is sealed. Payloads may change meanwhile: see `encoding.py`.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Mapping
from typing import Any, Final, Self

from transport_kit.envelope.encoder import loads
from transport_kit.envelope.encoding import clean_text, encode
from transport_kit.envelope.item_types import KINDS, UNKNOWN
from transport_kit.envelope.losses import Quantities
from transport_kit.envelope.sealed import SealedItem
from transport_kit.envelope.trimming import trim
from transport_kit.envelope.validation import CONTAINER_TYPES, is_event_id
from transport_kit.runtime.errors import SealError
from transport_kit.runtime.interrupts import let_through

__all__ = [
    "attachment_size",
    "estimated_quantities",
    "event_id_of",
    "EVENT_TYPES",
    "is_dict",
    "Item",
    "MAX_ATTACHMENT_BYTES",
    "MAX_EVENT_BYTES",
    "MAX_HEADER_LINE_BYTES",
    "parse_object",
]

MAX_EVENT_BYTES: Final = 1_000_000
MAX_ATTACHMENT_BYTES: Final = 20 * 1024 * 1024
# A receiver in use answers 413 above this.
MAX_HEADER_LINE_BYTES: Final = 8 * 1024

EVENT_TYPES: Final = frozenset({"event", "transaction", "feedback"})
_UI_PLATFORMS: Final = frozenset({"cocoa", "android", "javascript"})
_NO_QUANTITIES: Final = Quantities()
_ONE_OF: Final = {
    category: Quantities([(category, 1)])
    for category in (*(item_type.category for item_type in KINDS.values()), "profile_chunk_ui")
    if category is not None
} | {"internal": _NO_QUANTITIES, "metric_bucket": _NO_QUANTITIES}
_PLAIN_HEADERS: Final = {name: b'{"type":"%b","length":%%d}' % name.encode() for name in KINDS}


class Item:
    """One item of an envelope.

    Args:
        payload: Bytes; a str, encoded as UTF-8; a path, read when the item is sealed or its bytes are needed;
            or any other value, encoded as JSON. It is not copied before that.
        type: The item's type; an unknown one is kept.
        headers: Further item headers. `type` and `length` in it are ignored.
        content_type: The item header of that name.
        filename: The item header of that name.
        attachment_type: The item header of that name.
        item_count: The item header of that name.

    Attributes:
        headers: The item headers; of a parsed item as received, `length` included.
        payload: The payload as given, or the bytes received.

    Raises:
        TypeError: `type` is not a str.
    """

    __slots__ = ("headers", "payload")

    def __init__(
        self,
        payload: object,
        *,
        type: str,
        headers: Mapping[str, Any] | None = None,
        content_type: str | None = None,
        filename: str | None = None,
        attachment_type: str | None = None,
        item_count: int | None = None,
    ) -> None:
        if not isinstance(type, str):
            raise TypeError(f"an item's type is a str, not {type.__class__.__name__}")
        # Exactly str, not a subclass: the spool's records accept nothing else.
        item_headers: dict[str, Any] = {"type": str.__str__(type)}
        if headers:
            item_headers.update(
                (name, value) for name, value in headers.items() if name not in ("type", "length")
            )
        if content_type is not None:
            item_headers["content_type"] = content_type
        if filename is not None:
            item_headers["filename"] = filename
        if attachment_type is not None:
            item_headers["attachment_type"] = attachment_type
        if item_count is not None:
            item_headers["item_count"] = item_count
        self.headers = item_headers
        self.payload: Any = _normalized_payload(payload)

    @classmethod
    def received(cls, headers: dict[str, Any], payload: object) -> Self:
        """Return an item with exactly these headers and this payload, neither copied nor checked."""
        item = cls.__new__(cls)
        item.headers = headers
        item.payload = payload
        return item

    @property
    def type(self) -> str:
        """The item's type."""
        return str(self.headers["type"])

    @property
    def data_category(self) -> str | None:
        """The data category of the item's rate limit; None for unknown types, `internal` for reports."""
        return _category(self.headers)

    @property
    def quantities(self) -> Quantities:
        """The quantities to count if the item is lost, as (data category, quantity) pairs.

        Raises:
            SealError: As in `get_bytes`, for types whose loss is counted in bytes.
        """
        type_ = self.type
        needs_bytes = type_ in ("attachment", "log", "trace_metric") or (
            type_ in ("transaction", "span") and not is_dict(self.payload)
        )
        return _quantities(self.headers, self.payload, self.get_bytes() if needs_bytes else b"")

    def get_bytes(self) -> bytes:
        """Return the payload as bytes; of a parsed item exactly the bytes received.

        Raises:
            SealError: It can't be read from its path, or can't be encoded as JSON.
        """
        return self._bytes(None)

    def seal(
        self, *, max_event_bytes: int = MAX_EVENT_BYTES, max_attachment_bytes: int = MAX_ATTACHMENT_BYTES
    ) -> SealedItem:
        """Return the item as bytes. An event that is too big is trimmed.

        Raises:
            SealError: It can't be read or encoded, or is too big. The error names the value at fault.
        """
        headers = self.headers
        type_ = headers["type"]
        if type_ in EVENT_TYPES:
            body = self._bytes(None)
            if len(body) > max_event_bytes:
                body = trim(body, max_event_bytes, type_)
        elif type_ == "attachment":
            body = self._bytes(max_attachment_bytes)
            if len(body) > max_attachment_bytes:
                raise SealError(type_, f"more than {max_attachment_bytes} bytes")
        else:
            body = self._bytes(None)
        header = self.header(len(body))
        if len(header) > MAX_HEADER_LINE_BYTES:
            raise SealError(
                f"{type_[:100]}.headers", f"{len(header)} bytes, more than {MAX_HEADER_LINE_BYTES}"
            )
        return SealedItem(type_, header, body, _category(headers), _quantities(headers, self.payload, body))

    def header(self, length: int) -> bytes:
        """Return the header line for a payload of `length` bytes, without the newline."""
        headers = self.headers
        if len(headers) == 1 and (plain := _PLAIN_HEADERS.get(headers["type"])):
            return plain % length
        first = {"type": headers["type"], "length": length}
        if len(headers) > 1:
            first.update((name, value) for name, value in headers.items() if name not in first)
        return encode(first, "item.headers")

    def _bytes(self, limit: int | None) -> bytes:
        """Return the payload as bytes; of a file at most `limit` + 1 bytes."""
        payload = self.payload
        if type(payload) is dict:
            return encode(payload, self.type)
        if type(payload) is bytes:
            return payload
        if type(payload) is str:
            try:
                return payload.encode()
            except UnicodeEncodeError:
                return clean_text(payload).encode()
        if issubclass(type(payload), os.PathLike):
            return _read(payload, limit, self.type)
        body = encode(payload, self.type)
        if body[:1] != b"{" and self.type in EVENT_TYPES:
            raise SealError(self.type, f"a {type(payload).__name__} is not a JSON object")
        return body

    def __repr__(self) -> str:
        return f"<Item {self.type!r}>"


def is_dict(payload: object) -> bool:
    # `isinstance` would also read the object's own `__class__`.
    return issubclass(type(payload), dict)


def _normalized_payload(payload: Any) -> Any:
    """Return exact bytes, an exact str, or the value itself.

    Buffers can change, and subclasses can override any method, so both are read here, through the base class.
    Only a mapping that is not a dict is copied by its own methods.
    """
    class_ = type(payload)
    if class_ is dict or class_ is bytes:
        return payload
    if issubclass(class_, bytes | bytearray | memoryview):
        return bytes(memoryview(payload))
    if issubclass(class_, str):
        return str.__str__(payload)
    if issubclass(class_, Mapping) and not issubclass(class_, dict):
        return dict(payload)
    return payload


def event_id_of(value: object) -> str | None:
    """Return a valid id in the form that servers store, 32 lower-case hex digits; else None."""
    if type(value) is uuid.UUID:
        return value.hex
    if type(value) is str and is_event_id(value):
        return value.replace("-", "").lower()
    return None


def _category(headers: Mapping[str, Any]) -> str | None:
    type_ = headers["type"]
    if type_ == "profile_chunk" and headers.get("platform") in _UI_PLATFORMS:
        return "profile_chunk_ui"
    return KINDS.get(type_, UNKNOWN).category


def _quantities(headers: Mapping[str, Any], payload: Any, body: bytes) -> Quantities:
    """Return an item's quantities; see docs/protocol.md, section 3, third column.

    Args:
        body: The payload's bytes; needed only for types whose count depends on them.
    """
    type_ = headers["type"]
    if type_ == "event":
        return _ONE_OF["error"]
    if type_ == "transaction":
        spans = dict.get(payload if is_dict(payload) else parse_object(body), "spans")
        children = len(spans) if isinstance(spans, list | tuple) else 0
        return Quantities.unchecked(("transaction", 1), ("span", 1 + children))
    if type_ == "attachment":
        return Quantities.unchecked(("attachment", max(len(body), 1)))
    if type_ in CONTAINER_TYPES:
        count = headers.get("item_count")
        if type(count) is not int or count < 0:
            members = parse_object(body).get("items")
            count = len(members) if isinstance(members, list) else 1
        if type_ == "span":
            return Quantities([("span", count)])
        items, size = ("log_item", "log_byte") if type_ == "log" else ("trace_metric", "trace_metric_byte")
        if count and body:
            return Quantities.unchecked((items, count), (size, len(body)))
        return Quantities([(items, count), (size, len(body))])
    category = _category(headers)
    return _NO_QUANTITIES if category is None else _ONE_OF[category]


def parse_object(body: bytes | str) -> dict[str, Any]:
    """Return the JSON object in `body`, or an empty dict if it is none."""
    try:
        value = loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def estimated_quantities(item: Item) -> Quantities:
    """Return the item's quantities, or one of its category if they can't be determined. Never raises."""
    try:
        return item.quantities
    except Exception as error:
        let_through(error)
        return Quantities([(item.data_category or "default", 1)])


def attachment_size(item: Item) -> int:
    """Return the size in bytes of an attachment that could not be sealed; 1 if it is unknown."""
    payload = item.payload
    if issubclass(type(payload), os.PathLike):
        try:
            return max(os.stat(payload).st_size, 1)
        except Exception as error:  # `__fspath__` is the app's code
            let_through(error)
            return 1
    return max(len(payload), 1) if type(payload) in (bytes, str) else 1


def _read(path: os.PathLike[str], limit: int | None, name: str) -> bytes:
    """Return the bytes of a regular file. Never waits for the other end of a pipe."""
    try:
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        with open(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SealError(name, "its path is not a regular file")
            return file.read(-1 if limit is None else limit + 1)
    except SealError:
        raise
    except Exception as error:  # `__fspath__` is the app's code
        raise SealError(name, f"its file can't be read ({type(error).__name__})") from None
