"""What a process says of its spool: the queue's figures, and what health shows. No I/O, and no lock.

Owns no state: it reads one process's `Life` in an order in which nothing is missed.

Threads: pure functions; any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from transport_kit.queue import QueueStats
from transport_kit.spool.life import Life
from transport_kit.spool.status import SpoolStatus

__all__ = ["SpoolFacts", "description", "facts_of", "stats_of"]

#: A record is hardly smaller: what makes a number of bytes a number of envelopes.
SMALLEST_RECORD: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolFacts:
    """What a process knows of its spool, without looking at the disk.

    Attributes:
        path: Of the spool.
        draining: Whether this process drains.
        drainer: The process that does; 0 when its number is unknown, None when none was seen.
        trouble: Why envelopes go to memory instead, or None.
        in_memory: Envelopes that wait there now.
        fell_back: Envelopes that were taken into memory so far.
        status: What the drainer published last, or None.
        status_age: Seconds since, when it can be told.
    """

    path: str
    draining: bool
    drainer: int | None
    trouble: str | None
    in_memory: int
    fell_back: int
    status: SpoolStatus | None
    status_age: float | None


def stats_of(life: Life, *, max_bytes: int, max_count: int | None, now: float, wall: float) -> QueueStats:
    """A snapshot. Without the drain, what its holder published last and what was put here since."""
    inner = life.memory.stats()
    drainer, writer, status = life.drainer, life.writer, life.status
    waiting = claimed = 0
    size = inner.size
    oldest = inner.oldest_put_at
    if drainer is not None:
        # First what was not seen yet: what is seen meanwhile is then counted twice, and not missed.
        waiting = 0 if writer is None else writer.unseen(drainer.seen)
        claimed = len(drainer.claimed)
        waiting += max(0, drainer.tally.pending - claimed)
        status = life.upkeep.status if life.upkeep is not None else None
    elif not life.closed:
        waiting = life.puts - life.puts_at_status + (0 if status is None else status.pending)
    if life.unread:
        waiting = max(waiting, 1)  # until proven otherwise
    if status is not None:
        size += status.size
        if status.oldest is not None and waiting + claimed:
            since = now - max(0.0, wall - status.oldest)
            oldest = since if oldest is None else min(oldest, since)
    return QueueStats(
        waiting + inner.waiting,
        claimed + inner.claimed,
        size,
        max_count or max_bytes // SMALLEST_RECORD,
        max_bytes,
        oldest,
        life.puts,
    )


def facts_of(life: Life, path: str, wall: float) -> SpoolFacts:
    """A snapshot for health."""
    upkeep = life.upkeep
    status = life.status if upkeep is None else upkeep.status
    inner = life.memory.stats()
    return SpoolFacts(
        path=path,
        draining=life.drainer is not None,
        drainer=life.holder,
        trouble=life.why,
        in_memory=inner.waiting + inner.claimed,
        fell_back=life.fell_back,
        status=status,
        status_age=None if status is None else max(0.0, wall - status.wall),
    )


def description(facts: SpoolFacts, *, ran: bool, wall: float) -> Mapping[str, Any]:
    """What health shows of the whole spool, and what is amiss.

    Args:
        ran: Whether this process has looked for who drains.
    """
    status = facts.status or SpoolStatus()
    problems = []
    if facts.trouble is not None:
        problems.append(f"the spool can't be used, envelopes are kept in memory: {facts.trouble}")
    elif ran and not facts.draining and facts.drainer is None:
        problems.append("no process drains the spool")
    return {
        "path": facts.path,
        "draining": facts.draining,
        "drainer": facts.drainer,
        "pending": status.pending,
        "bytes": status.size,
        "segments": status.segments,
        "oldest_age": None if status.oldest is None else round(max(0.0, wall - status.oldest), 3),
        "dead_letters": status.dead,
        "evicted": status.evicted,
        "expired": status.expired,
        "damaged": status.damaged,
        "in_memory": facts.in_memory,
        "fell_back": facts.fell_back,
        "status_age": None if facts.status_age is None else round(facts.status_age, 3),
        "problems": problems,
    }
