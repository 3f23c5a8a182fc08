"""The drainer: the unsettled envelopes of all segments, in the order in which they are claimed.

This module owns that order, the entry of each envelope that was read and is not settled, and the ack logs.
The rules of eviction are in `maintenance.py`, the listing of files in `directory.py`, and the reading of one
file in `segment_reader.py`. Segments are read one after the other, oldest first within a class, and nothing
is read before its turn: a backlog costs memory for its file names only.

Threads: every method but `count_seen` requires the lock of the `FileSpool` that owns the drainer, which no
capture takes.
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

#: Drainers that must have died while delivering one envelope, and nothing else, before it is buried. Three
#: are not enough: if processes are often killed for another reason, the envelope that is sent first is open
#: each time.
CONVICTED_AFTER: Final = 5
#: Seconds before a segment that could not be read is tried again.
RETRY_AFTER: Final = 1.0
#: Seconds between two steps of a long search in a segment, which leaves most of the time to deliveries.
SEARCH_AGAIN: Final = 0.05


class Drainer:
    """Hands out the envelopes of a spool's segments, and settles them.

    Args:
        directory: The directory to drain.
        clock: Monotonic seconds.
        wall: Epoch seconds.
        next_id: Returns the id of the next entry.
        max_dead_bytes: Most bytes of dead letters.
        forget: Called with the file name of a segment that is gone.
        given_up: Receives the part of `losses` that this drainer gave up itself.

    Attributes:
        segments: All known segments, by file name.
        claimed: Claimed entries, by id.
        losses: Quantities by reason and category; counted here and reported by the worker.
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
        given_up: Counter[tuple[str, str]] | None = None,
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._wall = wall
        self._next_id = next_id
        self._max_dead_bytes = max_dead_bytes
        self._forget = forget
        self.tally = Tally()
        self.segments: dict[str, SegmentReader] = {}
        # Per class, oldest first: segments that may have something to read. A segment that was read to its
        # end and does not grow leaves its lane; its unsettled entries are in the places below.
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
        self._search_at = float("inf")  # time at which an interrupted search continues
        self.losses: Counter[tuple[str, str]] = Counter()
        self._given_up: Counter[tuple[str, str]] = Counter() if given_up is None else given_up
        self.oldest_ms = 0
        self.evicted = self.expired = self.damaged = self.incomplete = self.buried = 0
        self._listing = Listing(directory, clock)

    # -- the directory ---------------------------------------------------------------------------------

    def scan(self, *, working: bool) -> None:
        """Add new segments and forget removed ones, if a listing is due.

        Args:
            working: See `Listing.look`.

        Raises:
            OSError: The directory can't be read.
        """
        present = self._listing.look(working=working)
        if present is None:
            return
        for text in present - self.segments.keys():
            name = SegmentName.parse(text)
            if name is not None:
                segment = self.segments[text] = SegmentReader(self._directory, name, self.tally)
                bisect.insort(self._lanes[name.rank], segment, key=lambda segment: segment.name)
        for text in self.segments.keys() - present:
            # A person removed or moved it, and knows what it contained: nothing is counted.
            if not self.segments[text].entries:
                self.drop(self.segments[text])

    def drop(self, segment: SegmentReader) -> None:
        """Forget a segment that is gone."""
        segment.close()
        self._pop(segment)
        self._leave_lane(segment)

    def _leave_lane(self, segment: SegmentReader) -> None:
        lane = self._lanes[segment.name.rank]
        if segment in lane:
            lane.remove(segment)

    def _remove_if_done(self, segment: SegmentReader) -> None:
        if not segment.done:
            return
        self._leave_lane(segment)
        try:
            segment.remove()
        except OSError:
            segment.retry_at = self._clock() + RETRY_AFTER  # `sweep` comes back to it
            return
        self._pop(segment)

    def _pop(self, segment: SegmentReader) -> None:
        self._forget(segment.text)
        if self.segments.pop(segment.text, None) is not None:
            self.tally.pending -= segment.pending

    def sweep(self) -> None:
        """Remove finished segments whose removal failed before."""
        now = self._clock()
        for segment in [
            segment for segment in self.segments.values() if segment.done and segment.retry_at <= now
        ]:
            self._remove_if_done(segment)

    # -- claiming --------------------------------------------------------------------------------------

    def take(self, limit: int) -> list[Entry]:
        """Claim up to `limit` entries and log the attempts; `sealed` of each is set."""
        now = self._clock()
        self._undelay(now)
        if self._search_at <= now:
            self._search_at = float("inf")
        entries: list[Entry] = []
        while len(entries) < limit:
            entry = self._choose(now)
            if entry is None:
                break
            if not self._load(entry):
                continue
            entry.claimed = True
            entry.attempts += 1
            entry.segment.log(Op.ALONE if entry.alone else Op.ATTEMPT, entry.offset)
            if entry.ordered:
                self._lane_busy = entry.id
            self.claimed[entry.id] = entry
            entries.append(entry)
        return entries

    def _choose(self, now: float) -> Entry | None:
        if any(entry.alone for entry in self.claimed.values()):
            return None
        # Read all classes ahead first: this finds the suspects.
        for rank in HIGHEST_FIRST:
            if self._next[rank] is None:
                self._next[rank] = self._read(rank, now)
        while self._suspects:
            if self.claimed:
                return None
            entry = self._suspects.popleft()
            if not entry.segment.abandoned:
                entry.alone = True
                return entry
        chosen = self._turns.choose(self._ready())
        return None if chosen is None else self._pop_next(chosen)

    def _ready(self) -> Iterator[int]:
        """Yield the classes that have something to claim, highest first."""
        for rank in HIGHEST_FIRST:
            waiting = self._next[rank] is not None or self._retried[rank]
            if waiting and not (rank == ORDERED and self._lane_busy is not None):
                yield rank

    def _pop_next(self, rank: int) -> Entry | None:
        """Return a new and a retried entry in turn; in the ordered lane a retried one comes first."""
        retried, new = self._retried[rank], self._next[rank]
        take_retried = bool(retried) and (
            rank == ORDERED or not (self._took_retried[rank] and new is not None)
        )
        self._took_retried[rank] = take_retried
        if take_retried:
            return retried.popleft()
        self._next[rank] = None
        return new

    def _load(self, entry: Entry) -> bool:
        """Make sure that `sealed` is set; return False if the entry can't be delivered, now or ever."""
        if entry.segment.abandoned:
            return False
        if entry.sealed is not None:
            return True
        try:
            record = entry.segment.read_again(entry.offset)
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
        """Return the next envelope of a class that may be claimed, or None."""
        lane = self._lanes[rank]
        index = 0
        while index < len(lane):
            segment = lane[index]
            index += 1
            if segment.retry_at > now:
                continue
            try:
                while (part := segment.next()) is not None:
                    entry = self._entry(segment, part)
                    if entry is not None:
                        return entry
            except OSError as error:
                segment.retry_at = now + RETRY_AFTER
                if isinstance(error, FileNotFoundError):
                    self.drop(segment)
                    index -= 1
                continue
            if segment.searching:
                segment.retry_at = self._search_at = now + SEARCH_AGAIN
                continue
            if segment.newer_version or segment.retired:
                index -= 1
                self._leave_lane(segment)
                self._remove_if_done(segment)
        return None

    def _entry(self, segment: SegmentReader, part: Record | Gap) -> Entry | None:
        """Handle one part of a segment; return its entry if it may be claimed now."""
        if isinstance(part, Gap):
            if part.incomplete:
                self.incomplete += 1
            else:
                self.damaged += 1
                self.lose(LossReason.INTERNAL_SDK_ERROR, quantities_of(part.head or b""))
                log.error(
                    "a record of the spool is damaged and was given up: %s at byte %d",
                    segment.text,
                    part.offset,
                )
            return None
        progress = segment.progress(part.offset)
        if part.kind == RecordKind.LOSSES:
            if not progress.settled:
                segment.log(Op.ACK, part.offset)
                segment.settle()
                self._absorb(part)
            return None
        if progress.settled:
            return None
        try:
            sealed = envelope_of(part.head, part.body)
        except ValueError:
            self.damaged += 1
            self.lose(LossReason.INTERNAL_SDK_ERROR, quantities_of(part.head))
            segment.log(Op.ACK, part.offset)
            segment.settle()
            return None
        entry = Entry(
            segment,
            part.offset,
            self._next_id(),
            segment.name.rank,
            sealed.ordered,
            part.created_ms,
            sealed.quantities,
            progress.attempts,
            progress.deaths,
            sealed=sealed,
            faults=progress.faults,
        )
        segment.entries[part.offset] = entry
        if part.created_ms < self.oldest_ms:
            self.count_expired(1)
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
        """Add the loss counts of another process, to be reported by this one."""
        for reason, category, quantity in report:
            self.losses[reason, category] += quantity

    def lose(self, reason: LossReason, quantities: Quantities) -> None:
        """Count an envelope that the spool gave up."""
        for category, quantity in quantities:
            self.losses[reason.value, category] += quantity
            self._given_up[reason.value, category] += quantity

    def count_expired(self, envelopes: int) -> None:
        """Count envelopes that were given up for their age; log the first ones."""
        if envelopes and not self.expired:
            log.warning(
                "envelopes of the spool are older than spool_max_age and were given up; health and the client"
                " report count them"
            )
        self.expired += envelopes

    def count_evicted(self, envelopes: int) -> None:
        """Count envelopes that were given up for the size or number of all; log the first ones."""
        if envelopes and not self.evicted:
            log.warning(
                "the spool is over its size or count and gave up envelopes; health and the client report"
                " count them"
            )
        self.evicted += envelopes

    def _delay(self, entry: Entry, until: float) -> None:
        """Make an entry claimable again at `until`; meanwhile no other of the ordered lane overtakes it."""
        if entry.ordered:
            self._lane_busy = entry.id
        heapq.heappush(self._delayed, (until, entry.id, entry))

    def _undelay(self, until: float) -> None:
        """Return the entries whose pause ends by `until` to their classes."""
        while self._delayed and self._delayed[0][0] <= until:
            entry = heapq.heappop(self._delayed)[2]
            if self._lane_busy == entry.id:
                self._lane_busy = None
            if not entry.segment.abandoned:
                self._retried[entry.rank].append(entry)

    def retry_now(self) -> None:
        """End all pauses: a caller waits for the deliveries."""
        self._undelay(float("inf"))

    @property
    def next_retry(self) -> float:
        """The monotonic second at which an entry may become claimable; infinite if none is paused."""
        return min(self._delayed[0][0], self._search_at) if self._delayed else self._search_at

    # -- settling --------------------------------------------------------------------------------------

    def ack(self, id: int) -> None:
        """Settle an entry that was delivered or discarded."""
        entry = self.claimed.pop(id, None)
        if entry is not None:
            self._settle(entry, Op.ACK)

    def release(self, id: int, not_before: float, faults: int = 0) -> None:
        """Return an entry, to be claimed again; this process survived the attempt, so it is no suspect.

        Args:
            id: The claim.
            not_before: Monotonic seconds.
            faults: See `Claim`.
        """
        entry = self.claimed.pop(id, None)
        if entry is None:
            return
        entry.claimed = entry.alone = False
        entry.sealed = None
        if faults > entry.faults:
            entry.faults = faults
            entry.segment.log(Op.FAULT, entry.offset)
        entry.segment.log(Op.RELEASE, entry.offset)
        self._delay(entry, not_before)

    def bury(self, id: int, reason: str) -> None:
        """Move an entry to the dead letters."""
        entry = self.claimed.pop(id, None)
        if entry is not None:
            self._bury(entry, reason)

    def _bury(self, entry: Entry, reason: str) -> None:
        sealed = entry.sealed
        is_stored = sealed is not None and dead_letters.bury(
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
        if not is_stored:
            log.error("a dead letter could not be kept")
        self.buried += 1
        self._settle(entry, Op.BURY)

    def _give_up(self, entry: Entry, reason: LossReason) -> None:
        self.lose(reason, entry.quantities)
        self._settle(entry, Op.ACK)

    def _settle(self, entry: Entry, op: Op) -> None:
        segment = entry.segment
        segment.log(op, entry.offset)
        segment.entries.pop(entry.offset, None)
        segment.settle()
        entry.sealed = None
        if self._lane_busy == entry.id:
            self._lane_busy = None
        self._remove_if_done(segment)

    # -- giving up a whole segment ---------------------------------------------------------------------

    def victims(self, max_bytes: int) -> Iterator[SegmentReader]:
        """Yield the segments that may be given up: without a writer, and with no entry claimed.

        Those larger than `max_bytes` come first, as evicting others makes no room for them; then the lowest
        class and the oldest.
        """
        for segment in sorted(
            self.segments.values(), key=lambda segment: (segment.size <= max_bytes, segment.name)
        ):
            if segment.newer_version or any(entry.claimed for entry in segment.entries.values()):
                continue
            try:
                if segment.is_idle():
                    yield segment
            except OSError:
                continue

    def sacrifice(self, segment: SegmentReader) -> int:
        """Remove a segment and count its unsettled envelopes as lost; return their number.

        Raises:
            OSError: It can't be removed. Nothing was given up.
        """
        position = segment.position
        lost = len(segment.entries)
        quantities = [entry.quantities for entry in segment.entries.values()]
        damaged = incomplete = 0
        reports: list[Record] = []
        for part in segment.read_rest():
            if isinstance(part, Gap):
                damaged += not part.incomplete
                incomplete += part.incomplete
            elif segment.progress(part.offset).settled:
                continue
            elif part.kind == RecordKind.LOSSES:
                reports.append(part)
            else:
                lost += 1
                quantities.append(quantities_of(part.head))
        try:
            segment.remove()
        except OSError:
            segment.position = position
            raise
        for envelope_quantities in quantities:
            self.lose(LossReason.CACHE_OVERFLOW, envelope_quantities)
        for report in reports:
            self._absorb(report)
        self.damaged += damaged
        self.incomplete += incomplete
        if any(entry.id == self._lane_busy for entry in segment.entries.values()):
            self._lane_busy = None
        segment.entries.clear()
        segment.abandoned = True
        self._next = [None if entry is None or entry.segment is segment else entry for entry in self._next]
        self._retried = [
            deque(entry for entry in entries if entry.segment is not segment) for entries in self._retried
        ]
        self.drop(segment)
        return lost

    # -- snapshots -------------------------------------------------------------------------------------

    def count_seen(self, text: str) -> int:
        """Return the number of envelopes read or counted so far in a segment; needs no lock."""
        segment = self.segments.get(text)
        return 0 if segment is None else segment.seen

    def oldest(self) -> float | None:
        """Return the epoch seconds at which the oldest unsettled envelope was accepted, as far as known."""
        stamps = [
            entry.created_ms for segment in self.segments.values() for entry in segment.entries.values()
        ]
        stamps += [
            segment.name.created_ns // 1_000_000
            for segment in self.segments.values()
            if segment.pending and not segment.opened
        ]
        return min(stamps) / 1000 if stamps else None

    def close(self) -> None:
        """Release the claimed entries, and close all files."""
        for id in list(self.claimed):
            self.release(id, 0.0)
        for segment in self.segments.values():
            segment.close()
        self.segments.clear()
