"""The state of a spool in one process, the snapshots made from it, and the move from memory to the disk.

This module owns the fields, the rule which lock guards each, and two steps that all parts share: recording a
failure of the directory, and notifying blocked claimers. A forked child builds a new state and never changes
its parent's.

Threads: snapshots read without a lock, in an order that misses nothing; `move_to_disk` requires the lock of
the state.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
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
from transport_kit.runtime.errors import OptionsError
from transport_kit.runtime.lock import StateLock
from transport_kit.runtime.log import log

__all__ = [
    "describe_error",
    "description",
    "facts_of",
    "move_to_disk",
    "RECOVERY",
    "SpoolFacts",
    "SpoolState",
    "stats_of",
]

#: Seconds between two attempts to use a directory that failed.
RECOVERY: Final = 0.25

#: Bytes of the smallest usual record: turns a bound in bytes into one in envelopes.
SMALLEST_RECORD: Final = 128


class SpoolState:
    """The state of one process. Fields without a comment change only while `lock` is held."""

    # Slots: a put with cold caches reads half as much memory.
    __slots__ = (
        "candidacy_at",
        "closed",
        "directory",
        "drainer",
        "election",
        "election_lock",
        "failure",
        "fell_back",
        "forwarder_check_at",
        "from_memory",
        "given_up",
        "had_work",
        "holder",
        "ids",
        "last_work_at",
        "lock",
        "maintenance",
        "may_have_backlog",
        "memory",
        "notifications",
        "parked",
        "puts",
        "puts_at_status",
        "removal_check_at",
        "retry_at",
        "retry_now",
        "signal",
        "status",
        "status_read_at",
        "trouble",
        "wakes",
        "writer",
        "yielding",
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
        self.maintenance: Maintenance | None = None
        # Claims of envelopes in memory, by the id of the claim that the caller has.
        self.from_memory: dict[int, Claim] = {}
        # Quantities that this process gave up as a drainer and `take_given_up` has not returned yet.
        self.given_up: Counter[tuple[str, str]] = Counter()
        # There were segments when the directory was opened, and this process has not looked at them yet.
        self.may_have_backlog = False
        self.yielding = False  # a forwarder wants to drain
        self.forwarder_check_at = 0.0  # time of the next check for a forwarder
        self.removal_check_at = 0.0  # time of the last check that the directory still exists
        self.had_work = False  # the last look claimed something
        self.last_work_at = float("-inf")
        self.status_read_at = float("-inf")
        # Set by any thread, each in one step. While `trouble` is set, puts go to memory until `retry_at`;
        # `failure` is the reason of the last failure until a write succeeds.
        self.trouble: str | None = None
        self.failure: str | None = None
        self.retry_at = 0.0
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
        self.wakes = 0  # calls of `wake`: each ends a blocked `claim`
        self.notifications = 0  # calls of `notify_claimers`: after each a blocked `claim` looks again
        self.parked = False  # a claimer relies on `notify_claimers` for the next envelope
        # Guards `election`. Acquired without blocking: puts and claims both try to become the drainer.
        self.election_lock = threading.Lock()

    def record_failure(self, reason: str, now: float) -> None:
        """Send envelopes to memory until the directory is tried again."""
        self.retry_at = now + RECOVERY
        is_known, self.failure = self.failure is not None, reason
        self.trouble = reason
        if not is_known:
            log.warning("the spool can't be used and envelopes are kept in memory meanwhile: %s", reason)

    def record_recovery(self) -> None:
        """Forget the last failure: a write succeeded."""
        self.trouble = None
        if self.failure is not None:
            self.failure = None
            log.info("the spool can be used again")

    def notify_claimers(self) -> None:
        """Make threads that are blocked in `claim` look again."""
        with self.signal:
            self.notifications += 1
            self.signal.notify_all()


def describe_error(error: OSError | OptionsError) -> str:
    """Return the text of an error; for one of the system without paths or values."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolFacts:
    """A snapshot of a spool as one process sees it, made without I/O.

    Attributes:
        path: Directory of the spool.
        draining: True if this process is the drainer.
        drainer: Process id of the drainer; 0 if the number is unknown, None if none was seen.
        trouble: Reason why the directory can't be used and envelopes go to memory, or None.
        in_memory: Envelopes that wait in memory now.
        fell_back: Envelopes that were put into memory so far.
        status: The figures that the drainer published last, or None.
        status_age: Seconds since they were published, or None.
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
    state: SpoolState, *, max_bytes: int, max_count: int | None, now: float, wall: float
) -> QueueStats:
    """Return the size of the queue.

    In a process that does not drain: the figures that the drainer published last, plus the puts since.
    """
    inner = state.memory.stats()
    drainer, writer, status = state.drainer, state.writer, state.status
    waiting = claimed = 0
    size = inner.size
    oldest = inner.oldest_put_at
    if drainer is not None:
        # Unseen records first: one that the drainer reads meanwhile is then counted twice, and not missed.
        waiting = 0 if writer is None else writer.count_unseen(drainer.count_seen)
        claimed = len(drainer.claimed)
        waiting += max(0, drainer.tally.pending - claimed)
        status = state.maintenance.status if state.maintenance is not None else None
    elif not state.closed:
        waiting = state.puts - state.puts_at_status + (0 if status is None else status.pending)
    if state.may_have_backlog:
        waiting = max(waiting, 1)  # until this process has looked
    if status is not None:
        size += status.size
        if status.oldest is not None and waiting + claimed:
            put_at = now - max(0.0, wall - status.oldest)
            oldest = put_at if oldest is None else min(oldest, put_at)
    return QueueStats(
        waiting + inner.waiting,
        claimed + inner.claimed,
        size,
        max_count or max_bytes // SMALLEST_RECORD,
        max_bytes,
        oldest,
        state.puts,
    )


def facts_of(state: SpoolState, path: str, wall: float) -> SpoolFacts:
    """Return a snapshot for health."""
    maintenance = state.maintenance
    status = state.status if maintenance is None else maintenance.status
    if status is not None and not status.pid:
        status = None  # no drainer has published yet
    inner = state.memory.stats()
    return SpoolFacts(
        path=path,
        draining=state.drainer is not None,
        drainer=state.holder,
        trouble=state.failure,
        in_memory=inner.waiting + inner.claimed,
        fell_back=state.fell_back,
        status=status,
        status_age=None if status is None else max(0.0, wall - status.wall),
    )


def description(facts: SpoolFacts, *, ran: bool, wall: float) -> Mapping[str, Any]:
    """Return what health shows of the whole spool, its problems included.

    Args:
        ran: True if this process has looked for the drainer.
        wall: Epoch seconds now.
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


def move_to_disk(state: SpoolState, clock: Callable[[], float], wall: Callable[[], float]) -> None:
    """Write the envelopes in memory to the disk, keeping their age; stop when the directory fails."""
    writer = state.writer
    while writer is not None and state.trouble is None:
        claims = state.memory.claim(1, 0.0)
        if not claims:
            return
        sealed = claims[0].sealed
        age = max(0.0, clock() - claims[0].put_at)
        try:
            created_ms = int((wall() - age) * 1000)
            writer.append(RecordKind.ENVELOPE, *envelope_record(sealed), created_ms)
        except (OSError, Full) as error:
            state.memory.release(claims)
            state.record_failure("it is full" if isinstance(error, Full) else describe_error(error), clock())
            return
        state.memory.ack(claims)
        state.puts += 1
        state.record_recovery()
