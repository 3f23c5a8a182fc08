"""Envelopes and items as the caller makes them: built, parsed, serialised, checked, sealed.

Owns the event id of an envelope, item headers and what an item's loss costs. Framing is `parsing.py`,
JSON `encoding.py`, the rules that receivers check `validation.py`, the sealed form `sealing.py`. Reads
files that the caller names; no other I/O, no clock.

Threads: an envelope belongs to one thread until it is sealed. `seal` holds no lock, may run anywhere, and
raises nothing but `SealError`, also when another thread changes a payload meanwhile.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, Final, Self

import orjson

from transport_kit.encoding import clean_text, encode
from transport_kit.errors import InvalidEnvelope, SealError
from transport_kit.parsing import MAX_ITEMS, parse_envelope
from transport_kit.sealing import (
    KINDS,
    UNKNOWN,
    Priority,
    Quantities,
    SealedEnvelope,
    SealedItem,
)
from transport_kit.trimming import trim
from transport_kit.validation import check, is_event_id

__all__ = ["Envelope", "Item", "Priority", "SealedEnvelope", "SealedItem"]

MAX_EVENT_BYTES: Final = 1_000_000
MAX_ATTACHMENT_BYTES: Final = 20 * 1024 * 1024
MAX_ENVELOPE_BYTES: Final = 100 * 1024 * 1024
# A receiver in use answers 413 above this.
MAX_HEADER_LINE_BYTES: Final = 8 * 1024

_EVENT_TYPES: Final = frozenset({"event", "transaction", "feedback"})
_UI_PLATFORMS: Final = frozenset({"cocoa", "android", "javascript"})
_CONTAINER_TYPES: Final = {
    "log": "application/vnd.sentry.items.log+json",
    "trace_metric": "application/vnd.sentry.items.trace-metric+json",
    "span": "application/vnd.sentry.items.span.v2+json",
}
_ONE: Final[dict[str, Quantities]] = {
    name: ((kind.category, 1),) for name, kind in KINDS.items() if kind.category is not None
}
_PLAIN_HEADERS: Final = {name: b'{"type":"%b","length":%%d}' % name.encode() for name in KINDS}
_NOTHING: Final[Quantities] = ()


class Item:
    """One item of an envelope.

    Args:
        payload: Bytes; a str, written as UTF-8; a path, read when sealed or asked for; or any other
            value, written as JSON. It is not copied before that.
        type: The item's type; an unknown one is kept.
        headers: Further item headers. `type` and `length` are ours.
        content_type, filename, attachment_type, item_count: Item headers by name.

    Attributes:
        headers: The item headers; of a parsed item as received, `length` included.
    """

    __slots__ = ("_payload", "headers")

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
        own: dict[str, Any] = {"type": type}
        if headers:
            own.update((name, value) for name, value in headers.items() if name not in ("type", "length"))
        if content_type is not None:
            own["content_type"] = content_type
        if filename is not None:
            own["filename"] = filename
        if attachment_type is not None:
            own["attachment_type"] = attachment_type
        if item_count is not None:
            own["item_count"] = item_count
        self.headers = own
        self._payload: Any = _held(payload)

    @classmethod
    def _received(cls, headers: dict[str, Any], payload: object) -> Self:
        item = cls.__new__(cls)
        item.headers = headers
        item._payload = payload
        return item

    @property
    def type(self) -> str:
        """The item's type."""
        return str(self.headers["type"])

    @property
    def data_category(self) -> str | None:
        """The data category whose limit stops the item; None for unknown types, `internal` for reports."""
        return _category(self.headers)

    @property
    def quantities(self) -> Quantities:
        """What the loss of this item costs, as (data category, quantity) pairs.

        Raises:
            SealError: As `get_bytes`, for types whose loss is counted in bytes.
        """
        kind = self.type
        needs_bytes = kind in ("attachment", "log", "trace_metric") or (
            kind in ("transaction", "span") and not _is_dict(self._payload)
        )
        return _quantities(self.headers, self._payload, self.get_bytes() if needs_bytes else b"")

    def get_bytes(self) -> bytes:
        """The payload; of a parsed item exactly the bytes received.

        Raises:
            SealError: It can't be read from its path, or can't be written as JSON.
        """
        return self._bytes(None)

    def seal(
        self, *, max_event_bytes: int = MAX_EVENT_BYTES, max_attachment_bytes: int = MAX_ATTACHMENT_BYTES
    ) -> SealedItem:
        """The item as bytes.

        Raises:
            SealError: It can't be read or written, or is too big. Names the value at fault.
        """
        headers = self.headers
        kind = headers["type"]
        if kind in _EVENT_TYPES:
            body = self._bytes(None)
            if len(body) > max_event_bytes:
                body = trim(body, max_event_bytes, kind)
        elif kind == "attachment":
            body = self._bytes(max_attachment_bytes)
            if len(body) > max_attachment_bytes:
                raise SealError(kind, f"more than {max_attachment_bytes} bytes")
        else:
            body = self._bytes(None)
        header = self._header(len(body))
        if len(header) > MAX_HEADER_LINE_BYTES:
            raise SealError(
                f"{kind[:100]}.headers", f"{len(header)} bytes, more than {MAX_HEADER_LINE_BYTES}"
            )
        return SealedItem(kind, header, body, _category(headers), _quantities(headers, self._payload, body))

    def _header(self, length: int) -> bytes:
        headers = self.headers
        if len(headers) == 1 and (plain := _PLAIN_HEADERS.get(headers["type"])):
            return plain % length
        first = {"type": headers["type"], "length": length}
        if len(headers) > 1:
            first.update((name, value) for name, value in headers.items() if name not in first)
        return encode(first, "item.headers")

    def _bytes(self, limit: int | None) -> bytes:
        """The payload; of a file at most one byte more than `limit`."""
        payload = self._payload
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
        if body[:1] != b"{" and self.type in _EVENT_TYPES:
            raise SealError(self.type, f"a {type(payload).__name__} is not a JSON object")
        return body

    def __repr__(self) -> str:
        return f"<Item {self.type!r}>"


