"""The forwarder: drains spools from its own process, so that app processes only write.

This module owns the set of identities that it serves, and an end at which requests in flight are answered
first. `pacing.py` delivers one identity at a pace. The spool prefers a forwarder to all other processes
(`queues/spool/election.py`).

Threads: `run` belongs to one thread; `stop` and `reload` may be called from any, and from signal handlers;
`health`, `healths` and `served` are snapshots for any thread.
"""

from __future__ import annotations

import dataclasses
import os
import select
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from transport_kit.config.dsn import Dsn
from transport_kit.config.options import TransportOptions
from transport_kit.forwarder.pacing import REPLAY_INTERVAL, REPLAY_RUN, Pace, Rate
from transport_kit.queues.spool import FileSpool
from transport_kit.queues.spool.directory import identities_in, identity_of, open_directory, read_credentials
from transport_kit.queues.spool.inspection import Inspection
from transport_kit.queues.spool.system import System
from transport_kit.runtime.errors import OptionsError
from transport_kit.runtime.log import log
from transport_kit.transport.base import Transport
from transport_kit.transport.factory import spool_arguments
from transport_kit.transport.health import Health
from transport_kit.transport.http import HttpTransport

__all__ = ["Event", "Forwarder", "ForwarderView", "Summary"]

#: Seconds between two looks for new identities, and between two checks of a wait.
LOOK_EVERY: Final = 1.0
PULSE: Final = 0.02
#: Seconds that `run(once=True)` continues while nothing is delivered.
PATIENCE: Final = 10.0

