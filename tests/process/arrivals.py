"""What reached a server from a spool: events by number, and loss counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from transport_kit.testing import FaultServer
from transport_kit.testing.received import ReceivedRequest


def ids(end: int) -> set[str]:
    """The event ids of the numbers below `end`."""
    return {f"{number:032x}" for number in range(end)}


def all_arrive(server: FaultServer, wanted: set[str], patience: float) -> bool:
    """Whether all of them do, none more than `patience` seconds after the one before.

    A drainer that was killed may have sent what it could not note any more: duplicates count as well.
    """
    while not wanted <= set(found := server.event_ids()):
        if not server.wait_for(len(found) + 1, patience):
            return False
    return True


def told(requests: Iterable[ReceivedRequest]) -> Counter[tuple[str, str]]:
    """The losses in their client reports, by reason and category."""
    losses: Counter[tuple[str, str]] = Counter()
    for request in requests:
        for item in request.envelope.items:
            if item.type == "client_report":
                for loss in json.loads(item.get_bytes())["discarded_events"]:
                    losses[loss["reason"], loss["category"]] += loss["quantity"]
    return losses
