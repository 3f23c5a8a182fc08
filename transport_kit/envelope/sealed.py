"""Sealed envelopes: the bytes that queues hold and senders send, with the facts that decide about them.

Owns their two forms, packed and unpacked. The table of item types is in `item_types.py`. Knows nothing about
dicts, encoders or HTTP.

Threads: nothing here changes once built, so everything may be read from any thread. No locks.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Self, TypeAlias

from transport_kit.envelope.encoder import dumps, loads
from transport_kit.envelope.item_types import INTERNAL, KINDS, UNKNOWN, Priority
from transport_kit.envelope.losses import Pairs, Quantities
from transport_kit.runtime.errors import SealError

__all__ = ["LeftOut", "SealedEnvelope", "SealedItem"]

LeftOut: TypeAlias = tuple[tuple[SealError, Quantities], ...]

# Fast, and JSON shrinks to a third; the sender compresses again, harder.
_STORAGE_LEVEL: Final = 1
# A blob larger than this part of the envelope isn't kept: inflating it again costs more than it saves.
_WORTH: Final = 0.9
# What the objects around the bytes weigh, see the test that measures them.
_ENVELOPE_OVERHEAD: Final = 400
_ITEM_OVERHEAD: Final = 250
_PACKED_ITEM_OVERHEAD: Final = 150


class SealedItem:
    """One item's bytes. Immutable by convention.

    Attributes:
        type: The item's type, also an unknown one.
        header: One JSON object on one line, type and length first, without the newline.
        payload: Exactly as sent.
        category: The data category whose limit stops it; None means only a limit on everything does.
        quantities: What its loss costs, per data category.
    """

    __slots__ = ("category", "header", "payload", "quantities", "type")

    def __init__(
        self, type: str, header: bytes, payload: bytes, category: str | None, quantities: Pairs
    ) -> None:
        self.type = type
        self.header = header
        self.payload = payload
        self.category = category
        if not isinstance(quantities, Quantities):
            quantities = Quantities(quantities)
        self.quantities = quantities

    def __repr__(self) -> str:
        return f"<SealedItem {self.type!r} of {len(self.payload)} bytes>"


class _Shape(NamedTuple):
    """What is left of an item beside the blob."""

    type: str
    header: int
    payload: int
    category: str | None
    quantities: Quantities


class SealedEnvelope:
    """An envelope as bytes, with the facts that queues, limits and senders ask for. Immutable by convention.

    Attributes:
        header: The envelope header, one JSON object without `sent_at` and without the newline.
        size: Bytes when serialised without `sent_at`.
        stored: Bytes of memory held now, the objects around the bytes included; an estimate.
        event_id: As in the header.
        priority: The highest of its items; `Priority.REPLAY` without any.
        ordered: Holds a session or a check-in: goes through the one lane that keeps order.
        repeatable: A server can recognise a repeat, because every item belongs to the header's event id.
        quantities: What the loss of the whole would cost, summed per data category.
        left_out: What sealing had to leave out, with what each costs; empty in envelopes derived from it.
    """

    __slots__ = (
        "_blob",
        "_items",
        "_shapes",
        "event_id",
        "header",
        "left_out",
        "ordered",
        "priority",
        "quantities",
        "repeatable",
        "size",
        "stored",
    )

    def __init__(
        self,
        header: bytes,
        items: Iterable[SealedItem] = (),
        *,
        event_id: str | None = None,
        left_out: LeftOut = (),
    ) -> None:
        self.header = header
        self.event_id = event_id
        self.left_out = left_out
        self._items = tuple(items)
        self._blob: bytes | None = None
        self._shapes: tuple[_Shape, ...] = ()
        size = len(header) + 1
        priority = Priority.REPLAY
        ordered = False
        repeatable = event_id is not None
        for item in self._items:
            kind = KINDS.get(item.type, UNKNOWN)
            size += len(item.header) + len(item.payload) + 2
            if kind.priority > priority:
                priority = kind.priority
            ordered = ordered or kind.ordered
            repeatable = repeatable and kind.identified
        self.size = size
        self.priority = priority
        self.ordered = ordered
        self.repeatable = repeatable
        # Most envelopes hold one item: no sum in each capture.
        self.quantities = (
            self._items[0].quantities
            if len(self._items) == 1
            else Quantities.sum([item.quantities for item in self._items])
        )
        self.stored = size + _ENVELOPE_OVERHEAD + _ITEM_OVERHEAD * len(self._items)

    @classmethod
    def empty(cls, header: bytes) -> Self:
        """An envelope without items, for `with_items` to put a client report into.

        Args:
            header: A JSON object such as `b"{}"`.
        """
        event_id = loads(header).get("event_id")
        return cls(header, event_id=event_id)

    @property
    def items(self) -> tuple[SealedItem, ...]:
        """The items in order. A packed envelope inflates them on each call."""
        return self._items if self._blob is None else self.unpacked()._items

    def packed(self) -> SealedEnvelope:
        """The form for storage: items in one compressed blob, all other facts unchanged.

        Returns itself when packed already, and when compression gains little.
        """
        if self._blob is not None or not self._items:
            return self
        deflate = zlib.compressobj(_STORAGE_LEVEL)
        parts = [deflate.compress(part) for item in self._items for part in (item.header, item.payload)]
        parts.append(deflate.flush())
        blob = b"".join(parts)
        if len(blob) > _WORTH * self.size:
            return self
        stored = len(self.header) + len(blob) + _ENVELOPE_OVERHEAD + _PACKED_ITEM_OVERHEAD * len(self._items)
        shapes = tuple(
            _Shape(item.type, len(item.header), len(item.payload), item.category, item.quantities)
            for item in self._items
        )
        return self._with_body((), shapes, blob, stored)

    def unpacked(self) -> SealedEnvelope:
        """The form for sending; itself when not packed."""
        if self._blob is None:
            return self
        body = memoryview(zlib.decompress(self._blob))
        items: list[SealedItem] = []
        at = 0
        for shape in self._shapes:
            middle = at + shape.header
            end = middle + shape.payload
            items.append(
                SealedItem(
                    shape.type,
                    bytes(body[at:middle]),
                    bytes(body[middle:end]),
                    shape.category,
                    shape.quantities,
                )
            )
            at = end
        stored = self.size + _ENVELOPE_OVERHEAD + _ITEM_OVERHEAD * len(items)
        return self._with_body(tuple(items), (), None, stored)

    def _with_body(
        self, items: tuple[SealedItem, ...], shapes: tuple[_Shape, ...], blob: bytes | None, stored: int
    ) -> SealedEnvelope:
        other = SealedEnvelope.__new__(SealedEnvelope)
        other.header = self.header
        other.event_id = self.event_id
        other.left_out = ()
        other.size = self.size
        other.priority = self.priority
        other.ordered = self.ordered
        other.repeatable = self.repeatable
        other.quantities = self.quantities
        other._items = items
        other._shapes = shapes
        other._blob = blob
        other.stored = stored
        return other

    def filtered(self, is_limited: Callable[[str | None], bool]) -> tuple[SealedEnvelope | None, Quantities]:
        """What may be sent under the limits, and what was lost, summed per data category.

        Attachments, profiles and replays go when every event or transaction of the envelope goes. A
        client report stays; when nothing else is left the first value is None, and the caller keeps the
        report. An envelope of client reports alone waits while `internal` is limited.

        Args:
            is_limited: Asked once per category; None asks about the limit on everything.
        """
        verdicts: dict[str | None, bool] = {}

        def limited(category: str | None) -> bool:
            if category not in verdicts:
                verdicts[category] = is_limited(category)
            return verdicts[category]

        items = self.items
        reports = sum(item.category == INTERNAL for item in items)
        if reports == len(items):
            return self if items and not limited(INTERNAL) else None, Quantities()
        leaders = [item.category for item in items if KINDS.get(item.type, UNKNOWN).leads]
        orphaned = bool(leaders) and all(limited(category) for category in leaders)
        kept: list[SealedItem] = []
        lost: list[SealedItem] = []
        for item in items:
            if item.category != INTERNAL and (
                limited(item.category) or (orphaned and KINDS.get(item.type, UNKNOWN).follows)
            ):
                lost.append(item)
            else:
                kept.append(item)
        if not lost:
            return self, Quantities()
        losses = Quantities.sum([item.quantities for item in lost])
        if len(kept) == reports:
            return None, losses
        return SealedEnvelope(self.header, kept, event_id=self.event_id), losses

    def with_items(self, extra: Iterable[SealedItem]) -> SealedEnvelope:
        """A copy with `extra` at the end; all facts are those of the longer envelope."""
        return SealedEnvelope(self.header, (*self.items, *extra), event_id=self.event_id)

    def serialize(self, sent_at: str | None = None) -> bytes:
        """The bytes for the wire, uncompressed.

        Args:
            sent_at: RFC 3339 with offset, written into the header; None leaves it out.
        """
        header = self.header
        if sent_at is not None:
            comma = b"," if len(header) > 2 else b""
            header = b'%b%b"sent_at":%b}' % (header[:-1], comma, dumps(sent_at))
        parts = [header, b"\n"]
        for item in self.items:
            parts += (item.header, b"\n", item.payload, b"\n")
        return b"".join(parts)

    def __repr__(self) -> str:
        what = "packed" if self._blob is not None else [item.type for item in self._items]
        return f"<SealedEnvelope {self.event_id} {what} of {self.size} bytes, {self.priority.name}>"