#: A callback for events of a run: the event's name, and facts without secrets.
Event = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of a run.

    Attributes:
        delivered: Delivered quantities by category.
        discarded: Discarded quantities by reason and category.
        left: The reason that envelopes were left, by identity.
    """

    delivered: Mapping[str, int]
    discarded: Mapping[str, Mapping[str, int]]
    left: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """True if nothing was left."""
        return not self.left


class Served:
    """The transport, the spool and the pace of one identity."""

    def __init__(self, dsn: Dsn, options: TransportOptions, path: str, pace: Pace) -> None:
        self.pace = pace
        # Assigned once, while the transport is built: a forwarder does not fork.
        self.spool: FileSpool

        def make_queue() -> FileSpool:
            self.spool = FileSpool(path, identity_of(dsn), **spool_arguments(options), forwarder=True)
            return self.spool

        self.transport = HttpTransport(
            dsn, options, make_queue=make_queue, on_answer=pace.record_answer, gate=pace
        )

    @property
    def in_flight(self) -> bool:
        """True while a request has no answer."""
        return self.spool.stats().claimed > 0

    def end(self) -> None:
        """Claim no more."""
        self.pace.end()
        self.spool.wake()

    def request_report(self) -> None:
        """Send the known losses now; `reporting` is False once that has ended."""
        self.transport.worker.want_report()

    @property
    def reporting(self) -> bool:
        """True while losses are to be reported."""
        return self.transport.worker.reporting

    @property
    def empty(self) -> bool:
        """True if this process drains the spool and knows that no envelope waits in it."""
        facts, stats = self.spool.facts(), self.spool.stats()
        status = facts.status
        return (
            facts.draining
            and not stats.waiting + stats.claimed
            and status is not None
            and status.pid == os.getpid()
            and status.complete
            and status.pending == 0
        )

    def health(self, waiting: int | None = None) -> Health:
        """Return the transport's health, with the wait that the pace imposes.

        Args:
            waiting: The number of envelopes that wait for all servers together; None for this one's.
        """
        health = self.transport.health()
        total = health.waiting if waiting is None else waiting
        return dataclasses.replace(health, paced=self.pace.paced(total if health.waiting else 0))

    def why_left(self) -> str:
        """Return the reason that envelopes wait."""
        if not self.spool.facts().draining:
            return "another process drains it"
        return "; ".join(self.health().reasons) or "envelopes wait"


class Forwarder:
    """Delivers the envelopes of all spools in a directory, each to its own DSN.

    Args:
        path: The spool's directory.
        options: Options of every transport that it makes.
        dsns: Returns the DSNs of the call; called at the start and for each reload. Any other identity uses
            the DSN that its apps stored with `spool_credentials`, and waits if they stored none.
        max_rate: Envelopes a second, all identities together.
        interval: See `Pace`.
        run: See `Pace`.
        patience: Seconds that `run(once=True)` continues while nothing is delivered.
        wait: True to wait for a directory that is missing or can't be read; False to raise an error.
        on_event: Called with each event of the run, on the thread of `run`.

    Raises:
        OptionsError: An option is out of range.
    """

    def __init__(
        self,
        path: str,
        options: TransportOptions,
        *,
        dsns: Callable[[], Iterable[Dsn]] = tuple,
        max_rate: float | None = None,
        interval: float = REPLAY_INTERVAL,
        run: int = REPLAY_RUN,
        patience: float = PATIENCE,
        wait: bool = False,
        on_event: Event = lambda word, facts: None,
    ) -> None:
        if max_rate is not None and not 0 < max_rate < float("inf"):  # NaN fails too
            raise OptionsError("max_rate", "must be above 0")
        self.path = path
        self._options = options
        self._dsns = dsns
        self._rate = Rate(max_rate)
        self._interval = interval
        self._run = run
        self._patience = patience
        self._may_wait = wait
        self._on_event = on_event
        self._system = System()
        # Only the thread of `run` assigns these four, each dict as a whole and never changed; any thread
        # reads them. The first is the reason that the directory can't be used, the others are by identity.
        self._unusable: str | None = "the directory was not read yet"
        self._served: dict[str, Served] = {}
        self._waiting: dict[str, str] = {}
        self._configured: dict[str, Dsn] = {}
        # A signal handler writes a byte to a pipe and takes no lock, which the interrupted thread may hold.
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stops = 0
        self._reload = False

    def close(self) -> None:
        """Close the pipe that wakes a run; to be called after the run."""
        read_end, write_end = self._read_end, self._write_end
        self._read_end = self._write_end = -1
        for fd in (read_end, write_end):
            if fd >= 0:
                os.close(fd)

    # -- from signal handlers --------------------------------------------------------------------------

    def stop(self) -> None:
        """End the run when the requests in flight are answered; a second call ends it at once."""
        self._stops += 1
        self._wake()

    def reload(self) -> None:
        """Read DSNs, stored credentials and certificates anew."""
        self._reload = True
        self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._write_end, b"!")
        except OSError:
            pass  # the pipe is full: the run is awake; or it is closed: the run is over

    def _wait(self, seconds: float) -> None:
        ready, _, _ = select.select([self._read_end], [], [], seconds)
        if ready:
            os.read(self._read_end, 4096)

    # -- the run ---------------------------------------------------------------------------------------

    def run(self, *, once: bool = False) -> Summary:
        """Deliver until `stop`; with `once` until nothing waits, or nothing can be delivered.

        Raises:
            OptionsError: The directory can't be trusted; or it is missing or can't be read, unless the
                forwarder waits for it; or a DSN of the call can't be used.
        """
        self._configured = {identity_of(dsn): dsn for dsn in self._dsns()}
        self._look(first=True, once=once)
        stuck_since: dict[str, float] = {}
        looked = time.monotonic()
        while not self._stops:
            if once and self._is_finished(stuck_since):
                break
            self._wait(PULSE if once else LOOK_EVERY)
            if self._reload:
                self._reload = False
                self._reload_dsns()
            elif time.monotonic() >= looked + LOOK_EVERY:
                looked = time.monotonic()
                self._look()
        return self._end(once)

    def _end(self, once: bool) -> Summary:
        left: dict[str, str] = {}
        if once:
            left = {name: why for name, why in self._waiting.items() if self._has_waiting(name)}
            left |= {name: each.why_left() for name, each in self._served.items() if not each.empty}
        served = self._served
        self._settle(served.values())
        combined = Health.combine(each.health() for each in served.values())
        return Summary(combined.delivered, combined.discarded_by_category, left)

    def _has_waiting(self, identity: str) -> bool:
        """Return True if envelopes of an identity that is not served wait, or may wait."""
        try:
            with Inspection(self.path, identity, self._system) as inspection:
                return next(inspection.waiting(), None) is not None
        except (OptionsError, OSError):
            return True

    def _settle(self, served: Iterable[Served]) -> None:
        """Claim no more, wait for the requests in flight, report losses, and close.

        Loss counts that no server has received by then are left in the spool.
        """
        ending = list(served)
        for each in ending:
            each.end()
        max_stops = max(self._stops, 1)
        deadline = time.monotonic() + self._options.shutdown_timeout
        if self._wait_while(lambda: any(each.in_flight for each in ending), deadline, max_stops):
            for each in ending:
                each.request_report()
            self._wait_while(lambda: any(each.reporting for each in ending), deadline, max_stops)
        else:
            log.warning("requests in flight were given up; what they carry is sent again later")
        for each in ending:
            each.transport.close(0.0)

    def _wait_while(self, busy: Callable[[], bool], deadline: float, max_stops: int) -> bool:
        """Wait while `busy()`; return False after `deadline`, or more than `max_stops` calls of `stop`."""
        while busy():
            left = deadline - time.monotonic()
            if left <= 0 or self._stops > max_stops:
                return False
            self._wait(min(PULSE, left))
        return True

    def _is_finished(self, stuck_since: dict[str, float]) -> bool:
        """Return True if every spool is empty, or has delivered nothing for `patience` seconds."""
        now = time.monotonic()
        for identity, each in self._served.items():
            if each.empty:
                continue
            health = each.health()
            if each.spool.facts().draining and not health.failing and health.problem is None:
                stuck_since.pop(identity, None)
                return False
            if now - stuck_since.setdefault(identity, now) < self._patience:
                return False
        return True

    # -- identities ------------------------------------------------------------------------------------

    def _look(self, *, first: bool = False, once: bool = False) -> None:
        """Start to serve identities that are new in the directory or among the DSNs of the call."""
        names: list[str] = []
        unusable: str | None = None
        try:
            names = identities_in(self._system, self.path)
        except OptionsError as error:
            if first:
                raise
            unusable = str(error)  # the identities served so far continue: their descriptors are open
        except OSError as error:
            # An empty directory is a spool that no app has used yet.
            if isinstance(error, FileNotFoundError) and os.path.isdir(self.path):
                if once and not self._configured:
                    raise OptionsError("DIR", f"{self.path} is no spool", "command line") from None
            else:
                missing = isinstance(error, FileNotFoundError | NotADirectoryError)
                unusable = "directory missing" if missing else f"directory unreadable: {error.strerror}"
                if first and not self._may_wait:
                    raise OptionsError(
                        "DIR", f"{self.path} is no spool: {unusable}", "command line"
                    ) from None
        if unusable is not None and unusable != self._unusable:
            log.warning("%s; the forwarder waits for it: %s", unusable, self.path)
        self._unusable = unusable
        # Serving a DSN of the call would make the directory, perhaps beside the one that the apps use.
        configured = self._configured if unusable is None else ()
        waiting: dict[str, str] = {}
        served = dict(self._served)
        for identity in dict.fromkeys((*configured, *names)):
            if identity in served:
                continue
            try:
                dsn = self._configured.get(identity) or self._stored_dsn(identity)
                if dsn is None:
                    waiting[identity] = "no DSN is given for it, and none is stored (spool_credentials)"
                else:
                    served[identity] = self._serve(identity, dsn)
            except (OptionsError, OSError) as error:
                if first and isinstance(error, OptionsError) and identity in self._configured:
                    raise
                waiting[identity] = error.strerror or "" if isinstance(error, OSError) else str(error)
        for identity, why in waiting.items():
            if self._waiting.get(identity) != why:
                log.warning("the spool of %s waits: %s", identity, why)
                self._on_event("waiting", {"identity": identity, "why": why})
        self._served, self._waiting = served, waiting

    def _stored_dsn(self, identity: str) -> Dsn | None:
        directory = open_directory(
            self._system, self.path, identity, force=self._options.spool_force, make=False
        )
        try:
            return read_credentials(directory, identity)
        finally:
            directory.close()

    def _serve(self, identity: str, dsn: Dsn) -> Served:
        pace = Pace(self._rate, interval=self._interval, run=self._run)
        served = Served(dsn, self._options, self.path, pace)
        served.transport.start()
        self._on_event("serving", {"identity": identity, "dsn": str(dsn)})
        return served

    def _reload_dsns(self) -> None:
        """Read the DSNs and begin anew; after an error in the DSNs of the call everything stays as it is."""
        try:
            configured = {identity_of(dsn): dsn for dsn in self._dsns()}
        except (OptionsError, OSError) as error:
            log.error("not reloaded: %s", error)
            self._on_event("not reloaded", {"why": str(error)})
            return
        served, self._served = self._served, {}
        self._settle(served.values())
        self._configured, self._waiting = configured, {}
        self._on_event("reloaded", {})
        self._look()

    # -- snapshots -------------------------------------------------------------------------------------

    @property
    def served(self) -> Mapping[str, Dsn]:
        """The DSNs of the identities that are served."""
        return {identity: each.transport.dsn for identity, each in self._served.items()}

    @property
    def waiting(self) -> Mapping[str, str]:
        """The reason that an identity is not served, by identity."""
        return self._waiting

    @property
    def ready(self) -> bool:
        """True if the directory can be used."""
        return self._unusable is None

    def healths(self) -> dict[str, Health]:
        """Return the health of each identity that is served."""
        served = self._served
        waiting = sum(each.spool.stats().waiting for each in served.values())
        return {identity: each.health(waiting) for identity, each in served.items()}

    def health(self) -> Health:
        """Return one health for all identities: sums, the worst figure, and each identity's own.

        The status is `fail` if every identity fails.
        """
        healths = self.healths()
        problems = [f"{identity} waits: {why}" for identity, why in self._waiting.items()]
        if self._unusable is not None:
            problems.append(self._unusable)
        elif not healths and not problems:
            problems.append("there is nothing to forward yet")
        for identity, each in healths.items():
            problems += [f"{identity}: {reason}" for reason in each.reasons]
        failing = healths and all(each.status == "fail" for each in healths.values())
        combined = Health.combine(healths.values())
        return dataclasses.replace(
            combined,
            state="draining" if self._stops else "running",
            kind=type(self).__name__,
            spool={
                "path": self.path,
                "identities": {identity: each.spool for identity, each in healths.items()},
                "waiting": dict(self._waiting),
                "problems": problems,
            },
            problem="no identity can be delivered" if failing else None,
        )


class ForwarderView(Transport):
    """A forwarder as a `Transport`, for routes that answer with a transport's health."""

    def __init__(self, forwarder: Forwarder) -> None:
        super().__init__()
        self._forwarder = forwarder

    def health(self) -> Health:
        return self._forwarder.health()
