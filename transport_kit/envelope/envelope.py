"""Envelopes as the caller makes them: built, parsed, serialised, checked, sealed.

Owns the envelope's headers and its event id. Items are `item.py`, framing is `parsing.py`, the rules that
receivers check are `validation.py`, the sealed form is `sealed.py`. No I/O of its own, no clock.

Threads: an envelope belongs to one thread until it is sealed. `seal` holds no lock, may run anywhere, and
raises nothing but `SealError`, also when another thread changes a payload meanwhile.
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
    estimated_quantities,
    event_id_of,
    is_dict,
    loaded,
    weight,
)
from transport_kit.envelope.item_types import INTERNAL
from transport_kit.envelope.losses import Quantities
from transport_kit.envelope.parsing import MAX_ITEMS, parse_envelope
from transport_kit.envelope.sealed import SealedEnvelope, SealedItem
from transport_kit.envelope.validation import CONTAINER_TYPES, check, is_event_id
from transport_kit.runtime.errors import InvalidEnvelope, SealError
from transport_kit.runtime.interrupts import let_through

__all__ = ["Envelope"]

MAX_ENVELOPE_BYTES: Final = 100 * 1024 * 1024


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
        self.items.append(self._identified(item) if item.type in EVENT_TYPES else item)
        return self

    def _identified(self, item: Item) -> Item:
        payload = item.payload
        held = self.headers.get("event_id")
        if not is_dict(payload):
            if held is None:
                found = loaded(payload).get("event_id") if type(payload) in (bytes, str) else None
                self.headers["event_id"] = event_id_of(found) or new_uuid()
            return item
        own = dict.get(payload, "event_id")
        chosen = held or event_id_of(own) or new_uuid()
        self.headers["event_id"] = chosen
        unnamed = item.type == "transaction" and dict.get(payload, "type") is None
        if type(own) is str and chosen == own and not unnamed:
            return item
        # Read through the base class: a subclass may override what `dict(payload)` would call.
        copy = payload.copy() if type(payload) is dict else dict(dict.items(payload))
        copy["event_id"] = chosen
        if unnamed:
            copy["type"] = "transaction"
        return Item.received(item.headers, copy)

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
            yield item.header(len(body))
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
        envelope.items = [Item.received(*item) for item in items]
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
                    let_through(error)
                    if item.type != "attachment":
                        raise
                    left_out.append((error, Quantities([("attachment", weight(item))])))
                    continue
                sealed.append(one)
                size = grown
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
