"""The state of a spool in one process, the figures made from it, and the way back from memory to the disk.

Owns the fields, who may change them, and the two steps that all parts take: having trouble with the
directory, and waking whoever claims. A forked child gets a new one and never touches its parent's.

Threads: figures are read without a lock, in an order in which nothing is missed; `move_to_disk` wants the
lock of the state that it is given.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from transport_kit.queues.memory import MemoryQueue
from transport_kit.queues.protocol import Claim, QueueStats
from transport_kit.queues.spool.directory import Directory
from transport_kit.queues.spool.drainer import Drainer
from transport_kit.queues.spool.election import Election
from transport_kit.queues.spool.maintenance import Maintenance
from transport_kit.queues.spool.records import envelope_record
from transport_kit.queues.spool.segments import RecordKind
from transport_kit.queues.spool.status import SpoolStatus
from transport_kit.queues.spool.writer import Full, Writer
from transport_kit.runtime.lock import StateLock
from transport_kit.runtime.log import log

__all__ = [
    "description",
    "facts_of",
    "move_to_disk",
    "RECOVERY",
    "SpoolFacts",
    "SpoolState",
    "stats_of",
    "words",
]

#: Seconds before a directory that failed is tried again.
RECOVERY: Final = 0.25

#: A record is hardly smaller: what makes a number of bytes a number of envelopes.
SMALLEST_RECORD: Final = 128


class SpoolState:
    """All that belongs to one process. Fields without a word change only while holding `lock`."""

    # Slots: a put with cold caches reads half as much memory.
    __slots__ = (
        "candidacy_at",
        "closed",
        "directory",
        "drainer",
        "electing",
        "election",
        "fell_back",
        "from_memory",
        "holder",
        "ids",
        "leaving",
        "lock",
        "looked_at",
        "memory",
        "parked",
        "pokes",
        "puts",
        "puts_at_status",
        "retry_now",
        "signal",
        "status",
        "status_read",
        "trouble",
        "try_again",
        "unread",
        "upkeep",
        "wakes",
        "why",
        "worked_at",
        "working",
        "writer",
        "yield_at",
    )

    def __init__(self, memory: MemoryQueue) -> None:
        self.lock = StateLock()
        self.memory = memory
        self.ids = itertools.count(1)
        self.directory: Directory | None = None
        # Read by every put; replaced as a whole.
        self.writer: Writer | None = None
        self.election: Election | None = None
        self.drainer: Drainer | None = None
        self.upkeep: Maintenance | None = None
        # Claims of envelopes in memory, by our id.
        self.from_memory: dict[int, Claim] = {}
        self.unread = False  # files were there when the directory was opened, and nobody looked since
        self.leaving = False  # a forwarder came
        self.yield_at = 0.0
        self.looked_at = 0.0  # whether the directory is still there
        self.working = False  # the last look found something
        self.worked_at = float("-inf")  # when one did last
        self.status_read = float("-inf")
        # Set by any thread, each in one step. `trouble` keeps puts from trying; `why` is what is known of
        # the last failure until something was written again.
        self.trouble: str | None = None
        self.why: str | None = None
        self.try_again = 0.0
        self.closed = False
        self.retry_now = False
        self.fell_back = 0
        self.puts = 0
        self.puts_at_status = 0
        self.candidacy_at = float("-inf")
        self.status: SpoolStatus | None = None
        self.holder: int | None = None
        # Guards the three below, for a moment at a time and never during I/O. Re-entrant.
        self.signal = threading.Condition()
        self.wakes = 0
        self.pokes = 0
        self.parked = False
        # Only ever tried: puts and claims both run for the drain.
        self.electing = threading.Lock()

    def have_trouble(self, why: str, now: float) -> None:
        """The directory can't be used: envelopes go to memory until it is tried again."""
        self.try_again = now + RECOVERY
        known, self.why = self.why is not None, why
        self.trouble = why
        if not known:
            log.warning("the spool can't be used and envelopes are kept in memory meanwhile: %s", why)

    def is_well(self) -> None:
        """Something was written again."""
        self.trouble = None
        if self.why is not None:
            self.why = None
            log.info("the spool can be used again")

    def poke(self) -> None:
        """Whoever waits in `claim` looks again."""
        with self.signal:
            self.pokes += 1
            self.signal.notify_all()


def words(error: OSError) -> str:
    """An error in words, without paths or values."""
    return error.strerror or type(error).__name__


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


def stats_of(
    life: SpoolState, *, max_bytes: int, max_count: int | None, now: float, wall: float
) -> QueueStats:
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


def facts_of(life: SpoolState, path: str, wall: float) -> SpoolFacts:
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


def move_to_disk(life: SpoolState, clock: Callable[[], float], wall: Callable[[], float]) -> None:
    """Write what had to be taken into memory, as old as it is, until the directory fails again."""
    writer = life.writer
    while writer is not None and life.trouble is None:
        claims = life.memory.claim(1, 0.0)
        if not claims:
            return
        sealed = claims[0].sealed
        age = max(0.0, clock() - claims[0].put_at)
        try:
            created_ms = int((wall() - age) * 1000)
            writer.append(RecordKind.ENVELOPE, *envelope_record(sealed), created_ms)
        except (OSError, Full) as error:
            life.memory.release(claims)
            life.have_trouble(words(error) if isinstance(error, OSError) else "it is full", clock())
            return
        life.memory.ack(claims)
        life.puts += 1
        life.is_well()
