"""Conversion of envelopes and loss counts to the records of a segment, and back.

This module owns the head of a record: the types, lengths and quantities of an envelope's items, so that a
reader need not parse the envelope, and can count a loss without reading the body. Everything read back is
checked: types, signs, and that the lengths add up to the body.

Threads: pure functions.
"""

from __future__ import annotations

from typing import Any, Final

from transport_kit.envelope.encoder import dumps, loads
from transport_kit.envelope.item_types import Priority
from transport_kit.envelope.losses import Quantities, Report
from transport_kit.envelope.sealed import SealedEnvelope, SealedItem

__all__ = [
    "MAX_QUANTITY",
    "envelope_of",
    "envelope_record",
    "event_id_in_head",
    "losses_of",
    "losses_record",
    "quantities_of",
]

#: Larger quantities are taken for damage.
MAX_QUANTITY: Final = 2**53
_ORDERED: Final = int(Priority.SESSION)
# Up to `_FEW_PARTS` parts are written without joining them: for an event with a few attachments a copy costs
# more than the parts do. Beyond that, joining costs less up to `_COPIED` bytes, and is needed from
# `_MOST_PARTS` parts on, as the number of parts of one write is limited.
_FEW_PARTS: Final = 9
_COPIED: Final = 64 * 1024
_MOST_PARTS: Final = 500


def envelope_record(sealed: SealedEnvelope) -> tuple[int, bytes, list[bytes], int]:
    """Return the class, head, parts of the body, and body length of an envelope's record.

    The body is the serialised envelope.
    """
    # An ordered envelope waits in the ordered lane, whatever its other items are.
    rank = _ORDERED if sealed.ordered else int(sealed.priority)
    header = sealed.header
    shapes: list[object] = []
    parts: list[bytes] = []
    pending = header + b"\n"
    length = 0
    for item in sealed.items:
        payload = item.payload
        shapes.append((item.type, len(item.header), len(payload), item.category, tuple(item.quantities)))
        before = b"%b%b\n" % (pending, item.header)
        parts += (before, payload)
        length += len(before) + len(payload)
        pending = b"\n"
    parts.append(pending)
    length += len(pending)
    if len(parts) > _FEW_PARTS and (length <= _COPIED or len(parts) > _MOST_PARTS):
        parts = [b"".join(parts)]
    return rank, dumps((sealed.event_id, len(header), shapes)), parts, length


def envelope_of(head: bytes, body: bytes) -> SealedEnvelope:
    """Return the envelope of a record.

    Raises:
        ValueError: The head is not valid, or does not fit the body.
    """
    event_id, header_length, shapes = _head(head)
    header = body[:header_length]
    start = header_length + 1
    if len(header) != header_length or body[header_length:start] != b"\n":
        raise ValueError("the envelope header does not fit")
    items = []
    for type_, item_header_length, payload_length, category, quantities in shapes:
        payload_start = start + item_header_length + 1
        end = payload_start + payload_length
        if body[payload_start - 1 : payload_start] != b"\n" or body[end : end + 1] != b"\n":
            raise ValueError("an item does not fit")
        item_header, payload = body[start : payload_start - 1], body[payload_start:end]
        items.append(SealedItem(type_, item_header, payload, category, quantities))
        start = end + 1
    if start != len(body):
        raise ValueError("there is more than the head says")
    return SealedEnvelope(header, items, event_id=event_id)


def quantities_of(head: bytes) -> Quantities:
    """Return the quantities of an envelope from its record's head; empty if the head is not valid."""
    try:
        _, _, shapes = _head(head)
    except ValueError:
        return Quantities()
    return Quantities.sum([quantities for *_, quantities in shapes])


def event_id_in_head(head: bytes) -> str | None:
    """Return the event id of an envelope from its record's head; None if it has none."""
    try:
        return _head(head)[0]
    except ValueError:
        return None


def losses_record(report: Report) -> bytes:
    """Return the head of a record of loss counts, which has no body."""
    return dumps(report)


def losses_of(head: bytes) -> Report:
    """Return the loss counts of a record.

    Raises:
        ValueError: The head is not valid.
    """
    entries: object = loads(head)
    if not isinstance(entries, list):
        raise ValueError("not a list")
    losses = []
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 3:
            raise ValueError("not a loss")
        reason, category, quantity = entry
        losses.append((_name(reason), _name(category), _count(quantity)))
    return tuple(losses)


_Shape = tuple[str, int, int, str | None, Quantities]


def _head(head: bytes) -> tuple[str | None, int, list[_Shape]]:
    parts: Any = loads(head)
    if not isinstance(parts, list) or len(parts) != 3 or not isinstance(parts[2], list):
        raise ValueError("not an envelope's head")
    event_id, header_length, entries = parts
    shapes: list[_Shape] = []
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 5 or not isinstance(entry[4], list):
            raise ValueError("not an item's shape")
        type_, item_header_length, payload_length, category, pairs = entry
        quantities = []
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 2:
                raise ValueError("not a quantity")
            quantities.append((_name(pair[0]), _count(pair[1])))
        shapes.append(
            (
                _name(type_),
                _count(item_header_length),
                _count(payload_length),
                None if category is None else _name(category),
                Quantities(quantities),
            )
        )
    return None if event_id is None else _name(event_id), _count(header_length), shapes


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_QUANTITY:
        raise ValueError("not a count")
    return value


def _name(value: object) -> str:
    if type(value) is not str:
        raise ValueError("not a name")
    return value
