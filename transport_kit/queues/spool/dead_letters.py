"""Dead letters: envelopes that are not sent again unless a person replays them.

Each has two files: the envelope as it would have been sent, and the facts about it. Their size is bounded:
the oldest are removed to make room for the newest.

Threads: the drainer calls under its lock.
"""

from __future__ import annotations

import re
from typing import Final

from transport_kit.envelope.encoder import dumps
from transport_kit.envelope.losses import Pairs
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
    quantities: Pairs,
    max_bytes: int,
) -> bool:
    """Store one dead letter; return False if it exceeds `max_bytes` or can't be written.

    Args:
        directory: The directory of the spool.
        body: The serialised envelope.
        event_id: Its event id, if any.
        reason: The reason why it is not sent.
        attempts: Deliveries begun.
        created_ms: Epoch milliseconds at which it was accepted.
        buried_ms: Epoch milliseconds now.
        quantities: Quantities by data category.
        max_bytes: Most bytes of all dead letters.
    """
    system, within = directory.system, directory.dead
    if len(body) > max_bytes:
        return False
    # The event id is untrusted input: it becomes a file name only if it has the form of an id.
    is_valid = event_id is not None and _EVENT_ID.fullmatch(event_id) is not None
    name = str(event_id) if is_valid else system.random(16).hex()
    facts = {
        "event_id": event_id,
        "reason": str(reason),
        "attempts": attempts,
        "created_ms": created_ms,
        "buried_ms": buried_ms,
        "quantities": dict(quantities),
    }
    drafts: list[str] = []
    try:
        _make_room(directory, max_bytes - len(body))
        if not _is_free(directory, name):
            # Another envelope with this id is a dead letter already: the facts name the id of both.
            name = system.random(16).hex()
        for ending, data in (("json", dumps(facts) + b"\n"), ("envelope", body)):
            draft = f".{system.random(8).hex()}"
            fd = system.create(draft, within)
            drafts.append(draft)
            system.close_after(fd, data)
            system.rename(draft, f"{name}.{ending}", within)
            drafts.remove(draft)
    except OSError:
        for draft in drafts:
            try:
                system.unlink(draft, within)
            except OSError:
                pass  # the directory may be read-only by now
        return False
    return True


def count(directory: Directory) -> int:
    """Return the number of dead letters; 0 if the directory can't be read."""
    try:
        return sum(name.endswith(".envelope") for name in directory.system.names(directory.dead))
    except OSError:
        return 0


def _is_free(directory: Directory, name: str) -> bool:
    for ending in ("envelope", "json"):
        try:
            directory.system.status_of(f"{name}.{ending}", directory.dead)
        except FileNotFoundError:
            continue
        return False
    return True


def _make_room(directory: Directory, max_bytes: int) -> None:
    """Remove the oldest dead letters until the rest takes at most `max_bytes`."""
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
