"""Client reports: the items that report losses to the server.

This module owns their format and bounds. The ledger counts the losses; the worker decides when to report
them.

Source: docs/protocol.md, section 6; quantities are 32 bits wide in Relay.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from transport_kit.envelope.encoder import dumps
from transport_kit.envelope.item import Item
from transport_kit.envelope.losses import Report
from transport_kit.envelope.sealed import SealedItem

__all__ = ["MAX_QUANTITY", "MAX_REPORTED", "report_items"]

#: Maximum number of losses in one item. A loss takes at most 100 bytes, as reasons and categories are known
#: names, so an item stays below the 4096 bytes that every server accepts.
MAX_REPORTED = 32
#: The largest quantity that servers accept; they reject a whole report for a larger one.
MAX_QUANTITY = 2**32 - 1


def report_items(report: Report) -> Iterator[SealedItem]:
    """Yield the losses of `report` as client report items, each below the size that servers accept."""
    entries = [
        {"reason": reason, "category": category, "quantity": min(quantity, MAX_QUANTITY)}
        for reason, category, quantity in report
    ]
    timestamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    for start in range(0, len(entries), MAX_REPORTED):
        part = entries[start : start + MAX_REPORTED]
        payload = dumps({"timestamp": timestamp, "discarded_events": part})
        yield Item(payload, type="client_report").seal()
