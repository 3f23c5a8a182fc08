"""The drainer: what one elected process knows of all segments, and hands out envelope by envelope.

Owns the order in which envelopes are claimed, what is known of each that is not settled, and the ack logs.
What is given up, and why, is in `maintenance.py`; which files there are is `directory.py`'s, and what is in
one is `segment_reader.py`'s. Segments are read one after the other, oldest first within a class, and nothing
is read before its turn: a backlog costs memory for its file names only.

Threads: every method wants the lock of the `FileSpool` that owns it, which no capture takes.
"""

from __future__ import annotations

import bisect
import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Final

from transport_kit.envelope.item_types import Priority
from transport_kit.envelope.losses import LossReason, Quantities, Report
from transport_kit.queues.memory import HIGHEST_FIRST, ORDERED, Turns
from transport_kit.queues.spool import dead_letters
from transport_kit.queues.spool.acklog import Op
from transport_kit.queues.spool.directory import Directory, Listing
from transport_kit.queues.spool.records import envelope_of, losses_of, quantities_of
from transport_kit.queues.spool.segment_reader import Entry, SegmentReader, Tally
from transport_kit.queues.spool.segments import Gap, Record, RecordKind, SegmentName
from transport_kit.runtime.log import log

__all__ = ["CONVICTED_AFTER", "Drainer"]

#: Drainers that must have died over one envelope, alone each time, before it is buried. Three are not enough:
#: where processes are killed for another reason, and often, whatever is sent first is at it each time.
CONVICTED_AFTER: Final = 5
#: Seconds before a segment that could not be read is tried again.
RETRY_AFTER: Final = 1.0
#: Seconds between two steps of a long search in a segment: most of the time is for what can be delivered.
SEARCH_AGAIN: Final = 0.05


