"""What a process does for the spool beside writing: runs for the drain, drains, leaves it to a forwarder.

Owns the decision who drains as far as this process has a say, how often it looks, and one look's order of
work. Who won is `election.py`'s, draining is `drainer.py`'s and `maintenance.py`'s; memory is not its
business.

Threads: `run` may be called by any thread, from `put` too; all else wants the lock of the `SpoolState` it is
given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from transport_kit.envelope.losses import Report
from transport_kit.queues.protocol import Claim
from transport_kit.queues.spool.drainer import Drainer
from transport_kit.queues.spool.maintenance import Ages, Maintenance
from transport_kit.queues.spool.segment_reader import Entry
from transport_kit.queues.spool.state import RECOVERY, SpoolState, words
from transport_kit.queues.spool.status import read_status
from transport_kit.queues.spool.system import System

__all__ = ["DrainLoop", "LOOK_FIRST", "LOOK_LAST", "LOOK_QUIET", "losses_of_drainer", "PUTS_A_CANDIDACY"]

#: Seconds between two looks of the drainer: the shortest, while work comes, and the longest.
LOOK_FIRST: Final = 0.005
LOOK_LAST: Final = 0.25
#: Seconds without work after which the drainer looks less often: a capture of its own process still wakes it.
QUIET_AFTER: Final = 5.0
LOOK_QUIET: Final = 1.0
#: Seconds between two candidacies of a process that does not drain, in `claim`; and on a put. Of those only
#: each so-many-th looks at the clock: a process that puts less often has time to claim.
CANDIDACY: Final = 0.99
CANDIDACY_ON_PUT: Final = 0.1
PUTS_A_CANDIDACY: Final = 16
#: Dead letters may take this share of `max_bytes`.
DEAD_SHARE: Final = 1 / 8


class DrainLoop:
    """See the module.

    Args:
        may_drain: Whether this process runs for the drain at all.
        max_bytes, max_count, max_age: As `FileSpool` has them.
        clock: Monotonic seconds.
        wall: Epoch seconds.
        system: The operating system.
        leave_losses: Called with what a drainer that steps down had counted.
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

    def run(self, life: SpoolState, now: float) -> None:
        """Try to become the drainer; a process that only writes finds out who is one. Never waits."""
        life.candidacy_at = now
        election = life.election
        if election is None or life.closed or not life.electing.acquire(blocking=False):
            return
        won = False
        try:
            if self._may_drain:
                won = not election.held and election.attempt()
            else:
                election.observe()
            life.holder = election.holder
        except OSError:
            return
        finally:
            life.electing.release()
        if won:
            life.poke()

    def run_again(self, life: SpoolState) -> None:
        """Call `run` unless this process did so a moment ago; nothing for a process that only writes."""
        if not self._may_drain:
            return
        now = self._clock()
        if now >= life.candidacy_at + CANDIDACY_ON_PUT:
            self.run(life, now)

    def _take_over(self, life: SpoolState) -> None:
        directory = life.directory
        assert directory is not None
        life.worked_at = self._clock()
        if life.writer is not None:
            try:
                life.writer.forget_removed()
            except OSError:
                pass  # the first look will say so
        boot = self._system.boot()
        before = read_status(directory)
        ages = Ages(self._max_age, clock=self._clock, wall=self._wall, before=before, boot=boot)
        life.drainer = Drainer(
            directory,
            clock=self._clock,
            wall=self._wall,
            next_id=lambda: next(life.ids),
            forget=lambda text: None if life.writer is None else life.writer.forget(text),
            max_dead_bytes=int(self._max_bytes * DEAD_SHARE),
        )
        life.upkeep = Maintenance(
            directory,
            life.drainer,
            ages,
            max_bytes=self._max_bytes,
            max_count=self._max_count,
            clock=self._clock,
            wall=self._wall,
            boot=boot,
        )

    def _step_down(self, life: SpoolState) -> None:
        """A forwarder came: leave it to that one, as soon as nothing is in our hands."""
        drainer, election = life.drainer, life.election
        assert drainer is not None
        assert election is not None
        if drainer.claimed:
            return
        losses = losses_of_drainer(drainer)
        drainer.close()
        life.drainer = life.upkeep = None
        if losses:
            self._leave_losses(losses)
        election.resign()

    # -- looking ---------------------------------------------------------------------------------------

    def next_look(self, life: SpoolState, now: float, pause: float) -> tuple[float, bool]:
        """When to look again, and whether a put must say so because that is far off.

        Args:
            pause: Seconds, as grown since the last work.
        """
        drainer = life.drainer
        if drainer is not None:
            parked = pause >= LOOK_LAST / 2
            if pause >= LOOK_LAST and now >= life.worked_at + QUIET_AFTER:
                pause = LOOK_QUIET
            until = now + pause
            return min(until, drainer.next_retry) if drainer.next_retry > now else until, parked
        if life.why is not None:
            return now + RECOVERY, True
        return max(now + LOOK_FIRST, life.candidacy_at + CANDIDACY), False

    def look(self, life: SpoolState, limit: int, now: float) -> list[Claim]:
        """Do what is due; up to `limit` envelopes of the disk, if this process drains."""
        if life.writer is not None:
            life.writer.prepare()
        if life.drainer is None:
            if now >= life.candidacy_at + CANDIDACY:
                self.run(life, now)
            if life.election is not None and life.election.held:
                self._take_over(life)
            elif now >= life.status_read + CANDIDACY:
                self._read_status(life, now)
        claims = [] if life.drainer is None else self._drain(life, life.drainer, limit, now)
        life.unread = False
        return claims

    def _drain(self, life: SpoolState, drainer: Drainer, limit: int, now: float) -> list[Claim]:
        assert life.upkeep is not None
        if life.retry_now:
            life.retry_now = False
            drainer.retry_now()
        if now >= life.yield_at:
            life.yield_at = now + CANDIDACY
            assert life.election is not None
            life.leaving = life.election.preferred_elsewhere
        if life.leaving:
            self._step_down(life)
            return []
        entries: list[Entry] = []
        try:
            drainer.scan(working=life.working)
            life.upkeep.round()
            entries = drainer.take(limit)
        except OSError as error:
            life.have_trouble(words(error), self._clock())
        life.working = bool(entries)
        if entries:
            life.worked_at = now
        elif limit:
            life.upkeep.sync_backlog()
        wall = self._wall()
        return [
            Claim(
                entry.id,
                entry.sealed,
                entry.attempts - 1,
                now - max(0.0, wall - entry.created_ms / 1000),
            )
            for entry in entries
            if entry.sealed is not None
        ]

    def _read_status(self, life: SpoolState, now: float) -> None:
        life.status_read = now
        if life.directory is None:
            return
        status = read_status(life.directory)
        if status is not None and (life.status is None or status.at != life.status.at):
            life.status = status
            life.puts_at_status = life.puts


def losses_of_drainer(drainer: Drainer) -> Report:
    """What it counted and nobody was told of yet."""
    return tuple((reason, category, n) for (reason, category), n in drainer.losses.items())
