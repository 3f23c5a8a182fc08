"""FileSpool: a queue on disk behind the `Queue` protocol.

Owns how the parts work together: writing (`writer.py`), the election and draining (`drain_loop.py`), and the
memory that takes over while the directory can't be used. What belongs to one process is in one object
(`state.py`) that a forked child replaces.

Threads: `put` may be called from any thread and from signal handlers, and takes no lock that is held
during I/O. `claim`, and what settles, do I/O under `lock`, which only they and `close` take. `wake` and
`stats` take neither.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from transport_kit.envelope.item_types import Priority
from transport_kit.envelope.losses import Report
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.memory import MemoryQueue
from transport_kit.queues.protocol import Claim, Put, QueueStats
from transport_kit.queues.spool.directory import open_directory, store_credentials
from transport_kit.queues.spool.drain_loop import (
    LOOK_FIRST,
    LOOK_LAST,
    LOOK_QUIET,
    PUTS_A_CANDIDACY,
    DrainLoop,
    losses_of_drainer,
)
from transport_kit.queues.spool.drainer import Drainer
from transport_kit.queues.spool.election import Election
from transport_kit.queues.spool.records import envelope_record, losses_record
from transport_kit.queues.spool.segments import RecordKind
from transport_kit.queues.spool.state import (
    RECOVERY,
    SpoolFacts,
    SpoolState,
    description,
    facts_of,
    move_to_disk,
    stats_of,
    words,
)
from transport_kit.queues.spool.status import read_status
from transport_kit.queues.spool.system import System
from transport_kit.queues.spool.writer import Full, Writer
from transport_kit.runtime.errors import OptionsError
from transport_kit.runtime.forks import PerProcess, after_fork
from transport_kit.runtime.log import log

__all__ = ["FileSpool"]

#: A forced small spool still has room for several segments.
SMALLEST_SEGMENT: Final = 16 * 1024
_ENVELOPE: Final = int(RecordKind.ENVELOPE)
_LOSSES_RANK: Final = int(Priority.TRANSACTION)
_ACCEPTED: Final = Put(True)
_REFUSED: Final = Put(False)


# For forks: every spool of this process.
_spools: weakref.WeakSet[FileSpool] = weakref.WeakSet()


def _abandon_all() -> None:
    for spool in list(_spools):
        spool._abandon_inherited()


def _abandon(life: SpoolState) -> None:
    writer, life.writer = life.writer, None
    if writer is not None:
        writer.abandon()


class FileSpool:
    """A queue that survives the death of every process on the host.

    Several processes may have one each on the same directory; one of them drains at a time. A second one
    in the same process only writes.

    Args:
        path: The directory; made when its parent exists.
        identity: Whose envelopes these are, see `identity_of`.
        max_bytes: Of all segments; what is over it is evicted, lowest class first, and counted.
        max_count: Envelopes; None for no bound.
        max_age: Seconds after which an envelope is given up.
        segment_bytes: A segment past this is closed and the next one begun.
        durability: `process`: survives processes. `host`: on the disk before `put` returns.
        memory_items, memory_bytes: Bounds of what is held in memory while the directory can't be used.
        force: Take a network filesystem all the same.
        drain: Whether this process may drain; otherwise it only writes.
        forwarder: Whether it exists to drain, and is preferred to others.
        credentials: The DSN, to be stored beside the segments for a forwarder; None stores nothing.
        strict: Whether a directory that a person has to put right is an error; otherwise it is trouble.
        clock: Monotonic seconds.
        wall: Epoch seconds.
        system: The operating system.

    Raises:
        OptionsError: With `strict`: the directory is not ours alone, or not on this host; or an option is
            out of range.
    """

    durable = True
    shared = True

    def __init__(
        self,
        path: str,
        identity: str,
        *,
        max_bytes: int = 512 * 1024 * 1024,
        max_count: int | None = None,
        max_age: float = 7 * 86_400.0,
        segment_bytes: int = 1024 * 1024,
        durability: str = "process",
        memory_items: int = 10_000,
        memory_bytes: int = 64 * 1024 * 1024,
        force: bool = False,
        drain: bool = True,
        forwarder: bool = False,
        credentials: str | None = None,
        strict: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        system: System | None = None,
    ) -> None:
        if durability not in ("process", "host"):
            raise OptionsError("spool_durability", "must be process or host")
        self.path = path
        self.identity = identity
        self._max_bytes = max_bytes
        self._max_count = max_count
        # Small enough that a spool of little room still has old segments to give up.
        self._segment_bytes = max(min(segment_bytes, max_bytes // 16), SMALLEST_SEGMENT)
        self._host = durability == "host"
        self._memory_items = memory_items
        self._memory_bytes = memory_bytes
        self._force = force
        self._forwarder = forwarder
        self._credentials = credentials
        self._clock = clock
        self._wall = wall
        self._system = system or System()
        self._process = self._system.process
        self._duty = DrainLoop(
            may_drain=drain or forwarder,
            max_bytes=max_bytes,
            max_count=max_count,
            max_age=max_age,
            clock=clock,
            wall=wall,
            system=self._system,
            leave_losses=self.put_losses,
        )
        _abandon_all()  # of a parent, when a fork went unseen: does nothing to the spools of this process
        self._states = PerProcess(self._new_life, self._adopt, self._process)
        life = self._states.get()
        # Held by claims and what settles, during I/O; never by a capture.
        self.lock = life.lock
        _spools.add(self)
        # First: a renewed transport opens its spool anew, once the parent's descriptors are closed.
        after_fork(_abandon_all, first=True)
        try:
            self._open(life)
        except OptionsError as error:
            if strict:
                raise
            life.have_trouble(str(error), self._clock())
        except OSError as error:
            life.have_trouble(words(error), self._clock())

    # -- one process and the next ----------------------------------------------------------------------

    def _current(self) -> SpoolState:
        return self._states.get()

    def _new_life(self, parent: SpoolState | None) -> SpoolState:
        if parent is not None:
            _abandon(parent)  # done by the fork hook already, unless the fork was made in C
        memory = MemoryQueue(self._memory_items, self._memory_bytes, clock=self._clock)
        return SpoolState(memory)

    def _adopt(self, life: SpoolState) -> None:
        self.lock = life.lock
        self._try_to_open(life)

    def _abandon_inherited(self) -> None:
        """In a forked child: close the parent's descriptors. Takes no lock."""
        parent = self._states.inherited()
        if parent is not None:
            _abandon(parent)

    def _open(self, life: SpoolState) -> None:
        directory = open_directory(self._system, self.path, self.identity, force=self._force, sync=self._host)
        try:
            if self._credentials is not None:
                store_credentials(directory, self._credentials)
        except OSError:
            directory.close()
            raise
        life.directory = directory
        life.election = Election(directory, forwarder=self._forwarder)
        life.writer = Writer(
            directory,
            segment_bytes=self._segment_bytes,
            max_bytes=self._max_bytes,
            host=self._host,
            clock=self._clock,
            wall_ns=time.time_ns if self._wall is time.time else lambda: int(self._wall() * 1e9),
        )
        # What the last drainer knew: until the first look, a flush has nothing else to go by. It may have
        # been killed before it could say what waits.
        life.status = read_status(directory)
        try:
            life.unread = any(text.endswith(".log") for text in self._system.names(directory.segments))
        except OSError:
            life.unread = True

    def _try_to_open(self, life: SpoolState) -> bool:
        try:
            self._open(life)
        except (OSError, OptionsError) as error:
            life.have_trouble(words(error) if isinstance(error, OSError) else str(error), self._clock())
            return False
        return True

    # -- putting ---------------------------------------------------------------------------------------

    def prepare(self, sealed: SealedEnvelope) -> SealedEnvelope:
        """As it is: the caller's time goes into one write, and no compression."""
        return sealed

    def put(self, sealed: SealedEnvelope) -> Put:
        """Write it; accepted means that no death of a process loses it.

        While the directory can't be used it is taken into memory, within that one's bounds.
        """
        life = self._states.get()
        if life.closed:
            return _REFUSED
        writer = life.writer
        if writer is not None and (life.trouble is None or self._clock() >= life.try_again):
            try:
                rank, head, parts, length = envelope_record(sealed)
                writer.append(_ENVELOPE, rank, head, parts, length)
            except Full:
                return _REFUSED
            except OSError as error:
                life.have_trouble(words(error), self._clock())
            else:
                life.puts += 1
                if life.why is not None:
                    life.is_well()
                if life.parked:
                    life.poke()
                elif life.drainer is None and not life.puts % PUTS_A_CANDIDACY:
                    self._duty.run_again(life)
                return _ACCEPTED
        put = life.memory.put(life.memory.prepare(sealed))
        life.fell_back += put.accepted
        if life.parked:
            life.poke()
        return put

    def put_losses(self, report: Report, *, ending: bool = False) -> bool:
        """Leave loss counts for whoever drains; False when they stay with the caller, who drains perhaps."""
        life = self._current()
        writer = life.writer
        here = life.drainer is not None and not ending
        if here or life.closed or writer is None or life.trouble is not None:
            return False
        try:
            writer.append(RecordKind.LOSSES, _LOSSES_RANK, losses_record(report), (), 0)
        except (OSError, Full):
            return False
        return True

    def take_losses(self) -> Report:
        """What the drainer gave up or was told of since the last call, to be reported once."""
        life = self._current()
        drainer = life.drainer
        if drainer is None or not drainer.losses:
            return ()
        with life.lock.rlock:
            taken = losses_of_drainer(drainer)
            drainer.losses.clear()
        return taken

    # -- claiming --------------------------------------------------------------------------------------

    def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
        """Up to `limit` envelopes, if this process drains; those in memory in any case.

        With a `limit` of 0 it only looks after the spool: elections, eviction, figures.
        """
        life = self._current()
        deadline = self._clock() + timeout
        pause = LOOK_FIRST
        wakes = life.wakes
        while True:
            puts, pokes = life.puts, life.pokes
            claims = self._look(life, limit)
            now = self._clock()
            if claims or life.closed or now >= deadline:
                return claims
            until, parked = self._duty.next_look(life, now, pause)
            with life.signal:
                # `parked` is raised before the last look at `puts`, and a put counts before it looks at
                # `parked`: one of the two sees the other.
                life.parked = parked
                if life.wakes == wakes and life.pokes == pokes and not (parked and life.puts != puts):
                    life.signal.wait(max(0.0, min(until, deadline) - now))
                life.parked = False
                if life.wakes != wakes:
                    return []
            pause = LOOK_FIRST if life.pokes != pokes else min(pause * 2, LOOK_LAST)

    def _look(self, life: SpoolState, limit: int) -> list[Claim]:
        if life.lock.held():
            return []  # interrupted inside a critical section of ours
        with life.lock.rlock:
            claims = [] if life.closed else self._look_locked(life, limit)
        life.lock.run_deferred()
        return claims

    def _look_locked(self, life: SpoolState, limit: int) -> list[Claim]:
        now = self._clock()
        if now >= life.looked_at + LOOK_QUIET:
            life.looked_at = now
            self._leave_if_removed_locked(life)
        if life.why is not None and now >= life.try_again:
            life.try_again = now + RECOVERY
            if life.writer is not None or self._try_to_open(life):
                life.trouble = None
                move_to_disk(life, self._clock, self._wall)
        claims = self._duty.look(life, limit, now)
        if len(claims) < limit:
            for inner in life.memory.claim(limit - len(claims), 0.0):
                claim = Claim(next(life.ids), inner.sealed, inner.attempts, inner.put_at)
                life.from_memory[claim.id] = inner
                claims.append(claim)
        return claims

    def _leave_if_removed_locked(self, life: SpoolState) -> None:
        """Somebody deleted the directory: begin anew under its name, or in memory until that can be."""
        directory, writer = life.directory, life.writer
        if directory is None or writer is None:
            return
        try:
            if not directory.is_removed(directory.segments, "seg", directory.identity):
                writer.leave_what_was_removed()
                return
        except OSError:
            return
        self._end_locked(life)
        life.directory = life.election = life.writer = None
        life.puts_at_status = life.puts
        self._try_to_open(life)
        log.warning("the spool's directory was removed while it was in use; what waited in it is lost")

    # -- settling --------------------------------------------------------------------------------------

    def _settle(self, action: Callable[[SpoolState, Drainer | None], None]) -> None:
        life = self._current()

        def settle() -> None:
            action(life, life.drainer)

        if life.lock.held():
            life.lock.defer(settle)
            return
        with life.lock.rlock:
            settle()
        life.lock.run_deferred()

    def ack(self, claims: Iterable[Claim]) -> None:
        """Settled: forget them."""
        settled = list(claims)

        def act(life: SpoolState, drainer: Drainer | None) -> None:
            for claim in settled:
                inner = life.from_memory.pop(claim.id, None)
                if inner is not None:
                    life.memory.ack([inner])
                elif drainer is not None:
                    drainer.ack(claim.id)

        self._settle(act)

    def release(self, claims: Iterable[Claim], not_before: float = 0.0) -> None:
        """Not delivered: to be claimed again, by whoever drains then."""
        returned = list(claims)

        def act(life: SpoolState, drainer: Drainer | None) -> None:
            for claim in returned:
                inner = life.from_memory.pop(claim.id, None)
                if inner is not None:
                    life.memory.release([inner], not_before)
                elif drainer is not None:
                    drainer.release(claim.id, not_before)

        self._settle(act)

    def bury(self, claim: Claim, reason: str) -> None:
        """To the dead letters, which a person may look at and replay."""

        def act(life: SpoolState, drainer: Drainer | None) -> None:
            inner = life.from_memory.pop(claim.id, None)
            if inner is not None:
                life.memory.ack([inner])
            elif drainer is not None:
                drainer.bury(claim.id, reason)

        self._settle(act)

    # -- waking, saying, ending ------------------------------------------------------------------------

    def wake(self, *, hasten: bool = False) -> None:
        """Make every blocked `claim` return; with `hasten`, what failed may go again at once."""
        life = self._current()
        if hasten:
            life.retry_now = True
            life.memory.wake(hasten=True)
        with life.signal:
            life.wakes += 1
            life.signal.notify_all()

    def stats(self) -> QueueStats:
        """A snapshot. Without the drain, what its holder published last and what was put here since."""
        return stats_of(
            self._current(),
            max_bytes=self._max_bytes,
            max_count=self._max_count,
            now=self._clock(),
            wall=self._wall(),
        )

    def facts(self) -> SpoolFacts:
        """A snapshot for health; no I/O."""
        return facts_of(self._current(), self.path, self._wall())

    def describe(self) -> Mapping[str, Any]:
        """For health: what a process knows of the whole spool, and what is amiss."""
        life = self._current()
        wall = self._wall()
        return description(facts_of(life, self.path, wall), ran=life.candidacy_at > float("-inf"), wall=wall)

    def mend(self) -> tuple[list[Claim], list[Claim]]:
        """Nothing is half done here: what a shared queue holds is not the worker's state."""
        return [], []

    def close(self) -> list[Claim]:
        """End this process's part. What is on the disk stays; what could only be kept in memory is returned.

        Whoever drains next finds all that was not settled.
        """
        life = self._current()
        if life.closed:
            return []
        life.closed = True
        self.wake()
        left: list[Claim] = []

        def end() -> None:
            for inner in life.from_memory.values():
                life.memory.release([inner])
            life.from_memory.clear()
            life.memory.wake(hasten=True)
            if life.writer is not None:
                life.trouble = None
                move_to_disk(life, self._clock, self._wall)
            left.extend(life.memory.close())
            self._end_locked(life)

        if life.lock.held():
            life.lock.defer(end)
        else:
            with life.lock.rlock:
                end()
            life.lock.run_deferred()
        return left

    def _end_locked(self, life: SpoolState) -> None:
        if life.drainer is not None:
            losses = losses_of_drainer(life.drainer)
            if losses and life.writer is not None:
                try:
                    life.writer.append(RecordKind.LOSSES, _LOSSES_RANK, losses_record(losses), (), 0)
                except (OSError, Full):
                    pass  # counts of what is lost, and nowhere to leave them
            life.drainer.close()
            life.drainer = life.upkeep = None
        if life.election is not None:
            life.election.resign()
        if life.writer is not None:
            life.writer.close()
        if life.directory is not None:
            life.directory.close()