class Envelope:
    """Items that travel together, and their common headers.

    Args:
        headers: Envelope headers; copied.
        items: Added in order, as by `add_item`.

    Attributes:
        headers: The envelope headers; of a parsed envelope as received.
        items: The items in order.
    """

    __slots__ = ("headers", "items")

    def __init__(self, headers: Mapping[str, Any] | None = None, items: Iterable[Item] = ()) -> None:
        self.headers: dict[str, Any] = dict(headers) if headers else {}
        self.items: list[Item] = []
        for item in items:
            self.add_item(item)

    @classmethod
    def event(cls, event: Mapping[str, Any]) -> Self:
        """An envelope around one error event; see `add_event`."""
        return cls().add_event(event)

    @classmethod
    def transaction(cls, transaction: Mapping[str, Any]) -> Self:
        """An envelope around one transaction; see `add_transaction`."""
        return cls().add_transaction(transaction)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def add_event(self, event: Mapping[str, Any]) -> Self:
        """Adds an error event.

        An event without a valid `event_id` gets one. It is written to the envelope's headers and to a
        shallow copy of the event, never to the caller's dict; one in the headers wins.
        """
        return self.add_item(Item(event, type="event"))

    def add_transaction(self, transaction: Mapping[str, Any]) -> Self:
        """Adds a transaction; its id as with `add_event`, and `type` is filled in."""
        return self.add_item(Item(transaction, type="transaction"))

    def add_session(self, session: Mapping[str, Any]) -> Self:
        """Adds one session update."""
        return self.add_item(Item(session, type="session"))

    def add_sessions(self, sessions: Mapping[str, Any]) -> Self:
        """Adds aggregated sessions: `{"aggregates": […], "attrs": {…}}`."""
        return self.add_item(Item(sessions, type="sessions"))

    def add_check_in(self, check_in: Mapping[str, Any]) -> Self:
        """Adds a check-in of a monitor."""
        return self.add_item(Item(check_in, type="check_in"))

    def add_log(self, logs: Iterable[Mapping[str, Any]]) -> Self:
        """Adds one container of logs; an envelope may hold one."""
        items = list(logs)
        return self.add_item(
            Item({"items": items}, type="log", item_count=len(items), content_type=_CONTAINER_TYPES["log"])
        )

    def add_attachment(
        self,
        payload: object,
        *,
        filename: str,
        content_type: str | None = None,
        attachment_type: str | None = None,
    ) -> Self:
        """Adds a file: bytes, str, a path, or a value written as JSON."""
        return self.add_item(
            Item(
                payload,
                type="attachment",
                filename=filename,
                content_type=content_type,
                attachment_type=attachment_type,
            )
        )

    def add_client_report(self, report: Mapping[str, Any]) -> Self:
        """Adds a client report."""
        return self.add_item(Item(report, type="client_report"))

    def add_item(self, item: Item) -> Self:
        """Adds any item. Events, transactions and feedback settle the envelope's event id."""
        self.items.append(self._identified(item) if item.type in _EVENT_TYPES else item)
        return self

    def _identified(self, item: Item) -> Item:
        payload = item._payload
        held = self.headers.get("event_id")
        if not _is_dict(payload):
            if held is None:
                found = _loaded(payload).get("event_id") if type(payload) in (bytes, str) else None
                self.headers["event_id"] = _event_id(found) or uuid.uuid4().hex
            return item
        own = dict.get(payload, "event_id")
        chosen = held or _event_id(own) or uuid.uuid4().hex
        self.headers["event_id"] = chosen
        unnamed = item.type == "transaction" and dict.get(payload, "type") is None
        if type(own) is str and chosen == own and not unnamed:
            return item
        # Read through the base class: a subclass may override what `dict(payload)` would call.
        copy = payload.copy() if type(payload) is dict else dict(dict.items(payload))
        copy["event_id"] = chosen
        if unnamed:
            copy["type"] = "transaction"
        return Item._received(item.headers, copy)

    def serialize(self) -> bytes:
        """The canonical bytes: compact headers, `type` and `length` first, payloads untouched.

        Raises:
            SealError: A payload can't be read or written.
        """
        return b"".join(self._parts())

    def serialize_into(self, file: IO[bytes]) -> None:
        """Writes what `serialize` returns, item by item."""
        for part in self._parts():
            file.write(part)

    def _parts(self) -> Iterator[bytes]:
        yield encode(self.headers, "envelope.headers")
        yield b"\n"
        for item in self.items:
            body = item.get_bytes()
            yield item._header(len(body))
            yield b"\n"
            yield body
            yield b"\n"

    @classmethod
    def deserialize(cls, data: bytes | bytearray | memoryview, *, max_items: int = MAX_ITEMS) -> Self:
        """Parses strictly; headers and payloads are kept as received.

        Linear in time. A header line may have 1 MiB, all of them 8 MiB.

        Raises:
            InvalidEnvelope: With the reason and the offset of the byte where the fault begins.
        """
        headers, items = parse_envelope(bytes(data), max_items=max_items)
        envelope = cls.__new__(cls)
        envelope.headers = headers
        envelope.items = [Item._received(*item) for item in items]
        return envelope

    @classmethod
    def deserialize_from(
        cls, file: IO[bytes], *, max_items: int = MAX_ITEMS, max_bytes: int = 2 * MAX_ENVELOPE_BYTES
    ) -> Self:
        """Parses what `file` holds, at most `max_bytes`.

        Raises:
            InvalidEnvelope: As `deserialize`; `too_large` when there is more.
        """
        data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise InvalidEnvelope("too_large", max_bytes, f"more than {max_bytes} bytes")
        return cls.deserialize(data, max_items=max_items)

    def validate(self) -> None:
        """Checks what receivers check beyond framing: header values, required headers, combinations.

        Raises:
            InvalidEnvelope: The reason is the rule's name.
        """
        check(self.headers, [item.headers for item in self.items])

    def seal(
        self,
        *,
        max_event_bytes: int = MAX_EVENT_BYTES,
        max_attachment_bytes: int = MAX_ATTACHMENT_BYTES,
        max_envelope_bytes: int = MAX_ENVELOPE_BYTES,
    ) -> SealedEnvelope:
        """The envelope as bytes: what is captured is what is sent, whatever becomes of the payloads later.

        `sent_at` is dropped, senders write it. An oversize event loses frame variables, then breadcrumbs,
        extra and long strings. An attachment that can't be read, or is too big, is left out when
        something else travels; the result's `left_out` tells.

        Raises:
            SealError: Something can't be written or is too big. Never anything else.
        """
        try:
            headers = self.headers
            event_id = headers.get("event_id")
            if event_id is not None and not is_event_id(event_id):
                raise SealError("envelope.headers.event_id", "not 32 hex digits or a UUID")
            if "sent_at" in headers:
                headers = {name: value for name, value in headers.items() if name != "sent_at"}
            if type(event_id) is str and len(headers) == 1:
                header = b'{"event_id":"%b"}' % event_id.encode()
            else:
                header = encode(headers, "envelope.headers")
            size = len(header) + 1
            if size > MAX_HEADER_LINE_BYTES:
                raise SealError("envelope.headers", f"{size} bytes, more than {MAX_HEADER_LINE_BYTES}")
            sealed: list[SealedItem] = []
            left_out: list[tuple[SealError, Quantities]] = []
            for item in tuple(self.items):
                try:
                    one = item.seal(
                        max_event_bytes=max_event_bytes, max_attachment_bytes=max_attachment_bytes
                    )
                    grown = size + len(one.header) + len(one.payload) + 2
                    if grown > max_envelope_bytes:
                        raise SealError(item.type, f"takes the envelope over {max_envelope_bytes} bytes")
                except SealError as error:
                    if item.type != "attachment":
                        raise
                    left_out.append((error, (("attachment", _weight(item)),)))
                    continue
                sealed.append(one)
                size = grown
        except SealError:
            raise
        except Exception as error:
            raise SealError("envelope", f"can't be sealed ({type(error).__name__})") from None
        if left_out and not sealed:
            raise left_out[0][0]
        return SealedEnvelope(header, sealed, event_id=event_id, left_out=tuple(left_out))

    def __repr__(self) -> str:
        return f"<Envelope {[item.type for item in self.items]}>"


