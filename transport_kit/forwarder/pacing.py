"""The pace of a forwarder: an upper bound for all servers, and slow replay to a server after an outage.

Owns the pace, and the spool and transport that observe it. The transport delivers with the same worker as in
an app; `forwarder.py` chooses the identities.

Threads: any; `ending` is set by the forwarder's thread, and read by senders.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from transport_kit.config.dsn import Dsn
from transport_kit.config.options import TransportOptions
from transport_kit.queues.protocol import Claim
from transport_kit.queues.spool import FileSpool
from transport_kit.queues.spool.directory import identity_of
from transport_kit.transport.factory import spool_arguments
from transport_kit.transport.http import HttpTransport
from transport_kit.transport.wire.exchange import ExchangeError, Response

__all__ = ["Pace", "PacedSpool", "PacedTransport", "Rate", "REPLAY_INTERVAL", "REPLAY_RUN"]

#: Seconds between two envelopes after an outage, and the number of envelopes that go out so.
REPLAY_INTERVAL: Final = 0.1
REPLAY_RUN: Final = 50
#: Least seconds from the first to the last failure of an outage, and the least number of its failures.
OUTAGE: Final = 5.0
OUTAGE_FAILURES: Final = 3


class Rate:
    """An upper bound on the envelopes a second of all senders that share it.

    Args:
        per_second: Envelopes a second; None for no bound.

    Threads: any. The bound holds on average: two senders that call `wait` at the same moment may both send;
    the next ones then wait longer.
    """

    def __init__(self, per_second: float | None) -> None:
        self._interval = 0.0 if per_second is None else 1.0 / per_second
        self._lock = threading.Lock()
        self._next = 0.0  # guarded by `_lock`

    def wait(self, now: float) -> float:
        """Return the seconds until the next envelope may be sent; 0 or less means now."""
        return self._next - now

    def wait_of(self, envelopes: int, now: float) -> float:
        """Return the seconds until the last of so many waiting envelopes may be sent; 0 means now."""
        return max(0.0, self._next - now) + self._interval * max(0, envelopes - 1) if envelopes else 0.0

    def record_send(self, now: float) -> None:
        """Count one envelope as sent."""
        with self._lock:
            self._next = max(self._next, now) + self._interval


class Pace:
    """The pace of one server: the shared bound, and slow replay after an outage.

    After an outage every client has a backlog, which would overload the server. So for `interval * run`
    seconds after the first answer envelopes are sent `interval` apart. An outage is `OUTAGE_FAILURES`
    failures or more, without an answer in between, over `OUTAGE` seconds or more: after a shorter trouble
    nobody has much of a backlog. During the outage the breaker permits one probe at a time.

    Envelopes are charged for during slow replay only, and no charge outlasts it.

    Args:
        rate: The bound that all servers share.
        interval: Seconds between two envelopes.
        run: Number of envelopes.

    Threads: any. Times are monotonic seconds.
    """

    def __init__(self, rate: Rate, *, interval: float = REPLAY_INTERVAL, run: int = REPLAY_RUN) -> None:
        self._rate = rate
        self._interval = interval
        self._slow_seconds = interval * run
        self._lock = threading.Lock()
        # `_lock` guards the following.
        self._failures = 0  # since the last answer
        self._first_failure = self._last_failure = 0.0  # of these failures
        self._slow_until = float("-inf")
        self._next = float("-inf")  # time of the next envelope during slow replay

    def slow_for(self, now: float) -> float:
        """Return the seconds of slow replay that are left; 0 without."""
        return max(0.0, self._slow_until - now)

    def wait(self, now: float) -> float:
        """Return the seconds until the next envelope may be sent; 0 or less means now."""
        with self._lock:
            replay = min(self._next, self._slow_until) - now
        return max(self._rate.wait(now), replay)

    def paced(self, now: float, waiting: int) -> float | None:
        """Return the seconds for which this pace delays envelopes; None if it does not.

        Args:
            now: The time.
            waiting: The number of envelopes that wait for all servers together.
        """
        seconds = max(self.slow_for(now), self._rate.wait_of(waiting, now))
        return seconds if seconds > 0 else None

    def record_send(self, now: float) -> None:
        """Count one envelope as sent."""
        self._rate.record_send(now)
        with self._lock:
            if now < self._slow_until:
                self._next = max(self._next, now) + self._interval

    def succeeded(self, now: float) -> None:
        """Record an answer of the server; the first one after an outage begins slow replay."""
        with self._lock:
            failures, self._failures = self._failures, 0
            if failures >= OUTAGE_FAILURES and self._last_failure - self._first_failure >= OUTAGE:
                self._slow_until = now + self._slow_seconds
                self._next = now

    def failed(self, now: float) -> None:
        """Record that the server could not be reached, or answered with a status to retry."""
        with self._lock:
            if not self._failures:
                self._first_failure = now
            self._failures += 1
            self._last_failure = now


class PacedSpool(FileSpool):
    """A spool that hands out envelopes at a pace, and none once `ending` is set.

    `claim` observes the pace, so that a sender never holds an envelope while it waits: a kill of the
    forwarder duplicates the claimed envelopes.
    """

    def __init__(
        self,
        *arguments: Any,
        pace: Pace,
        pace_clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        self._pace = pace
        self._pace_clock = pace_clock
        self.ending = False
        super().__init__(*arguments, **options)

    def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
        wait = self._pace.wait(self._pace_clock())
        if limit and (self.ending or wait > 0):
            # A claim of none still enforces the bounds, takes part in the election and publishes status.
            return super().claim(0, timeout if self.ending else min(wait, timeout))
        claims = super().claim(limit, timeout)
        if claims and self.ending:
            self.release(claims)
            return []
        for _ in claims:
            self._pace.record_send(self._pace_clock())
        return claims


class PacedTransport(HttpTransport):
    """A transport that reports each answer of the server to its pace."""

    def __init__(self, dsn: Dsn, options: TransportOptions, path: str, pace: Pace) -> None:
        self.pace = pace
        # Assigned once, while the transport is built: a forwarder does not fork.
        self.spool: PacedSpool

        def make_queue() -> FileSpool:
            self.spool = PacedSpool(
                path, identity_of(dsn), **spool_arguments(options), forwarder=True, pace=pace
            )
            return self.spool

        super().__init__(dsn, options, make_queue=make_queue)

    def _request(self, pool: Any, body: Any, headers: Any, *old: Any, timeout: float) -> Response:
        try:
            response = super()._request(pool, body, headers, *old, timeout=timeout)
        except ExchangeError:
            self.pace.failed(time.monotonic())
            raise
        if response.status in self.options.retry_statuses:
            self.pace.failed(time.monotonic())
        else:
            self.pace.succeeded(time.monotonic())
        return response

    @property
    def in_flight(self) -> bool:
        """True while a request has no answer."""
        return self.spool.stats().claimed > 0

    def request_report(self) -> None:
        """Send the known losses now; `reporting` is False once that has ended."""
        self._states.get().worker.want_report()

    @property
    def reporting(self) -> bool:
        """True while losses are to be reported."""
        return self._states.get().worker.reporting

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

    def why_left(self) -> str:
        """Return the reason that envelopes wait."""
        if not self.spool.facts().draining:
            return "another process drains it"
        return "; ".join(self.health().reasons) or "envelopes wait"
