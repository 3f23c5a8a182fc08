"""Dead letters: envelopes that are not sent again unless a person says so.

Two files each: the envelope as it would have been sent, and what is known about it. Bounded: the oldest
makes room for the newest.

Threads: the drainer calls under its lock.
"""

from __future__ import annotations

import re
from typing import Final

from transport_kit.envelope.encoder import dumps
from transport_kit.envelope.losses import Quantities
from transport_kit.queues.spool.directory import Directory

__all__ = ["bury", "count"]

_EVENT_ID: Final = re.compile(r"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}")


def bury(
    directory: Directory,
    body: bytes,
    *,
    event_id: str | None,
    reason: str,
    attempts: int,
    created_ms: int,
    buried_ms: int,
    quantities: Quantities,
    max_bytes: int,
) -> bool:
    """Keep one envelope; False when the directory does not take it, or it is larger than all may be."""
    system, within = directory.system, directory.dead
    if len(body) > max_bytes:
        return False
    # An event id is what somebody sent: it becomes a file name only if it is one.
    known = event_id is not None and _EVENT_ID.fullmatch(event_id) is not None
    name = event_id if known else system.random(16).hex()
    facts = {
        "event_id": event_id,
        "reason": reason,
        "attempts": attempts,
        "created_ms": created_ms,
        "buried_ms": buried_ms,
        "quantities": dict(quantities),
    }
    written: list[str] = []
    try:
        _make_room(directory, max_bytes - len(body))
        for ending, data in (("json", dumps(facts) + b"\n"), ("envelope", body)):
            draft = f".{system.random(8).hex()}"
            fd = system.create(draft, within)
            written.append(draft)
            system.close_after(fd, data)
            system.rename(draft, f"{name}.{ending}", within)
            written.remove(draft)
    except OSError:
        for draft in written:
            try:
                system.unlink(draft, within)
            except OSError:
                pass  # as read-only as the rest
        return False
    return True


def count(directory: Directory) -> int:
    """Dead letters kept."""
    try:
        return sum(name.endswith(".envelope") for name in directory.system.names(directory.dead))
    except OSError:
        return 0


def _make_room(directory: Directory, max_bytes: int) -> None:
    """Remove the oldest until the rest takes no more than `max_bytes`."""
    system, within = directory.system, directory.dead
    letters = []
    total = 0
    for name in system.names(within):
        status = system.status_of(name, within)
        total += status.st_size
        if name.endswith(".envelope"):
            letters.append((status.st_mtime_ns, name, status.st_size))
    for _, name, size in sorted(letters):
        if total <= max_bytes:
            return
        system.unlink(name, within)
        total -= size
        facts = name.removesuffix(".envelope") + ".json"
        try:
            total -= system.status_of(facts, within).st_size
            system.unlink(facts, within)
        except FileNotFoundError:
            pass
