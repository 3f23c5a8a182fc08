"""Envelopes as the caller makes them: building, parsing, serialising, validating and sealing.

This module owns the envelope's headers and its event id. Items are in `item.py`, framing in `parsing.py`, the
rules of receivers in `validation.py`, the sealed form in `sealed.py`. No I/O of its own, no clock.

Threads: an envelope belongs to one thread until it is sealed. `seal` holds no lock, may run on any thread,
and raises nothing but `SealError`, even if another thread changes a payload meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, Final, Self

from transport_kit.envelope.encoding import encode
from transport_kit.envelope.ids import new_uuid
from transport_kit.envelope.item import (
    EVENT_TYPES,
    MAX_ATTACHMENT_BYTES,
    MAX_EVENT_BYTES,
    MAX_HEADER_LINE_BYTES,
    Item,
    attachment_size,
    estimated_quantities,
    event_id_of,
    is_dict,
    parse_object,
)
from transport_kit.envelope.item_types import INTERNAL
from transport_kit.envelope.losses import Quantities
from transport_kit.envelope.parsing import MAX_ITEMS, parse_envelope
from transport_kit.envelope.sealed import SealedEnvelope, SealedItem
from transport_kit.envelope.trimming import trim_header
from transport_kit.envelope.validation import CONTAINER_TYPES, check, is_event_id
from transport_kit.runtime.errors import InvalidEnvelope, SealError
from transport_kit.runtime.interrupts import let_through

__all__ = ["Envelope"]

MAX_ENVELOPE_BYTES: Final = 100 * 1024 * 1024
# Without the newline, and without the `sent_at` that the sender adds: 41 bytes at most.
_MAX_HEADER_BYTES: Final = MAX_HEADER_LINE_BYTES - 64


class Envelope:
    """Items that are sent together, and their common headers.

    Args:
        headers: Envelope headers; copied.
        items: Items, added in order by `add_item`.

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
        """Return an envelope with one error event; see `add_event`."""
        return cls().add_event(event)

    @classmethod
    def transaction(cls, transaction: Mapping[str, Any]) -> Self:
        """Return an envelope with one transaction; see `add_transaction`."""
        return cls().add_transaction(transaction)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def add_event(self, event: Mapping[str, Any]) -> Self:
        """Add an error event.

        An event without a valid `event_id` gets one. The id is written to the envelope's headers and to a
        shallow copy of the event, never to the caller's dict. An id in the headers takes precedence.
        """
        return self.add_item(Item(event, type="event"))

    def add_transaction(self, transaction: Mapping[str, Any]) -> Self:
        """Add a transaction. Its id is set as by `add_event`, and `type` is set."""
        return self.add_item(Item(transaction, type="transaction"))

    def add_session(self, session: Mapping[str, Any]) -> Self:
        """Add one session update."""
        return self.add_item(Item(session, type="session"))

    def add_sessions(self, sessions: Mapping[str, Any]) -> Self:
        """Add aggregated sessions: `{"aggregates": […], "attrs": {…}}`."""
        return self.add_item(Item(sessions, type="sessions"))

    def add_check_in(self, check_in: Mapping[str, Any]) -> Self:
        """Add a check-in of a monitor."""
        return self.add_item(Item(check_in, type="check_in"))

    def add_log(self, logs: Iterable[Mapping[str, Any]]) -> Self:
        """Add one container of logs; an envelope may hold one."""
        items = list(logs)
        return self.add_item(
            Item({"items": items}, type="log", item_count=len(items), content_type=CONTAINER_TYPES["log"])
        )

    def add_attachment(
        self,
        payload: object,
        *,
        filename: str,
        content_type: str | None = None,
        attachment_type: str | None = None,
    ) -> Self:
        """Add a file: bytes, a str, a path, or a value that is encoded as JSON."""
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
        """Add a client report."""
        return self.add_item(Item(report, type="client_report"))

    def add_item(self, item: Item) -> Self:
        """Add any item. Events, transactions and feedback set the envelope's event id if it has none."""
        self.items.append(self._with_event_id(item) if item.type in EVENT_TYPES else item)
        return self

    def _with_event_id(self, item: Item) -> Item:
        """Set the envelope's event id, and return the item or a copy that contains it."""
        payload = item.payload
        envelope_id = self.headers.get("event_id")
        if not is_dict(payload):
            if envelope_id is None:
                value = parse_object(payload).get("event_id") if type(payload) in (bytes, str) else None
                self.headers["event_id"] = event_id_of(value) or new_uuid()
            return item
        item_id = dict.get(payload, "event_id")
        event_id = envelope_id or event_id_of(item_id) or new_uuid()
        self.headers["event_id"] = event_id
        lacks_type = item.type == "transaction" and dict.get(payload, "type") is None
        if type(item_id) is str and event_id == item_id and not lacks_type:
            return item
        # Through the base class: a subclass may override the methods that `dict(payload)` would call.
        copy = payload.copy() if type(payload) is dict else dict(dict.items(payload))
        copy["event_id"] = event_id
        if lacks_type:
            copy["type"] = "transaction"
        return Item.received(item.headers, copy)

    def serialize(self) -> bytes:
        """Return the canonical bytes: compact headers, `type` and `length` first, payloads unchanged.

        Raises:
            SealError: A payload can't be read or encoded.
        """
        return b"".join(self._parts())

    def serialize_into(self, file: IO[bytes]) -> None:
        """Write the bytes that `serialize` returns to `file`, item by item."""
        for part in self._parts():
            file.write(part)

    def _parts(self) -> Iterator[bytes]:
        yield encode(self.headers, "envelope.headers")
        yield b"\n"
        for item in self.items:
            body = item.get_bytes()
            yield item.header(len(body))
            yield b"\n"
            yield body
            yield b"\n"

    @classmethod
    def deserialize(cls, data: bytes | bytearray | memoryview, *, max_items: int = MAX_ITEMS) -> Self:
        """Parse strictly; headers and payloads are kept as received.

        Takes linear time. A header line may have 1 MiB, all together 8 MiB.

        Raises:
            InvalidEnvelope: With the reason and the offset of the first wrong byte.
        """
        headers, items = parse_envelope(bytes(data), max_items=max_items)
        envelope = cls.__new__(cls)
        envelope.headers = headers
        envelope.items = [Item.received(*item) for item in items]
        return envelope

    @classmethod
    def deserialize_from(
        cls, file: IO[bytes], *, max_items: int = MAX_ITEMS, max_bytes: int = 2 * MAX_ENVELOPE_BYTES
    ) -> Self:
        """Parse the contents of `file`, at most `max_bytes`.

        Raises:
            InvalidEnvelope: As in `deserialize`; `too_large` if there are more bytes.
        """
        data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise InvalidEnvelope("too_large", max_bytes, f"more than {max_bytes} bytes")
        return cls.deserialize(data, max_items=max_items)

    def validate(self) -> None:
        """Check the rules of receivers beyond framing: header values, required headers, combinations.

        Raises:
            InvalidEnvelope: The reason is the name of the rule.
        """
        check(self.headers, [item.headers for item in self.items])

    def quantities(self) -> Quantities:
        """Return the loss of all items together, by data category.

        Reads the payloads whose loss is counted in bytes. Never raises: an item that can't be read or written
        counts as one of its category.
        """
        return Quantities.sum([estimated_quantities(item) for item in tuple(self.items)])

    def item_counts(self) -> Quantities:
        """Return the number of items by data category, without client reports. Reads no payload."""
        categories = [item.data_category for item in tuple(self.items)]
        return Quantities(
            [(category, 1) for category in categories if category is not None and category != INTERNAL]
        )

    def seal(
        self,
        *,
        max_event_bytes: int = MAX_EVENT_BYTES,
        max_attachment_bytes: int = MAX_ATTACHMENT_BYTES,
        max_envelope_bytes: int = MAX_ENVELOPE_BYTES,
    ) -> SealedEnvelope:
        """Return the envelope as bytes, which later changes of the payloads don't affect.

        `sent_at` is dropped, as senders write it. An oversize header loses its longest parts, `trace` and all
        others but the event id. An oversize event loses frame variables, then breadcrumbs,
        extra and long strings. An attachment that can't be read, or is too big, is left out if the envelope
        holds other items; the result's `left_out` contains its error.

        Raises:
            SealError: A part can't be encoded, or is too big. No other exception is raised.
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
                header = trim_header(encode(headers, "envelope.headers"), _MAX_HEADER_BYTES)
            size = len(header) + 1
            sealed: list[SealedItem] = []
            left_out: list[tuple[SealError, Quantities]] = []
            for item in tuple(self.items):
                try:
                    sealed_item = item.seal(
                        max_event_bytes=max_event_bytes, max_attachment_bytes=max_attachment_bytes
                    )
                    new_size = size + len(sealed_item.header) + len(sealed_item.payload) + 2
                    if new_size > max_envelope_bytes:
                        raise SealError(item.type, f"takes the envelope over {max_envelope_bytes} bytes")
                except SealError as error:
                    let_through(error)
                    if item.type != "attachment":
                        raise
                    left_out.append((error, Quantities([("attachment", attachment_size(item))])))
                    continue
                sealed.append(sealed_item)
                size = new_size
        except SealError:
            raise
        except Exception as error:
            let_through(error)
            raise SealError("envelope", f"can't be sealed ({type(error).__name__})") from None
        if left_out and not sealed:
            raise left_out[0][0]
        return SealedEnvelope(header, sealed, event_id=event_id, left_out=tuple(left_out))

    def __repr__(self) -> str:
        return f"<Envelope {[item.type for item in self.items]}>"