def _is_dict(payload: object) -> bool:
    # `isinstance` would ask the object's own `__class__`.
    return issubclass(type(payload), dict)


def _held(payload: Any) -> Any:
    """What an item keeps: exact bytes, exact str, or the value itself.

    Buffers can change and subclasses can answer with anything, so both are read here, through the base
    class. Only a mapping that is not a dict is copied by its own methods.
    """
    kind = type(payload)
    if kind is dict or kind is bytes:
        return payload
    if issubclass(kind, bytes | bytearray | memoryview):
        return bytes(memoryview(payload))
    if issubclass(kind, str):
        return str.__str__(payload)
    if issubclass(kind, Mapping) and not issubclass(kind, dict):
        return dict(payload)
    return payload


def _event_id(value: object) -> str | None:
    """A valid id in the form that servers store, 32 lower-case hex digits; else None."""
    if type(value) is uuid.UUID:
        return value.hex
    if type(value) is str and is_event_id(value):
        return value.replace("-", "").lower()
    return None


def _category(headers: Mapping[str, Any]) -> str | None:
    kind = headers["type"]
    if kind == "profile_chunk" and headers.get("platform") in _UI_PLATFORMS:
        return "profile_chunk_ui"
    return KINDS.get(kind, UNKNOWN).category


def _quantities(headers: Mapping[str, Any], payload: Any, body: bytes) -> Quantities:
    """PROTOCOL section 3, third column. `body` is the payload's bytes where the count depends on them."""
    kind = headers["type"]
    if kind == "event":
        return _ONE["event"]
    if kind == "transaction":
        spans = dict.get(payload if _is_dict(payload) else _loaded(body), "spans")
        return (("transaction", 1), ("span", 1 + (len(spans) if isinstance(spans, list | tuple) else 0)))
    if kind == "attachment":
        return (("attachment", max(len(body), 1)),)
    if kind in _CONTAINER_TYPES:
        count = headers.get("item_count")
        if type(count) is not int or count < 0:
            members = _loaded(body).get("items")
            count = len(members) if isinstance(members, list) else 1
        if kind == "log":
            return (("log_item", count), ("log_byte", len(body)))
        if kind == "trace_metric":
            return (("trace_metric", count), ("trace_metric_byte", len(body)))
        return (("span", count),)
    category = _category(headers)
    if category is None or category in ("internal", "metric_bucket"):
        return _NOTHING
    return ((category, 1),)


def _loaded(body: bytes | str) -> dict[str, Any]:
    """The JSON object in `body`, or an empty one."""
    try:
        found = orjson.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _weight(item: Item) -> int:
    """Bytes of an attachment that could not be sealed, for the books; 1 when nobody knows."""
    payload = item._payload
    if issubclass(type(payload), os.PathLike):
        try:
            return max(os.stat(payload).st_size, 1)
        except (OSError, ValueError):
            return 1
    return max(len(payload), 1) if type(payload) in (bytes, str) else 1


def _read(path: os.PathLike[str], limit: int | None, name: str) -> bytes:
    """A regular file's bytes. Never waits for a pipe's other end."""
    try:
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        with open(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SealError(name, "its path is not a regular file")
            return file.read(-1 if limit is None else limit + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, SealError):
            raise
        raise SealError(name, f"its file can't be read ({type(error).__name__})") from None
