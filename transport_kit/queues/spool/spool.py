"""FileSpool: a queue on disk behind the `Queue` protocol.

This module owns the interplay of its parts: the writer (`writer.py`), the election and draining
(`drain_loop.py`), and the queue in memory that is used while the directory can't be. The state of one process
is one object (`state.py`) that a forked child replaces.

Threads: `put` may be called from any thread and from signal handlers, and takes no lock that is held
during I/O. `claim`, `ack`, `release` and `bury` do I/O under `lock`, which only they, `take_losses` and
`close` take. `wake` and `stats` do not take it.
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
    describe_error,
    description,
    facts_of,
    move_to_disk,
    stats_of,
)
from transport_kit.queues.spool.status import SpoolStatus, publish, read_status
from transport_kit.queues.spool.system import System
from transport_kit.queues.spool.writer import Full, Writer
from transport_kit.runtime.errors import OptionsError
from transport_kit.runtime.forks import PerProcess, after_fork
from transport_kit.runtime.log import log

__all__ = ["FileSpool"]

#: Least bytes of a segment; the smallest spool that options allow has room for several of them.
SMALLEST_SEGMENT: Final = 16 * 1024
_ENVELOPE: Final = int(RecordKind.ENVELOPE)
_LOSSES_RANK: Final = int(Priority.TRANSACTION)
_ACCEPTED: Final = Put(True)
_REFUSED: Final = Put(False)


# Every spool of this process, for the fork hook.
_spools: weakref.WeakSet[FileSpool] = weakref.WeakSet()


def _abandon_all() -> None:
    for spool in list(_spools):
        spool._abandon_inherited()


def _abandon(state: SpoolState) -> None:
    writer, state.writer = state.writer, None
    if writer is not None:
        writer.abandon()


class FileSpool:
    """A queue that survives the death of every process on the host.

    Several processes may have one each on the same directory; one of them drains at a time. A second one
    in the same process only writes.

    Args:
        path: The directory; created if its parent exists.
        identity: Name of the envelopes' destination, see `identity_of`.
        max_bytes: Bytes of all segments; above it segments are evicted, lowest class first, and counted.
        max_count: Envelopes; None for no bound.
        max_age: Seconds after which an envelope is given up.
        segment_bytes: Bytes after which a segment is closed and the next one begun.
        durability: `process`: an accepted envelope survives processes. `host`: it is on the disk before `put`
            returns.
        memory_items: Most envelopes held in memory while the directory can't be used.
        memory_bytes: Most bytes held in memory while the directory can't be used.
        force: Accept a network filesystem.
        drain: False for a process that only writes.
        forwarder: True for a process that exists to drain; it is preferred to others.
        credentials: The DSN, to be stored beside the segments for a forwarder; None stores nothing.
        strict: True to raise an error for a directory that a person has to correct; False to use memory until
            that is done.
        clock: Monotonic seconds.
        wall: Epoch seconds.
        system: The operating system.

    Raises:
        OptionsError: With `strict`: the directory does not belong to this user alone, or is not on this host;
            or an option is out of range.
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
        # A small spool is divided into segments too, so that it has old ones to give up.
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
        self._drain_loop = DrainLoop(
            may_drain=drain or forwarder,
            max_bytes=max_bytes,
            max_count=max_count,
            max_age=max_age,
            clock=clock,
            wall=wall,
            system=self._system,
            leave_losses=self.put_losses,
        )
        _abandon_all()  # after a fork made in C; does nothing to the spools of this process
        self._states = PerProcess(self._build_state, self._adopt, self._process)
        state = self._states.get()
        # Held during I/O, by claims and settling; never taken by a capture.
        self.lock = state.lock
        _spools.add(self)
        # First: the parent's descriptors must be closed before the child's transport opens the spool again.
        after_fork(_abandon_all, first=True)
        try:
            self._open(state)
        except (OptionsError, OSError) as error:
            if strict and isinstance(error, OptionsError):
                raise
            state.record_failure(describe_error(error), self._clock())

    # -- processes -------------------------------------------------------------------------------------

    def _current(self) -> SpoolState:
        return self._states.get()

    def _build_state(self, parent: SpoolState | None) -> SpoolState:
        if parent is not None:
            _abandon(parent)  # a second call does nothing; a fork made in C runs no hook
        memory = MemoryQueue(self._memory_items, self._memory_bytes, clock=self._clock)
        return SpoolState(memory)

    def _adopt(self, state: SpoolState) -> None:
        self.lock = state.lock
        self._try_to_open(state)

    def _abandon_inherited(self) -> None:
        """Close the parent's descriptors in a forked child. Takes no lock."""
        parent = self._states.inherited()
        if parent is not None:
            _abandon(parent)

    def _open(self, state: SpoolState) -> None:
        directory = open_directory(self._system, self.path, self.identity, force=self._force, sync=self._host)
        try:
            if self._credentials is not None:
                store_credentials(directory, self._credentials)
        except OSError:
            directory.close()
            raise
        state.directory = directory
        state.election = Election(directory, forwarder=self._forwarder)
        state.writer = Writer(
            directory,
            segment_bytes=self._segment_bytes,
            max_bytes=self._max_bytes,
            host=self._host,
            clock=self._clock,
            wall_ns=time.time_ns if self._wall is time.time else lambda: int(self._wall() * 1e9),
        )
        # Until the first look, a flush knows only what the last drainer published, and that one may have been
        # killed before it counted everything.
        state.status = read_status(directory)
        if state.status is None:
            # Shows whoever drains first whether the clock was set since the spool was begun. Only the drainer
            # replaces it.
            now, wall = self._clock(), self._wall()
            clocks = SpoolStatus(boot=self._system.boot(), at=now, wall=wall, complete=False, ages_from=wall)
            publish(directory, clocks, first=True)
        try:
            names = self._system.names(directory.segments)
            state.may_have_backlog = any(text.endswith(".log") for text in names)
        except OSError:
            state.may_have_backlog = True

    def _try_to_open(self, state: SpoolState) -> bool:
        try:
            self._open(state)
        except (OSError, OptionsError) as error:
            state.record_failure(describe_error(error), self._clock())
            return False
        return True

    # -- putting ---------------------------------------------------------------------------------------

    def prepare(self, sealed: SealedEnvelope) -> SealedEnvelope:
        """Return the envelope unchanged: compressing it would cost the caller more than the write."""
        return sealed

    def put(self, sealed: SealedEnvelope) -> Put:
        """Write the envelope to the disk; once accepted, it survives the death of every process.

        While the directory can't be used, the envelope goes to the queue in memory, within its bounds.
        """
        state = self._states.get()
        if state.closed:
            return _REFUSED
        writer = state.writer
        if writer is not None and (state.trouble is None or self._clock() >= state.retry_at):
            try:
                rank, head, parts, length = envelope_record(sealed)
                writer.append(_ENVELOPE, rank, head, parts, length)
            except Full:
                return _REFUSED
            except OSError as error:
                state.record_failure(describe_error(error), self._clock())
            else:
                state.puts += 1
                if state.failure is not None:
                    state.record_recovery()
                if state.parked:
                    state.notify_claimers()
                elif state.drainer is None and not state.puts % PUTS_A_CANDIDACY:
                    self._drain_loop.run_again(state)
                return _ACCEPTED
        put = state.memory.put(state.memory.prepare(sealed))
        state.fell_back += put.accepted
        if state.parked:
            state.notify_claimers()
        return put

    def put_losses(self, report: Report, *, ending: bool = False) -> bool:
        """Write loss counts for the drainer; return False if the caller has to report them itself."""
        state = self._current()
        writer = state.writer
        if state.drainer is not None and not ending:
            return False  # this process is the drainer
        if state.closed or writer is None or state.trouble is not None:
            return False
        try:
            writer.append(RecordKind.LOSSES, _LOSSES_RANK, losses_record(report), (), 0)
        except (OSError, Full):
            return False
        return True

    def take_losses(self) -> Report:
        """Return the losses that the drainer counted, or got from other processes, since the last call."""
        state = self._current()
        drainer = state.drainer
        if drainer is None or not drainer.losses:
            return ()
        with state.lock.rlock:
            losses = losses_of_drainer(drainer)
            drainer.losses.clear()
        return losses

    def take_given_up(self) -> Report:
        """Return the quantities that this process gave up as the drainer since the last call."""
        state = self._current()
        if not state.given_up:
            return ()
        with state.lock.rlock:
            given_up = tuple((reason, category, n) for (reason, category), n in state.given_up.items())
            state.given_up.clear()
        return given_up

    # -- claiming --------------------------------------------------------------------------------------

    def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
        """Claim up to `limit` envelopes: from the disk if this process drains, from memory in any case.

        With a `limit` of 0 only the due work is done: election, eviction, figures.
        """
        state = self._current()
        deadline = self._clock() + timeout
        pause = LOOK_FIRST
        wakes = state.wakes
        while True:
            puts, notifications = state.puts, state.notifications
            claims = self._look(state, limit)
            now = self._clock()
            if claims or state.closed or now >= deadline:
                return claims
            until, parked = self._drain_loop.next_look(state, now, pause)
            with state.signal:
                # This thread sets `parked` before it compares `puts`, and a put increments `puts` before it
                # reads `parked`: at least one of the two sees the change of the other.
                state.parked = parked
                changed = state.wakes != wakes or state.notifications != notifications
                if not changed and not (parked and state.puts != puts):
                    state.signal.wait(max(0.0, min(until, deadline) - now))
                state.parked = False
                if state.wakes != wakes:
                    return []
            pause = LOOK_FIRST if state.notifications != notifications else min(pause * 2, LOOK_LAST)

    def _look(self, state: SpoolState, limit: int) -> list[Claim]:
        if state.lock.held():
            return []  # a signal handler interrupted this thread inside the lock
        with state.lock.rlock:
            claims = [] if state.closed else self._look_locked(state, limit)
        state.lock.run_deferred()
        return claims

    def _look_locked(self, state: SpoolState, limit: int) -> list[Claim]:
        now = self._clock()
        if now >= state.removal_check_at + LOOK_QUIET:
            state.removal_check_at = now
            self._leave_if_removed_locked(state)
        if state.failure is not None and now >= state.retry_at:
            state.retry_at = now + RECOVERY
            if state.writer is not None or self._try_to_open(state):
                state.trouble = None
                move_to_disk(state, self._clock, self._wall)
        claims = self._drain_loop.look(state, limit, now)
        if len(claims) < limit:
            for inner in state.memory.claim(limit - len(claims), 0.0):
                claim = Claim(next(state.ids), inner.sealed, inner.attempts, inner.put_at, inner.faults)
                state.from_memory[claim.id] = inner
                claims.append(claim)
        return claims

    def _leave_if_removed_locked(self, state: SpoolState) -> None:
        """Open a new directory if somebody deleted this one; use memory until that succeeds."""
        directory, writer = state.directory, state.writer
        if directory is None or writer is None:
            return
        try:
            if not directory.is_removed(directory.segments, "seg", directory.identity):
                writer.abandon_removed()
                return
        except OSError:
            return
        self._end_locked(state)
        state.directory = state.election = state.writer = None
        state.puts_at_status = state.puts
        self._try_to_open(state)
        log.warning("the spool's directory was removed while it was in use; what waited in it is lost")

    # -- settling --------------------------------------------------------------------------------------

    def _settle(self, action: Callable[[SpoolState, Drainer | None], None]) -> None:
        state = self._current()

        def settle() -> None:
            action(state, state.drainer)

        if state.lock.held():
            state.lock.defer(settle)
            return
        with state.lock.rlock:
            settle()
        state.lock.run_deferred()

    def ack(self, claims: Iterable[Claim]) -> None:
        """Settle the claims, and forget them."""
        settled = list(claims)

        def act(state: SpoolState, drainer: Drainer | None) -> None:
            for claim in settled:
                inner = state.from_memory.pop(claim.id, None)
                if inner is not None:
                    state.memory.ack([inner])
                elif drainer is not None:
                    drainer.ack(claim.id)

        self._settle(act)

    def release(self, claims: Iterable[Claim], not_before: float = 0.0) -> None:
        """Return undelivered claims to the queue, to be claimed again by the drainer at that time."""
        returned = list(claims)

        def act(state: SpoolState, drainer: Drainer | None) -> None:
            for claim in returned:
                inner = state.from_memory.pop(claim.id, None)
                if inner is not None:
                    inner.faults = claim.faults
                    state.memory.release([inner], not_before)
                elif drainer is not None:
                    drainer.release(claim.id, not_before, claim.faults)

        self._settle(act)

    def bury(self, claim: Claim, reason: str) -> None:
        """Move the envelope to the dead letters, which a person may inspect and replay."""

        def act(state: SpoolState, drainer: Drainer | None) -> None:
            inner = state.from_memory.pop(claim.id, None)
            if inner is not None:
                state.memory.ack([inner])
            elif drainer is not None:
                drainer.bury(claim.id, reason)

        self._settle(act)

    # -- waking, snapshots, closing --------------------------------------------------------------------

    def wake(self, *, hasten: bool = False) -> None:
        """Make every blocked `claim` return; with `hasten`, end the pauses of released envelopes."""
        state = self._current()
        if hasten:
            state.retry_now = True
            state.memory.wake(hasten=True)
        with state.signal:
            state.wakes += 1
            state.signal.notify_all()

    def stats(self) -> QueueStats:
        """Return a snapshot, without I/O.

        In a process that does not drain: the figures that the drainer published last, plus the puts since.
        """
        return stats_of(
            self._current(),
            max_bytes=self._max_bytes,
            max_count=self._max_count,
            now=self._clock(),
            wall=self._wall(),
        )

    def facts(self) -> SpoolFacts:
        """Return a snapshot for health, without I/O."""
        return facts_of(self._current(), self.path, self._wall())

    def describe(self) -> Mapping[str, Any]:
        """Return what health shows of the whole spool, its problems included."""
        state = self._current()
        wall = self._wall()
        ran = state.candidacy_at > float("-inf")
        return description(facts_of(state, self.path, wall), ran=ran, wall=wall)

    def mend(self) -> tuple[list[Claim], list[Claim]]:
        """Return nothing: the contents of a shared queue are not the worker's state."""
        return [], []

    def close(self) -> list[Claim]:
        """Close the spool in this process; return the envelopes that exist only in memory.

        Envelopes on the disk stay: the next drainer finds all that are not settled.
        """
        state = self._current()
        if state.closed:
            return []
        state.closed = True
        self.wake()
        remaining: list[Claim] = []

        def end() -> None:
            for inner in state.from_memory.values():
                state.memory.release([inner])
            state.from_memory.clear()
            state.memory.wake(hasten=True)
            if state.writer is not None:
                state.trouble = None
                move_to_disk(state, self._clock, self._wall)
            remaining.extend(state.memory.close())
            self._end_locked(state)

        if state.lock.held():
            state.lock.defer(end)
        else:
            with state.lock.rlock:
                end()
            state.lock.run_deferred()
        return remaining

    def _end_locked(self, state: SpoolState) -> None:
        if state.drainer is not None:
            losses = losses_of_drainer(state.drainer)
            if losses and state.writer is not None:
                try:
                    state.writer.append(RecordKind.LOSSES, _LOSSES_RANK, losses_record(losses), (), 0)
                except (OSError, Full):
                    pass  # the counts are lost: the disk does not take them
            state.drainer.close()
            state.drainer = state.maintenance = None
        if state.election is not None:
            state.election.resign()
        if state.writer is not None:
            state.writer.close()
        if state.directory is not None:
            state.directory.close()