class Drainer:
    """See the module.

    Args:
        directory: What is drained.
        clock: Monotonic seconds.
        wall: Epoch seconds.
        next_id: Numbers for entries.
        max_dead_bytes: Of dead letters.
        forget: Called with the file name of a segment that is gone.

    Attributes:
        tails: All segments known, by file name.
        claimed: What senders hold, by id.
        losses: By reason and category; counted here, told by the worker.
        oldest_ms: Records accepted before this epoch millisecond are too old.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        next_id: Callable[[], int],
        max_dead_bytes: int,
        forget: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._wall = wall
        self._next_id = next_id
        self._max_dead_bytes = max_dead_bytes
        self._forget = forget
        self.tally = Tally()
        self.tails: dict[str, SegmentReader] = {}
        # Per class, oldest first: what may have something to read. A tail that was read to its end and
        # does not grow leaves its lane; what of it is not settled is in the places below.
        self._lanes: list[list[SegmentReader]] = [[] for _ in Priority]
        # An entry is in one of these, or in `claimed`.
        self._next: list[Entry | None] = [None for _ in Priority]  # read ahead, one per class
        self._retried: list[deque[Entry]] = [deque() for _ in Priority]
        self._delayed: list[tuple[float, int, Entry]] = []
        self._suspects: deque[Entry] = deque()
        self.claimed: dict[int, Entry] = {}
        self._turns = Turns()
        self._took_retried = [False for _ in Priority]
        self._lane_busy: int | None = None
        self._search_at = float("inf")  # when a search goes on
        self.losses: Counter[tuple[str, str]] = Counter()
        self.oldest_ms = 0
        self.evicted = self.expired = self.damaged = self.incomplete = self.buried = 0
        self._listing = Listing(directory, clock)

    # -- the directory ---------------------------------------------------------------------------------

    def scan(self, *, working: bool) -> None:
        """Take in new segments, if it is time to look.

        Raises:
            OSError: The directory can't be read.
        """
        present = self._listing.look(working=working)
        if present is None:
            return
        for text in present - self.tails.keys():
            name = SegmentName.parse(text)
            if name is not None:
                tail = self.tails[text] = SegmentReader(self._directory, name, self.tally)
                bisect.insort(self._lanes[name.rank], tail, key=lambda tail: tail.name)
        for text in self.tails.keys() - present:
            # A person removed it, or took it away: whoever does that knows what it held.
            if not self.tails[text].entries:
                self.drop(self.tails[text])

    def drop(self, tail: SegmentReader) -> None:
        """Forget a segment that is gone."""
        tail.close()
        self._pop(tail)
        self._leave_lane(tail)

    def _leave_lane(self, tail: SegmentReader) -> None:
        lane = self._lanes[tail.name.rank]
        if tail in lane:
            lane.remove(tail)

    def _remove_if_done(self, tail: SegmentReader) -> None:
        if not tail.done:
            return
        self._leave_lane(tail)
        try:
            tail.remove()
        except OSError:
            tail.retry_at = self._clock() + RETRY_AFTER  # `sweep` comes back to it
            return
        self._pop(tail)

    def _pop(self, tail: SegmentReader) -> None:
        self._forget(tail.text)
        if self.tails.pop(tail.text, None) is not None:
            self.tally.pending -= tail.pending

    def sweep(self) -> None:
        """Remove what is done and could not be removed before."""
        now = self._clock()
        for tail in [tail for tail in self.tails.values() if tail.done and tail.retry_at <= now]:
            self._remove_if_done(tail)

    # -- claiming --------------------------------------------------------------------------------------

    def take(self, limit: int) -> list[Entry]:
        """Up to `limit` entries, each with its attempt logged; `sealed` is set."""
        now = self._clock()
        self._undelay(now)
        if self._search_at <= now:
            self._search_at = float("inf")
        taken: list[Entry] = []
        while len(taken) < limit:
            entry = self._choose(now)
            if entry is None:
                break
            if not self._load(entry):
                continue
            entry.claimed = True
            entry.attempts += 1
            entry.tail.log(Op.ALONE if entry.alone else Op.ATTEMPT, entry.offset)
            if entry.ordered:
                self._lane_busy = entry.id
            self.claimed[entry.id] = entry
            taken.append(entry)
        return taken

    def _choose(self, now: float) -> Entry | None:
        if any(entry.alone for entry in self.claimed.values()):
            return None
        # All classes are read ahead first: that is where suspects are found.
        for rank in HIGHEST_FIRST:
            if self._next[rank] is None:
                self._next[rank] = self._read(rank, now)
        while self._suspects:
            if self.claimed:
                return None
            entry = self._suspects.popleft()
            if not entry.tail.abandoned:
                entry.alone = True
                return entry
        chosen = self._turns.choose(self._ready())
        return None if chosen is None else self._head(chosen)

    def _ready(self) -> Iterator[int]:
        """Classes of which something may be claimed, highest first."""
        for rank in HIGHEST_FIRST:
            waits = self._next[rank] is not None or self._retried[rank]
            if waits and not (rank == ORDERED and self._lane_busy is not None):
                yield rank

    def _head(self, rank: int) -> Entry | None:
        """New and tried ones by turns; in the ordered lane what was tried keeps its place before all."""
        retried, fresh = self._retried[rank], self._next[rank]
        turn = bool(retried) and (rank == ORDERED or not (self._took_retried[rank] and fresh is not None))
        self._took_retried[rank] = turn
        if turn:
            return retried.popleft()
        self._next[rank] = None
        return fresh

    def _load(self, entry: Entry) -> bool:
        """Read again what was not kept; False when it can't be, which is damage, or no time for it."""
        if entry.tail.abandoned:
            return False
        if entry.sealed is not None:
            return True
        try:
            record = entry.tail.again(entry.offset)
            if record is not None:
                entry.sealed = envelope_of(record.head, record.body)
                return True
        except OSError:
            entry.alone = False
            self._delay(entry, self._clock() + RETRY_AFTER)
            return False
        except ValueError:
            pass
        self._give_up(entry, LossReason.INTERNAL_SDK_ERROR)
        self.damaged += 1
        return False

    def _read(self, rank: int, now: float) -> Entry | None:
        """The next envelope of a class; what is not for delivery is dealt with on the way."""
        lane = self._lanes[rank]
        at = 0
        while at < len(lane):
            tail = lane[at]
            at += 1
            if tail.retry_at > now:
                continue
            try:
                while (found := tail.next()) is not None:
                    entry = self._entry(tail, found)
                    if entry is not None:
                        return entry
            except OSError as error:
                tail.retry_at = now + RETRY_AFTER
                if isinstance(error, FileNotFoundError):
                    self.drop(tail)
                    at -= 1
                continue
            if tail.searching:
                tail.retry_at = self._search_at = now + SEARCH_AGAIN
                continue
            if tail.newer_version or tail.retired:
                at -= 1
                self._leave_lane(tail)
                self._remove_if_done(tail)
        return None

    def _entry(self, tail: SegmentReader, found: Record | Gap) -> Entry | None:
        """What a record becomes; None when it is not to be claimed now."""
        if isinstance(found, Gap):
            if found.incomplete:
                self.incomplete += 1
            else:
                self.damaged += 1
                self.lose(LossReason.INTERNAL_SDK_ERROR, quantities_of(found.head or b""))
                log.error(
                    "a record of the spool is damaged and was given up: %s at byte %d",
                    tail.text,
                    found.offset,
                )
            return None
        progress = tail.progress(found.offset)
        if found.kind == RecordKind.LOSSES:
            if not progress.settled:
                tail.log(Op.ACK, found.offset)
                tail.settle()
                self._absorb(found)
            return None
        if progress.settled:
            return None
        try:
            sealed = envelope_of(found.head, found.body)
        except ValueError:
            self.damaged += 1
            self.lose(LossReason.INTERNAL_SDK_ERROR, quantities_of(found.head))
            tail.log(Op.ACK, found.offset)
            tail.settle()
            return None
        entry = Entry(
            tail,
            found.offset,
            self._next_id(),
            tail.name.rank,
            sealed.ordered,
            found.created_ms,
            sealed.quantities,
            progress.attempts,
            progress.deaths,
            sealed=sealed,
        )
        tail.entries[found.offset] = entry
        if found.created_ms < self.oldest_ms:
            self.expired += 1
            self._give_up(entry, LossReason.CACHE_OVERFLOW)
            return None
        if entry.deaths >= CONVICTED_AFTER:
            self._bury(entry, "the process that delivered it died each time")
            self.lose(LossReason.INTERNAL_SDK_ERROR, entry.quantities)
            return None
        if progress.open:
            entry.sealed = None
            self._suspects.append(entry)
            return None
        return entry

    def _absorb(self, record: Record) -> None:
        try:
            self.absorb(losses_of(record.head))
        except ValueError:
            self.damaged += 1

    def absorb(self, report: Report) -> None:
        """Loss counts of another process, to be told by this one."""
        for reason, category, quantity in report:
            self.losses[reason, category] += quantity

    def lose(self, reason: LossReason, quantities: Quantities) -> None:
        """Count what the spool gave up."""
        for category, quantity in quantities:
            self.losses[reason.value, category] += quantity

    def _delay(self, entry: Entry, until: float) -> None:
        """It may be claimed again then; nothing of the ordered lane overtakes it meanwhile."""
        if entry.ordered:
            self._lane_busy = entry.id
        heapq.heappush(self._delayed, (until, entry.id, entry))

    def _undelay(self, until: float) -> None:
        """Back into their classes: what may be claimed at `until`."""
        while self._delayed and self._delayed[0][0] <= until:
            entry = heapq.heappop(self._delayed)[2]
            if self._lane_busy == entry.id:
                self._lane_busy = None
            if not entry.tail.abandoned:
                self._retried[entry.rank].append(entry)

    def retry_now(self) -> None:
        """Someone waits: forget when what failed may go again."""
        self._undelay(float("inf"))

    @property
    def next_retry(self) -> float:
        """Monotonic second at which something may become claimable; infinite when nothing waits for it."""
        return min(self._delayed[0][0], self._search_at) if self._delayed else self._search_at

    # -- settling --------------------------------------------------------------------------------------

    def ack(self, id: int) -> None:
        """Delivered or discarded: forget it."""
        entry = self.claimed.pop(id, None)
        if entry is not None:
            self._settle(entry, Op.ACK)

    def release(self, id: int, not_before: float) -> None:
        """To be claimed again. It outlived its attempt: nothing is suspected of it any more."""
        entry = self.claimed.pop(id, None)
        if entry is None:
            return
        entry.claimed = entry.alone = False
        entry.sealed = None
        entry.tail.log(Op.RELEASE, entry.offset)
        self._delay(entry, not_before)

    def bury(self, id: int, reason: str) -> None:
        """To the dead letters."""
        entry = self.claimed.pop(id, None)
        if entry is not None:
            self._bury(entry, reason)

    def _bury(self, entry: Entry, reason: str) -> None:
        sealed = entry.sealed
        kept = sealed is not None and dead_letters.bury(
            self._directory,
            sealed.serialize(),
            event_id=sealed.event_id,
            reason=reason,
            attempts=entry.attempts,
            created_ms=entry.created_ms,
            buried_ms=int(self._wall() * 1000),
            quantities=entry.quantities,
            max_bytes=self._max_dead_bytes,
        )
        if not kept:
            log.error("a dead letter could not be kept")
        self.buried += 1
        self._settle(entry, Op.BURY)

    def _give_up(self, entry: Entry, reason: LossReason) -> None:
        self.lose(reason, entry.quantities)
        self._settle(entry, Op.ACK)

    def _settle(self, entry: Entry, op: Op) -> None:
        tail = entry.tail
        tail.log(op, entry.offset)
        tail.entries.pop(entry.offset, None)
        tail.settle()
        entry.sealed = None
        if self._lane_busy == entry.id:
            self._lane_busy = None
        self._remove_if_done(tail)

    # -- giving up a whole segment ---------------------------------------------------------------------

    def victims(self, most: int) -> Iterator[SegmentReader]:
        """What may be given up: not written to, nothing of it in flight.

        Lowest class and oldest first; but before all what is larger than `most`, as no room that others
        leave is enough for it.
        """
        for tail in sorted(self.tails.values(), key=lambda tail: (tail.size <= most, tail.name)):
            if tail.newer_version or any(entry.claimed for entry in tail.entries.values()):
                continue
            try:
                if tail.is_idle():
                    yield tail
            except OSError:
                continue

    def sacrifice(self, tail: SegmentReader) -> int:
        """Give up all that is left of a segment, and count it; how many envelopes that was.

        Raises:
            OSError: It can't be removed. Nothing was given up.
        """
        position = tail.position
        lost = len(tail.entries)
        quantities = [entry.quantities for entry in tail.entries.values()]
        damaged = incomplete = 0
        reports: list[Record] = []
        for part in tail.unread():
            if isinstance(part, Gap):
                damaged += not part.incomplete
                incomplete += part.incomplete
            elif tail.progress(part.offset).settled:
                continue
            elif part.kind == RecordKind.LOSSES:
                reports.append(part)
            else:
                lost += 1
                quantities.append(quantities_of(part.head))
        try:
            tail.remove()
        except OSError:
            tail.position = position
            raise
        for each in quantities:
            self.lose(LossReason.CACHE_OVERFLOW, each)
        for report in reports:
            self._absorb(report)
        self.damaged += damaged
        self.incomplete += incomplete
        if any(entry.id == self._lane_busy for entry in tail.entries.values()):
            self._lane_busy = None
        tail.entries.clear()
        tail.abandoned = True
        self._next = [None if ahead is None or ahead.tail is tail else ahead for ahead in self._next]
        self._retried = [deque(entry for entry in kept if entry.tail is not tail) for kept in self._retried]
        self.drop(tail)
        return lost

    # -- saying ----------------------------------------------------------------------------------------

    def seen(self, text: str) -> int:
        """Envelopes found so far in a segment; needs no lock."""
        tail = self.tails.get(text)
        return 0 if tail is None else tail.seen

    def oldest(self) -> float | None:
        """Epoch seconds at which the oldest of what was read and not settled was accepted."""
        stamps = [entry.created_ms for tail in self.tails.values() for entry in tail.entries.values()]
        stamps += [
            tail.name.created_ns // 1_000_000
            for tail in self.tails.values()
            if tail.pending and not tail.opened
        ]
        return min(stamps) / 1000 if stamps else None

    def close(self) -> None:
        """Return what is read ahead or in hand, and let go of all files."""
        for id in list(self.claimed):
            self.release(id, 0.0)
        for tail in self.tails.values():
            tail.close()
        self.tails.clear()
