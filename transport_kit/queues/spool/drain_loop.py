"""The drain loop: elects a drainer for the spool, drains while this process is it, and yields to a forwarder.

This module owns when this process tries to become the drainer and when it steps down, how often it looks at
the directory, and the order of work in one look. The locks of the election are in `election.py`, draining is
in `drainer.py` and `maintenance.py`, and the queue in memory belongs to `spool.py`.

Threads: `run` and `run_again` may be called by any thread, and by `put`; all other methods require the lock
of the `SpoolState` that they are given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from transport_kit.envelope.losses import Report
from transport_kit.queues.protocol import Claim
from transport_kit.queues.spool.ages import Ages
from transport_kit.queues.spool.drainer import Drainer
from transport_kit.queues.spool.maintenance import Maintenance
from transport_kit.queues.spool.segment_reader import Entry
from transport_kit.queues.spool.state import RECOVERY, SpoolState, describe_error
from transport_kit.queues.spool.status import read_status
from transport_kit.queues.spool.system import System

__all__ = ["DrainLoop", "LOOK_FIRST", "LOOK_LAST", "LOOK_QUIET", "losses_of_drainer", "PUTS_A_CANDIDACY"]

#: Seconds between two looks of the drainer: the least, while work comes, and the most.
LOOK_FIRST: Final = 0.005
LOOK_LAST: Final = 0.25
#: Seconds without work after which the drainer looks only every `LOOK_QUIET` seconds. A capture of its own
#: process still wakes it.
QUIET_AFTER: Final = 5.0
LOOK_QUIET: Final = 1.0
#: Seconds between two candidacies of a process that does not drain: in `claim`, and in `put`.
CANDIDACY: Final = 0.99
CANDIDACY_ON_PUT: Final = 0.1
#: Of this many puts one reads the clock for a candidacy: a process that puts less often has time to claim.
PUTS_A_CANDIDACY: Final = 16
#: Share of `max_bytes` that dead letters may take.
DEAD_SHARE: Final = 1 / 8


class DrainLoop:
    """The part of a spool that looks after the directory; every method acts on the `SpoolState` it is given.

    Args:
        may_drain: False if this process never drains.
        max_bytes: See `FileSpool`.
        max_count: See `FileSpool`.
        max_age: See `FileSpool`.
        clock: Monotonic seconds.
        wall: Epoch seconds.
        system: The operating system.
        leave_losses: Called with the loss counts of a drainer that steps down.
    """

    def __init__(
        self,
        *,
        may_drain: bool,
        max_bytes: int,
        max_count: int | None,
        max_age: float,
        clock: Callable[[], float],
        wall: Callable[[], float],
        system: System,
        leave_losses: Callable[[Report], object],
    ) -> None:
        self._may_drain = may_drain
        self._max_bytes = max_bytes
        self._max_count = max_count
        self._max_age = max_age
        self._clock = clock
        self._wall = wall
        self._system = system
        self._leave_losses = leave_losses

    # -- the election ----------------------------------------------------------------------------------

    def run(self, state: SpoolState, now: float) -> None:
        """Try to become the drainer; a process that only writes finds out who is one. Never waits."""
        state.candidacy_at = now
        election = state.election
        if election is None or state.closed or not state.election_lock.acquire(blocking=False):
            return
        won = False
        try:
            if self._may_drain:
                won = not election.draining and election.attempt()
            else:
                election.observe()
            state.holder = election.holder
        except OSError:
            return
        finally:
            state.election_lock.release()
        if won:
            state.notify_claimers()

    def run_again(self, state: SpoolState) -> None:
        """Call `run` unless this process did so a moment ago; nothing for a process that only writes."""
        if not self._may_drain:
            return
        now = self._clock()
        if now >= state.candidacy_at + CANDIDACY_ON_PUT:
            self.run(state, now)

    def _take_over(self, state: SpoolState) -> None:
        directory = state.directory
        assert directory is not None
        state.last_work_at = self._clock()
        if state.writer is not None:
            try:
                state.writer.forget_removed()
            except OSError:
                pass  # the first look reports it
        boot = self._system.boot()
        before = read_status(directory)
        ages = Ages(self._max_age, clock=self._clock, wall=self._wall, before=before, boot=boot)
        state.drainer = Drainer(
            directory,
            clock=self._clock,
            wall=self._wall,
            next_id=lambda: next(state.ids),
            forget=lambda text: None if state.writer is None else state.writer.forget(text),
            given_up=state.given_up,
            max_dead_bytes=int(self._max_bytes * DEAD_SHARE),
        )
        state.maintenance = Maintenance(
            directory,
            state.drainer,
            ages,
            max_bytes=self._max_bytes,
            max_count=self._max_count,
            clock=self._clock,
            wall=self._wall,
            boot=boot,
        )

    def _step_down(self, state: SpoolState) -> None:
        """Stop draining in favour of a forwarder, once no envelope is claimed."""
        drainer, election = state.drainer, state.election
        assert drainer is not None
        assert election is not None
        if drainer.claimed:
            return
        losses = losses_of_drainer(drainer)
        drainer.close()
        state.drainer = state.maintenance = None
        if losses:
            self._leave_losses(losses)
        election.resign()

    # -- looking ---------------------------------------------------------------------------------------

    def next_look(self, state: SpoolState, now: float, pause: float) -> tuple[float, bool]:
        """Return the time of the next look, and True if a put must wake the claimer before it.

        Args:
            state: The state of this process.
            now: Monotonic seconds.
            pause: Seconds; doubled by the caller with each look that found nothing.
        """
        drainer = state.drainer
        if drainer is not None:
            parked = pause >= LOOK_LAST / 2
            if pause >= LOOK_LAST and now >= state.last_work_at + QUIET_AFTER:
                pause = LOOK_QUIET
            until = now + pause
            return min(until, drainer.next_retry) if drainer.next_retry > now else until, parked
        if state.failure is not None:
            return now + RECOVERY, True
        return max(now + LOOK_FIRST, state.candidacy_at + CANDIDACY), False

    def look(self, state: SpoolState, limit: int, now: float) -> list[Claim]:
        """Do the work that is due; return up to `limit` claims from the disk if this process drains."""
        if state.writer is not None:
            state.writer.prepare()
        if state.drainer is None:
            if now >= state.candidacy_at + CANDIDACY:
                self.run(state, now)
            if state.election is not None and state.election.draining:
                self._take_over(state)
            elif now >= state.status_read_at + CANDIDACY:
                self._read_status(state, now)
        claims = [] if state.drainer is None else self._drain(state, state.drainer, limit, now)
        state.may_have_backlog = False
        return claims

    def _drain(self, state: SpoolState, drainer: Drainer, limit: int, now: float) -> list[Claim]:
        assert state.maintenance is not None
        if state.retry_now:
            state.retry_now = False
            drainer.retry_now()
        if now >= state.forwarder_check_at:
            state.forwarder_check_at = now + CANDIDACY
            assert state.election is not None
            state.yielding = state.election.preferred_elsewhere
        if state.yielding:
            self._step_down(state)
            return []
        entries: list[Entry] = []
        try:
            drainer.scan(working=state.had_work)
            state.maintenance.round()
            entries = drainer.take(limit)
        except OSError as error:
            state.record_failure(describe_error(error), self._clock())
        state.had_work = bool(entries)
        if entries:
            state.last_work_at = now
        elif limit:
            state.maintenance.sync_backlog()
        wall = self._wall()
        return [
            Claim(
                entry.id,
                entry.sealed,
                entry.attempts - 1,
                now - max(0.0, wall - entry.created_ms / 1000),
                entry.faults,
            )
            for entry in entries
            if entry.sealed is not None
        ]

    def _read_status(self, state: SpoolState, now: float) -> None:
        state.status_read_at = now
        if state.directory is None:
            return
        status = read_status(state.directory)
        if status is not None and (state.status is None or status.at != state.status.at):
            state.status = status
            state.puts_at_status = state.puts


def losses_of_drainer(drainer: Drainer) -> Report:
    """Return the losses that the drainer has counted and not reported yet."""
    return tuple((reason, category, n) for (reason, category), n in drainer.losses.items())
