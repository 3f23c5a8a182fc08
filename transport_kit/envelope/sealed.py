"""Sealed envelopes: the bytes that queues hold and senders send, with the facts needed to handle them.

This module owns their two forms, packed and unpacked. The table of item types is in `item_types.py`.
Independent of the caller's dicts and of HTTP.

Threads: all objects are immutable once built, and may be read from any thread. No locks.
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

# Fast, and reduces JSON to a third. The sender compresses again, at a higher level.
_STORAGE_LEVEL: Final = 1
# A blob larger than this share of the envelope isn't kept: inflating it would cost more than it saves.
_MAX_RATIO: Final = 0.9
# Bytes of memory of the objects around the payload; a test measures them.
_ENVELOPE_OVERHEAD: Final = 400
_ITEM_OVERHEAD: Final = 250
_PACKED_ITEM_OVERHEAD: Final = 150


class SealedItem:
    """The bytes of one item. Immutable by convention.

    Attributes:
        type: The item's type, which may be an unknown one.
        header: One JSON object on one line, type and length first, without the newline.
        payload: The bytes to be sent.
        category: The data category of its rate limit; None: only a limit on all categories applies.
        quantities: The quantities to count if the item is lost.
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
    """The part of a packed item that is not in the blob; lengths in bytes."""

    type: str
    header: int
    payload: int
    category: str | None
    quantities: Quantities


class SealedEnvelope:
    """An envelope as bytes, with the facts that queues, limits and senders need. Immutable by convention.

    Attributes:
        header: The envelope header, one JSON object without `sent_at` and without the newline.
        size: The number of bytes when serialised without `sent_at`.
        stored: The number of bytes of memory in use, the objects around the bytes included; an estimate.
        event_id: The event id in the header.
        priority: The highest priority of its items; `Priority.REPLAY` if there are none.
        ordered: True if it holds a session or a check-in: it is sent through the lane that keeps order.
        repeatable: True if a server recognises a repeat, because the event id identifies every item.
        quantities: The sum of the items' quantities.
        left_out: The errors of items that sealing left out, and their quantities; empty in derived envelopes.
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
            item_type = KINDS.get(item.type, UNKNOWN)
            size += len(item.header) + len(item.payload) + 2
            if item_type.priority > priority:
                priority = item_type.priority
            ordered = ordered or item_type.ordered
            repeatable = repeatable and item_type.identified
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
        """Return an envelope without items, to which `with_items` adds a client report.

        Args:
            header: A JSON object such as `b"{}"`.
        """
        event_id = loads(header).get("event_id")
        return cls(header, event_id=event_id)

    @property
    def items(self) -> tuple[SealedItem, ...]:
        """The items in order. A packed envelope inflates them on each access."""
        return self._items if self._blob is None else self.unpacked()._items

    def packed(self) -> SealedEnvelope:
        """Return the form for storage: the items in one compressed blob, all other facts unchanged.

        Returns itself if it is packed already, or if compression gains little.
        """
        if self._blob is not None or not self._items:
            return self
        deflate = zlib.compressobj(_STORAGE_LEVEL)
        parts = [deflate.compress(part) for item in self._items for part in (item.header, item.payload)]
        parts.append(deflate.flush())
        blob = b"".join(parts)
        if len(blob) > _MAX_RATIO * self.size:
            return self
        stored = len(self.header) + len(blob) + _ENVELOPE_OVERHEAD + _PACKED_ITEM_OVERHEAD * len(self._items)
        shapes = tuple(
            _Shape(item.type, len(item.header), len(item.payload), item.category, item.quantities)
            for item in self._items
        )
        return self._with_body((), shapes, blob, stored)

    def unpacked(self) -> SealedEnvelope:
        """Return the form for sending; itself if it is not packed."""
        if self._blob is None:
            return self
        body = memoryview(zlib.decompress(self._blob))
        items: list[SealedItem] = []
        start = 0
        for shape in self._shapes:
            middle = start + shape.header
            end = middle + shape.payload
            items.append(
                SealedItem(
                    shape.type,
                    bytes(body[start:middle]),
                    bytes(body[middle:end]),
                    shape.category,
                    shape.quantities,
                )
            )
            start = end
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
        """Remove the items that are rate limited.

        Attachments, profiles and replays are removed if every event or transaction of the envelope is. Client
        reports are never removed. An envelope of client reports alone waits while `internal` is limited.

        Args:
            is_limited: Returns True if a category is limited; None stands for a limit on all categories.
                Called once per category.

        Returns:
            The envelope to send and the quantities removed. The envelope is None if nothing is left beside
            client reports; the caller keeps these.
        """
        results: dict[str | None, bool] = {}

        def limited(category: str | None) -> bool:
            if category not in results:
                results[category] = is_limited(category)
            return results[category]

        items = self.items
        reports = sum(item.category == INTERNAL for item in items)
        if reports == len(items):
            return self if items and not limited(INTERNAL) else None, Quantities()
        leading = [item.category for item in items if KINDS.get(item.type, UNKNOWN).leads]
        orphaned = bool(leading) and all(limited(category) for category in leading)
        remaining: list[SealedItem] = []
        removed: list[SealedItem] = []
        for item in items:
            if item.category != INTERNAL and (
                limited(item.category) or (orphaned and KINDS.get(item.type, UNKNOWN).follows)
            ):
                removed.append(item)
            else:
                remaining.append(item)
        if not removed:
            return self, Quantities()
        losses = Quantities.sum([item.quantities for item in removed])
        if len(remaining) == reports:
            return None, losses
        return SealedEnvelope(self.header, remaining, event_id=self.event_id), losses

    def with_items(self, extra: Iterable[SealedItem]) -> SealedEnvelope:
        """Return a copy with `extra` at the end, and with the facts of the longer envelope."""
        return SealedEnvelope(self.header, (*self.items, *extra), event_id=self.event_id)

    def serialize(self, sent_at: str | None = None) -> bytes:
        """Return the bytes to be sent, uncompressed.

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
        contents = "packed" if self._blob is not None else [item.type for item in self._items]
        return f"<SealedEnvelope {self.event_id} {contents} of {self.size} bytes, {self.priority.name}>"
