"""Events and loss counts that reached a server from a spool."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from transport_kit.testing import FaultServer
from transport_kit.testing.received import ReceivedRequest


def ids(end: int) -> set[str]:
    """Return the event ids of the numbers below `end`."""
    return {f"{number:032x}" for number in range(end)}


def all_arrive(server: FaultServer, wanted: set[str], patience: float) -> bool:
    """Return True once all have arrived; False when none arrives for `patience` seconds.

    Duplicates count as arrivals: a drainer that was killed may have sent envelopes without recording it.
    """
    while not wanted <= set(arrived := server.event_ids()):
        if not server.wait_for(len(arrived) + 1, patience):
            return False
    return True


def reported_losses(requests: Iterable[ReceivedRequest]) -> Counter[tuple[str, str]]:
    """Return the losses in the requests' client reports, by reason and category."""
    losses: Counter[tuple[str, str]] = Counter()
    for request in requests:
        for item in request.envelope.items:
            if item.type == "client_report":
                for loss in json.loads(item.get_bytes())["discarded_events"]:
                    losses[loss["reason"], loss["category"]] += loss["quantity"]
    return losses
