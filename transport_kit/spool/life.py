"""What belongs to one process of a spool.

Owns the fields, who may change them, and the two steps that all parts take: having trouble with the
directory, and waking whoever claims. A forked child gets a new one and never touches its parent's.
"""

from __future__ import annotations

import itertools
import threading
from typing import Final

from transport_kit.log import log
from transport_kit.memory_queue import MemoryQueue
from transport_kit.queue import Claim
from transport_kit.spool.directory import Directory
from transport_kit.spool.drainer import Drainer
from transport_kit.spool.election import Election
from transport_kit.spool.status import SpoolStatus
from transport_kit.spool.upkeep import Upkeep
from transport_kit.spool.writer import Writer
from transport_kit.statelock import StateLock

__all__ = ["RECOVERY", "Life", "words"]

#: Seconds before a directory that failed is tried again.
RECOVERY: Final = 0.25


class Life:
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
        "hasten",
        "heirs",
        "holder",
        "ids",
        "leaving",
        "lock",
        "looked_at",
        "memory",
        "parent",
        "parked",
        "pid",
        "pokes",
        "puts",
        "puts_at_status",
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

    def __init__(self, pid: int, memory: MemoryQueue) -> None:
        self.pid = pid
        # The next life, by the process it is for. `setdefault` decides among threads that come at once.
        self.heirs: dict[int, Life] = {}
        self.parent: Life | None = None
        self.lock = StateLock()
        self.memory = memory
        self.ids = itertools.count(1)
        self.directory: Directory | None = None
        # Read by every put; replaced as a whole.
        self.writer: Writer | None = None
        self.election: Election | None = None
        self.drainer: Drainer | None = None
        self.upkeep: Upkeep | None = None
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
        self.hasten = False
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
